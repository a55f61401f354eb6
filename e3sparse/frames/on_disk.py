"""Frames of a set that is larger than memory: checked once, then read when they are needed."""

from array import array
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any, overload

import numpy as np
from ase import Atoms
from numpy.typing import ArrayLike, NDArray

from e3sparse.errors import DataError
from e3sparse.frames.accounts import Account
from e3sparse.frames.facts import Collected, Facts, facts_of
from e3sparse.frames.faults import (
    check_asked_for,
    check_neighbours,
    fixed_notes,
    is_isolated,
    several,
    state_notes,
    state_of,
    stress_notes,
    unread,
    unread_notes,
)
from e3sparse.frames.label_keys import LabelKeys
from e3sparse.frames.labels import energy_of, keys_there, missing
from e3sparse.frames.oddities import oddities, repeated
from e3sparse.frames.reading import (
    Frame,
    IsolatedAtoms,
    Reading,
    labelled,
    partly_labelled_forces,
    read_file,
    with_moments,
)
from e3sparse.frames.weights import type_of, unknown_types
from e3sparse.potentials.extended_xyz import check_spelling
from e3sparse.potentials.stores import count, structure, structures
from e3sparse.potentials.structure_files import check_structure

IN_MEMORY = 20_000
"""Frames of a file that are kept in memory if nobody says otherwise."""
_OF_EACH_ELEMENT = 10
"""Frames that a sample has of an element at least, where there are so many."""


class FramesOnDisk(Sequence[Frame]):
    """Frames of a file, each of which is read anew whenever it is asked for.

    Parameters
    ----------
    path, keys, magnetic
        As of `read_file`.
    rows
        (F,) where they are: rows of a database, or bytes of extended XYZ.
    numbers
        (F,) which frames of the file these are, for messages.
    facts
        What was found when they were checked.
    """

    def __init__(
        self,
        path: Path,
        keys: LabelKeys,
        magnetic: bool,
        rows: NDArray[np.int64],
        numbers: NDArray[np.int64],
        facts: Facts,
    ) -> None:
        self.path, self.keys, self.magnetic = path, keys, magnetic
        self.rows, self.numbers, self.facts = rows, numbers, facts

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> "FramesOnDisk": ...
    def __getitem__(self, index: int | slice) -> "Frame | FramesOnDisk":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        atoms = structure(self.path, int(self.rows[index]))
        return _frame(atoms, self.keys, self.where(index), self.magnetic)[0]

    def take(self, positions: ArrayLike) -> "FramesOnDisk":
        """Return some of the frames, unread."""
        some = np.asarray(positions, dtype=int)
        return FramesOnDisk(
            self.path,
            self.keys,
            self.magnetic,
            self.rows[some],
            self.numbers[some],
            self.facts.take(some),
        )

    def where(self, index: int) -> str:
        """Return what a frame is called, without reading it."""
        return f"Frame {self.numbers[index]} of {self.path}"


def take(frames: Sequence[Frame], positions: Sequence[int] | NDArray[Any]) -> Sequence[Frame]:
    """Return some frames: a list of a list, and unread ones of a set on disk."""
    if isinstance(frames, FramesOnDisk):
        return frames.take(positions)
    return [frames[n] for n in positions]


def without(frames: Sequence[Frame], named: Collection[str]) -> Sequence[Frame]:
    """Return the frames but those whose `where` is given."""
    if not named:
        return frames
    if isinstance(frames, FramesOnDisk):
        return frames.take([n for n in range(len(frames)) if frames.where(n) not in named])
    return [frame for frame in frames if frame.where not in named]


def sample(frames: Sequence[Frame], size: int, seed: int) -> list[Frame]:
    """Read some frames of a set on disk, drawn at random; a list is returned as it is.

    Of each element there are ten frames at least, where the set has so many, so that what is
    fitted per element is known of all.
    """
    if not isinstance(frames, FramesOnDisk):
        return list(frames)
    order = np.random.default_rng(seed).permutation(len(frames))
    has = frames.facts.composition[order] > 0
    rare = [order[np.flatnonzero(column)[:_OF_EACH_ELEMENT]] for column in has.T]
    return [frames[int(n)] for n in np.unique(np.concatenate([order[:size], *rare]))]


