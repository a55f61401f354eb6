"""MPtrj, the relaxations of the Materials Project that CHGNet was trained on (Deng et al. 2023)."""

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

import numpy as np
from ase import Atoms, units
from pydantic import BaseModel, Field, ValidationError

from e3sparse.datasets.base import Entry, Format, numbers_of
from e3sparse.errors import ConfigError, DataError, wrong_values

KBAR = 0.1 * units.GPa

_GZIPPED = b"\x1f\x8b"
_NOT_JSON = re.compile(rb"(?:(?<=[\s:,\[])|^)(?:NaN|-?Infinity)(?=[\s,\]}])")

Vector = Annotated[list[float], Field(min_length=3, max_length=3)]
Matrix = Annotated[list[Vector], Field(min_length=3, max_length=3)]


class _Species(BaseModel):
    element: str
    occu: float = 1.0


class _Site(BaseModel):
    species: Annotated[list[_Species], Field(min_length=1)]
    abc: Vector


class _Lattice(BaseModel):
    matrix: Matrix


class _Structure(BaseModel):
    """The dictionary that pymatgen makes of a `Structure`."""

    lattice: _Lattice
    sites: list[_Site]


class _Frame(BaseModel):
    structure: _Structure
    uncorrected_total_energy: float
    corrected_total_energy: float | None = None
    force: list[Vector]
    stress: Matrix | None = None
    magmom: list[float] | None = None


class MPtrj(Format):
    """`MPtrj_2022.9_full.json`: material by frame, each with a pymatgen structure.

    `REF_energy` is the uncorrected energy of VASP, to which the forces belong; the corrected one
    of the Materials Project is kept as `corrected_total_energy`. Stresses are VASP's, in kbar and
    positive under compression: `REF_stress` has the other sign. Moments are those of collinear
    calculations, with their signs; frames without any have no `REF_magmom`. The file, gzipped or
    not, is read as a stream, one material at a time. NaN, which is not JSON, is read as a number
    that is missing.
    """

    name: ClassVar[str] = "mptrj"

    def length(self, source: Path) -> int | None:
        """Return the size of the file in bytes."""
        return source.stat().st_size if source.is_file() else None

    def entries(self, source: Path) -> Iterator[Entry | DataError]:
        """Yield the frames, material by material; see `Format.entries`."""
        if not source.is_file():
            raise DataError(f"There is no file {source}: give MPtrj's JSON file.")
        try:
            import ijson
        except ImportError as error:
            raise ConfigError(
                "MPtrj is read with ijson, which is not here: pip install 'e3sparse[datasets]'."
            ) from error
        with open(source, "rb") as file:
            packed = file.read(2) == _GZIPPED
            file.seek(0)
            try:
                text = _WithoutNaN(gzip.GzipFile(fileobj=file) if packed else file)
                for material, frames in ijson.kvitems(text, "", use_float=True):
                    if not isinstance(frames, dict):
                        raise DataError(
                            f"{source}: '{material}' holds no frames by name, as a material of "
                            "MPtrj does. Is it another file?"
                        )
                    for name, frame in frames.items():
                        where = f"Frame {name} of {material} in {source}"
                        try:
                            yield _entry(frame, str(material), str(name), where, file.tell())
                        except DataError as error:
                            yield error
            except (ijson.JSONError, EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise DataError(
                    f"{source} is not JSON from beginning to end ({str(error).splitlines()[0]}): "
                    "is the download complete?"
                ) from error


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _WithoutNaN:
    """A stream of JSON with `null` where Python and pymatgen write NaN and Infinity."""

    def __init__(self, file: _Readable) -> None:
        self.file = file
        self.kept = b""

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, about `size` of them, or none at the end."""
        text = self.kept
        while new := self.file.read(size):
            text += new
            whole = text.rfind(b",") + 1  # no number goes on behind a comma
            if whole:
                self.kept = text[whole:]
                return _NOT_JSON.sub(b"null", text[:whole])
        self.kept = b""
        return _NOT_JSON.sub(b"null", text)


def _entry(frame: Any, material: str, name: str, where: str, position: int) -> Entry:
    try:
        read = _Frame.model_validate(frame)
    except ValidationError as error:
        first, *others = wrong_values(error)
        more = f" (and {len(others)} more)" if others else ""
        raise DataError(f"{where} is not as MPtrj's frames are: {first}{more}.") from error
    info: dict[str, str | float] = {"config_type": "mptrj", "mp_id": material, "frame_id": name}
    if read.corrected_total_energy is not None:
        info["corrected_total_energy"] = read.corrected_total_energy
    return Entry(
        where=where,
        group=material,
        atoms=_atoms(read.structure, where),
        energy=read.uncorrected_total_energy,
        forces=np.array(read.force, dtype=float).reshape(-1, 3),
        stress=None if read.stress is None else -KBAR * np.array(read.stress),
        moments=None if read.magmom is None else np.array(read.magmom),
        info=info,
        position=position,
    )


def _atoms(structure: _Structure, where: str) -> Atoms:
    for number, site in enumerate(structure.sites):
        if len(site.species) > 1 or abs(site.species[0].occu - 1) > 1e-6:
            raise DataError(f"{where}: site {number} is disordered, which no calculation is.")
    return Atoms(
        numbers_of((site.species[0].element for site in structure.sites), where),
        scaled_positions=np.array([site.abc for site in structure.sites]).reshape(-1, 3),
        cell=structure.lattice.matrix,
        pbc=True,
    )
