"""How one layer's flat weight is laid out: its path blocks, in e3nn's own order.

A layer kind is one entry of the registry: the qualified names of its classes and a function
that reads the blocks off an instance. Names rather than class objects are compared, because a
class inside a packaged model is another object, and frameworks subclass e3nn's layers.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

_PACKAGE_PREFIX = re.compile(r"^<torch_package_\d+>\.")
_SCRIPT_PREFIX = re.compile(r"^__torch__\.|___torch_mangle_\d+\.")


@dataclass(frozen=True)
class Block:
    """The weights of one path (an e3nn `Instruction`), contiguous in the flat weight.

    Attributes
    ----------
    irreps_in, irreps_out
        The irreps that the path joins, such as `"64x1e"`.
    irreps_in2
        The second operand of a tensor product; None for a linear layer.
    shape
        e3nn's `path_shape`; row-major in the flat weight.
    start
        Where the block begins in the last axis of the flat weight.
    path_weight
        e3nn's normalisation of the path: what one weight is multiplied by.
    species_axis
        Axis of `shape` that runs over chemical species, if there is one.
    channel_axis
        Axis of `shape` that runs over the channels of the output, where it is not the last that
        is as long as there are.
    """

    irreps_in: str
    irreps_in2: str | None
    irreps_out: str
    shape: tuple[int, ...]
    start: int
    path_weight: float
    species_axis: int | None = None
    channel_axis: int | None = None

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The layout of one layer's weight.

    Attributes
    ----------
    kind
        Name of the layer kind: `"linear"`, `"fctp"`, `"tp"`, `"mlp"`.
    parameter
        Name of the parameter that holds the weight. None where the weight arrives from outside,
        per edge: a delta then reweights paths, `w * (1 + ΔW)`.
    parts
        Names of the parameters, one for each block, where the weight is spread over several of
        them; the flat weight is theirs one after the other. Then `parameter` is None.
    lead
        Axes in front of the flat weight (`f_in, f_out` of an e3nn `Linear`), mostly none.
    shape
        Shape of the weight, and of ΔW.
    blocks
        The paths, in the order of the flat weight.
    """

    kind: str
    parameter: str | None
    irreps_in: str
    irreps_in2: str | None
    irreps_out: str
    shape: tuple[int, ...]
    blocks: tuple[Block, ...]
    lead: tuple[int, ...] = ()
    parts: tuple[str, ...] = ()

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def external(self) -> bool:
        """Whether the weight arrives from outside."""
        return self.parameter is None and not self.parts

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that hold the weight; none where it arrives from outside."""
        return self.parts if self.parameter is None else (self.parameter,)

    def split(self, weight: Tensor) -> dict[str, Tensor]:
        """Return what belongs to each of `parameters`, in its own shape."""
        if self.parameter is not None:
            return {self.parameter: weight}
        views = (view for _, view in self.views(weight))
        return dict(zip(self.parts, views, strict=True)) if self.parts else {}

    @property
    def irreps(self) -> str:
        operands = (
            self.irreps_in if self.irreps_in2 is None else f"{self.irreps_in} x {self.irreps_in2}"
        )
        return f"{operands} -> {self.irreps_out}"

    def views(self, weight: Tensor) -> Iterator[tuple[Block, Tensor]]:
        """Yield each block with its view `(*lead, *block.shape)` of `weight`."""
        flat = weight.reshape(*self.lead, -1)
        for block in self.blocks:
            part = flat.narrow(-1, block.start, block.numel)
            yield block, part.reshape(*self.lead, *block.shape)

    def species_rows(self, indices: list[int]) -> Tensor | None:
        """Mark the entries that belong to the species `indices`.

        Returns
        -------
        Tensor or None
            bool, of the weight's shape; None where the layer has no species axis.
        """
        if all(block.species_axis is None for block in self.blocks):
            return None
        rows = torch.zeros(self.shape, dtype=torch.bool)
        for block, view in self.views(rows):
            if block.species_axis is not None:
                view.index_fill_(
                    len(self.lead) + block.species_axis,
                    torch.tensor(indices, dtype=torch.long),
                    True,
                )
        return rows

    def with_species(self, axis: int) -> "Layout":
        """Return this layout with `axis` of every block named as the species axis."""
        return replace(self, blocks=tuple(replace(b, species_axis=axis) for b in self.blocks))


@dataclass(frozen=True)
class Species:
    """Which elements a model tells apart, and where.

    Attributes
    ----------
    numbers
        Atomic numbers in the order of the model's one-hot axis.
    axes
        Module path of each layer that is fed the one-hot species, and the axis of its blocks'
        shape that runs over them.
    """

    numbers: tuple[int, ...] = ()
    axes: Mapping[str, int] = field(default_factory=dict)


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
    """

    name: str
    classes: tuple[str, ...]
    layout: Callable[[Any], Layout]
    columns: Callable[[Any, Tensor], dict[str, Tensor]] | None = None


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


def _tensor_product(layer: Any, kind: str) -> Layout:
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
        kind=kind,
        parameter="weight" if layer.internal_weights else None,
        irreps_in=str(layer.irreps_in1),
        irreps_in2=str(layer.irreps_in2),
        irreps_out=str(layer.irreps_out),
        shape=(layer.weight_numel,),
        blocks=tuple(b for b in blocks if b.numel > 0),
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
        lambda layer: _tensor_product(layer, "fctp"),
    )
)
register_kind(
    LayerKind(
        "tp",
        (f"{_TENSOR_PRODUCT}._tensor_product.TensorProduct",),
        lambda layer: _tensor_product(layer, "tp"),
    )
)
register_kind(LayerKind("mlp", ("e3nn.nn._fc._Layer",), _mlp_layer, _mlp_columns))
register_kind(LayerKind("mlp", ("torch.nn.modules.linear.Linear",), _torch_linear, _torch_columns))
