"""The files that a conversion writes, frame by frame: extended XYZ, or a database of ASE's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ase.db
import numpy as np
from ase import Atoms
from ase.io.extxyz import write_extxyz


@contextmanager
def writer(path: Path, suffix: str) -> Iterator[Callable[[Atoms], object]]:
    """Open a file and yield what writes one frame into it.

    A database holds labels under the same names as the other files, in the data of its rows, and
    `e3sparse finetune` leaves it on disk.

    Parameters
    ----------
    path
        The file, which is written anew.
    suffix
        `".db"` for a database; anything else is extended XYZ.
    """
    if suffix != ".db":
        with open(path, "w", encoding="utf-8") as file:
            yield lambda atoms: write_extxyz(file, [atoms])
        return
    path.unlink()  # an empty file is no database
    database = ase.db.connect(str(path), type="db", serial=True, use_lock_file=False)
    with database:
        yield lambda atoms: database.write(_bare(atoms), data=_data(atoms))


def _bare(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def _data(atoms: Atoms) -> dict[str, object]:
    """Return all that a structure carries, as a database can hold it."""
    arrays = {k: v for k, v in atoms.arrays.items() if k not in ("numbers", "positions")}
    single = {k: v.item() if isinstance(v, np.generic) else v for k, v in atoms.info.items()}
    return single | arrays
