"""Checks that compare a structure with the same structure in another guise."""

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from hypothesis import strategies as st

from e3sparse.potentials.quantities import Quantity
from e3sparse.potentials.single_points import Array, Evaluation
from e3sparse.potentials.spins import SPINS
from e3sparse.symmetry.check import Check, Drawing, compare, each, knows_no_cells, lone_atom, turned
from e3sparse.symmetry.rotations import Orthogonal, rotations
from e3sparse.symmetry.search import Case, Errors
from e3sparse.symmetry.subjects import Subject
from e3sparse.symmetry.tolerances import deviation

Vector = tuple[float, float, float]


# Isolated atoms ------------------------------------------------------------------------------


def _isolated_cases(drawing: Drawing) -> st.SearchStrategy[Case]:
    atoms = drawing.structures(periodic=False)
    number = st.sampled_from(list(drawing.subject.numbers))
    return st.fixed_dictionaries({"atoms": atoms, "number": number})


def _isolated(subject: Subject, atoms: Atoms, number: int) -> Errors:
    alone = lone_atom(subject, number)
    of_atom = subject(alone)
    errors = {
        "energy": deviation("energy", of_atom.energy, of_atom.energy),
        "isolated force": deviation("isolated force", of_atom.forces, np.zeros((1, 3))),
    }
    if subject.cutoff is not None:
        far = alone.copy()
        far.positions[0, 0] = atoms.positions[:, 0].max() + 2 * subject.cutoff + 1.0
        both, one = subject(atoms + far), subject(atoms)
        errors["energy"] = deviation("energy", both.energy, one.energy + of_atom.energy)
        errors["forces"] = deviation("forces", both.forces[:-1], one.forces)
        last = both.forces[-1:]
        far_force = deviation("isolated force", last, np.zeros_like(last))
        errors["isolated force"] = max(errors["isolated force"], far_force)
    return errors


check_isolated_atoms = Check(
    "isolated atoms",
    "an atom beyond the cutoff has a finite energy, no force, and changes nothing",
    _isolated_cases,
    _isolated,
)


# Translation ---------------------------------------------------------------------------------


def _translation_cases(drawing: Drawing) -> st.SearchStrategy[Case]:
    shift = st.integers(-1000, 1000).map(lambda k: k / 100)
    return st.fixed_dictionaries(
        {"atoms": drawing.structures(), "shift": st.tuples(shift, shift, shift)}
    )


def _translation(subject: Subject, atoms: Atoms, shift: Vector) -> Errors:
    moved = atoms.copy()
    moved.positions += shift
    return compare(subject(moved), subject(atoms))


check_translation = Check("translation", "E(R + t) = E(R)", _translation_cases, _translation)


# Permutation ---------------------------------------------------------------------------------


def _permutation_cases(drawing: Drawing) -> st.SearchStrategy[Case]:
    return drawing.structures(min_atoms=2).flatmap(
        lambda atoms: st.fixed_dictionaries(
            {"atoms": st.just(atoms), "order": st.permutations(range(len(atoms)))}
        )
    )


def _permutation(subject: Subject, atoms: Atoms, order: Sequence[int]) -> Errors:
    return compare(subject(atoms[list(order)]), _reordered(subject(atoms), order))


def _reordered(of: Evaluation, order: Sequence[int]) -> Evaluation:
    return each(of, lambda quantity, values: values[list(order)] if quantity.per_atom else values)


check_permutation = Check("permutation", "E(P R) = E(R)", _permutation_cases, _permutation)


# O(3) ----------------------------------------------------------------------------------------


def _rotated(atoms: Atoms, by: Orthogonal) -> Atoms:
    turned: Atoms = atoms.copy()
    turned.set_cell(by.act(atoms.cell.array), scale_atoms=False)
    turned.positions = by.act(atoms.positions)
    if SPINS in atoms.arrays:
        turned.arrays[SPINS] = by.act_axial(atoms.arrays[SPINS])
    return turned


def _rotation(subject: Subject, atoms: Atoms, by: Orthogonal) -> Errors:
    expected = each(subject(atoms), lambda quantity, values: turned(quantity, values, by))
    return compare(subject(_rotated(atoms, by)), expected)


def _o3_cases(improper: bool, drawing: Drawing) -> st.SearchStrategy[Case]:
    return st.fixed_dictionaries({"atoms": drawing.structures(), "by": rotations(improper)})


