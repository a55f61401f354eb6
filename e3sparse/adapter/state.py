"""What is remembered of a patched model: shared by its adapters, an attribute of the model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from e3sparse.adapter.fingerprint import fingerprint
from e3sparse.adapter.identity import BaseIdentity
from e3sparse.adapter.statistics import BufferWatch, hold, release, statistics, write_statistics
from e3sparse.adapter.targets import Skipped
from e3sparse.deltas import Delta, Method
from e3sparse.errors import PatchError
from e3sparse.layers.injection import SUBMODULE, LayerDeltas, eject, inject
from e3sparse.layers.layouts import Layout, Species
from e3sparse.layers.merging import base_parameter, refold

_ATTRIBUTE = "_e3sparse"
# Handles outlive a patch: which state a model was last patched with tells the stale ones apart.
_LATEST: "WeakKeyDictionary[nn.Module, State]" = WeakKeyDictionary()


@dataclass
class Record:
    """What is known of one adapter, besides its deltas."""

    method: Method
    layouts: dict[str, Layout]
    skipped: tuple[Skipped, ...]
    targets: str = ""
    total_steps: int | None = None
    steps: int = 0
    progress: float = 0.0
    held: float | None = None  # where the schedule stands still, whatever the training does
    merged: dict[str, Tensor] | None = None  # ΔW by layer, while it is folded into the weights
    parked: dict[str, Delta] | None = None  # the deltas, while they are out of the model
    energy_references: dict[int, float] = field(default_factory=dict)
    moving: bool = False  # whether running statistics move in this adapter's training
    statistics: dict[str, Tensor] | None = None  # its own, by buffer name, while out of the model
    scale: float = 1.0  # how often ΔW counts

    @property
    def owns_statistics(self) -> bool:
        return self.moving or self.statistics is not None


@dataclass
class State:
    """Shared by all adapters of a model; an attribute of the model while it is patched."""

    fingerprint: str
    species: Species
    fold_into: dict[str, str]
    parameters: int
    requires_grad: dict[str, bool] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    base: dict[str, Tensor] = field(default_factory=dict)  # overwritten weights, by parameter
    hook: Any = None
    scales: dict[str, Tensor] = field(default_factory=dict)  # of reweighted parameters
    watch: BufferWatch | None = None
    base_statistics: dict[str, Tensor] = field(default_factory=dict)  # while an adapter's are used
    constants: dict[str, float] = field(default_factory=dict)  # what a backend knows of the base
    identity: BaseIdentity | None = None  # None in a model that an older e3sparse has pickled

    def layers(self, model: nn.Module, name: str) -> dict[str, LayerDeltas]:
        """Return the patched layers of an adapter that is in the model, by module path."""
        found = {}
        modules = dict(model.named_modules(remove_duplicate=False))
        for path in self.records[name].layouts:
            layer = modules[path]._modules.get(SUBMODULE) if path in modules else None
            if not isinstance(layer, LayerDeltas) or name not in layer.deltas:
                raise PatchError(f"Adapter '{name}' is no longer in layer '{path}'.")
            found[path] = layer
        return found

    def put_in(self, model: nn.Module, name: str, deltas: Mapping[str, Delta]) -> None:
        """Put an adapter's deltas into the model, which is frozen with the first of them."""
        self.check_current(model)
        _LATEST[model] = self
        if state_of(model) is None:
            self.requires_grad = {n: p.requires_grad for n, p in model.named_parameters()}
            model.requires_grad_(False)
            setattr(model, _ATTRIBUTE, self)
            self.hook = model.register_load_state_dict_post_hook(self._loaded)
        record = self.records[name]
        for path, delta in deltas.items():
            module = model.get_submodule(path)
            names = record.layouts[path].parameters
            like = base_parameter(module, names[0]) if names else next(model.parameters(), None)
            if like is not None:
                delta.to(dtype=like.dtype, device=like.device)
            layer = inject(module, record.layouts[path])
            layer.put_in(name, delta, record.scale)
            layer.order(list(self.records))
        record.parked = None
        self.rescale(model)
        self.settle_statistics(model)

    def owner(self) -> Record | None:
        """Return the adapter that has running statistics of its own."""
        return next((r for r in self.records.values() if r.owns_statistics), None)

    def settle_statistics(self, model: nn.Module) -> None:
        """Put the running statistics into the model that belong to the adapters in use.

        They are held still, except by an adapter that lets them move.
        """
        owner = self.owner()
        if owner is not None:
            name = next(n for n, record in self.records.items() if record is owner)
            attached = owner.parked is None
            active = attached and all(name in d.active for d in self.layers(model, name).values())
            if (active or owner.merged is not None) and not self.base_statistics:
                self.base_statistics = {n: b.clone() for n, b in statistics(model).items()}
                write_statistics(model, owner.statistics or {})
            elif not active and owner.merged is None and self.base_statistics:
                owner.statistics = {n: b.clone() for n, b in statistics(model).items()}
                write_statistics(model, self.base_statistics)
                self.base_statistics = {}
        patched = state_of(model) is not None
        if patched and not (owner is not None and owner.moving and active):
            hold(model)
        else:
            release(model)

    def moved_buffers(self, model: nn.Module) -> list[str]:
        """Return the names of buffers that are not the base model's, nor an adapter's own."""
        if self.watch is None:
            return []
        own = self.base_statistics
        return [name for name in self.watch.moved(model) if name not in own]

    def forget(self, model: nn.Module, name: str) -> None:
        """Drop an adapter that has been taken out; with the last, older handles are right again."""
        del self.records[name]
        if not self.records and _LATEST.get(model) is self:
            del _LATEST[model]

    def _loaded(self, model: nn.Module, keys: Any) -> None:
        self.fingerprint = fingerprint(model)
        # The statistics that are in the model now may be an adapter's own.
        self.identity = BaseIdentity.of(model, self.constants).without(self.base_statistics)
        self.watch = BufferWatch(model)

    def check_current(self, model: nn.Module) -> None:
        """Refuse to touch a model that has been patched anew."""
        if _LATEST.get(model, self) is not self and any(
            r.merged is not None or r.parked is not None for r in self.records.values()
        ):
            raise PatchError(
                "The model has been patched anew since this adapter was merged or taken out, so "
                "its base weights are no longer known to be these. Use adapters(model)."
            )

    def take_out(self, model: nn.Module, name: str) -> None:
        """Park an adapter's deltas; with the last of them the model is an ordinary one again."""
        record = self.records[name]
        if record.parked is not None:
            return
        layers = self.layers(model, name)
        record.parked = {path: layer[name] for path, layer in layers.items()}
        for path, layer in layers.items():
            layer.take_out(name)
            if not layer.deltas:
                eject(model.get_submodule(path))
        if all(other.parked is not None for other in self.records.values()):
            for parameter, weight in model.named_parameters():
                if parameter in self.requires_grad:  # a part may have been replaced meanwhile
                    weight.requires_grad_(self.requires_grad[parameter])
            delattr(model, _ATTRIBUTE)
            if self.hook is not None:
                self.hook.remove()
                self.hook = None
        self.settle_statistics(model)

    def refold(self, model: nn.Module) -> None:
        """Write the base weights plus all merged deltas into the model."""
        merged = [(r.layouts, r.merged) for r in self.records.values() if r.merged is not None]
        scales = refold(model, self.base, merged, self.fold_into)
        self.scales = scales
        self.rescale(model)
        self.settle_statistics(model)

    def rescale(self, model: nn.Module) -> None:
        """Tell deltas that are added to a reweighted parameter what it was multiplied by."""
        for path, module in model.named_modules():
            if isinstance(module, LayerDeltas):
                parent = path.removesuffix(SUBMODULE)
                module.scale = self.scales.get(f"{parent}{module.layout.parameter}")


def state_of(model: nn.Module) -> State | None:
    """Return the state of a patched model."""
    state = getattr(model, _ATTRIBUTE, None)
    return state if isinstance(state, State) else None
