"""What some MACE models read of a frame besides its atoms: total charge, total spin, and others."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from ase import Atoms
from mace.data import KeySpecification
from torch import Tensor, nn

from e3sparse.errors import ConfigError, nearest

# As `MACECalculator` names them in `info`; training files have MACE's own names of the inputs.
_KEYS = {"total_charge": "charge", "total_spin": "spin"}
_POLAR = ("total_charge", "total_spin", "external_field")
# MACE takes a frame without them for neutral, a singlet, cold and without a field.
_DEFAULTS = {"total_charge": 0.0, "total_spin": 1.0, "elec_temp": 0.0, "external_field": 0.0}


EMBEDDING = "embedding_energy"
"""Among a model's outputs, what `embedding_energies` saw."""


@contextmanager
def embedding_energies(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that holds what charges and spins add to the energy, once the model has run.

    (N, heads) in eV under `EMBEDDING`, if the model has such a term. It is in MACE's `energy` and
    not in its `node_energy`.
    """
    found: dict[str, Tensor] = {}
    readout = getattr(model, "embedding_readout", None)
    if readout is None:
        yield found
        return
    handle = readout.register_forward_hook(lambda *call: found.update({EMBEDDING: call[-1]}))
    try:
        yield found
    finally:
        handle.remove()


class FrameInputs:
    """The inputs of one model besides the structure, and where a frame has them.

    Parameters
    ----------
    name
        Of the model, for messages.
    model
        A `mace.modules.MACE`. What it reads is in its `embedding_specs`.

    Attributes
    ----------
    specs
        By the name of each input, how MACE embeds it.
    """

    def __init__(self, name: str, model: Any) -> None:
        self.name = name
        self.specs: dict[str, dict[str, Any]] = {}
        if hasattr(model, "joint_embedding"):
            self.specs = dict(model.embedding_specs)
        elif type(model).__name__ == "PolarMACE":
            self.specs = {name: {"per": "graph", "type": "field"} for name in _POLAR}

    @property
    def names(self) -> tuple[str, ...]:
        """All keys of `info` and `arrays` that are looked at."""
        return tuple(dict.fromkeys(key for name in self.specs for key in self._names(name)))

    def fill(self, atoms: Atoms) -> None:
        """Give a structure values that the model accepts for all inputs that have no default."""
        for name, spec in self.specs.items():
            value = -int(spec.get("offset", 0)) if spec["type"] == "categorical" else 0.0
            if name in _DEFAULTS:
                continue
            if spec["per"] == "graph":
                atoms.info[name] = value
            else:
                atoms.set_array(name, np.full(len(atoms), value))

    def keys(self, atoms: Atoms) -> KeySpecification:
        """Return under which keys a frame has the inputs.

        Raises
        ------
        ConfigError
            If the frame lacks one, has two that differ, or one that the model has no class for.
        """
        found = KeySpecification({}, {})
        for name, spec in self.specs.items():
            per_atom = spec["per"] != "graph"
            there = atoms.arrays if per_atom else atoms.info
            present = [key for key in self._names(name) if key in there]
            if not present and name in _DEFAULTS:
                continue
            if not present:
                raise ConfigError(
                    f"{self.name} reads '{name}', and a frame ({atoms.get_chemical_formula()}) "
                    f"has no such {'array' if per_atom else 'entry in its info'}."
                    f"{nearest(name, there)} Give {' or '.join(map(repr, self._names(name)))}."
                )
            values = [np.asarray(there[key]) for key in present]
            if any(not np.array_equal(values[0], other) for other in values[1:]):
                raise ConfigError(
                    f"A frame ({atoms.get_chemical_formula()}) has {present[0]} = {values[0]} and "
                    f"{present[1]} = {values[1]}, which are two names of one input of {self.name}: "
                    "leave one out."
                )
            if spec["type"] == "categorical":
                self._check_class(present[0], values[0], spec, atoms)
            (found.arrays_keys if per_atom else found.info_keys)[name] = present[0]
        return found

    def _names(self, name: str) -> tuple[str, ...]:
        given = (_KEYS.get(name), self.specs[name].get("key"), name)
        return tuple(dict.fromkeys(key for key in given if key))

    def _check_class(self, key: str, value: Any, spec: dict[str, Any], atoms: Atoms) -> None:
        lowest = -int(spec.get("offset", 0))
        highest = lowest + int(spec["num_classes"]) - 1
        numeric = np.issubdtype(value.dtype, np.number)
        if (
            not numeric
            or (value != value.round()).any()
            or not ((value >= lowest) & (value <= highest)).all()
        ):
            raise ConfigError(
                f"A frame ({atoms.get_chemical_formula()}) has {key} = {value}, and {self.name} "
                f"knows whole numbers from {lowest} to {highest}."
            )
