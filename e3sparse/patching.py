"""Putting adapters on a model, finding them there, and merging all of them."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from e3sparse.adapter import Adapter
from e3sparse.deltas import Delta, Method, make_method
from e3sparse.errors import ConfigError, PatchError, nearest
from e3sparse.fingerprint import fingerprint
from e3sparse.injection import LayerDeltas
from e3sparse.merging import base_parameter
from e3sparse.paths import Layout, Species
from e3sparse.state import Record, State, state_of
from e3sparse.targets import Selection, Targets, select


def patch(
    model: nn.Module,
    targets: Targets = "linear",
    method: str | Method = "budget",
    *,
    name: str = "default",
    seed: int = 0,
    total_steps: int | None = None,
    species: Species | None = None,
    fold_into: Mapping[str, str] | None = None,
    **settings: Any,
) -> Adapter:
    """Freeze a model and give its layers trainable deltas, in place.

    Parameters
    ----------
    model
        Any module tree with e3nn layers.
    targets
        Which layers; see `e3sparse.targets.select`.
    method
        `"budget"`, `"soft_threshold"`, `"low_rank"`, `"dense"`, `"fixed_mask"`, or a `Method`.
    name
        Name of the adapter. Several can be in one model: their deltas add up, and their
        reweightings of external path weights multiply.
    seed
        Seed of the deltas' own random generator. The global generator is left alone.
    total_steps
        Number of optimizer steps to come, for methods with a schedule.
    species
        Which layers have an axis over species, where a backend knows.
    fold_into
        For tensor products with external weights: module path of each, and of the linear layer
        that a merge folds its delta into.
    **settings
        Settings of the method, such as `target_sparsity=0.97`.

    Returns
    -------
    Adapter

    Raises
    ------
    TargetError
        If `targets` matches nothing.
    ConfigError
        If the method or one of its settings does not exist.
    PatchError
        If an adapter of that name is in the model.
    """
    made = make_method(method, **settings)
    if total_steps is not None and total_steps < 1:
        raise ConfigError(f"total_steps is {total_steps}, and a training has at least one step.")
    selection = select(model, targets, species)
    generator = torch.Generator().manual_seed(seed)

    def weight_like(path: str, layout: Layout) -> Tensor:
        for parameter in layout.parameters:
            return base_parameter(model, f"{path}.{parameter}")
        return next(model.parameters(), torch.empty(0))

    deltas = {
        path: made.delta(layout, weight_like(path, layout), generator)
        for path, layout in selection.layers.items()
    }
    return install(
        model,
        name,
        made,
        selection,
        deltas,
        targets=targets if isinstance(targets, str) else repr(targets),
        total_steps=total_steps,
        species=species,
        fold_into=fold_into,
    )


def install(
    model: nn.Module,
    name: str,
    method: Method,
    selection: Selection,
    deltas: Mapping[str, Delta],
    *,
    targets: str = "",
    total_steps: int | None = None,
    progress: float = 0.0,
    species: Species | None = None,
    fold_into: Mapping[str, str] | None = None,
) -> Adapter:
    """Put ready-made deltas into a model under a name; `patch` and `load` end here."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or hasattr(nn.ModuleDict(), name):
        raise PatchError(
            f"An adapter cannot be named '{name}': use letters, digits, '-' and '_', and no "
            "name of a ModuleDict method."
        )
    state = state_of(model)
    if state is None:
        if any(isinstance(module, LayerDeltas) for module in model.modules()):
            raise PatchError(
                "A part of this model, or a model that it is part of, is patched already: patch "
                "the same module again, or remove the adapters first."
            )
        state = State(
            fingerprint=fingerprint(model),
            species=species or Species(),
            fold_into={},
            parameters=sum(p.numel() for p in model.parameters()),
        )
    if name in state.records:
        raise PatchError(
            f"The model has an adapter '{name}' already: remove() it, or choose another name."
        )
    if species is not None:
        state.species = species
    state.fold_into.update(fold_into or {})
    state.records[name] = Record(
        method=method,
        layouts=dict(selection.layers),
        skipped=selection.skipped,
        targets=targets,
        total_steps=total_steps,
        progress=progress,
    )
    state.put_in(model, name, deltas)
    return Adapter(model, name, state)


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """Return the adapters of a model, or of the one patched model inside it, by name."""
    for module in model.modules():
        state = state_of(module)
        if state is not None:
            return {name: Adapter(module, name, state) for name in state.records}
    return {}


def merge(model: nn.Module) -> nn.Module:
    """Fold every active adapter into the weights, drop the inactive ones; returns the model.

    Raises
    ------
    PatchError
        If the model carries no adapter.
    """
    groups = [adapters(module) for module in model.modules() if state_of(module) is not None]
    if not groups:
        raise PatchError("The model carries no adapter, so there is nothing to merge.")
    everything = [adapter for group in groups for adapter in group.values() if adapter.attached]
    active = [adapter for adapter in everything if adapter.active]
    for adapter in active:
        adapter.check_merge()
    for adapter in everything:
        if adapter not in active:
            adapter.remove()
    for adapter in active:
        adapter.merge()
    return model


def get_adapter(model: nn.Module, name: str) -> Adapter:
    """Return the adapter of that name.

    Raises
    ------
    PatchError
        If there is none.
    """
    found = adapters(model)
    if name not in found:
        raise PatchError(
            f"The model has no adapter '{name}'.{nearest(name, found)} "
            f"It has: {', '.join(found) or 'none'}."
        )
    return found[name]
