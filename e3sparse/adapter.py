"""The life of a delta on a model: patch, disable, merge, restore, remove."""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from e3sparse.deltas import Delta, Method, ParamGroup, make_method
from e3sparse.errors import PatchError, nearest
from e3sparse.fingerprint import fingerprint
from e3sparse.injection import SUBMODULE, LayerDeltas, eject, inject
from e3sparse.merging import base_parameter, fold_target, refold
from e3sparse.paths import Layout, Species
from e3sparse.sparsity import LayerRow, Sparsity, Summary
from e3sparse.targets import Selection, Skipped, Targets, select

_STATE = "_e3sparse"


@dataclass
class _Record:
    """What is known of one adapter, besides its deltas."""

    method: Method
    layouts: dict[str, Layout]
    skipped: tuple[Skipped, ...]
    targets: str = ""
    total_steps: int | None = None
    steps: int = 0
    progress: float = 0.0
    merged: dict[str, Tensor] | None = None  # ΔW by layer, while it is folded into the weights
    parked: dict[str, Delta] | None = None  # the deltas, while they are out of the model
    energy_references: dict[int, float] = field(default_factory=dict)


@dataclass
class _State:
    """Shared by all adapters of a model; an attribute of the model while it is patched."""

    fingerprint: str
    species: Species
    fold_into: dict[str, str]
    parameters: int
    requires_grad: dict[str, bool] = field(default_factory=dict)
    records: dict[str, _Record] = field(default_factory=dict)
    base: dict[str, Tensor] = field(default_factory=dict)  # overwritten weights, by parameter


