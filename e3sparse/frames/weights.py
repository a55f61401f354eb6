"""How much each frame counts in the loss, by the names that MACE reads in a structure's `info`."""

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms

from e3sparse.errors import DataError, nearest
from e3sparse.frames.label_keys import LabelKeys
from e3sparse.potentials.quantities import QUANTITIES

if TYPE_CHECKING:
    from e3sparse.frames.reading import Frame

OVERALL, OF_QUANTITY, KIND = "config_weight", "config_{}_weight", "config_type"


def weights_of(atoms: Atoms, keys: LabelKeys, where: str) -> dict[str, float]:
    """Return the weights of a structure's labels by quantity, without those that are 1.

    A weight is `config_weight` times `config_<quantity>_weight` times that of its `config_type` in
    `keys.type_weights`, as in MACE. `config_virials_weight` is one of the stress.

    Raises
    ------
    DataError
        If one is no finite number of 0 or more.
    """
    known = keys.type_weights
    whole = known.get(type_of(atoms), known.get("Default", 1.0))
    whole *= _number(atoms, OVERALL, where)
    found = {}
    for name in QUANTITIES:
        weight = whole * _number(atoms, OF_QUANTITY.format(name), where)
        if name == "stress":
            weight *= _number(atoms, OF_QUANTITY.format("virials"), where)
        if weight != 1.0:
            found[name] = weight
    return found


def _number(atoms: Atoms, key: str, where: str) -> float:
    value = atoms.info.get(key, 1.0)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not (np.isfinite(number) and number >= 0):
        raise DataError(f"{where}: '{key}' is {value!r}, expected a number of 0 or more.")
    return number


def is_weight(key: str) -> bool:
    """Whether a key of a structure holds a weight, and no label that it is named after."""
    return key.startswith("config_") and key.endswith("_weight")


def type_of(atoms: Atoms) -> str:
    """Return the `config_type` of a structure."""
    return str(atoms.info.get(KIND, "Default"))


def unknown_types(there: Collection[str], keys: LabelKeys, path: object) -> list[str]:
    """Return notes on `config_type`s that were given a weight and are not `there` in a file."""
    return [
        f"No frame of {path} is of the config_type '{name}', for which type_weights has a weight."
        f"{nearest(name, there)}"
        for name in keys.type_weights
        if name not in there and name != "Default"
    ]


def said_of_weights(weights: Mapping[str, Iterable[float]]) -> str:
    """Return what stands in a table: the range of each quantity's weights, where one is not 1."""
    parts = []
    for name, of_frames in weights.items():
        values = np.array(list(of_frames))
        if len(values) and (values != 1).any():
            least, most = values.min(), values.max()
            parts.append(f"{name} {least:g}" + (f" to {most:g}" if most > least else ""))
    return ", ".join(parts)


def counts_for(frame: "Frame", name: str) -> bool:
    """Whether a label of a frame counts at all."""
    return frame.weights.get(name, 1.0) > 0
