"""The search for the worst case, and for the simplest one that fails."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import strategies as st

from e3sparse.symmetry.structures import python_code

Case = Mapping[str, Any]
Errors = Mapping[str, float]
"""Error by quantity, as in the table of tolerances."""

_SHRINKS = 150


class _Violation(Exception):  # noqa: N818 -- not an error of ours
    """Tells hypothesis that a case fails."""


@dataclass
class Found:
    """The worst case of a search.

    Attributes
    ----------
    ratio
        Error over tolerance; above 1 the case fails.
    """

    quantity: str = ""
    error: float = 0.0
    ratio: float = -1.0
    cases: int = 0
    case: Case = field(default_factory=dict)
    reason: str = ""

    @property
    def failed(self) -> bool:
        return self.ratio > 1.0


def search(
    cases: st.SearchStrategy[Case],
    measure: Callable[[Case], Errors],
    tolerance: Callable[[str], float],
    *,
    examples: int,
    seed: int,
    stop: bool = True,
) -> Found:
    """Measure drawn cases; return the worst one, or the simplest one that fails.

    Parameters
    ----------
    cases
        Where the cases are drawn from. The same seed draws the same ones.
    measure
        Returns the errors of a case. What it raises is a failure of the case.
    tolerance
        The tolerance of a quantity; 0 means that nothing but 0 will do.
    examples
        How many cases are drawn. A case that fails is shrunk by up to 150 more.
    stop
        Whether to stop at the first failure and look for a simpler one; else the worst is found.
    """
    worst, simplest, measured = Found(), Found(), 0
    failing: dict[str, Found] = {}

    def judge(case: Case) -> Found:
        nonlocal measured
        measured += 1
        try:
            errors = measure(case)
        except Exception as raised:
            return Found("", math.inf, math.inf, 0, case, _said(raised))
        judged = Found(case=case)
        for quantity, error in errors.items():
            allowed = tolerance(quantity)
            ratio = _ratio(error, allowed)
            if ratio > judged.ratio:
                judged = Found(quantity, error, ratio, 0, case)
        return judged

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @hypothesis.given(cases)
    def run(case: Case) -> None:
        nonlocal worst, simplest
        key = "\n".join(python_code(name, value) for name, value in case.items())
        # Once the budget is spent, only what is known to fail does: hypothesis then stops.
        if key not in failing and failing and measured >= examples + _SHRINKS:
            return
        judged = failing.get(key) or judge(case)
        if judged.ratio > worst.ratio:
            worst = judged
        if judged.failed and stop:
            failing[key] = simplest = judged
            raise _Violation

    try:
        run()
    except _Violation:
        worst = simplest
    worst.cases = measured
    return worst


def _said(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"The model raised {type(error).__name__}: {text[0] if text else 'no message'}"


def _ratio(error: float, tolerance: float) -> float:
    if error == 0.0:
        return 0.0
    return error / tolerance if tolerance > 0.0 and math.isfinite(error) else math.inf
