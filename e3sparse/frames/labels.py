"""Labels of one structure: where they are, and what they say in e3sparse's units."""

import re
import shlex
from collections.abc import Iterable
from difflib import get_close_matches

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from e3sparse.errors import DataError, nearest
from e3sparse.frames.label_keys import LabelKeys
from e3sparse.frames.weights import is_weight
from e3sparse.potentials.quantities import further_quantities

Array = NDArray[np.float64]

COMPUTED = ("energy", "forces", "stress", "magmoms")
"""Labels that are looked for in the calculator of a structure, where it has one."""

_NOTHING = ("none", "null", "n/a", "")
"""What files say where they have no number."""

_ASYMMETRY = 1e-2
"""Of the largest component: what rounding and loose convergence leave."""

_NAMED_LIKE = {
    "energy": re.compile("energ", re.IGNORECASE),
    "forces": re.compile("forc|grad", re.IGNORECASE),
    "stress": re.compile("stress|virial", re.IGNORECASE),
}


def label_of(atoms: Atoms, key: str) -> Array | None:
    """Return a label of a structure as it was read, None where it has none.

    See `LabelKeys` for the names.

    Raises
    ------
    DataError
        If it is not a number.
    """
    results = {} if atoms.calc is None else getattr(atoms.calc, "results", {})
    if key in COMPUTED and isinstance(atoms.calc, SinglePointCalculator):
        # It would compare the structure with its own for each label, as if it could have moved.
        return np.asarray(results[key], dtype=float) if key in results else None
    if key in COMPUTED and atoms.calc is not None:
        try:
            return np.asarray(atoms.calc.get_property(key, atoms), dtype=float)
        except PropertyNotImplementedError:
            return None
    value = atoms.arrays.get(key, atoms.info.get(key, results.get(key)))
    if value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING):
        return None
    try:
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise DataError(f"The label '{key}' is not a number: {value!r}.") from None


def keys_there(atoms: Atoms) -> list[str]:
    """Return the names of all that a structure carries besides species and positions."""
    there = [*atoms.info, *(k for k in atoms.arrays if k not in ("numbers", "positions"))]
    if atoms.calc is not None:
        there += list(getattr(atoms.calc, "results", {}))
    return there


def named_like(name: str, keys: Iterable[str]) -> list[str]:
    """Return the keys that sound as if they held an energy, forces or a stress."""
    return [key for key in keys if _NAMED_LIKE[name].search(key) and not is_weight(key)]


def missing(atoms: Atoms, where: str, what: str, key: str) -> str:
    """Return the sentence that says that a structure has no such label, and what it has."""
    there = keys_there(atoms)
    listing = ", ".join(there) or "none"
    flags = [
        f"--{name}-key {shlex.quote(found)}"
        for name in _NAMED_LIKE
        if (found := _most_like(name, there, key if name == what else None))
    ]
    hint = f"Is it {' '.join(flags)}?" if flags else f"Name the right one with --{what}-key."
    if what not in _NAMED_LIKE:
        hint = f"{nearest(key, there).strip()} Name the right one with --{what}-key.".strip()
    return f"{where} has no {what} label '{key}'. Keys there: {listing}. {hint}"


def _most_like(name: str, there: Iterable[str], not_there: str | None) -> str | None:
    """Return the key that is most likely to hold a label; None where it is found by default."""
    default = getattr(LabelKeys(), name)
    like = named_like(name, there)
    if default in like and not_there != default:
        return None
    if name in like:
        return name
    close = get_close_matches(default.lower(), [key.lower() for key in like], n=1, cutoff=0.0)
    return next((key for key in like if key.lower() in close), None)


def energy_of(atoms: Atoms, keys: LabelKeys, where: str) -> float:
    """Return the energy label in eV, NaN where there is none and nothing is named like one.

    Raises
    ------
    DataError
        If it is not one finite number, or there is an energy of another name.
    """
    energy = _label(atoms, keys.energy, where)
    if energy is None:
        if keys.energy not in keys_there(atoms) and named_like("energy", keys_there(atoms)):
            raise DataError(missing(atoms, where, "energy", keys.energy))
        return float("nan")
    if np.size(energy) != 1:
        raise DataError(f"{where}: '{keys.energy}' is not one number.")
    _check_finite(where, "energy", energy)
    return float(energy.reshape(()))


