"""A training that stays at several sparsities on its way, and may find one too many."""

from math import inf
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from e3sparse.adapter.handle import Adapter
from e3sparse.adapter.schedule import RATE
from e3sparse.deltas import Budget
from e3sparse.training.progress import RunProgress
from e3sparse.training.run_records import read_checkpoint
from e3sparse.training.snapshots import Snapshot


class SparsityLevels(Callback):
    """Saves the best model of each level, and goes back from a level that costs too much.

    Whether a level costs too much is judged when its time is up, by the lowest validation loss on
    it. The training is put back to the end of the level before, and goes on at that sparsity.

    Parameters
    ----------
    adapter
        Its method is a `Budget` with levels.
    folder
        Of the checkpoints.

    Attributes
    ----------
    losses
        The lowest validation loss on each level so far, by its number.
    held
        The progress of the schedule at which it stands, after a return.
    """

    def __init__(self, adapter: Adapter, folder: Path) -> None:
        assert isinstance(adapter.method, Budget)
        self.adapter = adapter
        self.method = adapter.method
        self.folder = folder
        self.losses: dict[int, float] = {}
        self.held: float | None = None
        self._well: tuple[float, Snapshot] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hold again what was held when the training was stopped."""
        if self.held is not None:
            self.adapter.resume_at(trainer.global_step, self.held, self.held)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Judge a level if the next step leaves it."""
        progress = self.adapter.progress
        level = self.method.level(progress)
        ahead = (trainer.global_step + 1) / int(trainer.estimated_stepping_batches)
        leaving = level is not None and self.method.level(ahead) != level
        if self.method.tolerance is None or self.held is not None or not leaving:
            return
        if level not in self.losses:  # no validation fell on it, so nothing speaks against it
            return
        if level in self.within():
            self._well = progress, Snapshot.of(pl_module, trainer.optimizers[0])
        elif self._well is not None:
            self._go_back(trainer, pl_module, self.losses[level])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the model if it is the best of its level; the averaged weights are in place."""
        level = self.method.level(self.adapter.progress)
        loss = float(trainer.callback_metrics["valid/loss"])
        bound: Any = pl_module.far_off
        if level is not None and loss < self.losses.get(level, inf) and loss <= bound:
            self.losses[level] = loss
            trainer.save_checkpoint(self.checkpoint(level), True)

    def checkpoint(self, level: int) -> Path:
        """Return the checkpoint of a level."""
        return self.folder / f"sparsity-{levels_of(self.adapter)[level]}.ckpt"

    def load(self, module: LightningModule, level: int) -> None:
        """Put the best model of a level into the module."""
        self.adapter.hold(self.method.progress_at(level))
        module.load_state_dict(read_checkpoint(self.checkpoint(level), module.device)["state_dict"])

    def within(self) -> list[int]:
        """Return the levels whose loss is within the tolerance of the lowest of all, in order."""
        allowed = inf if self.method.tolerance is None else 1 + self.method.tolerance
        bound = allowed * min(self.losses.values(), default=inf)
        return [level for level, loss in sorted(self.losses.items()) if loss <= bound]

    def _go_back(self, trainer: Trainer, pl_module: LightningModule, loss: float) -> None:
        assert self._well is not None
        before = self.adapter.sparsity().layerwise
        self.held, snapshot = self._well
        optimizer = trainer.optimizers[0]
        rates = [group["lr"] / group.get(RATE, 1.0) for group in optimizer.param_groups]
        snapshot.restore(pl_module, optimizer, but=())
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * group.get(RATE, 1.0)  # a scheduler goes on from its rate of now
        self.adapter.hold(self.held)
        self._well = None
        progress = trainer.progress_bar_callback
        if isinstance(progress, RunProgress):
            progress.say(
                f"Pruning ends at step {trainer.global_step}: with {before:.2%} zeros the "
                f"validation loss was {loss:.3g} at its lowest, more than "
                f"{self.method.tolerance:.0%} above {min(self.losses.values()):.3g}. The training "
                f"goes on from the level before, with {self.adapter.sparsity().layerwise:.2%}."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training has to know."""
        well = None
        if self._well is not None:
            progress, snapshot = self._well
            well = {"progress": progress, **vars(snapshot)}
        return {"losses": dict(self.losses), "held": self.held, "well": well}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what was saved."""
        self.losses, self.held = dict(state_dict["losses"]), state_dict["held"]
        if (well := state_dict["well"]) is not None:
            self._well = well["progress"], Snapshot(well["tensors"], well["optimizer"])


def levels_of(adapter: Adapter) -> tuple[str, ...]:
    """Return the names of an adapter's levels of sparsity, none if there is one only."""
    method = adapter.method
    if not (isinstance(method, Budget) and method.levels):
        return ()
    return tuple(str(sparsity) for sparsity in method.all_levels)
