"""Labelled frames from a file, checked before anything is trained on them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.neighborlist import neighbor_list
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from e3sparse.errors import DataError, nearest
from e3sparse.spins import SHORT, SPINS, as_vectors, directions_of
from e3sparse.structures import read_structures

Array = NDArray[np.float64]

COMPUTED = ("energy", "forces", "stress", "magmoms")
"""Labels that are looked for in the calculator of a structure, where it has one."""

_SAME_ENERGY = 1e-3
"""In eV: what codes and their settings leave between two calculations of one atom."""


class LabelKeys(BaseModel):
    """Where the labels are in the file: MACE's names by default.

    `energy`, `forces` and `stress` themselves mean what ASE puts into its calculator, and so does
    `magmoms`. Moments and spins are read for magnetic models only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    energy: str = "REF_energy"
    forces: str = "REF_forces"
    stress: str = "REF_stress"
    moments: str = "REF_magmom"
    spin: str = SPINS
    magnetic_forces: str = "REF_magforces"


@dataclass(frozen=True)
class Frame:
    """One structure with its labels.

    Attributes
    ----------
    atoms
        Positions in Å, cell and species; for magnetic models the array `"spin"` too.
    energy
        Total energy in eV.
    forces
        (N, 3) in eV/Å.
    stress
        (3, 3) in eV/Å³, positive under tension; None where there is no label.
    moments
        (N, 3) in μ_B, for magnetic models.
    magnetic_forces
        (N, 3) -dE/dS in eV, which for spins of length 1 is that of a turn by one radian; NaN for
        spins shorter than `SHORT`, None where there is no label.
    """

    atoms: Atoms
    energy: float
    forces: Array
    stress: Array | None
    moments: Array | None = None
    magnetic_forces: Array | None = None


class Split(NamedTuple):
    """What a file holds.

    Attributes
    ----------
    frames
        What can be trained or tested on.
    isolated
        Frames of a single atom that is not periodic, by atomic number. Their energies are
        references; their forces are 0 whatever the file says.
    """

    frames: list[Frame]
    isolated: dict[int, Frame]


def read_split(
    path: str | Path,
    keys: LabelKeys,
    *,
    known: Sequence[int],
    cutoff: float,
    magnetic: bool = False,
) -> Split:
    """Read and check every frame of a file that ASE can read, and set isolated atoms apart.

    Parameters
    ----------
    path
        Extended XYZ, or another format of ASE's.
    keys
        Names of the labels. Isolated atoms need that of the energy only.
    known
        Atomic numbers that the model knows.
    cutoff
        Cutoff of the model in Å: an atom of a larger frame without a neighbour within it is
        refused.
    magnetic
        Whether moments and spins are read too. Where a frame has no spins, they are the
        directions of its moments; atoms below 0.1 μ_B have none.

    Raises
    ------
    DataError
        If the file is empty, unreadable or holds isolated atoms only, a label is missing or not
        finite, an element is unknown, an atom has no neighbour, a cell is degenerate or two
        isolated atoms of an element differ in energy; the message names the frame.
    """
    frames: list[Frame] = []
    isolated: dict[int, tuple[int, Frame]] = {}
    for number, atoms in enumerate(read_structures(path, known)):
        where = f"Frame {number} of {path}"
        if len(atoms) > 1 or atoms.pbc.any():
            _check_neighbours(atoms, where, cutoff)
            frame = _labelled(atoms, keys, where)
            frames.append(_with_moments(frame, atoms, keys, where) if magnetic else frame)
            continue
        atom = Frame(_bare(atoms), _energy(atoms, keys, where), np.zeros((1, 3)), None)
        first, same = isolated.setdefault(int(atoms.numbers[0]), (number, atom))
        if abs(same.energy - atom.energy) > _SAME_ENERGY:
            raise DataError(
                f"Frames {first} and {number} of {path} are both an isolated {atoms.symbols[0]} "
                f"atom, but their energies are {same.energy} and {atom.energy} eV. Keep the one "
                "that is the zero of energy of the other frames."
            )
    if not frames:
        raise DataError(
            f"{path} holds nothing but isolated atoms, which are energy references: there are no "
            "forces to learn or to test. Add frames of more than one atom."
        )
    return Split(frames, {z: atom for z, (_, atom) in isolated.items()})


def read_frames(
    path: str | Path, keys: LabelKeys, *, known: Sequence[int], cutoff: float
) -> list[Frame]:
    """Read the frames of a file without its isolated atoms; see `read_split`."""
    return read_split(path, keys, known=known, cutoff=cutoff).frames


