"""Putting adapters on a model, finding them there, and merging all of them."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from e3sparse.adapter.fingerprint import fingerprint
from e3sparse.adapter.handle import Adapter
from e3sparse.adapter.identity import BaseIdentity
from e3sparse.adapter.state import Record, State, state_of
from e3sparse.adapter.statistics import BufferWatch
from e3sparse.adapter.targets import SPECIES, Selection, Targets, select
from e3sparse.deltas import Delta, Method, make_method
from e3sparse.errors import ConfigError, PatchError, nearest
from e3sparse.layers.injection import LayerDeltas
from e3sparse.layers.kinds import qualified_name
from e3sparse.layers.layouts import Layout, Species
from e3sparse.layers.merging import base_parameter, check_fold

WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
}
"""What wraps a model without being a part of it, and where it keeps the model."""


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside `DataParallel`, DDP and `torch.compile`.

    Paths and fingerprint are those of the bare model then, and so are they in an adapter file.
    """
    while (inside := WRAPPERS.get(qualified_name(type(model)))) is not None:
        held = model._modules[inside]
        assert held is not None
        model = held
    return model


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
    constants: Mapping[str, float] | None = None,
    moving_statistics: bool = False,
    **settings: Any,
) -> Adapter:
    """Freeze a model and give its layers trainable deltas, in place.

    Parameters
    ----------
    model
        Any module tree with e3nn layers.
    targets
        Which layers; see `e3sparse.adapter.targets.select`.
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
    constants
        Numbers that decide what the model answers and are not in it, such as the cutoff of its
        neighbour list, where a backend knows. An adapter file names them, and `load` compares.
    moving_statistics
        Let the running statistics of normalisation layers move in `train()` mode; they belong to
        this adapter then, and are saved, switched, merged and restored with it. Otherwise such
        layers stay in evaluation mode while the model is patched.
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
    model = unwrapped(model)
    if not callable(targets) and not isinstance(targets, str) and set(targets) == {SPECIES}:
        targets = SPECIES
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
    if reasons := _hindrances(model, selection, fold_into or {}):
        warnings.warn(
            f"{len(reasons)} of {len(deltas)} patched layers cannot be merged, so that this "
            f"adapter can be saved and not folded into the weights. {reasons[0]}",
            stacklevel=2,
        )
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
        constants=constants,
        moving_statistics=moving_statistics,
    )


def _hindrances(model: nn.Module, selection: Selection, fold_into: Mapping[str, str]) -> list[str]:
    """Return why layers cannot be merged, one sentence each."""
    reasons = []
    for path, layout in selection.layers.items():
        try:
            check_fold(model, path, layout, fold_into)
        except PatchError as error:
            reasons.append(str(error))
    return reasons


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
    constants: Mapping[str, float] | None = None,
    moving_statistics: bool = False,
    statistics: dict[str, Tensor] | None = None,
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
            watch=BufferWatch(model),
            constants=dict(constants or {}),
            identity=BaseIdentity.of(model, constants),
        )
    if name in state.records:
        raise PatchError(
            f"The model has an adapter '{name}' already: remove() it, or choose another name."
        )
    if (moving_statistics or statistics is not None) and state.owner() is not None:
        raise PatchError(
            "Another adapter on this model has running statistics of its own already, and a model "
            "can use those of one adapter only: remove() it first."
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
        moving=moving_statistics,
        statistics=statistics,
    )
    if targets == SPECIES and species is not None:
        for path, delta in deltas.items():
            # SevenNet's modalities stand behind the elements: their weights serve all of these.
            shared = selection.layers[path].of_no_species(len(species.numbers))
            if shared is not None:
                delta.freeze(shared)
    state.put_in(model, name, deltas)
    return Adapter(model, name, state)


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """Return the adapters of a model and of the patched models inside it, by name.

    A name that an earlier part has taken is preceded by the path of its own: `"part.default"`.
    """
    found: dict[str, Adapter] = {}
    for path, module in model.named_modules():
        state = state_of(module)
        for name in state.records if state is not None else ():
            assert state is not None
            found[f"{path}.{name}" if name in found else name] = Adapter(module, name, state)
    return found


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
