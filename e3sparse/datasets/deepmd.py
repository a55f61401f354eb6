"""Systems of DeePMD-kit: the LAM and OpenLAM sets, DeltaSpin's, and what dpdata writes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from e3sparse.datasets.base import Array, Entry, Format, numbers_of
from e3sparse.errors import DataError

_TYPES = "real_atom_types"
"""Types frame by frame, which mixed-type systems have."""

_VIRTUAL = -1
"""Type of the atoms that fill up the shorter frames of a mixed-type system."""


class DeePMD(Format):
    """A `npy` system, or a folder tree with many: every folder with a `type.raw` is one.

    Å, eV and eV/Å as they are; the virial (eV) becomes a stress by −1/volume. With `spin.npy`
    (μ_B, vectors) `REF_magmom` is that and `REF_magforces` is `force_mag.npy`. Frames of
    mixed-type systems (`real_atom_types.npy`) lose their virtual atoms.
    """

    name: ClassVar[str] = "deepmd"

    def entries(self, source: Path) -> Iterator[Entry | DataError]:
        """Yield the frames, system by system and set by set; see `Format.entries`."""
        if not source.is_dir():
            raise DataError(f"There is no folder {source}: give a DeePMD system, or many in one.")
        source = source.resolve()
        systems = sorted(path.parent for path in source.rglob("type.raw"))
        if not systems:
            raise DataError(f"No folder in {source} has a type.raw, so no DeePMD system is in it.")
        for folder in systems:
            system = _System.read(folder, folder.relative_to(source.parent).as_posix())
            sets = sorted(path for path in folder.glob("set.*") if path.is_dir())
            if not sets:
                raise DataError(f"The system {folder} has no set.* folder.")
            for part in sets:
                yield from system.entries(part)


@dataclass(frozen=True)
class _System:
    name: str
    symbols: list[str]
    types: NDArray[np.int64]
    periodic: bool

    @classmethod
    def read(cls, folder: Path, name: str) -> "_System":
        try:
            types = np.array((folder / "type.raw").read_text().split(), dtype=np.int64)
        except ValueError as error:
            raise DataError(f"{folder / 'type.raw'} does not hold whole numbers.") from error
        if not types.size:
            raise DataError(f"{folder / 'type.raw'} is empty.")
        names = folder / "type_map.raw"
        if not names.is_file():
            raise DataError(
                f"{folder} has no type_map.raw, so which elements its types are is unknown: "
                "write their symbols into that file, one a line."
            )
        return cls(name, names.read_text().split(), types, not (folder / "nopbc").exists())

    def entries(self, part: Path) -> Iterator[Entry | DataError]:
        """Yield the frames of one `set.*` folder."""
        required = ["coord", "energy", "force", *(["box"] if self.periodic else [])]
        arrays: dict[str, NDArray[Any]] = {}
        for key in (*required, "virial", "spin", "force_mag", _TYPES):
            array = _load(part, key)
            if array is not None:
                arrays[key] = array
            elif key in required:
                raise DataError(f"{part} has no {key}.npy.")
        frames, atoms = arrays["coord"].size // (3 * len(self.types)), len(self.types)
        width = {"energy": 1, "box": 9, "virial": 9, _TYPES: atoms}
        for key, array in arrays.items():
            expected = width.get(key, 3 * atoms)
            if array.size != frames * expected or array.shape[:1] != (frames,):
                raise DataError(
                    f"{part / key}.npy has shape {array.shape}, expected ({frames}, {expected}) "
                    f"for {frames} frames of {atoms} atoms."
                )
        types = np.broadcast_to(self.types, (frames, atoms))
        if _TYPES in arrays:
            types = arrays.pop(_TYPES).reshape(frames, atoms)
        for i in range(frames):
            where = f"Frame {i} of {part}"
            try:
                yield self._entry({k: v[i] for k, v in arrays.items()}, types[i], where)
            except DataError as error:
                yield error

    def _entry(self, frame: dict[str, Array], types: NDArray[np.int64], where: str) -> Entry:
        real = types != _VIRTUAL
        unknown = types[real & ((types < 0) | (types >= len(self.symbols)))]
        if unknown.size:
            raise DataError(
                f"{where}: type {unknown[0]} is not one of the {len(self.symbols)} in type_map.raw."
            )

        vectors = {
            key: frame[key].reshape(-1, 3)[real].astype(float)
            for key in ("coord", "force", "spin", "force_mag")
            if key in frame
        }
        cell = frame["box"].reshape(3, 3).astype(float) if self.periodic else None
        atoms = Atoms(
            numbers_of((self.symbols[t] for t in types[real]), where),
            vectors["coord"],
            cell=cell,
            pbc=self.periodic,
        )
        stress = None
        if self.periodic and "virial" in frame and atoms.cell.volume > 0:
            stress = -frame["virial"].reshape(3, 3).astype(float) / atoms.cell.volume
        return Entry(
            where=where,
            group=self.name,
            atoms=atoms,
            energy=float(frame["energy"].reshape(())),
            forces=vectors["force"],
            stress=stress,
            moments=vectors.get("spin"),
            magnetic_forces=vectors.get("force_mag"),
            info={"config_type": self.name},
        )


def _load(part: Path, key: str) -> NDArray[Any] | None:
    path = part / f"{key}.npy"
    if not path.is_file():
        return None
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not an array of numbers ({error}).") from error
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path} holds {array.dtype}, not numbers.")
    return array
