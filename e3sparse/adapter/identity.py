"""All that decides what a base model answers: what an adapter file compares models by."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, FiniteFloat
from torch import Tensor, nn

from e3sparse.adapter.fingerprint import base_parameters
from e3sparse.adapter.statistics import as_float32, statistics
from e3sparse.layers.injection import SUBMODULE
from e3sparse.layers.kinds import KINDS, qualified_name

_OF_THE_GROUP = ("e3nn.", "cuequivariance", "openequivariance")
_WHOLE_MODELS = "e3nn.nn.models."
_SAME_NUMBER = 2.0**-22
"""Relative: a few times the rounding of float32, in which a framework may have computed it."""


class BaseIdentity(BaseModel):
    """All that decides what a base model answers, each item by its name in the model.

    Values are compared as float32, so that a model that was cast to float64 is the same model.

    Attributes
    ----------
    parameters
        A hash of each parameter.
    buffers
        The same for buffers that belong to the model's state (atomic energies, scales, a cutoff;
        running statistics); one that is a single number is that number. Left out are buffers that
        a framework makes anew, and constants of the group such as Wigner 3j symbols, which
        conversions to other kernels replace: those of e3nn's own layers and of layers with a delta.
    numbers
        Attributes of the modules that are numbers, hashes of those that are lists of numbers, and
        what a backend knows besides.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters: dict[str, str]
    buffers: dict[str, FiniteFloat | str]
    numbers: dict[str, FiniteFloat | str]

    @classmethod
    def of(cls, model: nn.Module, constants: Mapping[str, float] | None = None) -> "BaseIdentity":
        """Read it off a model; deltas do not count.

        Parameters
        ----------
        model
            The base model, patched or not.
        constants
            Numbers besides those in the model that decide what it answers.
        """
        buffers: dict[str, float | str] = {}
        numbers: dict[str, float | str] = {}
        for path, module in _with_state_of_their_own(model):
            prefix = f"{path}." if path else ""
            made_anew = vars(module).get("_non_persistent_buffers_set", ())
            for name, buffer in module.named_buffers(recurse=False):
                if name not in made_anew and not name.startswith("_w3j_") and _readable(buffer):
                    buffers[prefix + name] = _said(buffer)
            for name, value in _attributes(module):
                numbers[prefix + name] = value
        for name, value in (constants or {}).items():
            numbers[name] = float(value)
        parameters = {name: _hash(parameter) for name, parameter in base_parameters(model)}
        return cls(parameters=parameters, buffers=buffers, numbers=numbers)

    def without(self, buffers: Iterable[str]) -> "BaseIdentity":
        """Leave buffers out of the comparison, such as those that an adapter brings itself."""
        left_out = set(buffers)
        kept = {name: value for name, value in self.buffers.items() if name not in left_out}
        return self.model_copy(update={"buffers": kept})

    def differences(self, other: "BaseIdentity", buffers_here: Iterable[str]) -> list[str]:
        """Return in words what another model has otherwise than this one; empty if nothing.

        Parameters
        ----------
        other
            Of the model that an adapter was made for. What this one has besides is let pass,
            because versions of a framework add things, unless a whole module with buffers is new,
            such as a repulsion at short range; its own buffers must all be here.
        buffers_here
            Names of all buffers of the model that this is the identity of.
        """
        found = [
            f"its parameter '{name}' has other values"
            for name, value in other.parameters.items()
            if self.parameters.get(name, value) != value
        ]
        for what, here, there, tolerance in (
            ("buffer", self.buffers, other.buffers, 0.0),
            ("number", self.numbers, other.numbers, _SAME_NUMBER),
        ):
            for name, value in there.items():
                own = here.get(name, value)
                if isinstance(own, str) or isinstance(value, str):
                    if own != value:
                        found.append(f"its {what} '{name}' has other values")
                elif not math.isclose(own, value, rel_tol=tolerance):
                    found.append(
                        f"its {what} '{name}' is {own:.7g} here and {value:.7g} in the adapter"
                    )
        lacking = set(other.buffers) - set(buffers_here)
        found += [f"it has no buffer '{name}'" for name in sorted(lacking)]
        known = set()
        for name in (*other.parameters, *other.buffers, *other.numbers):
            while name:  # the modules that it is in
                known.add(name := _owner(name))
        added = [name for name in self.buffers if name not in other.buffers]
        return found + [f"it has a buffer '{n}' besides" for n in added if _owner(n) not in known]


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _with_state_of_their_own(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules whose buffers and numbers are the model's, not constants of a library."""
    moving = {_owner(name) for name in statistics(model)}
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    seen: set[int] = set()
    while waiting:
        path, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        cls: Any = type(module)
        while base := getattr(cls, "_e3sparse_base", getattr(cls, "_e3sparse_unheld", None)):
            cls = base
        name = qualified_name(cls)
        of_a_library = name.startswith(_OF_THE_GROUP) and not name.startswith(_WHOLE_MODELS)
        if path not in moving and (of_a_library or name in KINDS):
            continue
        yield path, module
        waiting += [
            (f"{path}.{child}".lstrip("."), inside)
            for child, inside in module.named_children()
            if child != SUBMODULE and not child.startswith("_compiled")
        ]


def _attributes(module: nn.Module) -> Iterator[tuple[str, float | str]]:
    if isinstance(module, torch.jit.ScriptModule):
        return
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        if isinstance(value, Tensor):
            if value.grad_fn is None and _readable(value):
                yield name, _said(value)
            continue
        listed = [value]
        if isinstance(value, Mapping):
            keys = sorted(value, key=str)
            listed = [*filter(_is_number, keys), *(value[key] for key in keys)]
        elif isinstance(value, list | tuple):
            listed = list(value)
        if listed and all(_is_number(number) for number in listed):
            yield name, _said(torch.tensor([float(n) for n in listed], dtype=torch.float64))


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return abs(int(value)) < 2**53 if isinstance(value, Integral) else math.isfinite(value)


def _readable(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and not tensor.is_meta and tensor.layout == torch.strided


def _said(tensor: Tensor) -> float | str:
    if tensor.numel() == 1 and not tensor.is_complex():
        number = float(tensor.float() if tensor.is_floating_point() else tensor)
        if math.isfinite(number):
            return number
    return _hash(tensor)


def _hash(tensor: Tensor) -> str:
    return hashlib.blake2b(as_float32(tensor), digest_size=8).hexdigest()