def forces_of(atoms: Atoms, keys: LabelKeys, where: str) -> Array:
    """Return the forces in eV/Å, (N, 3); NaN where there are none and nothing is named like them.

    Those of atoms that a constraint fixes are NaN where they are exactly zero and others are not:
    the code has set them so.

    Raises
    ------
    DataError
        If they are of another shape or not finite, or there are forces of another name.
    """
    forces = _label(atoms, keys.forces, where)
    if forces is None:
        if keys.forces not in keys_there(atoms) and named_like("forces", keys_there(atoms)):
            raise DataError(missing(atoms, where, "forces", keys.forces))
        return np.full((len(atoms), 3), np.nan)
    if forces.shape != (len(atoms), 3):
        raise DataError(
            f"{where}: '{keys.forces}' has shape {forces.shape}, expected ({len(atoms)}, 3)."
        )
    _check_finite(where, "forces", forces)
    fixed = fixed_atoms(atoms)
    zero = ~forces.any(axis=1)
    # What a code has set to zero is no force; what it has left as it was is one.
    if (zero & fixed).any() and not zero.all():
        forces = np.where((zero & fixed)[:, None], np.nan, forces)
    return forces


def fixed_atoms(atoms: Atoms) -> NDArray[np.bool_]:
    """Return which atoms a constraint holds in place, (N,)."""
    fixed = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            fixed[constraint.index] = True
    return fixed


def stress_of(atoms: Atoms, keys: LabelKeys, where: str) -> tuple[Array | None, str | None]:
    """Return the stress in eV/Å³, (3, 3), and the name of the key that it was read from.

    Where the key of `keys` is that of nobody's choice and missing, a virial beside the energy is
    taken: for `REF_energy` it is `REF_virial` or `REF_virials`.

    Returns
    -------
    tuple
        (None, None) where there is no label, (None, key) where there is one and the structure has
        no volume that a stress could be of.

    Raises
    ------
    DataError
        If it is not 6 or 9 finite numbers.
    """
    names = [keys.stress]
    if not keys.asked_for("stress"):
        prefix = re.split("energ", keys.energy, maxsplit=1, flags=re.IGNORECASE)[0]
        companions = (f"{prefix}virials".lower(), f"{prefix}virial".lower())
        names += [key for key in keys_there(atoms) if key.lower() in companions]
    for key in names:
        label = _label(atoms, key, where)
        if label is None:
            continue
        if label.size not in (6, 9):
            raise DataError(f"{where}: '{key}' has {label.size} numbers, expected 6 or 9.")
        if not has_volume(atoms):
            return None, key
        _check_finite(where, "stress", label)
        _check_symmetric(where, key, label)
        matrix = (
            voigt_6_to_full_3x3_stress(label.reshape(-1))
            if label.size == 6
            else label.reshape(3, 3)
        )
        return (-matrix / atoms.get_volume() if is_virial(key) else matrix), key
    return None, None


def further_labels_of(atoms: Atoms, keys: LabelKeys, where: str) -> dict[str, Array]:
    """Return the labels of further quantities that a structure has, by name.

    Raises
    ------
    DataError
        If one is of another shape than it is described, or not finite.
    """
    found = {}
    for quantity in further_quantities():
        key = keys.others.get(quantity.name, quantity.key)
        label = _label(atoms, key, where)
        if label is None:
            continue
        shape = ((len(atoms),) if quantity.per_atom else ()) + quantity.shape
        if label.shape != shape:
            raise DataError(f"{where}: '{key}' has shape {label.shape}, expected {shape}.")
        _check_finite(where, quantity.title, label)
        found[quantity.name] = label
    return found


def is_virial(key: str) -> bool:
    """Whether a label of that name is -volume × stress."""
    return "virial" in key.lower()


def has_volume(atoms: Atoms) -> bool:
    """Whether a stress of the structure exists: three cell vectors, three periodic directions."""
    return bool(atoms.pbc.all() and atoms.cell.rank == 3)


def _label(atoms: Atoms, key: str, where: str) -> Array | None:
    try:
        return label_of(atoms, key)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _check_symmetric(where: str, key: str, label: Array) -> None:
    if label.size != 9:
        return
    matrix = label.reshape(3, 3)
    skew, largest = np.abs(matrix - matrix.T).max(), np.abs(matrix).max()
    if skew > _ASYMMETRY * largest:
        raise DataError(
            f"{where}: '{key}' is not symmetric (components differ from their transposes by up to "
            f"{skew / largest:.0%} of the largest one), so it is no stress tensor. Are its "
            "components in another order?"
        )


def _check_finite(where: str, name: str, label: Array) -> None:
    if not np.isfinite(label).all():
        raise DataError(f"{where}: the {name} label is NaN or infinite. Remove the frame.")
