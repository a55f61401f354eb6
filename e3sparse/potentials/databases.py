"""Databases of ASE's: any of their structures is found at once, with all that is stored with it."""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
from ase import Atoms
from ase.db.sqlite import SQLite3Database

from e3sparse.errors import DataError

SUFFIXES = (".db", ".aselmdb")
"""The latter is of `ase-db-backends`."""
_AT_A_TIME = 1000


def is_database(path: Path) -> bool:
    """Whether a file is a database, by its name."""
    return path.suffix in SUFFIXES and path.is_file() and path.stat().st_size > 0


def count_rows(path: Path) -> int:
    """Return how many structures a database holds.

    Raises
    ------
    DataError
        If ASE cannot read it.
    """
    try:
        return int(_database(str(path), os.getpid()).count())
    except Exception as error:  # each backend has errors of its own
        raise _unreadable(path, error) from error


def rows_of(path: Path) -> Iterator[tuple[int, Atoms]]:
    """Yield the identifier of each row, and its structure.

    Raises
    ------
    DataError
        If ASE cannot read it.
    """
    try:
        for row in _rows(ase.db.connect(str(path), serial=True)):
            yield row.id, _structure(row)
    except DataError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def structure_of(path: Path, row: int) -> Atoms:
    """Return the structure of one row."""
    return _structure(_database(str(path), os.getpid()).get(id=row))


def _rows(database: Any) -> Iterator[Any]:
    """Yield all rows; ASE would fetch them all from SQLite before it gives the first."""
    if not isinstance(database, SQLite3Database):
        yield from database.select()
        return
    last, more = 0, True
    with database:  # or it would open the file anew for each row
        while more:
            more = False
            for row in database.select(f"id>{last}", sort="id", limit=_AT_A_TIME):
                last, more = row.id, True
                yield row


def _structure(row: Any) -> Atoms:
    """Return a structure with the key-value pairs and the data of its row."""
    atoms: Atoms = row.toatoms()
    data = row.data if isinstance(row.data, dict) else {}
    for key, value in (row.key_value_pairs | data).items():
        shape = np.shape(value) if isinstance(value, list | np.ndarray) else ()
        # Of a single atom, or of a stress of 3 × 3 on 3 atoms, the shape does not tell.
        if shape[:1] == (len(atoms),) and "stress" not in key and "virial" not in key:
            atoms.arrays.setdefault(key, np.asarray(value))
        else:
            atoms.info.setdefault(key, value)
    return atoms


@lru_cache(maxsize=8)
def _database(path: str, process: int) -> Any:
    """Return a database, which no two processes may share."""
    return ase.db.connect(path, serial=True)


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read by ASE ({type(error).__name__}: {error}).")
