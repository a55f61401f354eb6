"""Labelled frames from a file, checked before anything is trained on them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.neighborlist import neighbor_list
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from e3sparse.errors import DataError, nearest
from e3sparse.structures import read_structures

Array = NDArray[np.float64]


class LabelKeys(BaseModel):
    """Where the labels are in the file: MACE's names by default.

    `energy`, `forces` and `stress` themselves mean what ASE puts into its calculator.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    energy: str = "REF_energy"
    forces: str = "REF_forces"
    stress: str = "REF_stress"


@dataclass(frozen=True)
class Frame:
    """One structure with its labels.

    Attributes
    ----------
    atoms
        Positions in Å, cell and species.
    energy
        Total energy in eV.
    forces
        (N, 3) in eV/Å.
    stress
        (3, 3) in eV/Å³, positive under tension; None where there is no label.
    """

    atoms: Atoms
    energy: float
    forces: Array
    stress: Array | None


def read_frames(
    path: str | Path, keys: LabelKeys, *, known: Sequence[int], cutoff: float
) -> list[Frame]:
    """Read and check every frame of a file that ASE can read.

    Parameters
    ----------
    path
        Extended XYZ, or another format of ASE's.
    keys
        Names of the labels.
    known
        Atomic numbers that the model knows.
    cutoff
        Cutoff of the model in Å: an atom without a neighbour within it is refused.

    Raises
    ------
    DataError
        If the file is empty or unreadable, a label is missing or not finite, an element is
        unknown, an atom is isolated or a cell is degenerate; the message names the frame.
    """
    frames = []
    for number, atoms in enumerate(read_structures(path, known)):
        where = f"Frame {number} of {path}"
        _check_neighbours(atoms, where, cutoff)
        frames.append(_labelled(atoms, keys, where))
    return frames


def elements_of(frames: Iterable[Frame]) -> set[int]:
    """Return the atomic numbers that occur in the frames."""
    return {int(z) for frame in frames for z in frame.atoms.numbers}


def _check_neighbours(atoms: Atoms, where: str, cutoff: float) -> None:
    neighbours = np.bincount(neighbor_list("i", atoms, cutoff), minlength=len(atoms))
    alone = np.flatnonzero(neighbours == 0)
    if alone.size:
        raise DataError(
            f"{where}: atom {alone[0]} ({atoms.symbols[alone[0]]}) has no neighbour within the "
            f"model's cutoff of {cutoff} Å, so its force cannot be learned. Take isolated atoms "
            "out of the file (--e0s fit needs none)."
        )


def _labelled(atoms: Atoms, keys: LabelKeys, where: str) -> Frame:
    energy = _label(atoms, keys.energy)
    if energy is None:
        raise DataError(_missing(atoms, where, "energy", keys.energy))
    if np.size(energy) != 1:
        raise DataError(f"{where}: '{keys.energy}' is not one number.")
    forces = _label(atoms, keys.forces)
    if forces is None:
        raise DataError(_missing(atoms, where, "forces", keys.forces))
    if forces.shape != (len(atoms), 3):
        raise DataError(
            f"{where}: '{keys.forces}' has shape {forces.shape}, expected ({len(atoms)}, 3)."
        )
    stress = _label(atoms, keys.stress)
    if stress is not None:
        if stress.size not in (6, 9):
            raise DataError(f"{where}: '{keys.stress}' has {stress.size} numbers, expected 6 or 9.")
        stress = (
            voigt_6_to_full_3x3_stress(stress.reshape(-1))
            if stress.size == 6
            else stress.reshape(3, 3)
        )
    for name, label in (("energy", energy), ("forces", forces), ("stress", stress)):
        if label is not None and not np.isfinite(label).all():
            raise DataError(f"{where}: the {name} are NaN or infinite. Remove the frame.")
    # Without a calculator, so that no later step can mistake labels for predictions.
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    return Frame(bare, float(energy.reshape(())), forces, stress)


def _label(atoms: Atoms, key: str) -> Array | None:
    if key in ("energy", "forces", "stress") and atoms.calc is not None:
        try:
            return np.asarray(atoms.calc.get_property(key, atoms), dtype=float)
        except PropertyNotImplementedError:
            return None
    value = atoms.arrays.get(key, atoms.info.get(key))
    if value is None:
        return None
    try:
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise DataError(f"The label '{key}' is not a number: {value!r}.") from None


def _missing(atoms: Atoms, where: str, what: str, key: str) -> str:
    there = [*atoms.info, *(k for k in atoms.arrays if k not in ("numbers", "positions"))]
    if atoms.calc is not None:
        there += list(getattr(atoms.calc, "results", {}))
    listing = ", ".join(there) or "none"
    return (
        f"{where} has no {what} label '{key}'.{nearest(key, there)} Keys there: {listing}. "
        f"Name the right one with --{what}-key."
    )
