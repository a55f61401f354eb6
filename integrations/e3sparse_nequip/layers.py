"""The layers of NequIP and Allegro that are none of e3nn's. Needs neither of them."""

from itertools import accumulate, product
from typing import Any

from torch import Tensor, nn

from e3sparse.layers.kinds import LayerKind, PassedOver, qualified_name, register_kind
from e3sparse.layers.layouts import Block, Layout

TYPE_EMBEDDINGS = {
    "nequip.nn.embedding.node.NodeTypeEmbed": ("embed_module",),
    "allegro.nn._edgeembed.ProductTypeEmbedding": ("center_embed", "neighbor_embed"),
}
"""What holds an embedding of atom types, and under which names."""


def _scalar_linear(layer: Any) -> Layout:
    # nequip/nn/mlp.py: `x @ (weight * alpha)`.
    weight = layer._parameters.get("weight")
    if weight is None:
        raise PassedOver("its 'weight' is not a parameter of its own")
    return _matrix("mlp", weight, float(layer.alpha))


def _deep_linear(layer: Any) -> Layout:
    # nequip/nn/mlp.py: several matrices without a nonlinearity between them, times one factor.
    shapes = [tuple(weight.shape) for weight in layer.weights]
    starts = accumulate((rows * columns for rows, columns in shapes), initial=0)
    blocks = tuple(
        Block(f"{rows}x0e", None, f"{columns}x0e", (rows, columns), start, float(layer.alpha))
        for (rows, columns), start in zip(shapes, starts, strict=False)
    )
    return Layout(
        kind="mlp",
        parameter=None,
        irreps_in=blocks[0].irreps_in,
        irreps_in2=None,
        irreps_out=blocks[-1].irreps_out,
        shape=(sum(block.numel for block in blocks),),
        blocks=blocks,
        parts=tuple(f"weights.{k}" for k in range(len(shapes))),
    )


def _contracter(layer: Any) -> Layout:
    # allegro/nn/_strided/_contract.py: one weight for each path and, mostly, channel, (u, p). The
    # axis of channels is missing without coupling, that of paths if there is one only.
    channels = layer.mul if layer.path_channel_coupling else 1
    irreps_in1, irreps_in2, irreps_out = (
        [f"{layer.mul}x{ir}" for _, ir in irreps]
        for irreps in (layer.irreps_in1, layer.irreps_in2, layer.irreps_out)
    )
    norms = [
        (2 * ir.l + 1) ** 0.5 if layer.irrep_normalization == "component" else 1.0
        for _, ir in layer.irreps_out
    ]
    blocks = tuple(
        Block(irreps_in1[i], irreps_in2[j], irreps_out[k], (1,), start, norms[k])
        for start, (i, j, k) in enumerate(_instructions(layer))
    )
    return Layout(
        kind="tp",
        parameter="weights",
        irreps_in="+".join(irreps_in1),
        irreps_in2="+".join(irreps_in2),
        irreps_out="+".join(irreps_out),
        shape=tuple(layer._parameters["weights"].shape),
        blocks=blocks,
        lead=(channels,) if layer.path_channel_coupling else (),
    )


def _embeds_types(model: nn.Module, path: str) -> bool:
    # torch's embedding serves whatever has numbers to tell apart, in other people's models too.
    holder, _, name = path.rpartition(".")
    return name in TYPE_EMBEDDINGS.get(qualified_name(type(model.get_submodule(holder))), ())


def _embedding(layer: Any) -> Layout:
    # One row for each atom type.
    return _matrix("embedding", layer._parameters["weight"], 1.0)


def _matrix(kind: str, weight: Tensor, path_weight: float) -> Layout:
    rows, columns = weight.shape
    scalars_in, scalars_out = f"{rows}x0e", f"{columns}x0e"
    block = Block(scalars_in, None, scalars_out, (rows, columns), 0, path_weight)
    return Layout(kind, "weight", scalars_in, None, scalars_out, (rows, columns), (block,))


def _instructions(layer: Any) -> list[tuple[int, int, int]]:
    if layer.instructions is not None:
        return [(i, j, k) for i, j, k, *_ in layer.instructions]
    operands = (layer.irreps_out, layer.irreps_in1, layer.irreps_in2)
    return [
        (i, j, k)
        for k, i, j in product(*(range(len(irreps)) for irreps in operands))
        if layer.irreps_out[k].ir in layer.irreps_in1[i].ir * layer.irreps_in2[j].ir
    ]


register_kind(LayerKind("mlp", ("nequip.nn.mlp.ScalarLinearLayer",), _scalar_linear))
register_kind(LayerKind("mlp", ("nequip.nn.mlp.DeepLinearMLP",), _deep_linear))
register_kind(
    LayerKind(
        "embedding",
        ("torch.nn.modules.sparse.Embedding",),
        _embedding,
        applies=_embeds_types,
    )
)
register_kind(LayerKind("tp", ("allegro.nn._strided._contract.Contracter",), _contracter))
