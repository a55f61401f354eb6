"""rMD17 (Christensen and von Lilienfeld 2020) and MD17 (Chmiela et al. 2017): molecules in NPZ."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray

from e3sparse.datasets.base import Array, Entry, Format
from e3sparse.errors import DataError

_RMD17 = ("nuclear_charges", "coords", "energies", "forces")
_MD17 = ("z", "R", "E", "F")
_SAME_UNITS = {"e_unit": ("kcal/mol", "kcal mol-1"), "r_unit": ("Ang", "Angstrom", "A", "Å")}
"""sGDML's files say their units; all that have none are in kcal/mol and Å."""


class RMD17(Format):
    """One molecule a file: rMD17's keys, or MD17's `z`, `R`, `E` and `F`.

    Energies in kcal/mol and forces in kcal/mol/Å become eV and eV/Å. `source_index` is the frame
    of the MD17 trajectory where rMD17 tells it. Molecules are not periodic.
    """

    name: ClassVar[str] = "rmd17"

    def entries(self, source: Path) -> Iterator[Entry | DataError]:
        """Yield the frames of a molecule in order; see `Format.entries`."""
        numbers, coords, energies, forces, indices = _arrays(source)
        for i in range(len(coords)):
            yield Entry(
                where=f"Frame {i} of {source}",
                group=f"{source.name}/{i}",
                atoms=Atoms(numbers, coords[i]),
                energy=float(energies[i]),
                forces=forces[i],
                info={"config_type": source.stem, "source_index": int(indices[i])},
            )


def _arrays(source: Path) -> tuple[list[int], Array, Array, Array, NDArray[np.int64]]:
    if not source.is_file():
        raise DataError(f"There is no file {source}: give an .npz of rMD17 or MD17.")
    try:
        with np.load(source, allow_pickle=False) as file:
            keys = _RMD17 if _RMD17[0] in file else _MD17
            missing = [key for key in keys if key not in file]
            if missing:
                raise DataError(
                    f"{source} has no {' and no '.join(missing)}. rMD17 has "
                    f"{', '.join(_RMD17)}; MD17 has {', '.join(_MD17)}. Keys there: "
                    f"{', '.join(file)}."
                )
            for key, units_ in _SAME_UNITS.items():
                if key in file and str(file[key]) not in units_:
                    raise DataError(
                        f"{source} says that its {key} is '{file[key]}', not '{units_[0]}'."
                    )
            charges, coords, energies, forces = (file[key] for key in keys)
            indices = file["old_indices"] if "old_indices" in file else np.arange(len(coords))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{source} is not an .npz of numbers ({error}).") from error
    frames, atoms = len(coords), len(charges)
    for name, array, shapes in (
        (keys[0], charges, [(atoms,)]),
        (keys[1], coords, [(frames, atoms, 3)]),
        (keys[2], energies, [(frames,), (frames, 1)]),
        (keys[3], forces, [(frames, atoms, 3)]),
        ("old_indices", indices, [(frames,)]),
    ):
        if array.shape not in shapes:
            raise DataError(f"{source}: {name} has shape {array.shape}, expected {shapes[0]}.")
    if not ((charges > 0) & (charges < 119)).all():
        raise DataError(f"{source}: {keys[0]} holds {charges.tolist()}, not atomic numbers.")
    kcal = units.kcal / units.mol
    return (
        [int(z) for z in charges],
        coords.astype(float),
        energies.reshape(-1).astype(float) * kcal,
        forces.astype(float) * kcal,
        indices,
    )
