"""Optimizers by name, over groups that the method declares."""

from collections.abc import Callable
from math import cos, pi
from typing import Any

import torch
from schedulefree import AdamWScheduleFree
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiplicativeLR

from e3sparse.deltas import ParamGroup
from e3sparse.training.averaging import keep_average

Made = tuple[Optimizer, LRScheduler | None]

_WARMUP = 0.05
"""Share of the steps in which a schedule-free optimizer warms up."""


def _schedule_free(groups: list[ParamGroup], steps: int, warmup: float | None) -> Optimizer:
    share = _WARMUP if warmup is None else warmup
    # It divides by this number, and one step is none.
    made: Optimizer = AdamWScheduleFree(groups, warmup_steps=max(1, int(steps * share)))
    return made


OPTIMIZERS: dict[str, Callable[[list[ParamGroup], int, float | None], Optimizer]] = {
    "schedule_free": _schedule_free,
    "adamw": lambda groups, steps, warmup: AdamW(groups),
    "sgd": lambda groups, steps, warmup: SGD(groups),
}


def _schedule(
    name: str, optimizer: Optimizer, steps: int, warmup: float | None
) -> LRScheduler | None:
    if name == "schedule_free":
        return None
    if name == "adamw" and not warmup:
        return CosineAnnealingLR(optimizer, T_max=max(1, steps))
    return _warmed_up(optimizer, steps, warmup, cosine=name == "adamw") if warmup else None


def _warmed_up(optimizer: Optimizer, steps: int, warmup: float, *, cosine: bool) -> LRScheduler:
    """Return a schedule that rises linearly, then stays or falls to 0 by half a cosine."""
    rising = max(1, round(steps * warmup))

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        if not cosine:
            return 1.0
        done = min(1.0, (step - rising) / max(1, steps - rising))
        return 0.5 * (1 + cos(pi * done))

    def change(step: int) -> float:
        before = share(step - 1)
        return share(step) / before if before else 0.0

    # By ratios, because the method and a recovery change rates too, and theirs has to last.
    schedule = MultiplicativeLR(optimizer, change)
    for group in optimizer.param_groups:
        group["lr"] *= share(0)
    return schedule


def make_optimizer(
    name: str,
    groups: list[ParamGroup],
    steps: int,
    *,
    warmup: float | None = None,
    ema: float | None = None,
) -> Made:
    """Return an optimizer and, if it wants one, a scheduler that is stepped every step.

    Parameters
    ----------
    name
        `"schedule_free"` (schedule-free AdamW), `"adamw"` (with a cosine to zero) or `"sgd"`.
    groups
        Parameter groups with their own learning rates and decays.
    steps
        Optimizer steps in all.
    warmup
        Share of them in which the learning rate rises; the optimizer's own if None.
    ema
        Of the moving average of the weights, the share that it keeps of itself at each step; None
        for no average.
    """
    optimizer = OPTIMIZERS[name](groups, steps, warmup)
    if ema is not None:
        keep_average(optimizer, ema)  # before a scheduler binds the step that it counts
    return optimizer, _schedule(name, optimizer, steps, warmup)


def set_averaged(optimizer: Optimizer | Any, averaged: bool) -> bool:
    """Put the averaged weights of an optimizer in place, or the training ones.

    Optimizers that are neither schedule-free nor were given to `keep_average` have one set of
    weights, and nothing happens.

    Returns
    -------
    bool
        Whether the weights have changed.
    """
    if not (hasattr(optimizer, "train") and hasattr(optimizer, "eval")):
        return False
    were = [group["train_mode"] for group in optimizer.param_groups]
    with torch.no_grad():
        optimizer.eval() if averaged else optimizer.train()
    return were != [group["train_mode"] for group in optimizer.param_groups]
