"""A dense ΔW: full fine-tuning of the patched layers alone, as a baseline."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from e3sparse.deltas.base import Method
from e3sparse.layers.delta import Delta
from e3sparse.layers.layouts import Layout


class DenseDelta(Delta):
    """ΔW itself is the parameter; it starts at 0."""

    def __init__(self, layout: Layout, v: Tensor) -> None:
        super().__init__(layout)
        self.v = nn.Parameter(v)

    def values(self) -> Tensor:
        return self.v


class Dense(Method):
    """Every entry of ΔW is free."""

    name: ClassVar[str] = "dense"

    def delta(self, layout: Layout, weight: Tensor, generator: torch.Generator) -> DenseDelta:
        return DenseDelta(layout, weight.new_zeros(layout.shape))
