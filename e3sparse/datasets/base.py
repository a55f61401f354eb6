"""What a published data set is made of, in our units, and what is refused in it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray

from e3sparse.errors import DataError, nearest
from e3sparse.potentials.quantities import QUANTITIES, values_of
from e3sparse.potentials.spins import MAGNETIC, SPINS, as_vectors, directions_of

Array = NDArray[np.float64]

_ASYMMETRY = 1e-2
"""Of the largest component: CP2K and rounding stay far below, permuted components do not."""


@dataclass(frozen=True)
class Entry:
    """One labelled structure of a published data set, in our units.

    Attributes
    ----------
    where
        The file and the frame in it, as messages name them.
    group
        What a split keeps together: the material, the run or the system that it belongs to.
    atoms
        Structure without labels; positions in Å.
    energy
        Total energy in eV.
    forces
        (N, 3) in eV/Å.
    stress
        (3, 3) in eV/Å³, positive under tension; None where the source has none.
    moments
        (N,) in μ_B of a collinear calculation or (N, 3); None where the source has none.
    magnetic_forces
        (N, 3), in the unit of the source; None where the source has none.
    others
        Further labels by name; see `e3sparse.potentials.quantities`.
    info
        What else is kept of the frame, by the name that the file gives it.
    position
        How far into the source it stands in bytes, where `Format.length` is known.
    """

    where: str
    group: str
    atoms: Atoms
    energy: float
    forces: Array
    stress: Array | None = None
    moments: Array | None = None
    magnetic_forces: Array | None = None
    info: Mapping[str, str | float] = field(default_factory=dict)
    position: int = 0
    others: Mapping[str, Array] = field(default_factory=dict)

    @property
    def magnetic(self) -> bool:
        """Whether an atom has a moment above 0.1 μ_B, as the paper selects its frames."""
        if self.moments is None:
            return False
        vectors = as_vectors(self.moments, len(self.atoms), f"{self.where}: the moments")
        return bool((np.linalg.norm(vectors, axis=1) > MAGNETIC).any())

    def check(self) -> None:
        """Raise a `DataError` that names the frame if it cannot be trained on."""
        atoms, n = self.atoms, len(self.atoms)
        if n == 0:
            raise DataError(f"{self.where} has no atoms.")
        self._check("positions", atoms.positions, (n, 3))
        if atoms.pbc.any() and not abs(atoms.cell.volume) > 1e-3:
            raise DataError(f"{self.where} is periodic, but its cell has no volume.")
        for name, label in values_of(self).items():
            if name == "moments":  # collinear ones are numbers
                as_vectors(label, n, f"{self.where}: the moments")
                continue
            quantity = QUANTITIES[name]
            shape = ((n,) if quantity.per_atom else ()) + quantity.shape
            self._check(quantity.title, np.asarray(label), shape)
        if self.stress is not None:
            skew, largest = np.abs(self.stress - self.stress.T).max(), np.abs(self.stress).max()
            if skew > _ASYMMETRY * largest:
                raise DataError(
                    f"{self.where}: the stress is not symmetric (components differ from their "
                    f"transposes by up to {skew / largest:.0%} of the largest one), so it is no "
                    "stress tensor. Are its components in another order?"
                )

    def _check(self, name: str, values: Array, shape: tuple[int, ...]) -> None:
        if values.shape != shape:
            raise DataError(
                f"{self.where}: the {name} have shape {values.shape}, expected {shape}."
            )
        if not np.isfinite(values).all():
            raise DataError(f"{self.where}: the {name} are NaN or infinite.")

    def to_atoms(self) -> Atoms:
        """Return the structure with its labels under the names that e3sparse and MACE read."""
        atoms = Atoms(
            self.atoms.numbers, self.atoms.positions, cell=self.atoms.cell, pbc=self.atoms.pbc
        )
        for name, label in values_of(self).items():
            key = QUANTITIES[name].key
            if QUANTITIES[name].per_atom:
                atoms.arrays[key] = label
            else:
                atoms.info[key] = (label + label.T) / 2 if name == "stress" else label
            if name == "moments":
                vectors = as_vectors(label, len(atoms), f"{self.where}: the moments")
                atoms.arrays[SPINS] = directions_of(vectors)
        atoms.info.update(self.info)
        atoms.arrays.setdefault(SPINS, np.zeros((len(atoms), 3)))
        return atoms


class Format(ABC):
    """How one kind of published file becomes entries."""

    name: ClassVar[str]
    """What `--format` calls it."""

    def length(self, source: Path) -> int | None:
        """Return the size in bytes of a source that is read as a stream, for a progress bar."""
        return None

    @abstractmethod
    def entries(self, source: Path) -> Iterator[Entry | DataError]:
        """Yield the frames of a file or folder in order.

        A frame that is wrong is yielded as the error that says so, because those after it can
        still be read.

        Raises
        ------
        DataError
            If the source as a whole is missing, damaged or of another format.
        """


def numbers_of(symbols: Iterable[str], where: str) -> list[int]:
    """Return the atomic numbers of chemical symbols.

    Raises
    ------
    DataError
        If a symbol is no element.
    """
    numbers = []
    for symbol in symbols:
        number = atomic_numbers.get(symbol, 0)
        if number == 0:
            raise DataError(
                f"{where}: '{symbol}' is not an element.{nearest(symbol, chemical_symbols[1:])}"
            )
        numbers.append(number)
    return numbers
