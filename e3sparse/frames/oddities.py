"""What is odd in frames that can be used: said, so that it is meant and not overlooked.

No model is asked; see `e3sparse.training.plausibility` for what one finds.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

from e3sparse.frames.facts import Facts, facts_of
from e3sparse.frames.reading import Array, Frame

_RARE_GASES = (2, 10, 18, 36, 54, 86)
_FAR, _REACH, _LOOKED_AT = 1.5, 6.0, 50
"""Bonds are that many covalent radii long at most; they are sought within Å, in so many frames."""
_CROWDED = 40.0
"""In Å³ for each atom: a box round a molecule is larger, the cell of a crystal is not."""
_STEPS = (1.0, 0.1, 0.01)
_ROUNDED = 1e-3
"""In eV/atom: what rounding may do to an energy."""
_DIFFER = 1e-3
"""In eV/atom: what two calculations of one structure may differ by."""


def oddities(frames: Sequence[Frame], path: str | Path) -> list[str]:
    """Return a sentence for each oddity of the frames of one file."""
    spread = np.linspace(0, len(frames) - 1, min(len(frames), _LOOKED_AT)).astype(int)
    some = [frames[int(n)] for n in spread]
    return [*_rounded(facts_of(frames), path), *_long_bonds(some, path), *_crowded(some, path)]


def repeated(facts: Facts, path: str | Path) -> Iterator[str]:
    """Say how many structures stand in a file more than once, and if their energies differ."""
    order = np.argsort(facts.structure, kind="stable")
    same = np.flatnonzero(facts.structure[order][1:] == facts.structure[order][:-1])
    if not same.size:
        return
    one, other = order[same], order[same + 1]
    off = np.abs(facts.energy[one] - facts.energy[other]) / facts.atoms[one]
    sentence = (
        f"{same.size} of {len(facts.atoms)} frames of {path} are the same structure as an earlier "
        "one"
    )
    worst = int(np.nanargmax(off)) if np.isfinite(off).any() else 0
    if off[worst] > _DIFFER:
        sentence += (
            f", and their energies differ by up to {off[worst]:.3g} eV/atom, so that one of them "
            "is wrong"
        )
    yield sentence + "."


def shared(splits: Mapping[str, Sequence[Frame]]) -> Iterator[str]:
    """Say how many structures of one split are in another one too."""
    facts = {name: facts_of(frames) for name, frames in splits.items()}
    for one, other in combinations(facts, 2):
        both = np.isin(facts[other].structure, facts[one].structure)
        if both.any():
            yield (
                f"{both.sum()} of {both.size} {other} frames are {one} frames too: errors on them "
                f"say nothing of frames that are no {one} frames."
            )


def _rounded(facts: Facts, path: str | Path) -> Iterator[str]:
    """Say that energies have been rounded to more than an energy per atom may be wrong by."""
    known = np.isfinite(facts.energy)
    energy, atoms = facts.energy[known], facts.atoms[known]
    if len(np.unique(energy)) < 3:
        return
    single = energy.astype(np.float32)
    spacing = np.abs(np.spacing(single)).astype(float)
    if (single == energy).all() and np.median(spacing / atoms) > _ROUNDED:
        yield (
            f"The energies of {path} have been stored in single precision, which rounds them to "
            f"{np.median(spacing):.2g} eV. Write them anew from the source, in double precision."
        )
        return
    for step in _STEPS:
        if np.allclose(energy / step, np.round(energy / step), rtol=0, atol=1e-6):
            if np.median(step / atoms) > _ROUNDED:
                yield (
                    f"The energies of {path} are rounded to {step:g} eV. Write them anew from the "
                    "source, with more digits."
                )
            return


def _long_bonds(frames: Sequence[Frame], path: str | Path) -> Iterator[str]:
    """Say that atoms are as far from each other as if lengths were in Bohr."""
    shortest = [_shortest_bond(frame) for frame in frames]
    if shortest and np.median(shortest) > _FAR:
        yield (
            f"The nearest atoms of {path} are {np.median(shortest):.2f} times as far from each "
            "other as bonded atoms are. Are positions and cell in Bohr? Å are expected: multiply "
            "by 0.529177."
        )


def _shortest_bond(frame: Frame) -> float:
    """Return the shortest distance in units of the sum of two covalent radii."""
    numbers = frame.atoms.numbers
    if np.isin(numbers, _RARE_GASES).all():
        return 1.0
    first, second, distance = neighbor_list("ijd", frame.atoms, _REACH)
    radii = covalent_radii[numbers]
    found: Array = distance / (radii[first] + radii[second])
    return float(found.min(initial=_FAR + 1))


def _crowded(frames: Sequence[Frame], path: str | Path) -> Iterator[str]:
    """Say that frames have the cell of a crystal and are not periodic."""
    crowded = [
        frame
        for frame in frames
        if not frame.atoms.pbc.any()
        and frame.atoms.cell.rank == 3
        and frame.atoms.cell.volume < _CROWDED * len(frame.atoms)
    ]
    if crowded:
        yield (
            f"{len(crowded)} of {len(frames)} frames of {path} that were looked at have a cell "
            'that their atoms fill, but pbc="F F F": they are taken for clusters in vacuum. If '
            'they are crystals, write pbc="T T T".'
        )
