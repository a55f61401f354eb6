"""What every delta method offers: a ΔW for one layer, optimizer groups, and a schedule."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from math import inf
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from e3sparse.errors import PatchError
from e3sparse.layers.delta import Delta
from e3sparse.layers.layouts import Layout

ParamGroup = dict[str, Any]

AVERAGE = "average"
"""Where an optimizer that averages weights keeps their average, in the state of each."""


class Method(BaseModel, ABC):
    """How a ΔW is parametrised: settings, checked and written to the adapter file.

    A method is one file: a subclass of this with its settings as fields, the `Delta` that it
    makes, and `e3sparse.deltas.register_method`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    default_lr: ClassVar[float] = 1e-2

    @abstractmethod
    def delta(self, layout: Layout, weight: Tensor, generator: torch.Generator) -> Delta:
        """Make the ΔW of one layer.

        Parameters
        ----------
        layout
            The layer's blocks.
        weight
            A tensor whose dtype and device the delta follows.
        generator
            A CPU generator: the only source of randomness, so that DDP ranks agree.
        """

    def param_groups(self, deltas: Sequence[Delta], lr: float) -> list[ParamGroup]:
        """Return optimizer groups for the deltas of one adapter."""
        params = [p for delta in deltas for p in delta.parameters()]
        return [{"params": params, "lr": lr, "weight_decay": 0.0}]

    def step(
        self,
        deltas: Sequence[Delta],
        step: int,
        progress: float,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Follow the schedule after optimizer step `step`, `progress` running from 0 to 1."""

    def refresh(self, deltas: Sequence[Delta], progress: float) -> None:
        """Derive anew whatever is derived from the parameters, which have been exchanged."""

    def rate(self, progress: float) -> float:
        """Return by what the learning rates of `param_groups` are multiplied at `progress`."""
        return 1.0

    def largest_rate(self, lr: float) -> float:
        """Return what `rate` counts for at most where the learning rate is `lr` without it."""
        return inf

    def settled(self, progress: float) -> bool:
        """Whether the schedule has come to the final sparsity at `progress`."""
        return True

    def unready(self, deltas: Sequence[Delta]) -> str | None:
        """Say what has not been done that training needs, or None."""
        return None

    @property
    def final_sparsity(self) -> float | None:
        """Share of zeros that the schedule ends at, None where it is not known beforehand."""
        return None

    @property
    def scheduled(self) -> bool:
        """Whether `step` has to be called, and so the number of steps be known."""
        return False

    @property
    def calibrated(self) -> bool:
        """Whether `calibrate` has to be called once before training."""
        return False

    @property
    def judged(self) -> bool:
        """Whether a training has to judge its validations, and may have to `Adapter.hold`."""
        return False

    def set_prices(self, deltas: Sequence[Delta], prices: Sequence[Tensor]) -> None:
        """Let a choice of entries take into account what each costs, in the weights' shapes."""
        raise PatchError(f"Method '{self.name}' chooses no entries by price.")

    def calibrate(self, deltas: Sequence[Delta], losses: Iterable[Tensor]) -> None:
        """Use one pass of losses over the data, computed with the deltas in place."""
        raise PatchError(f"Method '{self.name}' has nothing to calibrate.")


def being_traced() -> bool:
    """Whether operations are being recorded, to be differentiated afterwards.

    `make_fx`, with which NequIP compiles its training, records the forward pass alone: a gradient
    of an `autograd.Function` is lost then, and so is a `detach`.
    """
    return torch.compiler.is_compiling() or get_proxy_mode() is not None


def largest(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Mark the `count` largest scores over all tensors together.

    Zero scores are never marked; ties are broken by position, so that the count is exact.

    Returns
    -------
    list of Tensor
        bool masks, one for each tensor of `scores`.
    """
    flat = torch.cat([score.detach().reshape(-1) for score in scores])
    if count <= 0:
        keep = torch.zeros_like(flat, dtype=torch.bool)
    else:
        threshold = _th_smallest(flat, flat.numel() - count)
        keep = flat >= threshold if threshold > 0 else flat > 0
        excess = int(torch.count_nonzero(keep)) - count
        if excess > 0:
            ties = torch.nonzero(flat == threshold).reshape(-1)
            keep[ties[len(ties) - excess :]] = False
    parts = torch.split(keep, [score.numel() for score in scores])
    return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]


def _th_smallest(flat: Tensor, index: int) -> float | Tensor:
    """Return the entry that would stand at `index` if a vector were sorted."""
    if flat.is_cpu:
        # NumPy selects several times as fast; it has no bfloat16, which float32 holds exactly.
        array = flat.float().numpy() if flat.element_size() < 4 else flat.numpy()
        return float(np.partition(array, index)[index])
    return torch.kthvalue(flat, index + 1).values
