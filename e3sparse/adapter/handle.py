"""One named delta on a model: switch, merge, restore, remove, save."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from e3sparse.adapter.card import write_card
from e3sparse.adapter.hub import upload
from e3sparse.adapter.saving import save
from e3sparse.adapter.schedule import Scheduled
from e3sparse.adapter.statistics import BufferWatch
from e3sparse.errors import PatchError
from e3sparse.layers.merging import check_fold, full_precision


class Adapter(Scheduled):
    """One named delta on a model: what `patch` and `load` return.

    The deltas live in the model, so a copy of the model has deltas of its own: find them with
    `adapters(copy)`.
    """

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