def read_set(
    path: str | Path,
    keys: LabelKeys,
    *,
    known: Sequence[int],
    cutoff: float,
    magnetic: bool = False,
    skip_faulty: bool = False,
    in_memory: int,
) -> Reading:
    """Read a file as `read_file` does, but leave one of many frames on disk.

    That is possible for databases of ASE's, and for extended XYZ that is not compressed.

    Every frame is read once and checked; what is kept of it are a few numbers.

    Parameters
    ----------
    path, keys, known, cutoff, magnetic, skip_faulty
        As of `read_file`.
    in_memory
        How many frames of such a file are kept in memory at most.

    Raises
    ------
    DataError
        As `read_file`.
    """
    path = Path(path)
    held = count(path) if path.is_file() else None
    if held is not None and held > in_memory:
        read = _read_on_disk(path, held, keys, known, cutoff, magnetic, skip_faulty)
    else:
        read = read_file(
            path,
            keys,
            known=known,
            cutoff=cutoff,
            magnetic=magnetic,
            skip_faulty=skip_faulty,
        )
    odd = [*repeated(facts_of(read.frames), path), *oddities(read.frames, path)]
    return read._replace(notes=read.notes + odd)


def _read_on_disk(
    path: Path,
    held: int,
    keys: LabelKeys,
    known: Sequence[int],
    cutoff: float,
    magnetic: bool,
    skip_faulty: bool,
) -> Reading:
    """Check every frame of a file, and keep but numbers of it."""
    collected, isolated = Collected(), IsolatedAtoms(path)
    rows, numbers = array("q"), array("q")
    faults: dict[int, str] = {}
    stresses: Counter[tuple[str, bool]] = Counter()
    states: Counter[tuple[str, str]] = Counter()
    types: set[str] = set()
    partly, account = 0, Account(held)
    carrying: Counter[tuple[str, ...]] = Counter()
    examples: dict[tuple[str, ...], Atoms] = {}
    for number, (row, atoms) in enumerate(structures(path)):
        where = f"Frame {number} of {path}"
        check_spelling(atoms, where)
        check_structure(atoms, where, known)
        there = tuple(keys_there(atoms))
        carrying[there] += 1
        states.update(state_of(atoms))
        types.add(type_of(atoms))
        examples.setdefault(there, atoms)
        try:
            alone = is_isolated(atoms, cutoff)
            if alone:
                energy = energy_of(atoms, keys, where)
                if not np.isfinite(energy):
                    raise DataError(missing(atoms, where, "energy", keys.energy))
            else:
                check_neighbours(atoms, where, cutoff)
                frame, key = _frame(atoms, keys, where, magnetic)
        except DataError as error:
            faults[number] = str(error)
            continue
        if alone:
            isolated.add(number, atoms, energy)
            continue
        if key is not None:
            stresses[key, frame.stress is not None] += 1
        partly += partly_labelled_forces(frame)
        account.add(frame, keys, key)
        collected.add(frame)
        rows.append(row)
        numbers.append(number)
    images = list(examples.values())
    check_asked_for(images, keys, path)
    facts = collected.facts()
    keep = np.ones(len(rows), dtype=bool)
    for what, there_is in (("forces", facts.forces), ("energy", ~np.isnan(facts.energy))):
        if there_is.any() and not there_is.all():
            keep &= there_is
            for n in np.flatnonzero(~there_is):
                where = f"Frame {numbers[n]} of {path}"
                atoms = structure(path, int(rows[n]))
                faults.setdefault(numbers[n], missing(atoms, where, what, getattr(keys, what)))
    if rows and not facts.forces.any() and np.isnan(facts.energy).all():
        keep[:] = False
        faults[numbers[0]] = missing(
            images[0], f"Frame {numbers[0]} of {path}", "energy", keys.energy
        )
    if faults and not (skip_faulty and keep.any()):
        raise DataError(several(faults, path))
    if not keep.any():
        raise DataError(f"{path} holds nothing but isolated atoms, which are energy references.")
    notes = [f"{path} is left on disk: {held:,} frames, each read when it is needed."]
    if faults:
        notes.append(f"Left out of {path}: {several(faults, path)}")
    for what, there_is in (("forces", facts.forces), ("energy", ~np.isnan(facts.energy))):
        if not there_is.any():
            notes.append(f"{path} has no {what} labels: what is there is used.")
    counted = chain.from_iterable(repeat(examples[there], n) for there, n in carrying.items())
    not_read = unread(counted, keys, stresses)
    notes += stress_notes(stresses, path) + unread_notes(not_read, path)
    account.without(len(faults), stresses, list(not_read), partly)
    notes += fixed_notes(partly, path) + state_notes(states, magnetic, path)
    notes += unknown_types(types, keys, path)
    frames = FramesOnDisk(path, keys, magnetic, np.array(rows), np.array(numbers), facts)
    return Reading(frames.take(np.flatnonzero(keep)), isolated.atoms, notes, account)


def _frame(atoms: Atoms, keys: LabelKeys, where: str, magnetic: bool) -> tuple[Frame, str | None]:
    frame, key = labelled(atoms, keys, where)
    return (with_moments(frame, atoms, keys, where) if magnetic else frame), key
