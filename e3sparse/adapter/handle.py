"""One named delta on a model: switch, count, merge, restore, remove."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from e3sparse.adapter.card import write_card
from e3sparse.adapter.hub import upload
from e3sparse.adapter.saving import save
from e3sparse.adapter.sparsity import LayerRow, Sparsity, Summary
from e3sparse.adapter.state import Record, State
from e3sparse.adapter.statistics import BufferWatch, statistics
from e3sparse.adapter.touched import touched_species
from e3sparse.deltas import Delta, Method, ParamGroup
from e3sparse.errors import ConfigError, PatchError
from e3sparse.layers.injection import LayerDeltas
from e3sparse.layers.layouts import Layout, Species
from e3sparse.layers.merging import check_fold, full_precision

RATE = "e3sparse_rate"
"""Key of an optimizer group: what its learning rate has been multiplied by."""


class Adapter:
    """One named delta on a model: what `patch` and `load` return.

    The deltas live in the model, so a copy of the model has deltas of its own: find them with
    `adapters(copy)`.
    """

    def __init__(self, model: nn.Module, name: str, state: State) -> None:
        self.model = model
        self.name = name
        self._state = state

    def __repr__(self) -> str:
        record = self._state.records.get(self.name)
        if record is None:
            return f"<Adapter '{self.name}': removed>"
        where = "merged" if self.merged else "in the model" if self.attached else "taken out"
        times = "" if self.scale == 1 else f", times {self.scale:g}"
        return (
            f"<Adapter '{self.name}': {self.method.name}{times} on {len(self.layouts)} layers, "
            f"{where}, {self.sparsity()}>"
        )

    @property
    def _record(self) -> Record:
        try:
            return self._state.records[self.name]
        except KeyError:
            raise PatchError(f"Adapter '{self.name}' has been removed from its model.") from None

    def _layers(self) -> dict[str, LayerDeltas]:
        return self._state.layers(self.model, self.name)

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
        """Hash of the base weights; see `e3sparse.adapter.fingerprint.fingerprint`."""
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
        self._state.settle_statistics(self.model)

    @property
    def scale(self) -> float:
        """How often ΔW counts: the model works with W + s·ΔW, or w·(1 + s·ΔW). 1 unless it is set.

        So s = 0 is the base model, and between 0 and 1 the weights are on the straight line. Set it
        while the adapter is in the model or taken out; a merge folds s·ΔW, and the file of a saved
        adapter says s. Energy references are the zero of the labels' energies, and running
        statistics no differences: both stay as they are.

        Raises
        ------
        ConfigError
            If it is set to what is no finite number.
        PatchError
            If it is set while the adapter is merged.
        """
        return self._record.scale

    @scale.setter
    def scale(self, factor: float) -> None:
        if self.merged:
            raise PatchError(
                f"Adapter '{self.name}' is merged at a scale of {self.scale:g}: restore() or "
                "attach() it first, set the scale, and merge again."
            )
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not isfinite(factor):
            raise ConfigError(f"The scale of an adapter is a finite number, not {factor!r}.")
        self._record.scale = float(factor)
        if self.attached:
            for layer in self._layers().values():
                layer.multiply(self.name, self.scale)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Leave this adapter out while the block runs."""
        self.notice_moved_buffers("the model without its adapter is not the base model")
        was = self.active
        self.active = False
        try:
            yield
        finally:
            self.active = was

    def statistics(self) -> dict[str, Tensor]:
        """Return the running statistics that belong to this adapter, by buffer name.

        None do, unless it was made with `patch(…, moving_statistics=True)`.
        """
        record = self._record
        if not record.owns_statistics:
            return {}
        in_use = self._state.base_statistics
        own = statistics(self.model) if in_use else record.statistics or {}
        return {name: value.detach().clone() for name, value in own.items()}

    def notice_moved_buffers(self, therefore: str) -> None:
        """Warn if a buffer of the model is no longer what it was in the base model."""
        if moved := self._state.moved_buffers(self.model):
            more = f" and {len(moved) - 3} more" if len(moved) > 3 else ""
            warnings.warn(
                f"Since the model was patched, its buffers {', '.join(moved[:3])}{more} have "
                f"changed, and no adapter owns them: {therefore}. Name the class of their layer "
                "with e3sparse.adapter.statistics.register_statistics, and they are held still.",
                stacklevel=3,
            )

    @contextmanager
    def accepting_buffers(self) -> Iterator[None]:
        """Take what the block does to buffers for what the base model has now.

        As for energy references, which go into the model with the adapter.
        """
        moved = self._state.moved_buffers(self.model)
        yield
        if not moved:
            self._state.watch = BufferWatch(self.model)

    def deltas(self) -> dict[str, Delta]:
        """Return the delta of each layer, by module path."""
        parked = self._record.parked
        if parked is not None:
            return dict(parked)
        return {path: layer[self.name] for path, layer in self._layers().items()}

    @torch.no_grad()
    def values(self) -> dict[str, Tensor]:
        """Return what the adapter adds to each layer, s·ΔW, by module path."""
        values, scale = self._unscaled(), self.scale
        return values if scale == 1 else {path: v * scale for path, v in values.items()}

    @torch.no_grad()
    def _unscaled(self) -> dict[str, Tensor]:
        return {path: delta().detach() for path, delta in self.deltas().items()}

    def parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters; pass them to `loss.backward(inputs=…)`."""
        return [p for d in self.deltas().values() for p in d.parameters() if p.requires_grad]

    def param_groups(self, lr: float = 1e-2) -> list[ParamGroup]:
        """Return optimizer groups, with the learning rates and decays that the method wants."""
        return self.method.param_groups(list(self.deltas().values()), lr)

    def step(
        self, progress: float | None = None, *, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Follow the method's schedule. Call it after each optimizer step.

        Parameters
        ----------
        progress
            Share of the training that is done, from 0 to 1; counted from the calls if `patch` was
            given `total_steps`.
        optimizer
            What trains the deltas. The learning rates of its groups that hold them follow the
            method, on top of what a scheduler multiplies them by; a scheduler that sets them anew,
            such as LambdaLR, undoes that. A schedule-free optimizer forgets pruned entries with
            it. Without it the learning rates and the optimizer stay as they are.
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
        was_settled = self.settled
        record.progress = self._clock(progress)
        deltas = list(self.deltas().values())
        record.method.step(deltas, record.steps, record.progress, optimizer)
        if self.settled and not was_settled:
            self.refresh()
        if optimizer is not None:
            self._set_rates(optimizer)

    def _set_rates(self, optimizer: torch.optim.Optimizer) -> None:
        grown, mine = self.method.rate(self.progress), {id(p) for p in self.parameters()}
        for group in optimizer.param_groups:
            if any(id(p) in mine for p in group["params"]):
                # Kept in the group, so that it is in the optimizer's state like the rate itself.
                before = group.get(RATE, 1.0)
                own = group["lr"] / before  # what a scheduler makes of it
                rate = min(grown, self.method.largest_rate(own))
                group["lr"] *= rate / before
                group[RATE] = rate

    def resume_at(self, steps: int, progress: float, held: float | None = None) -> None:
        """Set the schedule to where a resumed training stands, without touching the deltas."""
        self._record.held = self._record.held if held is None else held
        self._record.steps = steps
        self._record.progress = self._clock(progress)

    def hold(self, at: float | None = None) -> None:
        """Let the schedule stand still from now on: the delta keeps its sparsity.

        Call it when pruning further costs too much, on a state of before it did: an entry that
        comes back into the delta has to be trained again.

        Parameters
        ----------
        at
            The progress to hold it at, which may have been passed; the present one if None.
        """
        self._record.held = self._record.progress if at is None else at
        self._record.progress = self._clock(self._record.progress)
        self.refresh()

    def _clock(self, progress: float) -> float:
        held = self._record.held
        return min(progress, 1.0) if held is None else min(progress, held)

    def refresh(self) -> None:
        """Choose the kept entries anew from the parameters as they are now.

        Call it after an optimizer exchanged them, as schedule-free optimizers do in `eval()`.
        """
        self.method.refresh(list(self.deltas().values()), self._record.progress)

    @property
    def progress(self) -> float:
        """Share of the training that the schedule has seen, from 0 to 1."""
        return self._record.progress

    @property
    def settled(self) -> bool:
        """Whether the schedule has reached its final sparsity, or stands still."""
        return self._record.held is not None or self.method.settled(self._record.progress)

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

    def untouched_species(self) -> list[int]:
        """Return the elements of which all structures give the base model's numbers, to the bit.

        Read off the values: every changed entry is of a known element, and these are the others.
        After `patch(…, targets="species")` and `freeze_absent_species` they are at least those that
        are absent.

        Returns
        -------
        list of int
            Atomic numbers; none if a changed entry serves all elements.
        """
        if self.statistics():
            return []
        touched = touched_species(self.layouts, self.values(), self.species.numbers)
        if touched is None:
            return []
        return sorted(set(self.species.numbers) - touched - self.energy_references.keys())

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
        self.check_merge()
        if lacking := self.method.unready(list(self.deltas().values())):
            warnings.warn(f"Adapter '{self.name}' is merged, but {lacking}.", stacklevel=2)
        if not self.settled:
            warnings.warn(
                f"Adapter '{self.name}' is merged at {record.progress:.0%} of its schedule, with "
                f"{self.sparsity().layerwise:.1%} zeros: was step() called after each "
                "optimizer step?",
                stacklevel=2,
            )
        self.notice_moved_buffers("restore() will not bring them back")
        with full_precision():
            values = {path: v.clone() for path, v in self.values().items()}
            record.merged = values
            self._state.take_out(self.model, self.name)
            self._state.refold(self.model)
        return self.model

    def check_merge(self) -> None:
        """Raise if the deltas cannot be folded into the weights; nothing is changed."""
        state, record = self._state, self._record
        state.check_current(self.model)
        with full_precision():
            values = self.values()
            for path, layout in record.layouts.items():
                check_fold(self.model, path, layout, state.fold_into, values[path])

    def restore(self) -> nn.Module:
        """Undo a merge, or take the deltas out: the base weights are left, to the bit.

        The adapter keeps its deltas; `attach` puts them back.
        """
        record = self._record
        self._state.check_current(self.model)
        self.notice_moved_buffers("what is left is not the base model")
        if record.merged is not None:
            record.merged = None
            self._state.refold(self.model)
        self._state.take_out(self.model, self.name)
        return self.model

    def attach(self) -> None:
        """Put deltas that `merge` or `restore` took out back into the model."""
        self.restore()
        record = self._record
        assert record.parked is not None
        self._state.put_in(self.model, self.name, record.parked)

    def remove(self) -> nn.Module:
        """Take the adapter out for good; other adapters stay. Returns the model."""
        self.restore()
        self._state.forget(self.model, self.name)
        return self.model

    def save_pretrained(
        self, directory: str | Path, *, push_to_hub: str | None = None, **metadata: Any
    ) -> Path:
        """Write the adapter folder and its model card, and upload it if that is asked for.

        Parameters
        ----------
        directory
            Made if it does not exist.
        push_to_hub
            `"org/name"` on the Hugging Face Hub; see `e3sparse.adapter.hub.upload`.
        **metadata
            As of `e3sparse.adapter.saving.save`.
        """
        self.notice_moved_buffers("a model that this adapter is loaded onto will differ")
        folder = save(
            Path(directory),
            self._state,
            self._record,
            self._unscaled(),
            self.statistics(),
            self.sparsity(),
            **metadata,
        )
        write_card(folder)
        if push_to_hub is not None:
            upload(folder, push_to_hub)
        return folder
