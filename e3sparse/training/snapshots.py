"""What a training can go back to: trained weights, buffers, and the optimizer's memory."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer


@dataclass(frozen=True)
class Snapshot:
    """A state of a training; nothing in it changes when the training goes on."""

    tensors: dict[str, Tensor]
    optimizer: dict[str, Any]

    @classmethod
    def of(cls, module: LightningModule, optimizer: Optimizer | Any) -> "Snapshot":
        """Keep the state of now."""
        tensors = {name: tensor.clone() for name, tensor in _changing(module).items()}
        return cls(tensors, deepcopy(optimizer.state_dict()))

    def restore(
        self, module: LightningModule, optimizer: Optimizer | Any, *, but: tuple[str, ...]
    ) -> None:
        """Put it back, but for these settings of the optimizer's groups, which stay as they are."""
        with torch.no_grad():
            for name, tensor in _changing(module).items():
                tensor.copy_(self.tensors[name])
        now = [{key: group[key] for key in but if key in group} for group in optimizer.param_groups]
        optimizer.load_state_dict(deepcopy(self.optimizer))
        optimizer.zero_grad()  # of batches of a step that is still to come
        for group, settings in zip(optimizer.param_groups, now, strict=True):
            group.update(settings)


def _changing(module: LightningModule) -> dict[str, Tensor]:
    """Return the trained parameters and all buffers, which share memory with the module."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return {name: t for name, t in module.state_dict().items() if name not in frozen}
