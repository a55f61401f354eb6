"""A moving average of the weights, kept by the optimizer as schedule-free ones keep theirs."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from e3sparse.deltas.base import AVERAGE

_DECAY, _UPDATES, _TRAINS = "ema", "ema_updates", "train_mode"


def keep_average(optimizer: Optimizer, decay: float) -> None:
    """Have an optimizer average its weights, and swap them by `train()` and `eval()`.

    The average is in the optimizer's state, so that checkpoints hold both sets of weights. Early
    steps count more: after n of them the average keeps (1 + n)/(10 + n) of itself at most, as
    torch_ema does for MACE.

    Parameters
    ----------
    optimizer
        Its class becomes a subclass with those two methods.
    decay
        Share of itself that the average keeps at each step.
    """
    kind = type(optimizer)
    optimizer.__class__ = type(f"Averaged{kind.__name__}", (_Averaged, kind), {})
    for group in optimizer.param_groups:
        group.update({_DECAY: decay, _UPDATES: 0, _TRAINS: True})


class _Averaged(Optimizer):
    """What `keep_average` adds to an optimizer."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        start = {
            p: p.detach().clone()
            for group in self.param_groups
            for p in group["params"]
            if not group[_UPDATES]
        }
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                done = group[_UPDATES] = group[_UPDATES] + 1
                kept = min(group[_DECAY], (1 + done) / (10 + done))
                for p in group["params"]:
                    # Not before the step: an Adam takes a state that is not empty for its own.
                    average = self.state[p].setdefault(AVERAGE, start.get(p))
                    average.lerp_(p, 1 - kept)
        return loss

    def train(self) -> None:
        """Put the weights that are trained in place."""
        self._swap(trains=True)

    def eval(self) -> None:
        """Put the average in place."""
        self._swap(trains=False)

    def _swap(self, *, trains: bool) -> None:
        for group in self.param_groups:
            if group[_TRAINS] == trains:
                continue
            group[_TRAINS] = trains
            for p in group["params"]:
                average = self.state.get(p, {}).get(AVERAGE)
                if average is not None:
                    kept = p.detach().clone()
                    p.copy_(average)
                    average.copy_(kept)
