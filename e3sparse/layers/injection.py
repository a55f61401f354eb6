"""How a layer is made to use W + ΔW without a change to its code.

`module.__class__` is set to a subclass of its own class, made on the fly, in which the weight is
a property that adds the deltas, which are a submodule. The base weight stays where it was, so
state-dict keys, their order and `functional_call` are untouched, and taking the patch out sets
the class back. `torch.nn.utils.parametrize` renames keys and refuses to pickle, forward hooks do
not survive a copy, and a static subclass cannot be written for classes from a package.
"""

import functools
import inspect
import operator
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from e3sparse.errors import PatchError
from e3sparse.layers.delta import Delta
from e3sparse.layers.layouts import Arrival, Layout

SUBMODULE = "e3sparse"
"""Name under which a patched layer holds its `LayerDeltas`."""

_E3NN = Arrival("_get_weights")
"""e3nn/o3/_tensor_product/_tensor_product.py: forward and right both come by there."""

_SUMS: ContextVar[dict[Any, Any] | None] = ContextVar("e3sparse_sums", default=None)


@contextmanager
def cached() -> Iterator[None]:
    """Compute each layer's W + ΔW once inside this block, however often the layer is used.

    Put one training step (forward and backward) in it, and no optimizer step: the sums are kept
    until the block is left.
    """
    token = _SUMS.set({})
    try:
        yield
    finally:
        _SUMS.reset(token)


def _under_saving_hooks() -> bool:
    """Tell whether saved tensors are intercepted, as a checkpoint does, which computes twice.

    A checkpoint wants the second time to be like the first, so the sums are not kept.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


class LayerDeltas(nn.Module):
    """The deltas on one layer, by the name of the adapter that they belong to."""

    # Of the class, so that models pickled before there were factors have it too.
    factors: Mapping[str, float] = MappingProxyType({})

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.deltas = nn.ModuleDict()
        self.active: list[str] = []
        self.scale: Tensor | None = None  # what merged adapters have reweighted the layer by

    def __getitem__(self, name: str) -> Delta:
        delta = self.deltas[name]
        assert isinstance(delta, Delta)
        return delta

    def put_in(self, name: str, delta: Delta, factor: float = 1.0) -> None:
        """Add a delta, to be multiplied by `factor`, and switch it on."""
        self.deltas[name] = delta
        self.multiply(name, factor)
        self.switch(name, True)

    def take_out(self, name: str) -> None:
        """Take a delta out."""
        self.switch(name, False)
        self.multiply(name, 1.0)
        del self.deltas[name]

    def multiply(self, name: str, factor: float) -> None:
        """Let a delta count `factor` times."""
        others = {n: f for n, f in self.factors.items() if n != name}
        self.factors = others if factor == 1 else others | {name: factor}

    def counted(self, name: str) -> Tensor:
        """Return ΔW of one adapter times its factor."""
        values: Tensor = self.deltas[name]()
        return values * self.factors[name] if name in self.factors else values

    def switch(self, name: str, on: bool) -> None:
        """Switch a delta on or off; sums are formed in the order of adding, not of switching."""
        self.active = [n for n in self.deltas if (on if n == name else n in self.active)]

    def order(self, names: list[str]) -> None:
        """Form sums in the order of these names."""
        for name in names:
            if name in self.deltas:
                self.deltas[name] = self.deltas.pop(name)
        self.active = [n for n in self.deltas if n in self.active]

    def added_to(self, weight: Tensor) -> Tensor:
        """Return W + ΔW."""

        def make() -> Tensor:
            total: Tensor | None = None
            for name in self.active:
                values = self.counted(name)
                total = values if total is None else total + values
            if total is not None and self.scale is not None:
                total = total * self.scale.to(total)
            return weight if total is None else weight + total

        summed: Tensor = self._once([weight], make)
        return summed

    def added_to_parts(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return W + ΔW of each of the layout's parts, given as W by name."""

        def make() -> dict[str, Tensor]:
            summed = dict(weights)
            for name in self.active:
                for part, values in self.layout.split(self.counted(name)).items():
                    summed[part] = summed[part] + values
            return summed

        parts: dict[str, Tensor] = self._once(list(weights.values()), make)
        return parts

    def reweighted(self, weight: Tensor) -> Tensor:
        """Return w·Π(1 + ΔW) for weights `(..., *shape)` that come from outside."""

        def make() -> Tensor | None:
            factor: Tensor | None = None
            for name in self.active:
                values = 1 + self.counted(name)
                factor = values if factor is None else factor * values
            return factor

        factor = self._once([], make)
        return weight if factor is None else weight * factor

    def _once(self, weights: list[Tensor], make: Callable[[], Any]) -> Any:
        """Return what `make` returns, from the cache if one is open and still right."""
        sums = None if torch.compiler.is_compiling() else _SUMS.get()
        if sums is None or _under_saving_hooks():
            return make()
        factors = tuple(self.factors.items())
        key = (id(self), torch.is_grad_enabled(), tuple(self.active), factors)
        inputs = [*weights, *(p for name in self.active for p in self.deltas[name].parameters())]
        if key in sums:
            made_of, made = sums[key]
            if len(made_of) == len(inputs) and all(map(operator.is_, made_of, inputs)):
                return made
        sums[key] = (inputs, make())
        return sums[key][1]


def _rebuild(
    base: Any,
    parameter: str | None,
    parts: tuple[str, ...] = (),
    arrival: Arrival | None = None,
) -> Any:
    cls = patched_class(base, parameter, parts, arrival)
    return cls.__new__(cls)


