"""Optimizers by name, over groups that the method declares."""

from collections.abc import Callable
from typing import Any

import torch
from schedulefree import AdamWScheduleFree
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from e3sparse.deltas import ParamGroup

Made = tuple[Optimizer, LRScheduler | None]


def _schedule_free(groups: list[ParamGroup], steps: int) -> Made:
    return AdamWScheduleFree(groups, warmup_steps=max(1, steps // 20)), None


def _adamw(groups: list[ParamGroup], steps: int) -> Made:
    optimizer = AdamW(groups)
    return optimizer, CosineAnnealingLR(optimizer, T_max=max(1, steps))


def _sgd(groups: list[ParamGroup], steps: int) -> Made:
    return SGD(groups), None


OPTIMIZERS: dict[str, Callable[[list[ParamGroup], int], Made]] = {
    "schedule_free": _schedule_free,
    "adamw": _adamw,
    "sgd": _sgd,
}


def make_optimizer(name: str, groups: list[ParamGroup], steps: int) -> Made:
    """Return an optimizer and, if it wants one, a scheduler that is stepped every step.

    Parameters
    ----------
    name
        `"schedule_free"` (schedule-free AdamW), `"adamw"` (with a cosine to zero) or `"sgd"`.
    groups
        Parameter groups with their own learning rates and decays.
    steps
        Optimizer steps in all.
    """
    return OPTIMIZERS[name](groups, steps)


def set_averaged(optimizer: Optimizer | Any, averaged: bool) -> bool:
    """Put the averaged weights of a schedule-free optimizer in place, or the training ones.

    Other optimizers have one set of weights, and nothing happens.

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
