"""All looks, one after the other, at a model and its base."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from e3sparse.robustness.cells import RATIOS, compressions, pressures, second_minima
from e3sparse.robustness.dimers import POINTS, Curve, dimer_curves, holes, walls
from e3sparse.robustness.dynamics import NVE_SHARE, constant_energy, rising_temperature
from e3sparse.robustness.findings import Finding, Verdict
from e3sparse.robustness.forces import forces_of, of_random, of_real
from e3sparse.robustness.models import Counted, Model
from e3sparse.robustness.subjects import Pair, Subjects

LOOKS = (
    "holes in dimers",
    "short-range wall",
    "second minima",
    "pressure",
    "rising temperature",
    "constant energy",
    "random structures",
    "structures given",
)
STEPS = 1000
"""Of the dynamics at rising temperature."""


@dataclass(frozen=True)
class Outcome:
    """What all looks say.

    Attributes
    ----------
    verdicts
        One for each of `LOOKS`.
    curves
        The dimers of the model, and of the base if there is one, for a figure.
    """

    verdicts: list[Verdict]
    curves: list[Mapping[Pair, Curve]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every verdict is."""
        return all(verdict.ok for verdict in self.verdicts)

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"ok": self.ok, "looks": [verdict.as_dict() for verdict in self.verdicts]}


def evaluations(subjects: Subjects, steps: int, models: int) -> int:
    """Return how many structures `look_at` evaluates, if no dynamics end early."""
    count = POINTS * len(subjects.bonds) + len(RATIOS) * len(subjects.cells)
    count += len(subjects.random) + len(subjects.real)
    if subjects.moving is not None:
        count += steps + steps // NVE_SHARE
    return models * count


def look_at(
    model: Model,
    base: Model | None,
    subjects: Subjects,
    *,
    steps: int = STEPS,
    seed: int = 0,
    done: Callable[[int], object] = lambda count: None,
) -> Outcome:
    """Look at a model, and at its base for what held before.

    Parameters
    ----------
    model, base
        The base may be left out (None): everything is to hold then.
    subjects
        See `subjects_of`.
    steps
        Of the dynamics at rising temperature; those at constant energy have a third.
    seed
        Of the dynamics.
    done
        Is told how many structures were evaluated.
    """
    both = [Counted(one, done) for one in (model, base) if one is not None]
    curves = [dimer_curves(one, subjects.bonds) for one in both]
    verdicts = [
        _verdict("holes in dimers", [holes(curve) for curve in curves]),
        _verdict("short-range wall", [walls(curve) for curve in curves]),
    ]
    if subjects.cells:
        pressed = [compressions(one, subjects.cells) for one in both]
        verdicts += [
            _verdict("second minima", [second_minima(one) for one in pressed]),
            _verdict("pressure", [pressures(one) for one in pressed]),
        ]
    else:
        none = "no structure of these elements is known: give some with --data"
        verdicts += [Verdict(look, skipped=none) for look in ("second minima", "pressure")]
    for look, run in (
        ("rising temperature", rising_temperature),
        ("constant energy", constant_energy),
    ):
        if (start := subjects.moving) is None:
            verdicts.append(Verdict(look, skipped="nothing to move: give structures with --data"))
        else:
            verdicts.append(_verdict(look, [run(one, start, steps, seed) for one in both]))
    found = [forces_of(one, subjects.random) for one in both]
    of_base = found[1] if base is not None else None
    verdicts.append(Verdict("random structures", *of_random(found[0], of_base, subjects.random)))
    if subjects.real:
        found = [forces_of(one, subjects.real) for one in both]
        of_base = found[1] if base is not None else None
        judged = of_real(found[0], of_base, subjects.labels)
        verdicts.append(Verdict("structures given", *judged))
    else:
        verdicts.append(Verdict("structures given", skipped="none given: --data"))
    return Outcome(verdicts, list(curves))


def _verdict(look: str, findings: list[Finding]) -> Verdict:
    return Verdict(look, findings[0], findings[1] if len(findings) > 1 else None)
