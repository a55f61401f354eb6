"""What was found of one model, and what follows of two."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any


@dataclass(frozen=True)
class Finding:
    """What a look found of one model.

    Attributes
    ----------
    said
        In words, for a cell of a table.
    failures
        Where it fails, and how badly: more is worse. Empty if all holds.
    slack
        What is worse by no more than this than the base is as bad as the base.
    figures
        Numbers by name, with their units in the names.
    """

    said: str
    failures: Mapping[str, float] = field(default_factory=dict)
    slack: float = 0.0
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What a look says of a model, next to its base if one is given.

    Attributes
    ----------
    look
        Its name.
    model, base
        What was found of each; no base means that the model is judged alone.
    skipped
        Why it was not looked at, else empty.
    """

    look: str
    model: Finding | None = None
    base: Finding | None = None
    skipped: str = ""

    @property
    def lost(self) -> list[str]:
        """Where the model fails and the base does not, or less badly."""
        if self.model is None:
            return []
        known = self.base.failures if self.base is not None else {}
        # What is not a number is worse than anything.
        return [
            where
            for where, bad in self.model.failures.items()
            if where not in known or not bad <= known[where] + self.model.slack
        ]

    @property
    def ok(self) -> bool:
        """Whether nothing that held for the base is lost; without a base, whether all holds."""
        return not self.lost

    @property
    def word(self) -> str:
        """The verdict in a word or two."""
        if self.model is None:
            return "not looked at"
        if self.lost:
            return "lost" if self.base is not None else "fails"
        return "no worse than the base" if self.model.failures else "holds"

    def __str__(self) -> str:
        where = f" ({', '.join(self.lost)})" if self.lost else ""
        return f"{self.look}: {self.word}{where}"

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {
            "look": self.look,
            "verdict": self.word,
            "ok": self.ok,
            "lost": self.lost,
            "skipped": self.skipped,
            "model": None if self.model is None else _plain(self.model),
            "base": None if self.base is None else _plain(self.base),
        }


def _plain(finding: Finding) -> dict[str, Any]:
    """Return a finding with None for what JSON has no number for."""

    def finite(values: Mapping[str, float]) -> dict[str, float | None]:
        return {name: value if isfinite(value) else None for name, value in values.items()}

    return {
        "said": finding.said,
        "failures": finite(finding.failures),
        "figures": finite(finding.figures),
    }


def some(names: Sequence[str], most: int = 3) -> str:
    """Return a few names, and how many there are besides."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
