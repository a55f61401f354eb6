"""Which dimers, cells and structures are looked at."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations_with_replacement, islice

import numpy as np
from ase import Atoms
from ase.collections import g2
from ase.data import chemical_symbols, covalent_radii
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray

from e3sparse.errors import ConfigError, nearest
from e3sparse.training.random_structures import known_solid, varied_structures

MOST_PAIRS, MOST_GIVEN, MOST_SOLIDS, MOST_MOLECULES = 21, 3, 3, 3
RANDOM, REAL = 24, 20
"""Structures whose forces are compared, at most."""
_LEAST_MOVING, _MOST_MOVING = 8, 100
"""Atoms of what is put in motion; a smaller cell is repeated."""
Pair = tuple[int, int]


@dataclass(frozen=True)
class Subjects:
    """What is looked at.

    Attributes
    ----------
    bonds
        Of each pair of elements the length in Å that counts as its bond: the sum of the covalent
        radii, or the shortest distance in the structures given if that is less.
    cells
        Structures that are compressed and stretched, by name.
    moving
        Of which the dynamics are; None if there is nothing to take.
    random
        Small random structures.
    real, labels
        Structures given, and their forces (N, 3) in eV/Å where they are labelled.
    notes
        What was left out, in sentences.
    """

    bonds: Mapping[Pair, float]
    cells: Mapping[str, Atoms]
    moving: Atoms | None
    random: Sequence[Atoms]
    real: Sequence[Atoms] = ()
    labels: Sequence[NDArray[np.float64] | None] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def pair_name(pair: Pair) -> str:
    """Return `"C–O"` of (6, 8)."""
    return "–".join(chemical_symbols[z] for z in pair)


def numbers_of(text: str, known: Sequence[int]) -> list[int]:
    """Return the atomic numbers of `"H,C,O"`.

    Raises
    ------
    ConfigError
        If a symbol is none, or the model does not know it.
    """
    found = []
    for symbol in (part.strip() for part in text.split(",")):
        if symbol not in chemical_symbols[1:]:
            raise ConfigError(
                f"--elements has '{symbol}', which is no element."
                f"{nearest(symbol, chemical_symbols[1:])} Write them like H,C,O."
            )
        if chemical_symbols.index(symbol) not in known:
            raise ConfigError(
                f"The model, or its base, does not know {symbol}: leave it out of --elements."
            )
        found.append(chemical_symbols.index(symbol))
    return list(dict.fromkeys(found))


def subjects_of(
    elements: Sequence[int] = (),
    *,
    known: Sequence[int],
    given: Sequence[Atoms] = (),
    forces: str = "REF_forces",
    seed: int = 0,
) -> Subjects:
    """Choose what is looked at, the same for the same seed.

    Parameters
    ----------
    elements
        Atomic numbers; those of the structures given if left out.
    known
        Atomic numbers that all models to be looked at know.
    given
        Structures of the user's, with labels or without.
    forces
        Name of the forces among their arrays.
    seed
        Of the random structures.

    Raises
    ------
    ConfigError
        If there are neither elements nor structures.
    """
    counts = Counter(int(z) for atoms in given for z in atoms.numbers)
    chosen = list(elements) or [z for z, _ in counts.most_common()]
    chosen = [z for z in chosen if z in known]
    if not chosen:
        raise ConfigError(
            "Nothing says which elements to look at: give --elements H,C,O, or structures of them "
            "with --data."
        )
    notes = []
    pairs = list(combinations_with_replacement(chosen, 2))
    if len(pairs) > MOST_PAIRS:
        # Those of the elements named first, or the most frequent, together.
        pairs.sort(key=lambda pair: max(chosen.index(z) for z in pair))
        notes.append(
            f"Dimers: {MOST_PAIRS} of {len(pairs)} pairs are looked at, those of the elements "
            f"up to {chemical_symbols[chosen[max(map(chosen.index, pairs[MOST_PAIRS - 1]))]]}; "
            "--elements chooses others."
        )
        pairs = pairs[:MOST_PAIRS]
    every = spread(given, REAL)
    return Subjects(
        bonds=_bonds([(min(a, b), max(a, b)) for a, b in pairs], every),
        cells=_cells(chosen, given),
        moving=_moving(chosen, given),
        random=list(islice(varied_structures(chosen, np.random.default_rng(seed)), RANDOM)),
        real=every,
        labels=[atoms.arrays.get(forces) for atoms in every],
        notes=notes,
    )


def spread(given: Sequence[Atoms], most: int) -> list[Atoms]:
    """Return at most so many structures with two atoms or more, evenly spaced."""
    some = [atoms for atoms in given if len(atoms) > 1]
    return some[:: max(1, -(-len(some) // most))]


def _bonds(pairs: Sequence[Pair], given: Sequence[Atoms]) -> dict[Pair, float]:
    found = {(a, b): float(covalent_radii[a] + covalent_radii[b]) for a, b in pairs}
    for atoms in given:
        i, j, d = neighbor_list("ijd", atoms, list(covalent_radii[atoms.numbers]))
        for pair, distance in zip(
            zip(atoms.numbers[i].tolist(), atoms.numbers[j].tolist(), strict=True), d, strict=True
        ):
            if pair in found:
                found[pair] = min(found[pair], float(distance))
    return found


def _cells(elements: Sequence[int], given: Sequence[Atoms]) -> dict[str, Atoms]:
    found = {
        f"{atoms.get_chemical_formula()} given, {n + 1}": atoms
        for n, atoms in enumerate(spread(given, MOST_GIVEN))
    }
    solids = [(z, solid) for z in elements if (solid := known_solid(z)) is not None]
    found |= {f"{chemical_symbols[z]} solid": solid for z, solid in solids[:MOST_SOLIDS]}
    return found | {f"{name} molecule": _closed_shells()[name] for name in _molecules(elements)}


def _molecules(elements: Sequence[int]) -> list[str]:
    """Return the names of the molecules with the most of the elements, small ones first."""
    fitting = [
        (-len({*atoms.numbers}), len(atoms), name)
        for name, atoms in _closed_shells().items()
        if {*atoms.numbers} <= {*elements}
    ]
    return [name for _, _, name in sorted(fitting)[:MOST_MOLECULES]]


@cache
def _closed_shells() -> dict[str, Atoms]:
    """Return ASE's molecules of three atoms and more without unpaired electrons."""
    molecules = {name: g2[name] for name in g2.names}
    return {
        name: atoms
        for name, atoms in molecules.items()
        if len(atoms) > 2 and not atoms.get_initial_magnetic_moments().any()
    }


def _moving(elements: Sequence[int], given: Sequence[Atoms]) -> Atoms | None:
    candidates = sorted(
        (atoms for atoms in given if 1 < len(atoms) <= _MOST_MOVING), key=len
    ) or list(_cells(elements, []).values())
    if not candidates:
        return None
    # Of structures that ASE knows the largest molecule: the others are mostly too small to react.
    atoms: Atoms = candidates[0] if given else max(candidates, key=len)
    atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    while atoms.pbc.any() and len(atoms) < _LEAST_MOVING:
        shortest = int(np.argmin(np.where(atoms.pbc, atoms.cell.lengths(), np.inf)))
        repeats = [1, 1, 1]
        repeats[shortest] = 2
        atoms = atoms.repeat(repeats)
    return atoms
