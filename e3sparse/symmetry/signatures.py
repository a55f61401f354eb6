"""How a module is called with rows of irreps: which inputs it takes, and in which shape."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from e3sparse.errors import ConfigError


@dataclass(frozen=True)
class Signature:
    """A module as a function of rows.

    Attributes
    ----------
    irreps_in
        Of each argument of `call`.
    irreps_out
        Of what `call` returns.
    call
        Takes a tensor (1, dim) for each of `irreps_in`, returns (1, dim of `irreps_out`).
    """

    irreps_in: list[str]
    irreps_out: str
    call: Callable[..., Tensor]


def signature_of(module: Any) -> Signature:
    """Return how an e3nn layer is called (e3nn/o3/_linear.py, _tensor_product.py, e3nn/nn).

    Weights and biases that come from outside are inputs of as many scalars. A linear layer with
    `f_in` reads its channels as so many copies of its irreps.

    Raises
    ------
    ConfigError
        If the module does not tell its irreps.
    """
    if hasattr(module, "irreps_in") and hasattr(module, "irreps_out"):
        given = module.irreps_in
        inputs = [str(i) for i in given] if isinstance(given, list) else [str(given)]
    elif hasattr(module, "irreps_in1") and hasattr(module, "irreps_out"):
        inputs = [str(module.irreps_in1), str(module.irreps_in2)]
    elif hasattr(module, "irreps"):
        return Signature([str(module.irreps)], str(module.irreps), module)
    else:
        raise ConfigError(
            f"A {type(module).__name__} does not declare its irreps: give irreps_in (one for each "
            "input) and irreps_out."
        )
    output = str(module.irreps_out)
    weight = getattr(module, "weight", None)
    if getattr(module, "internal_weights", True):
        if isinstance(weight, Tensor) and weight.dim() == 3 and len(inputs) == 1:
            return _of_channels(module, inputs[0], output, *weight.shape[:2])
        return Signature(inputs, output, module)
    sizes = [getattr(module, name, 0) for name in ("weight_numel", "bias_numel")]
    outside = [size for size in sizes if size]
    shared = getattr(module, "shared_weights", False)

    def call(*rows: Tensor) -> Tensor:
        parameters = [row[0] if shared else row for row in rows[len(inputs) :]]
        found: Tensor = module(*rows[: len(inputs)], *parameters)
        return found

    return Signature(inputs + [f"{size}x0e" for size in outside], output, call)


def _of_channels(module: Any, irreps_in: str, irreps_out: str, f_in: int, f_out: int) -> Signature:
    def call(row: Tensor) -> Tensor:
        found: Tensor = module(row.reshape(1, f_in, -1))  # (1, f_in, dim)
        return found.reshape(1, -1)

    return Signature(["+".join([irreps_in] * f_in)], "+".join([irreps_out] * f_out), call)


def refuse_what_cannot_be_called(
    module: Any, call: Callable[..., Tensor], dims_in: Sequence[int], dim_out: int, dtype: Any
) -> None:
    """Call a module once with random rows, so that what it needs besides is not taken for a fault.

    Raises
    ------
    ConfigError
        If it raises, or returns anything but a tensor (1, dim_out).
    """
    name = type(module).__name__ if isinstance(module, torch.nn.Module) else "The function"
    shapes = ", ".join(f"(1, {dim})" for dim in dims_in)
    advice = "Give irreps_in and irreps_out that are its own, or a function that calls it."
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(1, dim, generator=generator).to(dtype) for dim in dims_in]
    try:
        with torch.no_grad():
            found = call(*rows)
    except Exception as error:
        text = str(error).strip().splitlines()
        said = f"{type(error).__name__}: {text[0] if text else 'no message'}"
        raise ConfigError(f"{name}, called with {shapes}, raised {said}. {advice}") from error
    if not isinstance(found, Tensor) or found.shape != (1, dim_out):
        what = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ConfigError(
            f"{name}, called with {shapes}, returned {what}, expected (1, {dim_out}). {advice}"
        )