class Adapter:
    """One named delta on a model: what `patch` and `load` return.

    The deltas live in the model, so a copy of the model has deltas of its own: find them with
    `adapters(copy)`.
    """

    def __init__(self, model: nn.Module, name: str, state: _State) -> None:
        self.model = model
        self.name = name
        self._state = state

    @property
    def _record(self) -> _Record:
        try:
            return self._state.records[self.name]
        except KeyError:
            raise PatchError(f"Adapter '{self.name}' has been removed from its model.") from None

    @property
    def method(self) -> Method:
        """The method and its settings."""
        return self._record.method

    @property
    def layouts(self) -> Mapping[str, Layout]:
        """The layout of each patched layer, by module path."""
        return self._record.layouts

    @property
    def targets(self) -> str:
        """The targets as they were asked for, for the record."""
        return self._record.targets

    @property
    def species(self) -> Species:
        """The species axes of the model, as far as the backend named them."""
        return self._state.species

    @property
    def base_fingerprint(self) -> str:
        """Hash of the base weights; see `e3sparse.fingerprint`."""
        return self._state.fingerprint

    @property
    def energy_references(self) -> dict[int, float]:
        """Energy shift in eV by atomic number, stored with the adapter for a backend to apply."""
        return self._record.energy_references

    @property
    def attached(self) -> bool:
        """Whether the deltas are in the model, neither merged nor taken out."""
        return self._record.parked is None

    @property
    def merged(self) -> bool:
        """Whether the deltas are folded into the weights."""
        return self._record.merged is not None

    @property
    def active(self) -> bool:
        """Whether the model uses the deltas. Set it to switch between adapters."""
        return self.attached and all(self.name in d.active for d in self._layers().values())

    @active.setter
    def active(self, on: bool) -> None:
        if not self.attached:
            raise PatchError(f"Adapter '{self.name}' is not in the model: call attach() first.")
        for layer in self._layers().values():
            layer.switch(self.name, on)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Leave this adapter out while the block runs."""
        was = self.active
        self.active = False
        try:
            yield
        finally:
            self.active = was

    def deltas(self) -> dict[str, Delta]:
        """Return the delta of each layer, by module path."""
        parked = self._record.parked
        if parked is not None:
            return dict(parked)
        return {path: layer[self.name] for path, layer in self._layers().items()}

    @torch.no_grad()
    def values(self) -> dict[str, Tensor]:
        """Return ΔW of each layer, by module path."""
        return {path: delta().detach() for path, delta in self.deltas().items()}

    def parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters; pass them to `loss.backward(inputs=…)`."""
        return [p for d in self.deltas().values() for p in d.parameters() if p.requires_grad]

    def param_groups(self, lr: float = 1e-2) -> list[ParamGroup]:
        """Return optimizer groups, with the learning rates and decays that the method wants."""
        return self.method.param_groups(list(self.deltas().values()), lr)

    def step(self, progress: float | None = None) -> None:
        """Follow the method's schedule. Call it after each optimizer step.

        Parameters
        ----------
        progress
            Share of the training that is done, from 0 to 1; counted from the calls if `patch` was
            given `total_steps`.
        """
        record = self._record
        record.steps += 1
        if progress is None and record.total_steps is not None:
            progress = record.steps / record.total_steps
        if progress is None:
            if record.method.scheduled:
                raise PatchError(
                    f"Method '{record.method.name}' follows a schedule: call "
                    "patch(…, total_steps=N), or step(progress) with progress from 0 to 1."
                )
            return
        record.progress = min(progress, 1.0)
        record.method.step(list(self.deltas().values()), record.steps, record.progress)

    def resume_at(self, steps: int, progress: float) -> None:
        """Set the schedule to where a resumed training stands, without touching the deltas."""
        self._record.steps = steps
        self._record.progress = progress

    def refresh(self) -> None:
        """Choose the kept entries anew from the parameters as they are now.

        Call it after an optimizer exchanged them, as schedule-free optimizers do in `eval()`.
        """
        self.method.refresh(list(self.deltas().values()), self._record.progress)

    @property
    def settled(self) -> bool:
        """Whether the schedule has reached its final sparsity."""
        return self.method.settled(self._record.progress)

    def calibrate(self, losses: Iterable[Tensor]) -> None:
        """Let the method choose its support from one pass of losses over the data."""
        self.method.calibrate(list(self.deltas().values()), losses)

    def freeze_absent_species(self, present: Iterable[int]) -> list[int]:
        """Hold the per-species weights of every other element at the base model's.

        Parameters
        ----------
        present
            Atomic numbers that the training frames contain.

        Returns
        -------
        list of int
            Atomic numbers that are held.
        """
        known = self.species.numbers
        absent = sorted(set(known) - set(present))
        indices = [i for i, number in enumerate(known) if number in absent]
        for path, delta in self.deltas().items():
            rows = self.layouts[path].species_rows(indices)
            if rows is not None:
                delta.freeze(rows)
        return absent

    def sparsity(self) -> Sparsity:
        """Count the patched, the updated and all entries."""
        values = self.values()
        return Sparsity(
            entries=sum(v.numel() for v in values.values()),
            updated=sum(int(torch.count_nonzero(v)) for v in values.values()),
            parameters=self._state.parameters,
        )

    def summary(self) -> Summary:
        """Describe each patched layer, and the layers passed over with the reason."""
        rows = [
            LayerRow(path, layout.kind, layout.irreps, layout.numel, int(torch.count_nonzero(v)))
            for (path, v), layout in zip(self.values().items(), self.layouts.values(), strict=True)
        ]
        trainable = sum(p.numel() for p in self.parameters())
        skipped = self._record.skipped
        return Summary(
            self.name, self.method.name, tuple(rows), skipped, trainable, self.sparsity()
        )

    def merge(self) -> nn.Module:
        """Fold ΔW into the weights and take the deltas out; returns the model.

        If no other adapter is in the model, an ordinary model is left: its own classes,
        state-dict keys and `requires_grad` flags.
        """
        record = self._record
        if record.merged is not None:
            return self.model
        for path, layout in record.layouts.items():
            fold_target(path, layout, self._state.fold_into)
        if not self.settled:
            warnings.warn(
                f"Adapter '{self.name}' is merged at {record.progress:.0%} of its schedule, with "
                f"{self.sparsity().layerwise:.1%} zeros: was step() called after each "
                "optimizer step?",
                stacklevel=2,
            )
        values = {path: v.clone() for path, v in self.values().items()}
        self._detach()
        record.merged = values
        self._refold()
        return self.model

    def restore(self) -> nn.Module:
        """Undo a merge, or take the deltas out: the base weights are left, to the bit.

        The adapter keeps its deltas; `attach` puts them back.
        """
        if self._record.merged is not None:
            self._record.merged = None
            self._refold()
        self._detach()
        return self.model

    def attach(self) -> None:
        """Put deltas that `merge` or `restore` took out back into the model."""
        self.restore()
        record = self._record
        assert record.parked is not None
        _attach(self.model, self._state, self.name, record.parked)
        record.parked = None

    def remove(self) -> nn.Module:
        """Take the adapter out for good; other adapters stay. Returns the model."""
        self.restore()
        del self._state.records[self.name]
        return self.model

    def save_pretrained(self, directory: str | Path, **metadata: Any) -> Path:
        """Write the adapter folder; see `e3sparse.adapter_file`."""
        from e3sparse.adapter_file import save

        return save(self, Path(directory), **metadata)

    def _layers(self) -> dict[str, LayerDeltas]:
        found = {}
        for path in self._record.layouts:
            layer = self.model.get_submodule(path)._modules.get(SUBMODULE)
            if not isinstance(layer, LayerDeltas) or self.name not in layer.deltas:
                raise PatchError(f"Adapter '{self.name}' is no longer in layer '{path}'.")
            found[path] = layer
        return found

    def _detach(self) -> None:
        record = self._record
        if record.parked is not None:
            return
        record.parked = self.deltas()
        for path, layer in self._layers().items():
            layer.take_out(self.name)
            if not layer.deltas:
                eject(self.model.get_submodule(path))
        if not any(other.parked is None for other in self._state.records.values()):
            for name, flag in self._state.requires_grad.items():
                base_parameter(self.model, name).requires_grad_(flag)
            delattr(self.model, _STATE)

    def _refold(self) -> None:
        state = self._state
        merged = [(r.layouts, r.merged) for r in state.records.values() if r.merged is not None]
        refold(self.model, state.base, merged, state.fold_into)


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
        Name of the adapter; several can be in one model, and their deltas add up.
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
    selection = select(model, targets, species)
    generator = torch.Generator().manual_seed(seed)

    def weight_like(path: str, layout: Layout) -> Tensor:
        if layout.parameter is not None:
            return base_parameter(model, f"{path}.{layout.parameter}")
        return next(iter(model.parameters()))

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
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or hasattr(nn.ModuleDict, name):
        raise PatchError(
            f"An adapter cannot be named '{name}': use letters, digits, '-' and '_', and no "
            "name of a ModuleDict method."
        )
    state = getattr(model, _STATE, None)
    if state is None:
        state = _State(
            fingerprint=fingerprint(model),
            species=species or Species(),
            fold_into={},
            parameters=sum(p.numel() for p in model.parameters()),
        )
    if name in state.records:
        raise PatchError(
            f"The model has an adapter '{name}' already: remove() it, or choose another name."
        )
    state.fold_into.update(fold_into or {})
    state.records[name] = _Record(
        method=method,
        layouts=dict(selection.layers),
        skipped=selection.skipped,
        targets=targets,
        total_steps=total_steps,
        progress=progress,
    )
    _attach(model, state, name, deltas)
    return Adapter(model, name, state)


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """Return the adapters of a model, or of the one patched model inside it, by name."""
    for module in model.modules():
        state = getattr(module, _STATE, None)
        if isinstance(state, _State):
            return {name: Adapter(module, name, state) for name in state.records}
    return {}


def merge(model: nn.Module) -> nn.Module:
    """Fold every active adapter into the weights, drop the inactive ones; returns the model.

    Raises
    ------
    PatchError
        If the model carries no adapter.
    """
    found = adapters(model)
    if not found:
        raise PatchError("The model carries no adapter, so there is nothing to merge.")
    for adapter in found.values():
        if adapter.attached and not adapter.active:
            adapter.remove()
    for adapter in found.values():
        if adapter._state.records.get(adapter.name) is not None:
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


def _attach(model: nn.Module, state: _State, name: str, deltas: Mapping[str, Delta]) -> None:
    if getattr(model, _STATE, None) is None:
        state.requires_grad = {n: p.requires_grad for n, p in model.named_parameters()}
        model.requires_grad_(False)
        setattr(model, _STATE, state)
    for path, delta in deltas.items():
        layer = inject(model.get_submodule(path), state.records[name].layouts[path])
        layer.put_in(name, delta)
