"""What one adapter is and holds: method, layouts, deltas, counts."""

from collections.abc import Mapping
from math import isfinite

import torch
from torch import Tensor, nn

from e3sparse.adapter.sparsity import LayerRow, Sparsity, Summary
from e3sparse.adapter.state import Record, State
from e3sparse.adapter.statistics import statistics
from e3sparse.adapter.touched import touched_species
from e3sparse.deltas import Delta, Method
from e3sparse.errors import ConfigError, PatchError
from e3sparse.layers.injection import LayerDeltas
from e3sparse.layers.layouts import Layout, Species


class Contents:
    """What can be read off an adapter, and its scale. See `e3sparse.adapter.handle.Adapter`."""

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
