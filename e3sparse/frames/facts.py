"""Numbers of frames: what is known of a million of them without holding any."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from e3sparse.frames.reading import Array, Frame
from e3sparse.potentials.spins import SPINS

WEIGHTED = ("energy", "forces", "stress")
"""Quantities whose weights are noted of each frame."""
_ALIKE = 1e-4
"""In Å: structures that differ by less are the same. Files give more digits."""


class Facts(NamedTuple):
    """What is kept of F frames: numbers only.

    Attributes
    ----------
    atoms
        (F,) numbers of atoms.
    periodic
        (F,) numbers of periodic directions.
    energy
        (F,) in eV, NaN where there is none.
    forces, stress
        (F,) bool, whether there are labels.
    weights
        (F, 3) of energy, forces and stress in the loss.
    structure
        (F,) of atoms, cell and spins: the same for the same structure.
    elements
        (E,) atomic numbers that occur in the file.
    composition
        (F, E) atoms of each element.
    """

    atoms: NDArray[np.int64]
    periodic: NDArray[np.int64]
    energy: Array
    forces: NDArray[np.bool_]
    stress: NDArray[np.bool_]
    weights: NDArray[np.float32]
    structure: NDArray[np.int64]
    elements: NDArray[np.int64]
    composition: NDArray[np.int32]

    @property
    def there(self) -> set[int]:
        """Atomic numbers that occur in these frames."""
        return {int(z) for z in self.elements[self.composition.any(axis=0)]}

    def take(self, positions: ArrayLike) -> "Facts":
        """Return those of some frames."""
        of_frames = self._asdict()
        elements = of_frames.pop("elements")
        return Facts(
            **{k: v[np.asarray(positions)] for k, v in of_frames.items()}, elements=elements
        )


class Collected:
    """Numbers of frames that go by, packed: of a million frames each byte is a megabyte."""

    def __init__(self) -> None:
        self.atoms, self.periodic = array("q"), array("b")
        self.energy, self.forces, self.stress = array("d"), array("b"), array("b")
        self.weights, self.structure = array("f"), array("q")
        self.compositions: dict[tuple[tuple[int, int], ...], int] = {}
        self.kinds = array("q")

    def add(self, frame: Frame) -> None:
        """Note a frame."""
        atoms = frame.atoms
        self.atoms.append(len(atoms))
        self.periodic.append(int(atoms.pbc.sum()))
        self.energy.append(frame.energy)
        self.forces.append(has_forces(frame))
        self.stress.append(frame.stress is not None)
        self.weights.extend(frame.weights.get(name, 1.0) for name in WEIGHTED)
        self.structure.append(_digest(frame))
        found = zip(*np.unique(atoms.numbers, return_counts=True), strict=True)
        composition = tuple((int(z), int(n)) for z, n in found)
        self.kinds.append(self.compositions.setdefault(composition, len(self.compositions)))

    def facts(self) -> Facts:
        """Return what was noted as arrays."""
        elements = sorted({z for composition in self.compositions for z, _ in composition})
        table = np.zeros((len(self.compositions), len(elements)), dtype=np.int32)
        for row, composition in enumerate(self.compositions):
            for z, n in composition:
                table[row, elements.index(z)] = n
        return Facts(
            np.array(self.atoms, dtype=int),
            np.array(self.periodic, dtype=int),
            np.array(self.energy, dtype=float),
            np.array(self.forces, dtype=bool),
            np.array(self.stress, dtype=bool),
            np.array(self.weights, dtype=np.float32).reshape(-1, len(WEIGHTED)),
            np.array(self.structure, dtype=int),
            np.array(elements, dtype=int),
            table[np.array(self.kinds, dtype=int)],
        )


def facts_of(frames: Sequence[Frame]) -> Facts:
    """Return what is said of frames in a table, without reading any again."""
    known = getattr(frames, "facts", None)
    if isinstance(known, Facts):
        return known
    collected = Collected()
    for frame in frames:
        collected.add(frame)
    return collected.facts()


def has_forces(frame: Frame) -> bool:
    """Whether a frame has forces, if not of every atom."""
    return not bool(np.isnan(frame.forces).all())


def _digest(frame: Frame) -> int:
    atoms = frame.atoms
    whole = np.round(np.concatenate([atoms.positions, atoms.cell.array]) / _ALIKE).astype(np.int64)
    parts = [atoms.numbers.astype(np.int64), whole, atoms.pbc]
    if SPINS in atoms.arrays:
        parts.append(np.round(atoms.arrays[SPINS] / _ALIKE).astype(np.int64))
    digest = blake2b(b"".join(part.tobytes() for part in parts), digest_size=8)
    return int.from_bytes(digest.digest(), "little", signed=True)
