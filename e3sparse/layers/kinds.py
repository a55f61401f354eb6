"""What kinds of layers there are, by the classes that they are of.

A layer kind is one entry of the registry: the qualified names of its classes and a function
that reads the blocks off an instance. Names rather than class objects are compared, because a
class inside a packaged model is another object, and frameworks subclass e3nn's layers.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from e3sparse.layers.layouts import Arrival, Block, Layout

_PACKAGE_PREFIX = re.compile(r"^<torch_package_\d+>\.")
_SCRIPT_PREFIX = re.compile(r"^__torch__\.|___torch_mangle_\d+\.")


class PassedOver(Exception):  # noqa: N818 -- a verdict, not a failure
    """A layer of a known kind that carries no weight that a delta could be added to."""


@dataclass(frozen=True)
class LayerKind:
    """One kind of layer: its classes, by qualified name, and how its weight is laid out.

    Attributes
    ----------
    columns
        For layers that can make the path weights of a tensor product: given the layer and a
        factor for each of its outputs, `(outputs,)`, returns what each of its parameters is
        multiplied by, broadcastable to its shape, so that the outputs are multiplied by the
        factors exactly. Raises `PassedOver` where that cannot be.
    applies
        For classes that serve other ends too: given the model and a layer's path in it, whether
        the layer is of this kind there. None: everywhere.
    """

    name: str
    classes: tuple[str, ...]
    layout: Callable[[Any], Layout]
    columns: Callable[[Any, Tensor], dict[str, Tensor]] | None = None
    applies: Callable[[nn.Module, str], bool] | None = None

    def __post_init__(self) -> None:
        read = self.layout

        def layout(layer: Any) -> Layout:
            return replace(read(layer), kind=self.name)

        object.__setattr__(self, "layout", layout)


KINDS: dict[str, LayerKind] = {}
"""By the qualified name of each class. Several frameworks' layers may be of one name."""


def register_kind(kind: LayerKind) -> None:
    """Make a layer kind known. A class that is named twice belongs to the kind named last."""
    KINDS.update(dict.fromkeys(kind.classes, kind))


def kind_names() -> tuple[str, ...]:
    """Return the names of all layer kinds, each once."""
    return tuple(dict.fromkeys(kind.name for kind in KINDS.values()))


def qualified_name(cls: type) -> str:
    """Return `module.Class`, without the mangled prefix that `torch.package` adds."""
    return f"{_PACKAGE_PREFIX.sub('', cls.__module__)}.{cls.__qualname__}"


def kind_of(module: nn.Module) -> LayerKind | None:
    """Return the kind of a layer: that of the first class in its MRO that has one."""
    if isinstance(module, torch.jit.ScriptModule):
        return KINDS.get(_SCRIPT_PREFIX.sub("", module._c._type().qualified_name()))
    for cls in type(module).__mro__:
        if kind := KINDS.get(qualified_name(cls)):
            return kind
    return None


def layers_of_a_kind(model: nn.Module) -> Iterator[tuple[str, nn.Module, LayerKind]]:
    """Yield path, module and kind of each layer of a model whose kind applies where it is."""
    for path, module in model.named_modules():
        kind = kind_of(module)
        if kind is not None and (kind.applies is None or kind.applies(model, path)):
            yield path, module, kind


def _own_weight(layer: Any, parameter: str) -> nn.Parameter:
    weight: nn.Parameter | None = layer._parameters.get(parameter)
    if weight is None:
        raise PassedOver(f"its '{parameter}' is not a parameter of its own")
    return weight


def _linear(layer: Any) -> Layout:
    # e3nn/o3/_linear.py: `weight_views`. Biases are instructions too, with i_in = -1.
    if layer.weight_numel == 0:
        raise PassedOver("it has no weights")
    if not layer.internal_weights:
        raise PassedOver("its weights come from outside")
    weight = _own_weight(layer, "weight")
    blocks, start = [], 0
    for ins in layer.instructions:
        if ins.i_in == -1:
            continue
        blocks.append(
            Block(
                irreps_in=str(layer.irreps_in[ins.i_in]),
                irreps_in2=None,
                irreps_out=str(layer.irreps_out[ins.i_out]),
                shape=tuple(ins.path_shape),
                start=start,
                path_weight=float(ins.path_weight),
            )
        )
        start += blocks[-1].numel
    return Layout(
        kind="linear",
        parameter="weight",
        irreps_in=str(layer.irreps_in),
        irreps_in2=None,
        irreps_out=str(layer.irreps_out),
        shape=tuple(weight.shape),
        blocks=tuple(b for b in blocks if b.numel > 0),
        lead=tuple(weight.shape[:-1]),
    )


