"""What makes frames of a file unfit for use, and what is to be said of those that are used."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray

from e3sparse.errors import DataError, nearest
from e3sparse.frames.label_keys import LabelKeys
from e3sparse.frames.labels import Array, is_virial, keys_there, missing, named_like

if TYPE_CHECKING:
    from e3sparse.frames.reading import Frame

_COINCIDE = 1e-2
"""In Å: atoms nearer than that are one atom written twice."""
_SHOWN = 8
_FEW = 100
"""Atoms of which all pairs are looked at."""
_STATES = ("charge", "total_charge", "spin", "total_spin", "multiplicity", "spin_multiplicity")
_MOMENTS = ("magmoms", "REF_magmom")


def is_isolated(atoms: Atoms, cutoff: float) -> bool:
    """Whether a structure is a single atom without neighbours, its own images included."""
    return len(atoms) == 1 and len(neighbor_list("i", atoms, cutoff)) == 0


def check_neighbours(atoms: Atoms, where: str, cutoff: float) -> None:
    """Refuse a structure with atoms that lie on each other, or that nothing is near to."""
    first, second, distance = _neighbours(atoms, cutoff)
    close = np.flatnonzero(distance < _COINCIDE)
    if close.size:
        one, other = first[close[0]], second[close[0]]
        raise DataError(
            f"{where}: atoms {one} and {other} ({atoms.symbols[one]}, {atoms.symbols[other]}) "
            f"are {distance[close[0]]:.1g} Å apart, so that no model can evaluate it. Remove one "
            "of them, or the frame."
        )
    alone = np.flatnonzero(np.bincount(first, minlength=len(atoms)) == 0)
    if alone.size:
        many = 2 * alone.size > len(atoms)
        unit = " Most atoms of the frame have none: are the lengths in Å?" if many else ""
        raise DataError(
            f"{where}: atom {alone[0]} ({atoms.symbols[alone[0]]}) has no neighbour within the "
            f"model's cutoff of {cutoff} Å, so its force cannot be learned.{unit} Remove the "
            "frame, or leave all such frames out with --skip-faulty."
        )


def _neighbours(atoms: Atoms, cutoff: float) -> tuple[NDArray[Any], NDArray[Any], Array]:
    """Return first atom, second atom and distance of each pair within a cutoff."""
    if atoms.pbc.any() or len(atoms) > _FEW:
        return neighbor_list("ijd", atoms, cutoff)  # type: ignore[no-any-return]
    # Of a small molecule all pairs take a tenth of the time; a set may have millions of them.
    apart = np.linalg.norm(atoms.positions[:, None] - atoms.positions, axis=-1)  # (N, N)
    np.fill_diagonal(apart, np.inf)
    first, second = np.nonzero(apart < cutoff)
    return first, second, apart[first, second]


def check_asked_for(images: Sequence[Atoms], keys: LabelKeys, path: str | Path) -> None:
    """Refuse a key that somebody chose and that no structure has."""
    there = list(dict.fromkeys(key for atoms in images for key in keys_there(atoms)))
    for name in ("energy", "forces", "stress"):
        key = getattr(keys, name)
        if keys.asked_for(name) and all(_is_absent(atoms, key) for atoms in images):
            raise DataError(
                f"--{name}-key {key}: no frame of {path} has it.{nearest(key, there)} Keys there: "
                f"{', '.join(there) or 'none'}."
            )


def _is_absent(atoms: Atoms, key: str) -> bool:
    """Whether a structure has nothing of that name."""
    return key not in keys_there(atoms)


def partly_labelled(
    frames: Sequence[tuple[int, Atoms, "Frame"]], keys: LabelKeys
) -> dict[int, str]:
    """Return what is wrong with frames that lack what others of the file have."""
    faults: dict[int, str] = {}
    for name, key in (("forces", keys.forces), ("energy", keys.energy)):
        without = [n for n, f in enumerate(frames) if np.isnan(getattr(f[2], name)).all()]
        if not without or (len(without) == len(frames) and name == "energy" and not faults):
            continue
        if len(without) < len(frames):
            for n in without:
                number, atoms, frame = frames[n]
                faults[number] = missing(atoms, frame.where, name, key)
    for number, atoms, frame in frames:
        if np.isnan(frame.energy) and np.isnan(frame.forces).all() and number not in faults:
            faults[number] = missing(atoms, frame.where, "energy", keys.energy)
    return faults


def several(faults: dict[int, str], path: str | Path) -> str:
    """Return one sentence for several faulty frames, each kind of fault said once."""
    if len(faults) == 1:
        return next(iter(faults.values()))
    numbers = sorted(faults)
    shown = ", ".join(map(str, numbers[:_SHOWN])) + (", …" if len(numbers) > _SHOWN else "")
    return f"{len(numbers)} frames of {path} cannot be used ({shown}). {faults[numbers[0]]}"


def stress_notes(stresses: Counter[tuple[str, bool]], path: str | Path) -> list[str]:
    """Return a note on stresses that were left out, and on virials.

    `stresses` counts the frames by the key of their label, and whether it was used.
    """
    notes = []
    without = sum(count for (_, used), count in stresses.items() if not used)
    if without:
        notes.append(
            f"Stress labels of {without} frames of {path} are left out: without three cell vectors "
            "and three periodic directions there is no volume that a stress could be of."
        )
    for (key, used), count in stresses.items():
        if used and is_virial(key):
            notes.append(
                f"'{key}' of {count} frames of {path} is read as a virial in eV: stress = -virial "
                "/ volume, rows xx xy xz yx … if it has 9 numbers, xx yy zz yz xz xy if 6."
            )
    return notes


def fixed_notes(frames: int, path: str | Path) -> list[str]:
    """Return a note on frames some of whose forces a code has set to zero."""
    if not frames:
        return []
    return [
        f"Fixed atoms of {frames} frames of {path} have forces of exactly 0, as codes set them "
        "where atoms may not move: these are left out, the forces of the other atoms are used."
    ]


def state_of(atoms: Atoms) -> tuple[tuple[str, str], ...]:
    """Return what a structure says of its charge, spin and moments, if it is not nothing."""
    found: list[tuple[str, str]] = []
    for key, value in atoms.info.items():
        if key.lower() in _STATES and str(value).lower() not in ("none", "nan"):
            found.append((key, str(value)))
    results = {} if atoms.calc is None else getattr(atoms.calc, "results", {})
    for key in _MOMENTS:
        value = atoms.arrays.get(key, results.get(key))
        if value is not None and np.any(np.asarray(value, dtype=float)):
            found.append((key, "moments"))
    return tuple(found)


def state_notes(states: Counter[tuple[str, str]], magnetic: bool, path: str | Path) -> list[str]:
    """Return a note on charges, spins and moments, which the model is not told of.

    `states` counts the frames by what `state_of` returns.
    """
    notes = []
    for key in dict.fromkeys(key for key, _ in states):
        values = {value: count for (k, value), count in states.items() if k == key}
        count = sum(values.values())
        if "moments" in values:
            if not magnetic:
                notes.append(
                    f"'{key}' of {count} frames of {path}: moments are read with --magnetic only."
                )
            continue
        ordinary = {"0", "0.0"} if "charge" in key.lower() else {"0", "0.0", "1", "1.0"}
        if set(values) <= ordinary:
            continue
        shown = ", ".join(list(values)[:_SHOWN])
        notes.append(
            f"'{key}' of {count} frames of {path} ({shown}): the model is not told of it. "
            + (
                "Frames that differ in nothing else look the same to it."
                if len(values) > 1
                else "All frames have the same, so it learns the energies of that state."
            )
        )
    return notes


def source_notes(path: str | Path) -> list[str]:
    """Return a note on files of VASP, of which unconverged steps are read as well."""
    name = Path(path).name.lower()
    if "outcar" not in name and "vasprun" not in name:
        return []
    return [
        f"{path} is read as it is, steps whose electrons have not converged too. `e3sparse convert "
        "FOLDER --format vasp --out train.xyz` leaves those out and says so."
    ]


def unread(
    images: Iterable[Atoms], keys: LabelKeys, stresses: Counter[tuple[str, bool]]
) -> dict[str, int]:
    """Return how many frames have a stress under a name that was not asked for, by name."""
    if any(used for _, used in stresses):
        return {}
    there = Counter(key for atoms in images for key in set(named_like("stress", keys_there(atoms))))
    there.pop(keys.stress, None)
    return {name: there[name] for name in sorted(there) if (name, False) not in stresses}


def unread_notes(names: dict[str, int], path: str | Path) -> list[str]:
    """Return a note on what `unread` has found."""
    if not names:
        return []
    listing = ", ".join(f"'{name}' of {count} frames" for name, count in names.items())
    return [f"Not read in {path}: {listing}. Name what holds the stress with --stress-key."]
