"""Structures from a file, checked before a model sees them."""

from collections.abc import Sequence
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.io.extxyz import XYZError
from ase.io.formats import UnknownFileTypeError

from e3sparse.errors import DataError
from e3sparse.potentials.databases import is_database, rows_of
from e3sparse.potentials.extended_xyz import check_spelling, other_encoding, without_blank_lines


def read_structures(path: str | Path, known: Sequence[int]) -> list[Atoms]:
    """Read and check every structure of a file that ASE can read.

    Parameters
    ----------
    path
        Extended XYZ, or another format of ASE's.
    known
        Atomic numbers that the model knows.

    Raises
    ------
    DataError
        If the file is empty or unreadable, a position is not finite, an element is unknown, a
        cell is degenerate or written in another spelling than ASE's; the message names the frame.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty.")
    images = [atoms for _, atoms in rows_of(path)] if is_database(path) else _read(path)
    if not images:
        raise DataError(f"{path} holds no frame.")
    for number, atoms in enumerate(images):
        check_spelling(atoms, f"Frame {number} of {path}")
        check_structure(atoms, f"Frame {number} of {path}", known)
    return images


def _read(path: Path) -> list[Atoms]:
    try:
        # ASE would take what follows an @ in the name for an index.
        source = without_blank_lines(path)
        images = (
            ase.io.read(str(path), index=":", do_not_split_by_at_sign=True)
            if source is None
            else ase.io.read(source, index=":", format="extxyz")
        )
    except DataError:
        raise
    except Exception as error:  # every reader of ASE has errors of its own
        raise DataError(_unreadable(path, error)) from error
    assert isinstance(images, list)
    return images


def _unreadable(path: Path, error: Exception) -> str:
    """Return the sentence that says why ASE cannot read a file, and what to do about it."""
    why = f"{path} cannot be read by ASE ({type(error).__name__}: {error})."
    if isinstance(error, UnicodeDecodeError):
        why += other_encoding(path)
    elif isinstance(error, UnknownFileTypeError):
        why += " ASE goes by the end of the name: extended XYZ ends in .xyz or .extxyz."
    elif isinstance(error, XYZError):
        why += " Is the file cut short, or a number of atoms wrong?"
    return why


def check_structure(atoms: Atoms, where: str, known: Sequence[int]) -> None:
    """Refuse a structure that no model could evaluate, or not this one.

    Raises
    ------
    DataError
        As `read_structures` does; `where` names the frame.
    """
    if len(atoms) == 0:
        raise DataError(f"{where} has no atoms.")
    if not np.isfinite(atoms.positions).all():
        raise DataError(f"{where} has positions that are not finite.")
    if not atoms.numbers.all():
        raise DataError(
            f"{where} has atoms without an element ('X'). In extended XYZ the column of the "
            "elements' symbols has to be called 'species' (Properties=species:S:1:pos:R:3…)."
        )
    unknown = sorted(set(atoms.numbers.tolist()) - set(known))
    if unknown:
        symbols = ", ".join(chemical_symbols[z] for z in unknown)
        raise DataError(f"{where} contains {symbols}, which the model does not know.")
    if atoms.pbc.any():
        lengths = atoms.cell.lengths()[atoms.pbc]
        if (lengths < 1e-3).any() or (atoms.pbc.all() and atoms.cell.volume < 1e-3):
            raise DataError(
                f"{where} is periodic, but its cell is degenerate (lengths "
                f"{np.round(atoms.cell.lengths(), 3).tolist()} Å): give the cell, or set pbc to F."
            )
        if atoms.pbc.all() and atoms.cell.volume < 1.0 * len(atoms):
            raise DataError(
                f"{where} has a cell of {atoms.cell.volume:.2f} Å³ for {len(atoms)} atoms, which "
                "is too small to be meant: is the cell in another unit?"
            )
