"""Labelled frames from a file, checked before anything is trained on them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list

from e3sparse.errors import DataError
from e3sparse.frames.accounts import Account
from e3sparse.frames.faults import (
    check_asked_for,
    check_neighbours,
    fixed_notes,
    is_isolated,
    partly_labelled,
    several,
    source_notes,
    state_notes,
    state_of,
    stress_notes,
    unread,
    unread_notes,
)
from e3sparse.frames.label_keys import LabelKeys
from e3sparse.frames.labels import (
    COMPUTED,
    Array,
    energy_of,
    forces_of,
    further_labels_of,
    label_of,
    missing,
    stress_of,
)
from e3sparse.frames.weights import type_of, unknown_types, weights_of
from e3sparse.potentials.spins import SHORT, SPINS, as_vectors, directions_of
from e3sparse.potentials.structure_files import read_structures

__all__ = [
    "COMPUTED",
    "Array",
    "Frame",
    "LabelKeys",
    "Reading",
    "Split",
    "average_neighbours",
    "elements_of",
    "label_of",
    "read_file",
    "read_frames",
    "read_split",
]

_SAME_ENERGY = 1e-3
"""In eV: what codes and their settings leave between two calculations of one atom."""


@dataclass(frozen=True)
class Frame:
    """One structure with its labels.

    Attributes
    ----------
    atoms
        Positions in Å, cell and species; for magnetic models the array `"spin"` too.
    energy
        Total energy in eV; NaN where the file has no energies.
    forces
        (N, 3) in eV/Å; NaN where the file has no forces.
    stress
        (3, 3) in eV/Å³, positive under tension; None where there is no label.
    moments
        (N, 3) in μ_B, for magnetic models.
    magnetic_forces
        (N, 3) -dE/dS in eV, which for spins of length 1 is that of a turn by one radian; NaN for
        spins shorter than `SHORT`, None where there is no label.
    where
        The frame and its file, for messages.
    others
        Further labels by name, where the file has them; see `e3sparse.potentials.quantities`.
    weights
        How much its labels count in the loss, by quantity, where that is not 1.
    """

    atoms: Atoms
    energy: float
    forces: Array
    stress: Array | None
    moments: Array | None = None
    magnetic_forces: Array | None = None
    where: str = "A frame"
    others: Mapping[str, Array] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)


class Split(NamedTuple):
    """What a file holds.

    Attributes
    ----------
    frames
        What can be trained or tested on.
    isolated
        Frames of a single atom without neighbours, its own images included, by atomic number.
        Their energies are references; their forces are 0 whatever the file says.
    """

    frames: list[Frame]
    isolated: dict[int, Frame]


class Reading(NamedTuple):
    """What a file holds, and what was made of it.

    Attributes
    ----------
    frames, isolated
        As of `Split`.
    notes
        A sentence for each kind of thing that was left out, read in another way than its name
        says, or not read.
    account
        The same in numbers.
    """

    frames: Sequence[Frame]
    isolated: dict[int, Frame]
    notes: list[str]
    account: Account


class IsolatedAtoms:
    """Isolated atoms of a file by atomic number, which must not contradict each other."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.atoms: dict[int, Frame] = {}
        self._numbers: dict[int, int] = {}

    def add(self, number: int, atoms: Atoms, energy: float) -> None:
        """Add frame `number` of the file.

        Raises
        ------
        DataError
            If another of its element has a different energy.
        """
        z = int(atoms.numbers[0])
        where = f"Frame {number} of {self.path}"
        atom = Frame(_bare(atoms), energy, np.zeros((1, 3)), None, where=where)
        first, same = self._numbers.setdefault(z, number), self.atoms.setdefault(z, atom)
        if abs(same.energy - energy) > _SAME_ENERGY:
            raise DataError(
                f"Frames {first} and {number} of {self.path} are both an isolated "
                f"{atoms.symbols[0]} atom, but their energies are {same.energy} and {energy} eV. "
                "Keep the one that is the zero of energy of the other frames."
            )