def _tensor_product(layer: Any) -> Layout:
    # e3nn/o3/_tensor_product/_tensor_product.py: `weight_views`.
    if layer.weight_numel == 0:
        raise PassedOver("it has no weights")
    if layer.internal_weights:
        _own_weight(layer, "weight")
    blocks, start = [], 0
    for ins in layer.instructions:
        if not ins.has_weight:
            continue
        blocks.append(
            Block(
                irreps_in=str(layer.irreps_in1[ins.i_in1]),
                irreps_in2=str(layer.irreps_in2[ins.i_in2]),
                irreps_out=str(layer.irreps_out[ins.i_out]),
                shape=tuple(ins.path_shape),
                start=start,
                path_weight=float(ins.path_weight),
            )
        )
        start += blocks[-1].numel
    return Layout(
        kind="tp",
        parameter="weight" if layer.internal_weights else None,
        irreps_in=str(layer.irreps_in1),
        irreps_in2=str(layer.irreps_in2),
        irreps_out=str(layer.irreps_out),
        shape=(layer.weight_numel,),
        blocks=tuple(b for b in blocks if b.numel > 0),
        # forward and right both come by there.
        arrival=None if layer.internal_weights else Arrival("_get_weights"),
    )


def _mlp_layer(layer: Any) -> Layout:
    # e3nn/nn/_fc.py: `_Layer`. The activation and the variances are normalisations, not weights.
    rows, columns = _own_weight(layer, "weight").shape
    scalars_in, scalars_out = f"{rows}x0e", f"{columns}x0e"
    norm = layer.h_in * layer.var_in
    if layer.act is None:
        norm /= layer.var_out
    block = Block(scalars_in, None, scalars_out, (rows, columns), 0, float(norm) ** -0.5)
    return Layout("mlp", "weight", scalars_in, None, scalars_out, (rows, columns), (block,))


def _mlp_columns(layer: Any, factor: Tensor) -> dict[str, Tensor]:
    factors = matrix_columns(layer, factor)
    if layer.act is not None:
        raise PassedOver("an activation follows it")
    return factors


def matrix_columns(layer: Any, factor: Tensor) -> dict[str, Tensor]:
    """Return the factors of a layer whose only parameter is a `weight` (inputs, outputs)."""
    own = [name for name, parameter in layer._parameters.items() if parameter is not None]
    if own != ["weight"]:
        raise PassedOver("its weight is not its only parameter")
    shape = layer._parameters["weight"].shape
    if len(shape) != 2 or shape[1] != len(factor):
        raise PassedOver(f"its weight is not a matrix with {len(factor)} columns")
    return {"weight": factor}


def _linear_columns(layer: Any, factor: Tensor) -> dict[str, Tensor]:
    layout = _linear(layer)
    (block,) = layout.blocks if len(layout.blocks) == 1 else (None,)
    if block is None or layout.lead or block.shape[1:] != (len(factor),):
        raise PassedOver(f"it is not one path to {len(factor)} scalars")
    factors = {"weight": factor.expand(block.shape).reshape(-1)}
    return factors | ({"bias": factor} if layer.bias_numel else {})


def _torch_linear(layer: Any) -> Layout:
    # torch/nn/modules/linear.py: `weight` is (outputs, inputs). The bias is left alone.
    weight = _own_weight(layer, "weight")
    if weight.shape != (layer.out_features, layer.in_features):
        raise PassedOver("its weight is not a matrix of its outputs by its inputs")
    outputs, inputs = weight.shape
    scalars_in, scalars_out = f"{inputs}x0e", f"{outputs}x0e"
    shape = (outputs, inputs)
    block = Block(scalars_in, None, scalars_out, shape, 0, 1.0, channel_axis=0)
    return Layout("mlp", "weight", scalars_in, None, scalars_out, shape, (block,))


def _torch_columns(layer: Any, factor: Tensor) -> dict[str, Tensor]:
    if layer.out_features != len(factor):
        raise PassedOver(f"it has {layer.out_features} outputs, not {len(factor)}")
    factors = {"weight": factor[:, None], "bias": factor}
    return {name: factors[name] for name, p in layer._parameters.items() if p is not None}


_TENSOR_PRODUCT = "e3nn.o3._tensor_product"

register_kind(LayerKind("linear", ("e3nn.o3._linear.Linear",), _linear, _linear_columns))
register_kind(
    LayerKind(
        "fctp",
        (f"{_TENSOR_PRODUCT}._sub.FullyConnectedTensorProduct",),
        _tensor_product,
    )
)
register_kind(
    LayerKind(
        "tp",
        (f"{_TENSOR_PRODUCT}._tensor_product.TensorProduct",),
        _tensor_product,
    )
)
register_kind(LayerKind("mlp", ("e3nn.nn._fc._Layer",), _mlp_layer, _mlp_columns))
register_kind(LayerKind("mlp", ("torch.nn.modules.linear.Linear",), _torch_linear, _torch_columns))
