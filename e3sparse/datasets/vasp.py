"""OUTCAR and vasprun.xml: every ionic step of one calculation, or of all in a folder tree."""

import bz2
import gzip
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, TextIO

import ase.io
import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from e3sparse.datasets.base import Array, Entry, Format
from e3sparse.errors import DataError

_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class VASP(Format):
    """OUTCAR or vasprun.xml files, or a folder tree with calculations.

    Of a folder that holds both, the OUTCAR is taken, because a vasprun.xml has no moments of
    atoms and ASE reads those of every ionic step from an OUTCAR (they are there if LORBIT was
    set), collinear or not. `REF_energy` is the free energy, of which the forces and the stress
    are derivatives; the energy extrapolated to zero smearing is kept as `energy_sigma0`.
    Non-collinear moments refer to the frame that SAXIS sets, which is x, y, z by default.
    """

    name: ClassVar[str] = "vasp"

    def entries(self, source: Path) -> Iterator[Entry | DataError]:
        """Yield the ionic steps, file by file; see `Format.entries`."""
        files = _files(source)
        for path in files:
            noncollinear = _is_outcar(path) and _is_noncollinear(path)
            name = path.parent.relative_to(source).as_posix() if source.is_dir() else path.name
            images = _images(path)
            if not images:
                raise DataError(f"{path} holds no finished ionic step.")
            for number, atoms in enumerate(images):
                try:
                    yield _entry(atoms, f"Step {number} of {path}", str(path), name, noncollinear)
                except DataError as error:
                    yield error


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"There is no file or folder {source}.")
    outcars = sorted(path for path in source.rglob("*OUTCAR*") if path.is_file())
    having = {path.parent for path in outcars}
    others = [p for p in source.rglob("*vasprun*.xml*") if p.is_file() and p.parent not in having]
    found = sorted([*outcars, *others])
    if not found:
        raise DataError(f"There is no OUTCAR and no vasprun.xml in {source}.")
    return found


def _is_outcar(path: Path) -> bool:
    return ".xml" not in path.name


def _images(path: Path) -> list[Atoms]:
    form = "vasp-out" if _is_outcar(path) else "vasp-xml"
    try:
        images = ase.io.read(path, index=":", format=form)
    except Exception as error:  # ASE's readers have errors of their own, and bare ones
        why = f"{type(error).__name__}: {error}".rstrip(": ")
        kind = "OUTCAR" if _is_outcar(path) else "vasprun.xml"
        raise DataError(f"{path} cannot be read as {kind} of VASP ({why}).") from error
    assert isinstance(images, list)
    return images


def _is_noncollinear(outcar: Path) -> bool:
    """Tell by the settings, which stand before the first electronic step."""
    file: TextIO
    with _OPENERS.get(outcar.suffix, open)(outcar, "rt", errors="replace") as file:
        for line in file:
            if "LNONCOLLINEAR" in line:
                return line.split("=")[1].split()[0].startswith("T")
            if "Iteration" in line:
                break
    return False


def _entry(atoms: Atoms, where: str, group: str, name: str, noncollinear: bool) -> Entry:
    results: dict[str, Any] = {} if atoms.calc is None else atoms.calc.results
    missing = [key for key in ("free_energy", "forces") if results.get(key) is None]
    if missing:
        raise DataError(f"{where} has no {' and no '.join(missing).replace('_', ' ')}.")
    moments: Array | None = results.get("magmoms")
    if noncollinear and moments is not None and moments.ndim == 1:
        raise DataError(
            f"{where} is non-collinear, but ASE finds only one component of its moments. A cell of "
            "a single atom is one cause: repeat the calculation in a doubled cell."
        )
    stress = results.get("stress")
    info: dict[str, str | float] = {"config_type": name}
    if results.get("energy") is not None:
        info["energy_sigma0"] = float(results["energy"])
    return Entry(
        where=where,
        group=group,
        atoms=Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True),
        energy=float(results["free_energy"]),
        forces=np.asarray(results["forces"], dtype=float),
        stress=None if stress is None else voigt_6_to_full_3x3_stress(stress),
        moments=moments,
        info=info,
    )
