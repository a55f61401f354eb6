"""A sparsity pattern that is chosen once: at random, or by Fisher information."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from e3sparse.deltas.base import Method, largest
from e3sparse.errors import PatchError
from e3sparse.layers.delta import Delta
from e3sparse.layers.layouts import Layout


class FixedMaskDelta(Delta):
    """ΔW = v on a fixed support and exactly 0 elsewhere.

    Only the entries on the support are parameters, in the order of the flat weight.
    """

    indices: Tensor

    def __init__(self, layout: Layout, indices: Tensor, v: Tensor) -> None:
        super().__init__(layout)
        self.register_buffer("indices", indices)
        self.v = nn.Parameter(v)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # A calibrated support is smaller than the one that the delta was made with.
        indices = state_dict.get(f"{prefix}indices")
        if indices is not None and indices.shape != self.indices.shape:
            self.indices = indices.new_empty(indices.shape, device=self.indices.device)
            self.v.data = self.v.data.new_empty(indices.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def values(self) -> Tensor:
        flat = self.v.new_zeros(self.layout.numel)
        return flat.index_put((self.indices,), self.v).reshape(self.layout.shape)


class FixedMask(Method):
    """Train a fixed random or Fisher-chosen share of the entries.

    Attributes
    ----------
    target_sparsity
        Share of the entries that stay exactly zero.
    score
        `"random"`: a random subset of every layer. `"fisher"`: the entries with the largest mean
        squared gradient of the loss over one pass of the data (`Adapter.calibrate`), over all
        layers together.
    """

    name: ClassVar[str] = "fixed_mask"

    target_sparsity: float = Field(0.97, ge=0, lt=1)
    score: Literal["random", "fisher"] = "random"

    @property
    def calibrated(self) -> bool:
        return self.score == "fisher"

    def unready(self, deltas: Sequence[Delta]) -> str | None:
        masked = [delta for delta in deltas if isinstance(delta, FixedMaskDelta)]
        if self.calibrated and masked and all(d.v.numel() == d.layout.numel for d in masked):
            return "calibrate() was not called, so no entry has been left out"
        return None

    def delta(self, layout: Layout, weight: Tensor, generator: torch.Generator) -> FixedMaskDelta:
        if self.calibrated:
            indices = torch.arange(layout.numel)
        else:
            order = torch.randperm(layout.numel, generator=generator)
            indices = order[: round(layout.numel * (1 - self.target_sparsity))].sort().values
        delta = FixedMaskDelta(layout, indices, torch.zeros(indices.numel()))
        return delta.to(dtype=weight.dtype, device=weight.device)

    def calibrate(self, deltas: Sequence[Delta], losses: Iterable[Tensor]) -> None:
        masked = [delta for delta in deltas if isinstance(delta, FixedMaskDelta)]
        if self.target_sparsity > 0 and not self.unready(deltas):
            raise PatchError("calibrate() was called before: patch anew to choose again.")
        fisher = [torch.zeros_like(delta.v) for delta in masked]
        passes = 0
        for loss in losses:
            passes += 1
            grads = torch.autograd.grad(loss, [delta.v for delta in masked], allow_unused=True)
            for total, grad in zip(fisher, grads, strict=True):
                if grad is not None:
                    total += grad.square()
        if not passes:
            raise PatchError("calibrate() got no loss: give it one pass over the data.")
        count = round(sum(f.numel() for f in fisher) * (1 - self.target_sparsity))
        for delta, keep in zip(masked, largest(fisher, count), strict=True):
            delta.indices = delta.indices[keep]
            # A parameter shrinks in place, so that an optimizer that holds it stays right.
            delta.v.data = delta.v.data[keep].clone()
