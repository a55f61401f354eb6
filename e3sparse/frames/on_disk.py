"""Frames of a set that is larger than memory: checked once, then read when they are needed."""

import os
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple, overload

import ase.db
import numpy as np
from ase import Atoms
from numpy.typing import ArrayLike, NDArray

from e3sparse.errors import DataError
from e3sparse.frames.faults import (
    check_asked_for,
    check_neighbours,
    is_isolated,
    several,
    stress_notes,
    unread,
)
from e3sparse.frames.label_keys import LabelKeys
from e3sparse.frames.labels import energy_of, keys_there, missing
from e3sparse.frames.reading import (
    Array,
    Frame,
    IsolatedAtoms,
    Reading,
    labelled,
    read_file,
    with_moments,
)
from e3sparse.potentials.structure_files import check_structure

SUFFIXES = (".db", ".aselmdb")
"""Databases of ASE's, of which any frame is found at once; the latter is of `ase-db-backends`."""
_OF_EACH_ELEMENT = 10
"""Frames that a sample has of an element at least, where there are so many."""


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


class FramesOnDisk(Sequence[Frame]):
    """Frames of a database, each of which is read anew whenever it is asked for.

    Parameters
    ----------
    path, keys, magnetic
        As of `read_file`.
    rows
        (F,) identifiers of the rows in the database.
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
        atoms = _database(str(self.path), os.getpid()).get(id=int(self.rows[index])).toatoms()
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


def facts_of(frames: Sequence[Frame]) -> Facts:
    """Return what is said of frames in a table, without reading any again."""
    if isinstance(frames, FramesOnDisk):
        return frames.facts
    collected = _Collected()
    for frame in frames:
        collected.add(frame)
    return collected.facts()


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
    """Read a file as `read_file` does, but leave a database of many frames on disk.

    Every frame is read once and checked; what is kept of it are a few numbers.

    Parameters
    ----------
    path, keys, known, cutoff, magnetic, skip_faulty
        As of `read_file`.
    in_memory
        How many frames of a database are kept in memory at most.

    Raises
    ------
    DataError
        As `read_file`.
    """
    path = Path(path)
    readable = path.suffix in SUFFIXES and path.is_file() and path.stat().st_size > 0
    count = _count(path) if readable else 0
    if count <= in_memory:
        return read_file(
            path,
            keys,
            known=known,
            cutoff=cutoff,
            magnetic=magnetic,
            skip_faulty=skip_faulty,
        )
    collected, isolated = _Collected(), IsolatedAtoms(path)
    rows, numbers = array("q"), array("q")
    faults: dict[int, str] = {}
    stresses: Counter[tuple[str, bool]] = Counter()
    carrying: Counter[tuple[str, ...]] = Counter()
    examples: dict[tuple[str, ...], Atoms] = {}
    for number, (row, atoms) in enumerate(_rows(path)):
        where = f"Frame {number} of {path}"
        check_structure(atoms, where, known)
        there = tuple(keys_there(atoms))
        carrying[there] += 1
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
                atoms = _database(str(path), os.getpid()).get(id=rows[n]).toatoms()
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
    notes = [f"{path} is left on disk: {count:,} frames, each read when it is needed."]
    if faults:
        notes.append(f"Left out of {path}: {several(faults, path)}")
    for what, there_is in (("forces", facts.forces), ("energy", ~np.isnan(facts.energy))):
        if not there_is.any():
            notes.append(f"{path} has no {what} labels: what is there is used.")
    counted = chain.from_iterable(repeat(examples[there], n) for there, n in carrying.items())
    notes += stress_notes(stresses, path) + unread(counted, keys, stresses, path)
    frames = FramesOnDisk(path, keys, magnetic, np.array(rows), np.array(numbers), facts)
    return Reading(frames.take(np.flatnonzero(keep)), isolated.atoms, notes)


class _Collected:
    """Numbers of frames that go by, packed: of a million frames each byte is a megabyte."""

    def __init__(self) -> None:
        self.atoms, self.periodic = array("q"), array("b")
        self.energy, self.forces, self.stress = array("d"), array("b"), array("b")
        self.compositions: dict[tuple[tuple[int, int], ...], int] = {}
        self.kinds = array("q")

    def add(self, frame: Frame) -> None:
        """Note a frame."""
        atoms = frame.atoms
        self.atoms.append(len(atoms))
        self.periodic.append(int(atoms.pbc.sum()))
        self.energy.append(frame.energy)
        self.forces.append(not np.isnan(frame.forces).any())
        self.stress.append(frame.stress is not None)
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
            np.array(elements, dtype=int),
            table[np.array(self.kinds, dtype=int)],
        )


def _frame(atoms: Atoms, keys: LabelKeys, where: str, magnetic: bool) -> tuple[Frame, str | None]:
    frame, key = labelled(atoms, keys, where)
    return (with_moments(frame, atoms, keys, where) if magnetic else frame), key


@lru_cache(maxsize=8)
def _database(path: str, process: int) -> Any:
    """Return a database, which no two processes may share."""
    return ase.db.connect(path, serial=True)


def _count(path: Path) -> int:
    try:
        return int(_database(str(path), os.getpid()).count())
    except Exception as error:  # each backend has errors of its own
        why = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} cannot be read by ASE ({why}).") from error


def _rows(path: Path) -> Iterator[tuple[int, Atoms]]:
    try:
        for row in _database(str(path), os.getpid()).select():
            yield row.id, row.toatoms()
    except DataError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} cannot be read by ASE ({why}).") from error
