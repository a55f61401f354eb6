"""The Lightning module: one step, the schedule of the delta, validation."""

from math import inf
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from e3sparse.adapter.handle import Adapter
from e3sparse.deltas import ParamGroup
from e3sparse.frames.batches import Batch
from e3sparse.frames.evaluation import MEV
from e3sparse.layers.injection import cached
from e3sparse.potentials.backends import Potential, Prediction
from e3sparse.potentials.quantities import record_values, values_of
from e3sparse.training.config import FRESH_LR
from e3sparse.training.fisher import Fisher, penalty
from e3sparse.training.losses import Loss
from e3sparse.training.optimizers import make_optimizer, set_averaged
from e3sparse.training.replay import Replay


class FineTuning(LightningModule):
    """Fine-tunes a potential through its adapter, or whole if there is none.

    Parameters
    ----------
    potential
        The model; patched already if there is an adapter.
    adapter
        None for full fine-tuning.
    loss
        The weighted loss.
    optimizer, lr, warmup, ema
        See `e3sparse.training.optimizers`.
    fresh_lr
        Learning rate of layers that are no part of the base model.
    replay
        Structures on which to stay near the base model, if any.
    far_off
        Validation loss above which a model is never the best.
    fisher, fisher_weight
        Fisher information of the adapter's entries, by module path, and the weight of the penalty
        that is made of it.
    """

    def __init__(
        self,
        potential: Potential,
        adapter: Adapter | None,
        *,
        loss: Loss,
        optimizer: str,
        lr: float,
        fresh_lr: float = FRESH_LR,
        replay: Replay | None = None,
        far_off: float = inf,
        warmup: float | None = None,
        ema: float | None = None,
        fisher: Fisher | None = None,
        fisher_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = potential.module
        self.potential = potential
        self.adapter = adapter
        self.loss = loss
        self.optimizer_name = optimizer
        self.lr = lr
        self.fresh_lr = fresh_lr
        self.replay = replay
        self.far_off = far_off
        self.warmup, self.ema = warmup, ema
        self._stepped = 0
        self.fisher = fisher
        self.fisher_weight = fisher_weight

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return what the optimizer holds."""
        if self.adapter is not None:
            return self.adapter.parameters() + self.potential.fresh_parameters()
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def settled(self) -> bool:
        """Whether a model saved now has its final sparsity."""
        return self.adapter is None or self.adapter.settled

    def configure_optimizers(self) -> Any:
        groups: list[ParamGroup] = []
        fresh = self.potential.fresh_parameters()
        if self.adapter is not None:
            groups += self.adapter.param_groups(self.lr)
        else:
            new = set(fresh)
            old = [p for p in self.trained_parameters() if p not in new]
            groups.append({"params": old, "lr": self.lr, "weight_decay": 0.0})
        if fresh:
            groups.append({"params": fresh, "lr": self.fresh_lr, "weight_decay": 0.0})
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer, scheduler = make_optimizer(
            self.optimizer_name, groups, steps, warmup=self.warmup, ema=self.ema
        )
        if scheduler is None:
            return optimizer
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def training_step(self, batch: Batch, index: int) -> Tensor:
        with cached():
            predicted = self.potential.forward(batch.inputs)
            loss = self.loss(predicted, batch)
            self.log("train/loss", loss.detach(), on_step=True, on_epoch=False)
            if self.replay is not None:
                known = self.replay.batch(self.trainer.global_step, self.trainer.global_rank)
                replayed = self.replay.loss(self.loss)
                drift = replayed(self.potential.forward(known.inputs), known)
                self.log("train/replay_loss", drift.detach(), on_step=True, on_epoch=False)
                loss = loss + self.replay.weight * drift
            if self.fisher is not None and self.adapter is not None and self.fisher_weight > 0:
                costs = penalty(self.fisher, self.adapter)
                self.log("train/fisher_penalty", costs.detach(), on_step=True, on_epoch=False)
                loss = loss + self.fisher_weight * costs
        forces_mae = (predicted.forces.detach() - batch.forces).abs().nanmean() * MEV
        self.log("train/forces_mae", forces_mae, on_step=True, on_epoch=False)
        # Loggers take it for the number of the step: Lightning's own is off by one in a run that
        # went on after an interruption.
        self.log("step", float(self.trainer.global_step), on_step=True, on_epoch=False)
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Ask for the gradients of the trained parameters alone."""
        # Positions are leaves too, and nobody wants the gradient of the loss with respect to them.
        loss.backward(inputs=self.trained_parameters())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.trainer.datamodule.begin_step_anew(checkpoint)  # type: ignore[attr-defined]

    def on_train_batch_end(self, outputs: Any, batch: Batch, index: int) -> None:
        if self.trainer.global_step == self._stepped:
            return  # more batches are to come before the step
        self._stepped = self.trainer.global_step
        if self.adapter is not None:
            self.adapter.step(self._progress(), optimizer=self.trainer.optimizers[0])
        # Lightning validates when it is told to stop, but not where its steps run out: the end of
        # the training, the only time of the final sparsity perhaps, would not count.
        if self.trainer.global_step == int(self.trainer.estimated_stepping_batches):
            self.trainer.check_val_every_n_epoch = 1
            self.trainer.should_stop = True

    def _progress(self) -> float:
        return self.trainer.global_step / int(self.trainer.estimated_stepping_batches)

    def on_train_start(self) -> None:
        self._stepped = self.trainer.global_step
        if self.adapter is not None:
            self.adapter.resume_at(self.trainer.global_step, self._progress())
        self._swap(averaged=False)

    def on_validation_start(self) -> None:
        self._swap(averaged=True)

    def on_validation_end(self) -> None:
        # Lightning has called the callbacks by now: checkpoints hold the averaged weights.
        self._swap(averaged=False)

    def _swap(self, averaged: bool) -> None:
        if not self.trainer.optimizers:
            return
        changed = set_averaged(self.trainer.optimizers[0], averaged)
        # Of the same weights a method may have chosen its entries some steps ago, and keeps them.
        if changed and self.adapter is not None:
            self.adapter.refresh()

    def validation_step(self, batch: Batch, index: int) -> None:
        with torch.enable_grad():
            predicted = self.potential.forward(batch.inputs)
        predicted = _detached(predicted)
        frames, atoms = len(batch.atoms), len(batch.forces)
        energy_error = (predicted.energy - batch.energy) / batch.atoms
        forces_error = predicted.forces - batch.forces
        self._log_valid("loss", self.loss(predicted, batch), frames)
        for name, error, weight in (
            ("energy_mae", energy_error, frames),
            ("forces_mae", forces_error, atoms),
        ):
            if bool(error.isfinite().any()) or not bool(error.isnan().any()):
                self._log_valid(name, error.abs().nanmean() * MEV, weight)
        if predicted.moments is not None and batch.moments is not None:
            error = (predicted.moments - batch.moments).norm(dim=1)
            self._log_valid("moments_mae", error.mean(), atoms)

    def on_validation_epoch_end(self) -> None:
        metrics = self.trainer.callback_metrics
        # Only a model at its final sparsity may count as the best.
        loss = metrics["valid/loss"]
        counts = self.settled and not float(loss) > self.far_off
        self.log("valid/score", loss if counts else torch.tensor(torch.inf), sync_dist=False)
        self.log("step", float(self.trainer.global_step - 1), sync_dist=False)
        if self.adapter is not None:
            self.log("sparsity", self.adapter.sparsity().layerwise)

    def _log_valid(self, name: str, value: Tensor, weight: int) -> None:
        self.log(f"valid/{name}", value.float(), batch_size=weight, on_epoch=True, sync_dist=True)


def _detached(predicted: Prediction) -> Prediction:
    values = {name: value.detach() for name, value in values_of(predicted).items()}
    return Prediction(**{"stress": None} | record_values(values))