def read_file(
    path: str | Path,
    keys: LabelKeys,
    *,
    known: Sequence[int],
    cutoff: float,
    magnetic: bool = False,
    skip_faulty: bool = False,
) -> Reading:
    """Read and check every frame of a file that ASE can read, and set isolated atoms apart.

    Energies, or forces, may be missing from the whole file: they are NaN then. A stress of a frame
    that is not periodic in three directions is left out.

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
    skip_faulty
        Whether frames that cannot be used are left out, with a note.

    Raises
    ------
    DataError
        If the file is empty, unreadable or holds isolated atoms only, a label is missing or not
        finite, an element is unknown, an atom has no neighbour or lies on another, a cell is
        degenerate or two isolated atoms of an element differ in energy; the message names the
        frames.
    """
    images = read_structures(path, known)
    check_asked_for(images, keys, path)
    frames: list[tuple[int, Atoms, Frame]] = []
    stress_keys: dict[int, str | None] = {}
    isolated = IsolatedAtoms(path)
    faults: dict[int, str] = {}
    stresses: Counter[tuple[str, bool]] = Counter()
    states: Counter[tuple[str, str]] = Counter()
    for number, atoms in enumerate(images):
        where = f"Frame {number} of {path}"
        states.update(state_of(atoms))
        try:
            if not is_isolated(atoms, cutoff):
                check_neighbours(atoms, where, cutoff)
                frame, key = labelled(atoms, keys, where)
                frame = with_moments(frame, atoms, keys, where) if magnetic else frame
                frames.append((number, atoms, frame))
                stress_keys[number] = key
                if key is not None:
                    stresses[key, frame.stress is not None] += 1
                continue
            energy = energy_of(atoms, keys, where)
            if not np.isfinite(energy):
                raise DataError(missing(atoms, where, "energy", keys.energy))
        except DataError as error:
            faults[number] = str(error)
            continue
        isolated.add(number, atoms, energy)
    faults |= partly_labelled(frames, keys)
    if faults and not skip_faulty:
        raise DataError(several(faults, path))
    used = [frame for number, _, frame in frames if number not in faults]
    if not used:
        raise DataError(
            several(faults, path)
            if faults
            else f"{path} holds nothing but isolated atoms, which are energy references: there "
            "are no forces to learn or to test. Add frames of more than one atom."
        )
    notes = [f"Left out of {path}: {several(faults, path)}"] if faults else []
    for what in ("forces", "energy"):
        if all(np.isnan(getattr(frame, what)).all() for frame in used):
            notes.append(f"{path} has no {what} labels: what is there is used.")
    not_read = unread(images, keys, stresses)
    notes += stress_notes(stresses, path) + unread_notes(not_read, path)
    partly = sum(map(partly_labelled_forces, used))
    notes += fixed_notes(partly, path) + state_notes(states, magnetic, path) + source_notes(path)
    notes += unknown_types({type_of(atoms) for atoms in images}, keys, path)
    account = Account(len(images))
    for number, _, frame in frames:
        if number not in faults:
            account.add(frame, keys, stress_keys[number])
    account.without(len(faults), stresses, list(not_read), partly)
    return Reading(used, isolated.atoms, notes, account)


def read_split(
    path: str | Path,
    keys: LabelKeys,
    *,
    known: Sequence[int],
    cutoff: float,
    magnetic: bool = False,
) -> Split:
    """Read a file without its notes; see `read_file`."""
    reading = read_file(path, keys, known=known, cutoff=cutoff, magnetic=magnetic)
    return Split(list(reading.frames), reading.isolated)


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


def partly_labelled_forces(frame: Frame) -> bool:
    """Whether some atoms of a frame have no forces label, and others have one."""
    unknown = np.isnan(frame.forces)
    return bool(unknown.any() and not unknown.all())


def labelled(atoms: Atoms, keys: LabelKeys, where: str) -> tuple[Frame, str | None]:
    """Return a structure with its labels, and the key of its stress label if it has one."""
    energy, forces = energy_of(atoms, keys, where), forces_of(atoms, keys, where)
    stress, key = stress_of(atoms, keys, where)
    others = further_labels_of(atoms, keys, where)
    weights = weights_of(atoms, keys, where)
    frame = Frame(_bare(atoms), energy, forces, stress, where=where, others=others, weights=weights)
    return frame, key


def with_moments(frame: Frame, atoms: Atoms, keys: LabelKeys, where: str) -> Frame:
    """Return a frame with its moments, spins and magnetic forces too."""
    label = label_of(atoms, keys.moments)
    if label is None:
        raise DataError(missing(atoms, where, "moments", keys.moments))
    moments = as_vectors(label, len(atoms), f"{where}: the moments '{keys.moments}'")
    given = label_of(atoms, keys.spin)
    if given is None and keys.spin != SPINS:
        raise DataError(missing(atoms, where, "spin", keys.spin))
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


def _bare(atoms: Atoms) -> Atoms:
    """Return a copy without a calculator, so that no later step mistakes labels for predictions."""
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
