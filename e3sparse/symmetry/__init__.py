"""Symmetry checks for any potential, for our tests and for other people's.

>>> from e3sparse import symmetry
>>> symmetry.check_equivariance(o3.Linear("4x0e+4x1o", "4x0e+4x1o"))
>>> symmetry.assert_rotation(potential, examples=100)
>>> for result in symmetry.run(potential):
...     print(result)

A potential is a backend's `Potential`, a `CalculatorSubject` for an ASE calculator, or a `Subject`
of your own: one method from structures to energies, forces and stresses. Of each check in `CHECKS`
there is a `check_<name>`, which draws cases by hypothesis and returns a `Result` with the worst of
them, or with the simplest one that fails, and an `assert_<name>`, which raises. The tolerances are
in `TOLERANCES`, each with its reason.
"""

from typing import Any

from e3sparse.potentials.single_points import Evaluation
from e3sparse.symmetry.check import Check
from e3sparse.symmetry.layers import irreps, layers, tensor_products
from e3sparse.symmetry.modules import assert_equivariance, check_equivariance
from e3sparse.symmetry.result import Result, asserting
from e3sparse.symmetry.rotations import Orthogonal, rotations
from e3sparse.symmetry.structures import spins, structures
from e3sparse.symmetry.subjects import CalculatorSubject, PotentialSubject, Subject
from e3sparse.symmetry.suite import CHECKS, identifier, run
from e3sparse.symmetry.tolerances import TOLERANCES, Tolerance

_OF_CHECKS: dict[str, Any] = {}
for _check in CHECKS.values():
    _OF_CHECKS[f"check_{identifier(_check.name)}"] = _check
    _OF_CHECKS[f"assert_{identifier(_check.name)}"] = asserting(_check)
globals().update(_OF_CHECKS)

__all__ = [
    "CHECKS",
    "TOLERANCES",
    "CalculatorSubject",
    "Check",
    "Evaluation",
    "Orthogonal",
    "PotentialSubject",
    "Result",
    "Subject",
    "Tolerance",
    "assert_equivariance",
    "asserting",
    "check_equivariance",
    "irreps",
    "layers",
    "rotations",
    "run",
    "spins",
    "structures",
    "tensor_products",
]
__all__ += list(_OF_CHECKS)


def __getattr__(name: str) -> Any:
    # For type checkers, which cannot see the names that are made of the list.
    raise AttributeError(f"module 'e3sparse.symmetry' has no attribute '{name}'")
