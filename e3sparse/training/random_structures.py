"""Small structures to ask a model about: random ones, and known ones out of shape."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.collections import g2
from ase.data import chemical_symbols, covalent_radii, reference_states
from ase.geometry import cellpar_to_cell
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray

MOST_ATOMS, MOST_ELEMENTS = 10, 4
CLOSEST, FARTHEST = 0.8, 1.25
"""Least distance of two atoms, and greatest one of a bond, over the sum of their covalent radii."""
PACKING = 0.2, 0.6
"""Share of a cell that spheres of the covalent radii fill; iron has 0.8, ice 0.2."""
SHAKEN, STRAINED = (0.02, 0.15), 0.03
"""Standard deviations of the displacements (Å, drawn from a range) and of the strain."""
_TRIES, _GROWTH = 50, 1.1
_ELEMENTARY = ("fcc", "bcc", "hcp", "diamond", "sc")


def varied_structures(numbers: Sequence[int], rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield without end, in turn, a random cluster, a random crystal and a known structure.

    The latter is one of ASE's molecules or elementary solids, as far as the elements allow, shaken
    and strained.

    Parameters
    ----------
    numbers
        Atomic numbers to choose from.
    rng
        Source of all chance.
    """
    known: list[str | int] = [
        name for name in g2.names if len(g2[name]) > 1 and set(g2[name].numbers) <= {*numbers}
    ]
    known += [z for z in numbers if _is_elementary(reference_states[z])]
    while True:
        yield random_structure(numbers, rng, periodic=False)
        yield random_structure(numbers, rng, periodic=True)
        if known:
            name = known[rng.integers(len(known))]
            yield _shaken(_solid(name) if isinstance(name, int) else g2[name], rng)


def _is_elementary(state: dict[str, Any] | None) -> bool:
    """Whether ASE's data give the whole structure of the solid."""
    return state is not None and state["symmetry"] in _ELEMENTARY and "basis" not in state


def known_solid(number: int) -> Atoms | None:
    """Return the solid of an element, if ASE's data give all of it."""
    return _solid(number) if _is_elementary(reference_states[number]) else None


def _solid(number: int) -> Atoms:
    """Return the solid of an element, of two atoms or more: one alone has no force."""
    atoms = bulk(chemical_symbols[number])
    return atoms if len(atoms) > 1 else atoms.repeat((2, 1, 1))


def _shaken(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    shaken = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if shaken.pbc.any():
        strain = np.eye(3) + rng.normal(scale=STRAINED, size=(3, 3))
        shaken.set_cell(shaken.cell.array @ strain, scale_atoms=True)
    shaken.positions += rng.normal(scale=rng.uniform(*SHAKEN), size=(len(shaken), 3))
    return shaken


def random_structure(numbers: Sequence[int], rng: np.random.Generator, *, periodic: bool) -> Atoms:
    """Draw a cluster, or a crystal of a random cell and density.

    A cluster grows by one bond at a time. A crystal is filled at random, and its cell grows while
    an atom finds no place.

    Parameters
    ----------
    numbers
        Atomic numbers to choose up to `MOST_ELEMENTS` from.
    rng
        Source of all chance.
    periodic
        Whether it is a crystal.

    Returns
    -------
    Atoms
        2 to `MOST_ATOMS` atoms, no two of them or of their images closer than `CLOSEST`.
    """
    few = rng.choice(np.asarray(numbers), size=int(rng.integers(1, MOST_ELEMENTS + 1)))
    chosen = rng.choice(few, size=int(rng.integers(2, MOST_ATOMS + 1)))
    if not periodic:
        return _cluster(chosen, rng)
    spheres = 4 / 3 * np.pi * (covalent_radii[chosen] ** 3).sum()
    shape = cellpar_to_cell([*rng.uniform(0.7, 1.4, 3), *rng.uniform(70, 110, 3)])
    size = (spheres / rng.uniform(*PACKING) / abs(np.linalg.det(shape))) ** (1 / 3)
    while True:
        atoms = Atoms(cell=size * shape, pbc=True)
        if all(_filled(atoms, number, rng) for number in chosen):
            return atoms
        size *= _GROWTH


def _cluster(numbers: NDArray[np.int_], rng: np.random.Generator) -> Atoms:
    atoms = Atoms(numbers[:1], positions=[[0.0, 0.0, 0.0]])
    for number in numbers[1:]:
        while True:
            anchor = rng.integers(len(atoms))
            bond = covalent_radii[number] + covalent_radii[atoms.numbers[anchor]]
            way = rng.normal(size=3)
            way *= bond * rng.uniform(CLOSEST, FARTHEST) / np.linalg.norm(way)
            grown = atoms + Atoms([number], positions=[atoms.positions[anchor] + way])
            if _apart(grown):
                atoms = grown
                break
    return atoms


def _filled(atoms: Atoms, number: int, rng: np.random.Generator) -> bool:
    """Put one atom somewhere into the cell, if a place is found."""
    for _ in range(_TRIES):
        atoms += Atoms([number], positions=[rng.uniform(size=3) @ atoms.cell.array])
        if _apart(atoms):
            return True
        del atoms[-1]
    return False


def _apart(atoms: Atoms) -> bool:
    """Whether no two atoms, images included, are too close."""
    return len(neighbor_list("i", atoms, list(CLOSEST * covalent_radii[atoms.numbers]))) == 0
