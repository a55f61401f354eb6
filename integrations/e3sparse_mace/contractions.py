"""The weights of MACE's symmetric contractions as a layer kind: species × path × channel."""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from e3sparse.layers.kinds import LayerKind, PassedOver, register_kind
from e3sparse.layers.layouts import Block, Layout


def _layout(contraction: Any) -> Layout:
    # mace/modules/symmetric_contraction.py: `weights_max` goes with the highest correlation, the
    # list below it with those beneath, highest first. Of some, no path reaches the output.
    orders = range(contraction.correlation, 0, -1)
    names = ["weights_max", *(f"weights.{k}" for k in range(len(contraction.weights)))]
    parts = {
        name: (order, _parameter(contraction, name))
        for name, order in zip(names, orders, strict=True)
        if getattr(contraction, f"U_matrix_{order}").any()
    }
    if not parts:
        raise PassedOver("no path reaches its output")
    channels = contraction.num_features
    coupled = str(contraction.coupling_irreps)
    starts = accumulate((w.numel() for _, w in parts.values()), initial=0)
    blocks = tuple(
        Block(
            irreps_in=f"{channels}x({coupled})^{order}",
            irreps_in2=None,
            irreps_out=f"{channels}x{_irrep(contraction, order)}",
            shape=tuple(weight.shape),
            start=start,
            path_weight=1.0,
        )
        for (order, weight), start in zip(parts.values(), starts, strict=False)
    )
    return Layout(
        kind="products",
        parameter=None,
        irreps_in=f"{channels}x({coupled})",
        irreps_in2=None,
        irreps_out=blocks[0].irreps_out,
        shape=(sum(block.numel for block in blocks),),
        blocks=blocks,
        parts=tuple(parts),
    )


def _parameter(contraction: Any, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    weight: Tensor = (contraction._modules[owner] if owner else contraction)._parameters[leaf]
    return weight


def _irrep(contraction: Any, order: int) -> str:
    """Read the irrep of the output off U (2l+1, components …, paths), without 2l+1 for l = 0."""
    u: Tensor = getattr(contraction, f"U_matrix_{order}")
    scalar = u.ndim == order + 1
    degree = 0 if scalar else (u.shape[0] - 1) // 2
    parities = [ir.p for _, ir in contraction.coupling_irreps for _ in range(ir.dim)]
    components = torch.nonzero(u)[0][(0 if scalar else 1) : -1]
    parity = 1
    for component in components.tolist():
        parity *= parities[component]
    return f"{degree}{'e' if parity == 1 else 'o'}"


PRODUCTS = LayerKind("products", ("mace.modules.symmetric_contraction.Contraction",), _layout)
register_kind(PRODUCTS)