def elements_of(frames: Iterable[Frame]) -> set[int]:
    """Return the atomic numbers that occur in the frames."""
    return {int(z) for frame in frames for z in frame.atoms.numbers}


def average_neighbours(frames: Sequence[Frame], cutoff: float) -> float:
    """Return how many neighbours an atom has within the cutoff (Å), over at most 100 frames."""
    some = frames[:: max(1, len(frames) // 100)]
    edges = sum(len(neighbor_list("i", frame.atoms, cutoff)) for frame in some)
    return edges / sum(len(frame.atoms) for frame in some)


def _check_neighbours(atoms: Atoms, where: str, cutoff: float) -> None:
    neighbours = np.bincount(neighbor_list("i", atoms, cutoff), minlength=len(atoms))
    alone = np.flatnonzero(neighbours == 0)
    if alone.size:
        raise DataError(
            f"{where}: atom {alone[0]} ({atoms.symbols[alone[0]]}) has no neighbour within the "
            f"model's cutoff of {cutoff} Å, so its force cannot be learned. Remove the frame; a "
            'single atom that is meant as an energy reference must not be periodic (pbc="F F F").'
        )


def _labelled(atoms: Atoms, keys: LabelKeys, where: str) -> Frame:
    energy = _energy(atoms, keys, where)
    forces = label_of(atoms, keys.forces)
    if forces is None:
        raise DataError(_missing(atoms, where, "forces", keys.forces))
    if forces.shape != (len(atoms), 3):
        raise DataError(
            f"{where}: '{keys.forces}' has shape {forces.shape}, expected ({len(atoms)}, 3)."
        )
    stress = label_of(atoms, keys.stress)
    if stress is not None:
        if stress.size not in (6, 9):
            raise DataError(f"{where}: '{keys.stress}' has {stress.size} numbers, expected 6 or 9.")
        stress = (
            voigt_6_to_full_3x3_stress(stress.reshape(-1))
            if stress.size == 6
            else stress.reshape(3, 3)
        )
    _check_finite(where, "forces", forces)
    if stress is not None:
        _check_finite(where, "stress", stress)
    return Frame(_bare(atoms), energy, forces, stress)


def _with_moments(frame: Frame, atoms: Atoms, keys: LabelKeys, where: str) -> Frame:
    label = label_of(atoms, keys.moments)
    if label is None:
        raise DataError(_missing(atoms, where, "moments", keys.moments))
    moments = as_vectors(label, len(atoms), f"{where}: the moments '{keys.moments}'")
    given = label_of(atoms, keys.spin)
    if given is None and keys.spin != SPINS:
        raise DataError(_missing(atoms, where, "spin", keys.spin))
    spins = (
        directions_of(moments)
        if given is None
        else as_vectors(given, len(atoms), f"{where}: the spins '{keys.spin}'")
    )
    frame.atoms.set_array(SPINS, spins)
    label = label_of(atoms, keys.magnetic_forces)
    if label is None:
        return replace(frame, moments=moments)
    forces = as_vectors(label, len(atoms), f"{where}: '{keys.magnetic_forces}'")
    # They are -dE/dm at the length of the moment, of which only turns are to be learned.
    length = np.linalg.norm(spins, axis=1, keepdims=True)
    along = spins / np.maximum(length, SHORT)
    across = forces - (forces * along).sum(axis=1, keepdims=True) * along
    scale = np.linalg.norm(moments, axis=1, keepdims=True) / np.maximum(length, SHORT)  # dm/dS
    turning = np.where(length >= SHORT, scale * across, np.nan)
    return replace(frame, moments=moments, magnetic_forces=turning)


def _energy(atoms: Atoms, keys: LabelKeys, where: str) -> float:
    energy = label_of(atoms, keys.energy)
    if energy is None:
        raise DataError(_missing(atoms, where, "energy", keys.energy))
    if np.size(energy) != 1:
        raise DataError(f"{where}: '{keys.energy}' is not one number.")
    _check_finite(where, "energy", energy)
    return float(energy.reshape(()))


def _check_finite(where: str, name: str, label: Array) -> None:
    if not np.isfinite(label).all():
        raise DataError(f"{where}: the {name} label is NaN or infinite. Remove the frame.")


def _bare(atoms: Atoms) -> Atoms:
    """Return a copy without a calculator, so that no later step mistakes labels for predictions."""
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def label_of(atoms: Atoms, key: str) -> Array | None:
    """Return a label of a structure, None where it has none; see `LabelKeys` for the names.

    Raises
    ------
    DataError
        If it is not a number.
    """
    if key in COMPUTED and atoms.calc is not None:
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
