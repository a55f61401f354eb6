"""ELoRA: a low-rank ΔW for each path block (Wang et al. 2025)."""

from math import prod
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from e3sparse.deltas.base import Method
from e3sparse.layers.delta import Delta
from e3sparse.layers.layouts import Layout


class LowRankDelta(Delta):
    """ΔW = (α / r) A·B in each block; B starts at 0.

    A block `(..., mul_out)` is read as a matrix with its last axis as columns; a block with one
    axis only has a single row, and nothing is saved on it.
    """

    def __init__(self, layout: Layout, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__(layout)
        self.scale = alpha / rank
        self.a = nn.ParameterList()
        self.b = nn.ParameterList()
        for block in layout.blocks:
            rows, columns = prod(block.shape[:-1]), block.shape[-1]
            r = min(rank, rows, columns)
            # In float32 whatever the default is, so that a seed means the same everywhere.
            shape = (*layout.lead, rows, r)
            a = torch.randn(shape, generator=generator, dtype=torch.float32) / rows**0.5
            self.a.append(torch.ones_like(a) if rows == 1 else a)
            self.b.append(torch.zeros(*layout.lead, r, columns))

    def values(self) -> Tensor:
        parts = [
            (self.scale * (a @ b)).reshape(*self.layout.lead, -1)
            for a, b in zip(self.a, self.b, strict=True)
        ]
        return torch.cat(parts, dim=-1).reshape(self.layout.shape)


class LowRank(Method):
    """Rank-r updates of every block, dense in the weights.

    Attributes
    ----------
    rank, alpha
        r and α; ELoRA takes r = α = 16.
    """

    name: ClassVar[str] = "low_rank"

    rank: int = Field(16, ge=1)
    alpha: float = Field(16.0, gt=0)

    def delta(self, layout: Layout, weight: Tensor, generator: torch.Generator) -> LowRankDelta:
        delta = LowRankDelta(layout, self.rank, self.alpha, generator)
        return delta.to(dtype=weight.dtype, device=weight.device)
