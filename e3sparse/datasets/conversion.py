"""From a published data set to extended XYZ, frame by frame, with nothing half-written left."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from e3sparse.datasets.base import Entry, Format
from e3sparse.datasets.splits import Split
from e3sparse.datasets.writing import writer
from e3sparse.errors import DataError
from e3sparse.files import replacing

ATOMS_IN_MAGNETIC = 100
"""The paper takes frames with fewer atoms than this."""


@dataclass
class Report:
    """What a conversion wrote and what it left out.

    Attributes
    ----------
    frames, groups
        Written into each file.
    without
        How many of the written frames lack a label that others may have.
    filtered
        Frames that are not magnetic or too large, where only such were wanted.
    faulty
        What was wrong with the frames that were left out for it.
    """

    frames: Counter[Path] = field(default_factory=Counter)
    groups: dict[Path, set[str]] = field(default_factory=dict)
    without: Counter[str] = field(default_factory=Counter)
    filtered: int = 0
    faulty: list[str] = field(default_factory=list)

    def count(self, path: Path, entry: Entry) -> None:
        """Add a frame that was written."""
        self.frames[path] += 1
        self.groups.setdefault(path, set()).add(entry.group)
        self.without["stress"] += entry.stress is None
        self.without["moments"] += entry.moments is None


def convert(
    form: Format,
    sources: Sequence[Path],
    out: Path,
    *,
    magnetic: bool = False,
    split: Split | None = None,
    database: bool = False,
    skip_faulty: bool = False,
    advance: Callable[[int], None] = lambda position: None,
) -> Report:
    """Check every frame of the sources and write them as extended XYZ, or as a database.

    Parameters
    ----------
    form
        How the sources are read.
    sources
        Files or folders, read in this order.
    out
        The file, a database of ASE's if it ends in `.db`; with a split the folder, which gets
        `train.xyz`, `valid.xyz` and `test.xyz`.
    magnetic
        Keep only frames with a moment above 0.1 μ_B and fewer than 100 atoms.
    split
        How groups (materials, systems, runs) are dealt out.
    database
        With a split: databases are written, `train.db` and so on.
    skip_faulty
        Leave frames that are wrong out and report them, instead of raising.
    advance
        Called with the position (bytes) of each frame that was read.

    Raises
    ------
    DataError
        If a source or a frame is wrong, or a file would get no frame; nothing is written then.
    """
    report = Report()
    suffix = ".db" if database else ".xyz"
    paths = {name: out / f"{name}{suffix}" for name in split.wanted()} if split else {"": out}
    with ExitStack() as stack:
        write = {
            name: stack.enter_context(writer(stack.enter_context(replacing(path)), path.suffix))
            for name, path in paths.items()
        }
        for entry in _checked(form, sources, report, skip_faulty):
            advance(entry.position)
            if magnetic and not (entry.magnetic and len(entry.atoms) < ATOMS_IN_MAGNETIC):
                report.filtered += 1
                continue
            name = split.of(entry.group) if split else ""
            write[name](entry.to_atoms())
            report.count(paths[name], entry)
        for path in paths.values():
            if report.frames[path] == 0:
                raise DataError(_empty(path, report, split))
    return report


def _checked(
    form: Format, sources: Sequence[Path], report: Report, skip_faulty: bool
) -> Iterator[Entry]:
    for source in sources:
        for entry in _read(form, source):
            try:
                if isinstance(entry, DataError):
                    raise entry
                entry.check()
            except DataError as error:
                if not skip_faulty:
                    raise
                report.faulty.append(str(error))
            else:
                yield entry


def _read(form: Format, source: Path) -> Iterator[Entry | DataError]:
    try:
        yield from form.entries(source)
    except OSError as error:
        where = error.filename or source
        raise DataError(f"{where} cannot be read ({error.strerror or error}).") from error


def _empty(path: Path, report: Report, split: Split | None) -> str:
    groups = len(set().union(*report.groups.values()))
    if groups and split:
        return (
            f"No frame fell to {path.name}: whole materials, systems or runs are dealt out, and "
            f"there are only {groups}. Give another --split or --seed."
        )
    why = f"{report.filtered} are not magnetic or too large" if report.filtered else ""
    faulty = (
        f"{len(report.faulty)} are faulty, the first: {report.faulty[0]}" if report.faulty else ""
    )
    said = "; ".join(filter(None, (why, faulty))) or "the source holds none"
    return f"No frame is left to write to {path} ({said})."
