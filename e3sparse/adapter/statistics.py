"""Running statistics, and other buffers: held still while an adapter trains, or its own.

In `train()` mode a normalisation layer moves its running statistics whoever owns the gradient, so
a frozen model would not stay the base model. Such layers are kept in evaluation mode, by a
subclass of their class made on the fly, for as long as the model is patched. A kind of them is one
entry of the registry: the qualified name of its class. Buffers that move for another reason are
noticed.
"""

import functools
import hashlib
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from e3sparse.layers.kinds import qualified_name

STATISTICS: set[str] = set()
"""Qualified names of the classes that move buffers of their own in `train()` mode."""

SUBMODULE = ".e3sparse."
_COARSE = (torch.float16, torch.bfloat16)


def register_statistics(*classes: str) -> None:
    """Make layers known, by qualified class name, that move buffers of theirs in training."""
    STATISTICS.update(classes)


register_statistics(
    "torch.nn.modules.batchnorm._NormBase",
    "e3nn.nn._batchnorm.BatchNorm",
)


def moving_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers with running statistics, by module path."""
    return {
        path: module
        for path, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
        and any(buffer is not None for buffer in module._buffers.values())
        and any(qualified_name(cls) in STATISTICS for cls in type(module).__mro__)
    }


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the running statistics of a model, by buffer name."""
    return {
        f"{path}.{name}".lstrip("."): buffer
        for path, module in moving_layers(model).items()
        for name, buffer in module._buffers.items()
        if buffer is not None
    }


@torch.no_grad()
def write_statistics(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Write running statistics into a model, in place."""
    own = statistics(model)
    for name, value in values.items():
        own[name].copy_(value)


def hold(model: nn.Module) -> None:
    """Keep the layers with running statistics in evaluation mode, whatever `train()` is told."""
    for module in moving_layers(model).values():
        own: Any = type(module)
        if not hasattr(own, "_e3sparse_unheld"):
            module.__class__ = _held_class(own)


def release(model: nn.Module) -> None:
    """Give those layers their own classes back, and the mode that they were last put in."""
    for module in moving_layers(model).values():
        held: Any = type(module)
        if hasattr(held, "_e3sparse_unheld"):
            module.__class__ = held._e3sparse_unheld


def _rebuild(base: Any) -> Any:
    cls = _held_class(base)
    return cls.__new__(cls)


@functools.cache
def _held_class(base: Any) -> Any:
    def told(self: Any, mode: bool) -> None:
        vars(self)["training"] = mode  # what it is once it is released

    def __reduce_ex__(self: Any, protocol: int) -> tuple[Any, ...]:  # noqa: N807
        _, _, *state = base.__reduce_ex__(self, max(int(protocol), 2))
        return (_rebuild, (base,), *state)

    namespace = {
        "__doc__": base.__doc__,
        "__module__": base.__module__,
        "__reduce_ex__": __reduce_ex__,
        "training": property(lambda self: False, told, doc="False while the model is patched."),
        "_e3sparse_unheld": base,
    }
    return type(f"Held{base.__name__}", (base,), namespace)


class BufferWatch:
    """Tells which buffers of a model are no longer what they were when it was patched.

    Values are compared as float32, so that a model that was cast to float64 has moved nothing.
    A tensor that nobody has written to since the last look is not read again.

    Parameters
    ----------
    model
        The base model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._digests: dict[str, tuple[torch.dtype, bytes]] = {}
        self._seen: dict[str, tuple[ref[Tensor], int]] = {}
        for name, buffer in _buffers(model):
            self._digests[name] = (buffer.dtype, _digest(buffer))
            self._look(name, buffer)

    def __getstate__(self) -> dict[str, Any]:
        return {"_digests": self._digests, "_seen": {}}

    def _look(self, name: str, buffer: Tensor) -> None:
        if not buffer.is_inference():
            self._seen[name] = (ref(buffer), buffer._version)

    def moved(self, model: nn.Module) -> list[str]:
        """Return the names of the buffers that have other values now."""
        moved = []
        for name, buffer in _buffers(model):
            if name not in self._digests:
                continue
            seen = self._seen.get(name)
            if seen is not None and seen[0]() is buffer and seen[1] == buffer._version:
                continue
            dtype, digest = self._digests[name]
            if buffer.dtype in _COARSE and buffer.dtype != dtype:
                continue  # the cast has changed the values, and hides what else did
            if _digest(buffer) == digest:
                self._look(name, buffer)
            else:
                moved.append(name)
        return moved


def _buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        (name, buffer)
        for name, buffer in model.named_buffers()
        if SUBMODULE not in f".{name}" and not buffer.is_meta and buffer.layout == torch.strided
    ]


def _digest(buffer: Tensor) -> bytes:
    return hashlib.blake2b(as_float32(buffer), digest_size=16).digest()


def as_float32(tensor: Tensor) -> bytes:
    """Return values to be hashed: the same for a model that was cast from float32 to float64."""
    values = tensor.detach().cpu()
    if values.is_floating_point():
        values = values.float()
    elif values.is_complex():
        values = torch.view_as_real(values.to(torch.complex64))
    return values.contiguous().numpy().tobytes()