check_rotation = Check(
    "rotation",
    "E(Q R, Q S) = E(R, S) for det Q = 1, forces and stress turn along",
    lambda drawing: _o3_cases(False, drawing),
    _rotation,
)
check_inversion = Check(
    "inversion",
    "E(Q R, det(Q) Q S) = E(R, S) for det Q = -1, forces and stress turn along",
    lambda drawing: _o3_cases(True, drawing),
    _rotation,
    unclaimed=lambda subject: (
        None if subject.parity else "The model claims rotations only: mirror images may differ."
    ),
)


# Cells ---------------------------------------------------------------------------------------

_SHEARS = [(i, j, n) for i in range(3) for j in range(3) for n in (1, -1) if i != j]


def _image_cases(drawing: Drawing) -> st.SearchStrategy[Case]:
    step = st.integers(-2, 2)

    def moves(atoms: Atoms) -> st.SearchStrategy[Case]:
        images = st.lists(st.tuples(step, step, step), min_size=len(atoms), max_size=len(atoms))
        shear = st.sampled_from([None, *_SHEARS])
        return st.fixed_dictionaries({"atoms": st.just(atoms), "images": images, "shear": shear})

    return drawing.structures(periodic=True).flatmap(moves)


def _images(
    subject: Subject,
    atoms: Atoms,
    images: Sequence[tuple[int, int, int]],
    shear: tuple[int, int, int] | None,
) -> Errors:
    other = atoms.copy()
    other.positions += np.array(images) @ atoms.cell.array
    if shear is not None:
        i, j, sign = shear
        cell = atoms.cell.array.copy()
        cell[i] += sign * cell[j]
        other.set_cell(cell, scale_atoms=False)
    return compare(subject(other), subject(atoms))


check_periodic_images = Check(
    "periodic images",
    "the same crystal by other images of its atoms and another choice of its cell",
    _image_cases,
    _images,
    knows_no_cells,
)

_REPEATS = [(2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (3, 1, 1)]


def _supercell_cases(drawing: Drawing) -> st.SearchStrategy[Case]:
    atoms = drawing.structures(periodic=True, max_atoms=8)
    return st.fixed_dictionaries({"atoms": atoms, "repeats": st.sampled_from(_REPEATS)})


def _supercell(subject: Subject, atoms: Atoms, repeats: tuple[int, int, int]) -> Errors:
    one, count = subject(atoms), int(np.prod(repeats))

    def repeated(quantity: Quantity, values: Array) -> Array:
        if quantity.per_atom:
            return np.concatenate([values] * count)
        return count * values if quantity.extensive else values

    return compare(subject(atoms.repeat(repeats)), each(one, repeated))


check_supercell = Check(
    "supercell",
    "n copies of a cell have n times its energy, and its forces and stress",
    _supercell_cases,
    _supercell,
    knows_no_cells,
)


# Batches -------------------------------------------------------------------------------------


def _batch_cases(drawing: Drawing) -> st.SearchStrategy[Case]:
    atoms = drawing.structures(max_atoms=12)
    return st.fixed_dictionaries({"frames": st.lists(atoms, min_size=2, max_size=4)})


def _batch(subject: Subject, frames: Sequence[Atoms]) -> Errors:
    errors: dict[str, float] = {}
    for together, atoms in zip(subject.evaluate(frames), frames, strict=True):
        for quantity, error in compare(together, subject(atoms)).items():
            errors[quantity] = max(error, errors.get(quantity, 0.0))
    return errors


def _not_batched(subject: Subject) -> str | None:
    return None if subject.batched else "It evaluates one structure at a time."


check_batch = Check(
    "batch", "a batch says of each structure what it says alone", _batch_cases, _batch, _not_batched
)


def _leak(subject: Subject, frames: Sequence[Atoms]) -> Errors:
    leaked = subject.leaked_gradient(frames)
    assert leaked is not None
    return {"leaked gradient": leaked if np.isfinite(leaked) else float("inf")}


def _no_gradient(subject: Subject) -> str | None:
    if not subject.batched:
        return _not_batched(subject)
    if subject.leaked_gradient([lone_atom(subject)] * 2) is None:
        return "Its backend does not hand out the tensor that energies are differentiated by."
    return None


check_cross_frame_gradients = Check(
    "cross-frame gradients",
    "the energy of a structure has no derivative by another one of its batch",
    _batch_cases,
    _leak,
    _no_gradient,
)
