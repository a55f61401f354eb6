"""Keeping whole groups of entries: those that moved most, for what the base model has there."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from e3sparse.layers.groups import Granularity, groups_of
from e3sparse.layers.layouts import Layout

_SMALL = 1e-2
"""A group of the base model counts as no smaller than that share of its layer."""


class Groups(nn.Module):
    """The groups of one layer's entries.

    Attributes
    ----------
    of
        Number of each entry's group, in the weight's shape.
    sizes
        Entries of each group.
    scales
        Root mean square of the base model's weights in each group; 1 where a weight arrives from
        outside, because the delta is relative then, and where several parameters make it up.
    """

    of: Tensor
    sizes: Tensor
    scales: Tensor

    def __init__(self, layout: Layout, granularity: Granularity, weight: Tensor) -> None:
        super().__init__()
        of = groups_of(layout, granularity).to(weight.device)
        sizes = torch.bincount(of.reshape(-1))
        scales = torch.ones(len(sizes), dtype=torch.float64, device=weight.device)
        if layout.parameter is not None and weight.shape == layout.shape and bool(weight.any()):
            whole = weight.detach().double().square().mean().sqrt()
            scales = _rms(weight, of, sizes).clamp(min=float(_SMALL * whole))
        # Derived from the base model, so a checkpoint does not carry them.
        for name, value in (("of", of), ("sizes", sizes), ("scales", scales)):
            self.register_buffer(name, value, persistent=False)

    def scores(self, v: Tensor) -> Tensor:
        """Return the root mean square of each group of v, for that of the base model."""
        return _rms(v, self.of, self.sizes) / self.scales


def largest_groups(groups: Sequence[Groups], vs: Sequence[Tensor], count: int) -> list[Tensor]:
    """Mark the groups of largest score over all layers, `count` entries of them at most.

    A group that no longer fits is passed over for the next that does, so that no group that has
    moved would fit into what is left.

    Returns
    -------
    list of Tensor
        bool masks, one for each tensor of `vs`.
    """
    scores = torch.cat([g.scores(v.detach()) for g, v in zip(groups, vs, strict=True)])
    sizes = torch.cat([g.sizes for g in groups])
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[scores[order] > 0]
    taken = torch.cumsum(sizes[order], 0) <= count
    chosen = torch.zeros_like(sizes, dtype=torch.bool)
    chosen[order[taken]] = True
    rest, left = order[~taken], count - int(sizes[order[taken]].sum())
    rest = rest[sizes[rest] <= left]
    while len(rest):
        chosen[rest[0]] = True
        left -= int(sizes[rest[0]])
        rest = rest[1:]
        rest = rest[sizes[rest] <= left]
    parts = torch.split(chosen, [len(g.sizes) for g in groups])
    return [part[g.of] for part, g in zip(parts, groups, strict=True)]


def _rms(values: Tensor, of: Tensor, sizes: Tensor) -> Tensor:
    squares = torch.zeros(len(sizes), dtype=torch.float64, device=values.device)
    squares.index_add_(0, of.reshape(-1), values.detach().double().square().reshape(-1))
    return (squares / sizes).sqrt()
