"""Checks of magnetic models: time reversal, global spin rotations, and dE/dS.

That a model is equivariant under O(3) does not make it symmetric under time reversal: S·r with a
polar S is invariant under rotations and inversion, and odd under S → -S.
"""

import numpy as np
from ase import Atoms
from hypothesis import strategies as st
from numpy.typing import NDArray

from e3sparse.potentials.spins import SPINS
from e3sparse.symmetry.check import Check, Drawing, compare, each, lone_atom, turned
from e3sparse.symmetry.derivatives import derivative_error
from e3sparse.symmetry.rotations import Orthogonal, rotations
from e3sparse.symmetry.search import Case, Errors
from e3sparse.symmetry.structures import directions
from e3sparse.symmetry.subjects import Subject

Array = NDArray[np.float64]


def _not_magnetic(subject: Subject) -> str | None:
    return None if subject.magnetic else "It reads no spins."


def _with_spins(atoms: Atoms, spins: Array) -> Atoms:
    changed: Atoms = atoms.copy()
    changed.arrays[SPINS] = spins
    return changed


def _spin_cases(drawing: Drawing) -> st.SearchStrategy[Case]:
    return st.fixed_dictionaries({"atoms": drawing.structures()})


def _time_reversal(subject: Subject, atoms: Atoms) -> Errors:
    expected = each(
        subject(atoms), lambda quantity, values: -values if quantity.time_odd else values
    )
    return compare(subject(_with_spins(atoms, -atoms.arrays[SPINS])), expected)


check_time_reversal = Check(
    "time reversal",
    "E, F and σ are even and M is odd under S → -S",
    _spin_cases,
    _time_reversal,
    _not_magnetic,
)


def _spin_rotation_cases(drawing: Drawing) -> st.SearchStrategy[Case]:
    return st.fixed_dictionaries({"atoms": drawing.structures(), "by": rotations(False)})


def _spin_rotation(subject: Subject, atoms: Atoms, by: Orthogonal) -> Errors:
    expected = each(
        subject(atoms),
        lambda quantity, values: turned(quantity, values, by) if quantity.time_odd else values,
    )
    return compare(subject(_with_spins(atoms, by.act(atoms.arrays[SPINS]))), expected)


check_spin_rotation = Check(
    "spin rotation",
    "E(R, Q S) = E(R, S) without spin-orbit coupling",
    _spin_rotation_cases,
    _spin_rotation,
    lambda subject: (
        _not_magnetic(subject)
        or ("Its spins feel the lattice (spin-orbit coupling)." if subject.spin_orbit else None)
    ),
)


def _magnetic_force_cases(drawing: Drawing) -> st.SearchStrategy[Case]:
    return drawing.structures().flatmap(
        lambda atoms: st.fixed_dictionaries(
            {"atoms": st.just(atoms), "direction": directions(len(atoms))}
        )
    )


def _magnetic_forces(subject: Subject, atoms: Atoms, direction: Array) -> Errors:
    here = subject(atoms).magnetic_forces
    assert here is not None
    along = -float((here * direction).sum())

    def energy(step: float) -> float:
        return subject(_with_spins(atoms, atoms.arrays[SPINS] + step * direction)).energy

    name = "spin derivative"
    return {name: derivative_error(name, energy, along, subject.dtype)}


def _no_magnetic_forces(subject: Subject) -> str | None:
    if not subject.magnetic:
        return _not_magnetic(subject)
    return (
        None if subject(lone_atom(subject)).magnetic_forces is not None else "It gives no -dE/dS."
    )


check_magnetic_forces = Check(
    "magnetic forces",
    "-dE/dS, by finite differences",
    _magnetic_force_cases,
    _magnetic_forces,
    _no_magnetic_forces,
)
