"""OUTCAR and vasprun.xml: every ionic step of one calculation, or of all in a folder tree."""

import bz2
import gzip
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TextIO

import ase.io
import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from e3sparse.datasets.base import Array, Entry, Format
from e3sparse.errors import DataError

_TAGS = re.compile(r"<(calculation|scstep)\b")
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class VASP(Format):
    """OUTCAR or vasprun.xml files, or a folder tree with calculations.

    Of a folder that holds both, the OUTCAR is taken, because a vasprun.xml has no moments of
    atoms and ASE reads those of every ionic step from an OUTCAR (they are there if LORBIT was
    set), collinear or not. `REF_energy` is the free energy, of which the forces and the stress
    are derivatives; the energy extrapolated to zero smearing is kept as `energy_sigma0`.
    Non-collinear moments refer to the frame that SAXIS sets, which is x, y, z by default. A step
    whose SCF did not converge is faulty: VASP 6 says so in the OUTCAR, and in a vasprun.xml it has
    NELM electronic steps; OUTCARs of VASP 5 do not tell.
    """

    name: ClassVar[str] = "vasp"

    def entries(self, source: Path) -> Iterator[Entry | DataError]:
        """Yield the ionic steps, file by file; see `Format.entries`."""
        source = source.resolve()
        for path in _files(source):
            # Of a tree, where it lies does not decide which set a run falls to.
            run = path if path == source else path.relative_to(source.parent)
            name = path.name if path == source else path.parent.relative_to(source).as_posix()
            images = _images(path)
            if not images:
                raise DataError(f"{path} holds no finished ionic step.")
            log = _Log.read(path)
            for number, atoms in enumerate(images):
                try:
                    yield _entry(atoms, number, log, path, run.as_posix(), name)
                except DataError as error:
                    yield error


@dataclass
class _Log:
    """What a file says that ASE does not pass on.

    Attributes
    ----------
    noncollinear
        Whether LNONCOLLINEAR is set.
    unconverged
        Ionic steps of an OUTCAR whose SCF says that it did not converge.
    electronic
        Number of electronic steps in each ionic step of a vasprun.xml.
    """

    noncollinear: bool = False
    unconverged: set[int] = field(default_factory=set)
    electronic: list[int] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "_Log":
        log, step = cls(), 0
        file: TextIO
        with _OPENERS.get(path.suffix, open)(path, "rt", errors="replace") as file:
            for line in file:
                if "LNONCOLLINEAR =" in line:
                    log.noncollinear = line.split("=")[1].split()[0].startswith("T")
                elif "EDIFF was not reached" in line:
                    log.unconverged.add(step)
                elif "FREE ENERGIE OF THE ION-ELECTRON SYSTEM" in line:
                    step += 1
                else:
                    for tag in _TAGS.findall(line):
                        if tag == "calculation":
                            log.electronic.append(0)
                        elif log.electronic:
                            log.electronic[-1] += 1
        return log

    def converged(self, step: int, most: int | None) -> bool:
        """Tell whether the SCF of an ionic step ended before NELM, as far as is known."""
        few = most is None or step >= len(self.electronic) or self.electronic[step] < most
        return step not in self.unconverged and few


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"There is no file or folder {source}.")
    outcars = sorted(path for path in source.rglob("*OUTCAR*") if _is_data(path))
    having = {path.parent for path in outcars}
    others = [p for p in source.rglob("*vasprun*.xml*") if _is_data(p) and p.parent not in having]
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


def _entry(atoms: Atoms, number: int, log: _Log, path: Path, run: str, name: str) -> Entry:
    where = f"Step {number} of {path}"
    results: dict[str, Any] = {} if atoms.calc is None else atoms.calc.results
    missing = [key for key in ("free_energy", "forces") if results.get(key) is None]
    if missing:
        raise DataError(f"{where} has no {' and no '.join(missing).replace('_', ' ')}.")
    if not log.converged(number, atoms.calc.parameters.get("nelm")):
        raise DataError(f"{where}: the SCF did not converge, so its forces are not right.")
    moments: Array | None = results.get("magmoms")
    if log.noncollinear and moments is not None and moments.ndim == 1:
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
        group=run,
        atoms=Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True),
        energy=float(results["free_energy"]),
        forces=np.asarray(results["forces"], dtype=float),
        stress=None if stress is None else voigt_6_to_full_3x3_stress(stress),
        moments=moments,
        info=info,
    )


def _is_data(path: Path) -> bool:
    """Whether it is a file, and none that macOS puts beside each one in an archive."""
    return path.is_file() and not path.name.startswith("._") and "__MACOSX" not in path.parts