def patched_class(
    base: Any,
    parameter: str | None,
    parts: tuple[str, ...] = (),
    arrival: Arrival | None = None,
) -> Any:
    """Return the subclass of `base` that uses W + ΔW: one for each class, made once.

    Parameters
    ----------
    base
        Class of the layer, whatever package it came from.
    parameter
        Name of its weight; None if the weight comes from outside.
    parts
        Names of its parameters, if the weight is several of them. Those behind a dot are in a
        `ParameterList`, in whose place the layer sees a list of sums.
    arrival
        How the weight reaches the layer, if it comes from outside.
    """
    if parameter is None and not parts and arrival is None:
        arrival = _E3NN  # what was pickled by 0.1 does not say it
    return _patched_class(base, parameter, parts, arrival)


@functools.cache
def _patched_class(
    base: Any, parameter: str | None, parts: tuple[str, ...], arrival: Arrival | None
) -> Any:
    def __reduce_ex__(self: Any, protocol: int) -> tuple[Any, ...]:  # noqa: N807
        rebuild, _, *state = base.__reduce_ex__(self, max(int(protocol), 2))
        if rebuild.__name__ != "__newobj__":
            raise pickle.PicklingError(
                f"A patched {base.__name__} cannot be pickled: merge or remove the adapter first."
            )
        return (_rebuild, (base, parameter, parts, arrival), *state)

    def __prepare_scriptable__(self: Any) -> Any:  # noqa: N807
        raise PatchError(
            f"TorchScript cannot compile a patched {base.__name__}: merge the adapter first "
            "(e3sparse.merge(model)), or take it out (adapter.remove())."
        )

    def __delattr__(self: Any, name: str) -> None:  # noqa: N807
        if name == parameter or name in parts:
            raise PatchError(
                f"'{name}' of a patched {base.__name__} cannot be taken away or parametrized: "
                "merge the adapter first (e3sparse.merge(model)), or take it out "
                "(adapter.remove())."
            )
        base.__delattr__(self, name)

    namespace: dict[str, Any] = {
        "__delattr__": __delattr__,
        "__doc__": base.__doc__,
        "__module__": base.__module__,
        "__reduce_ex__": __reduce_ex__,
        "__prepare_scriptable__": __prepare_scriptable__,
        "_e3sparse_base": base,
    }
    if parts:
        for attribute in {part.partition(".")[0] for part in parts}:
            namespace[attribute] = _sums(attribute, parts)
    elif arrival is not None:
        namespace[arrival.method] = _reweighting(base, arrival)
    elif parameter is not None:

        def effective(self: Any) -> Any:
            return self._modules[SUBMODULE].added_to(self._parameters[parameter])

        namespace[parameter] = property(effective, doc="W + ΔW of the active adapters.")
    if hasattr(base, "right"):

        def right(self: Any, y: Any, weight: Any = None) -> Any:
            # Without e3nn's mark for export, because a trace would compile what is marked.
            return base.right(self, y, weight)

        namespace["right"] = right
    return type(f"Patched{base.__name__}", (base,), namespace)


def _reweighting(base: Any, arrival: Arrival) -> Callable[..., Any]:
    """Return the method by which weights from outside come, reweighted."""
    method = getattr(base, arrival.method)
    if arrival.argument is None:

        def returned(self: Any, *args: Any, **kwargs: Any) -> Any:
            return self._modules[SUBMODULE].reweighted(method(self, *args, **kwargs))

        return returned
    name = arrival.argument
    position = list(inspect.signature(method).parameters).index(name) - 1  # without self

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        deltas = self._modules[SUBMODULE]
        if name in kwargs:
            return method(self, *args, **kwargs | {name: deltas.reweighted(kwargs[name])})
        weight = deltas.reweighted(args[position])
        return method(self, *args[:position], weight, *args[position + 1 :], **kwargs)

    return called


def _sums(attribute: str, parts: tuple[str, ...]) -> property:
    """Return the property that puts sums in the place of a parameter or a `ParameterList`."""

    def effective(self: Any) -> Any:
        summed = self._modules[SUBMODULE].added_to_parts(
            {part: _stored(self, part) for part in parts}
        )
        if attribute in summed:
            return summed[attribute]
        stored = self._modules[attribute]._parameters
        return [summed.get(f"{attribute}.{name}", weight) for name, weight in stored.items()]

    return property(effective, doc="W + ΔW of the active adapters.")


def _stored(module: Any, part: str) -> Tensor:
    owner, _, leaf = part.rpartition(".")
    weight: Tensor = (module._modules[owner] if owner else module)._parameters[leaf]
    return weight


def inject(module: nn.Module, layout: Layout) -> LayerDeltas:
    """Return the layer's `LayerDeltas`, patching the layer if it is not patched yet."""
    present = module._modules.get(SUBMODULE)
    if isinstance(present, LayerDeltas):
        return present
    deltas = LayerDeltas(layout)
    module.add_module(SUBMODULE, deltas)
    own: Any = type(module)
    module.__class__ = patched_class(own, layout.parameter, layout.parts, layout.arrival)
    return deltas


def eject(module: nn.Module) -> None:
    """Give the layer its own class back and take its `LayerDeltas` out."""
    del module._modules[SUBMODULE]
    patched: Any = type(module)
    module.__class__ = patched._e3sparse_base
