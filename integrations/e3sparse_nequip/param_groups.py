"""Optimizer groups of a sparse delta, for `optimizer.param_groups` of a NequIP config."""

from typing import Any

from torch import nn

from e3sparse.adapter.patching import adapters
from e3sparse.deltas import ParamGroup
from e3sparse.errors import ConfigError


def SparseParamGroups(  # noqa: N802 -- named as NequIP's own factories are
    model: nn.Module, lr: float, **options: Any
) -> list[ParamGroup]:
    """Return the groups of all deltas in a model, with the rates and decays of their method.

    Parameters
    ----------
    model
        What NequIP passes: a `ModuleDict` of models.
    lr
        Learning rate of the delta.
    **options
        Other options of the optimizer, for every group.

    Raises
    ------
    ConfigError
        If the model is not patched.
    """
    groups = [
        {**options, **group}
        for part in model.children()
        for adapter in adapters(part).values()
        for group in adapter.param_groups(lr)
    ]
    if not groups:
        raise ConfigError(
            "SparseParamGroups found no delta: use it with one of the training modules of "
            "e3sparse_nequip."
        )
    return groups
