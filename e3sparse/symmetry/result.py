"""What a check found, and the inputs that reproduce its worst case."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, ParamSpec

import numpy as np
from ase import Atoms

from e3sparse.potentials.spins import SPINS
from e3sparse.symmetry.structures import python_code
from e3sparse.symmetry.tolerances import tolerance_of

P = ParamSpec("P")
Status = Literal["passed", "failed", "skipped", "not claimed"]

_LONGEST = 2000
"""Characters of a counterexample that are printed; longer ones are written to a file."""


@dataclass(frozen=True)
class Result:
    """What one check found.

    Attributes
    ----------
    check
        Name of the check.
    claim
        What it tests.
    status
        `"skipped"` where the check does not apply, `"not claimed"` where the model does not
        promise what is tested; `reason` says why.
    quantity
        The quantity that is off by most, measured in its tolerance; see `tolerances`.
    error, tolerance
        Relative error of the worst case, and what it may be.
    cases
        How many cases were tried, those of the search for a simple counterexample included.
    worst
        The inputs of the worst case; of the simplest case that fails, where one does.
    reason
        A sentence for what the numbers do not say.
    """

    check: str
    claim: str
    status: Status
    quantity: str = ""
    error: float = 0.0
    tolerance: float = 0.0
    cases: int = 0
    worst: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing that the model promises was found broken."""
        return self.status != "failed"

    def reproduction(self) -> str:
        """Return the Python statements that make the inputs of the worst case."""
        return "\n".join(python_code(name, value) for name, value in self.worst.items())

    def __str__(self) -> str:
        if self.status == "skipped":
            return f"{self.check}: skipped. {self.reason}"
        unit = tolerance_of(self.quantity).unit if self.quantity else ""
        head = (
            f"{self.check}: {self.status}. {self.claim}: {self.quantity} off by {self.error:.2e} "
            f"of the largest value or {tolerance_of(self.quantity).floor:g} {unit}".rstrip()
            + f", tolerance {self.tolerance:.0e}, {self.cases} cases."
        )
        lines = [f"{head} {self.reason}".rstrip()]
        if self.status == "failed":
            code = self.reproduction()
            left = len(code) - _LONGEST
            cut = f"\n… and {left:,} characters more" if left > 0 else ""
            lines += ["Simplest case found:", code[:_LONGEST] + cut]
        return "\n".join(lines)

    def message(self) -> str:
        """Return the result as text, with a long counterexample whole in a file that it names."""
        code = self.reproduction()
        if self.status != "failed" or len(code) <= _LONGEST:
            return str(self)
        name = self.check.replace(" ", "-")
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", prefix=f"e3sparse-{name}-", suffix=".py", delete=False
        ) as file:
            file.write(f"{code}\n")
        return f"{self}; the whole is in {file.name}"

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON types; infinite errors become None."""
        return {
            "check": self.check,
            "claim": self.claim,
            "status": self.status,
            "quantity": self.quantity,
            "error": self.error if np.isfinite(self.error) else None,
            "tolerance": self.tolerance,
            "cases": self.cases,
            "reason": self.reason,
            "worst": {name: _plain(value) for name, value in self.worst.items()},
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Atoms):
        plain = {
            "numbers": value.numbers.tolist(),
            "positions": value.positions.tolist(),
            "cell": value.cell.array.tolist(),
            "pbc": value.pbc.tolist(),
        }
        if SPINS in value.arrays:
            plain[SPINS] = value.arrays[SPINS].tolist()
        return plain
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool | int | float | str):
        return value
    return repr(value)


def asserting(check: Callable[P, Result]) -> Callable[P, None]:
    """Return the twin of a check that raises `AssertionError` with the simplest counterexample."""

    def assertion(*args: P.args, **kwargs: P.kwargs) -> None:
        result = check(*args, **kwargs)
        if not result.ok:
            raise AssertionError(result.message())

    assertion.__doc__ = (
        f"Raise what the check finds; its parameters are those of the check.\n\n{check.__doc__}"
    )
    return assertion
