"""Files of which any structure is found at once, so that they need not be held in memory."""

from collections.abc import Iterator
from pathlib import Path

from ase import Atoms

from e3sparse.errors import DataError
from e3sparse.potentials.databases import count_rows, is_database, rows_of, structure_of
from e3sparse.potentials.extended_xyz import is_extended_xyz, offsets, structure_at


def count(path: Path) -> int | None:
    """Return how many structures a file holds; None if it has to be read as a whole.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    if is_database(path):
        return count_rows(path)
    return len(offsets(path)) if is_extended_xyz(path) else None


def structures(path: Path) -> Iterator[tuple[int, Atoms]]:
    """Yield where each structure is (a row of a database, or a byte), and the structure.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    if is_database(path):
        yield from rows_of(path)
    else:
        for number, offset in enumerate(offsets(path)):
            try:
                atoms = structure_at(path, int(offset))
            except Exception as error:  # what ASE says of a wrong frame is of many kinds
                why = f"{type(error).__name__}: {error}"
                raise DataError(
                    f"Frame {number} of {path} cannot be read by ASE ({why})."
                ) from error
            yield int(offset), atoms


def structure(path: Path, place: int) -> Atoms:
    """Return the structure that is there."""
    return structure_of(path, place) if is_database(path) else structure_at(path, place)
