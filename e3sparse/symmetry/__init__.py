"""Symmetry checks for any potential, for our tests and for other people's.

>>> from e3sparse import symmetry
>>> symmetry.check_equivariance(o3.Linear("4x0e+4x1o", "4x0e+4x1o"))
>>> symmetry.assert_rotation(potential, examples=100)
>>> for result in symmetry.run(potential):
...     print(result)

A potential is a backend's `Potential`, a `CalculatorSubject` for an ASE calculator, or a `Subject`
of your own: one method from structures to energies, forces and stresses. Each `check_…` draws
cases by hypothesis and returns a `Result` with the worst of them, or with the simplest one that
fails; its `assert_…` twin raises. The tolerances are in `TOLERANCES`, each with its reason.
"""

from e3sparse.potentials.single_points import Evaluation
from e3sparse.symmetry.check import Check
from e3sparse.symmetry.derivatives import (
    check_conservation,
    check_cutoff,
    check_forces,
    check_stress,
)
from e3sparse.symmetry.dtypes import check_dtype
from e3sparse.symmetry.invariances import (
    check_batch,
    check_cross_frame_gradients,
    check_inversion,
    check_isolated_atoms,
    check_periodic_images,
    check_permutation,
    check_rotation,
    check_supercell,
    check_translation,
)
from e3sparse.symmetry.layers import irreps, layers, tensor_products
from e3sparse.symmetry.modules import assert_equivariance, check_equivariance
from e3sparse.symmetry.result import Result, asserting
from e3sparse.symmetry.rotations import Orthogonal, rotations
from e3sparse.symmetry.structures import spins, structures
from e3sparse.symmetry.subjects import CalculatorSubject, PotentialSubject, Subject
from e3sparse.symmetry.suite import CHECKS, run
from e3sparse.symmetry.time_reversal import (
    check_magnetic_forces,
    check_spin_rotation,
    check_time_reversal,
)
from e3sparse.symmetry.tolerances import TOLERANCES, Tolerance

assert_batch = asserting(check_batch)
assert_conservation = asserting(check_conservation)
assert_cross_frame_gradients = asserting(check_cross_frame_gradients)
assert_cutoff = asserting(check_cutoff)
assert_dtype = asserting(check_dtype)
assert_forces = asserting(check_forces)
assert_inversion = asserting(check_inversion)
assert_isolated_atoms = asserting(check_isolated_atoms)
assert_magnetic_forces = asserting(check_magnetic_forces)
assert_periodic_images = asserting(check_periodic_images)
assert_permutation = asserting(check_permutation)
assert_rotation = asserting(check_rotation)
assert_spin_rotation = asserting(check_spin_rotation)
assert_stress = asserting(check_stress)
assert_supercell = asserting(check_supercell)
assert_time_reversal = asserting(check_time_reversal)
assert_translation = asserting(check_translation)

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
    "assert_batch",
    "assert_conservation",
    "assert_cross_frame_gradients",
    "assert_cutoff",
    "assert_dtype",
    "assert_equivariance",
    "assert_forces",
    "assert_inversion",
    "assert_isolated_atoms",
    "assert_magnetic_forces",
    "assert_periodic_images",
    "assert_permutation",
    "assert_rotation",
    "assert_spin_rotation",
    "assert_stress",
    "assert_supercell",
    "assert_time_reversal",
    "assert_translation",
    "asserting",
    "check_batch",
    "check_conservation",
    "check_cross_frame_gradients",
    "check_cutoff",
    "check_dtype",
    "check_equivariance",
    "check_forces",
    "check_inversion",
    "check_isolated_atoms",
    "check_magnetic_forces",
    "check_periodic_images",
    "check_permutation",
    "check_rotation",
    "check_spin_rotation",
    "check_stress",
    "check_supercell",
    "check_time_reversal",
    "check_translation",
    "irreps",
    "layers",
    "rotations",
    "run",
    "spins",
    "structures",
    "tensor_products",
]
