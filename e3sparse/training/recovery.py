"""A training that notices when it goes astray, and goes back to where it was still well."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from statistics import median
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from e3sparse.adapter.schedule import RATE
from e3sparse.errors import DivergedError
from e3sparse.training.progress import RunProgress
from e3sparse.training.snapshots import Snapshot

_FAR_OFF = 3.0
"""A validation is no step of a good training if its loss is so many times the base model's."""
_WORSE = 1.02
"""Some frames cannot tell that a model is worse by less than this factor."""
_JUMP, _RUNNING, _HISTORY, _KNOWN = 10.0, 3, 50, 10
"""So many losses running, each that many times the median of those before them, which are at most
and at least so many. Steps differ by what their frames are, so one alone says nothing."""
_EVERY, _KEPT = 20, 2
"""Steps between states to go back to, and how many are kept besides that of the start."""
_SMALL, _FINITE = 1e-4, float(torch.finfo(torch.float64).max)
"""A base model is never taken to be better than the first: forces off by some 15 meV/Å."""
_SLOWER, _MOST = 0.5, 8
"""By what the learning rate is multiplied at each return, and how many returns there may be."""


@dataclass(frozen=True)
class _State:
    """What a training goes on from, and the losses before it."""

    step: int
    snapshot: Snapshot
    losses: list[float]


class Recovery(Callback):
    """Goes back and trains on more slowly when the losses or a validation leave all bounds.

    Losses are out of bounds if three running are not finite, or ten times their own history and
    above the base model's, or ten times the base model's; a validation, if its loss is three times
    the base model's. The weights and the optimizer's memory are put back to those of some steps
    before, and the learning rate is halved for the rest. Steps are not done again: what the
    schedule does, it does in time. Each return from the same place goes further back, at last to
    the start. Where nothing is noticed, nothing is changed.

    Parameters
    ----------
    lr
        For messages.
    base_loss
        The base model's loss on the validation frames; None if nothing can be compared with it.
    returns
        How often at most; if 0, only losses that are not finite are noticed, and end the training.

    Attributes
    ----------
    setbacks
        One a return: its step, the step it went back to, why, and the factor of the rate since.

    Raises
    ------
    DivergedError
        If there is another reason to go back after that many returns, or the training ends
        without a finite loss since the last.
    """

    def __init__(self, lr: float, base_loss: float | None = None, returns: int = _MOST) -> None:
        self.lr = lr
        self.base_loss = None if base_loss is None else max(base_loss, _SMALL)
        self.returns = returns
        self.setbacks: list[dict[str, Any]] = []
        self._losses: deque[float] = deque(maxlen=_HISTORY + _RUNNING)
        self._states: list[_State] = []
        self._well = True  # whether a loss has been finite since the last return

    @property
    def far_off(self) -> float:
        """The validation loss that is out of bounds."""
        if not self.returns or self.base_loss is None:
            return inf
        return _FAR_OFF * self.base_loss

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the state, if it is time and the losses are ordinary."""
        step = trainer.global_step
        due = not self._states or step - self._states[-1].step >= _EVERY
        if not (self.returns and due and max([0.0, *self._last()]) <= self._bound()):
            return
        snapshot = Snapshot.of(pl_module, trainer.optimizers[0])
        self._states.append(_State(step, snapshot, list(self._losses)))
        if len(self._states) > 1 + _KEPT:
            del self._states[1]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the losses."""
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        # All ranks have to come to the same conclusion.
        value = float(trainer.strategy.reduce(loss.detach(), reduce_op="mean"))
        # Lightning has divided it by the number of batches in a step.
        value *= trainer.accumulate_grad_batches
        self._losses.append(value if isfinite(value) else inf)
        self._well = self._well or isfinite(value)
        last, bound = self._last(), self._bound()
        if len(last) < _RUNNING or min(last) <= bound:
            return
        if min(last) == inf:
            why = f"the loss has not been a finite number for {_RUNNING} steps"
        else:
            why = f"the loss has been above {bound:.3g} for {_RUNNING} steps, far more than before"
        self._go_back(trainer, pl_module, why)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the validation."""
        loss = float(trainer.callback_metrics["valid/loss"])
        if self._states and not loss <= self.far_off:
            of_base = "" if self.base_loss is None else f", the base model's {self.base_loss:.3g}"
            why = f"the validation loss is {loss:.3g}{of_base}"
            self._go_back(trainer, pl_module, why)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to take for trained what only went back."""
        if not self._well:
            raise DivergedError(
                f"{said_of_setback(self.setbacks[-1], self.lr)} No loss has been a finite number "
                "since: training diverged. Give a lower --lr; no model has been written."
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the states, which may fill a device's memory."""
        self._states.clear()

    def _last(self) -> list[float]:
        return list(self._losses)[-_RUNNING:]

    def _bound(self) -> float:
        """Return what losses may not exceed; infinite losses always do."""
        before = list(self._losses)[:-_RUNNING]
        jump = _JUMP * median(before) if len(before) >= _KNOWN else inf
        if not self.returns:
            jump = inf
        elif self.base_loss is not None:
            jump = min(max(jump, self.base_loss), _JUMP * self.base_loss)
        return min(jump, _FINITE)

    def _go_back(self, trainer: Trainer, pl_module: LightningModule, why: str) -> None:
        step = trainer.global_step
        if len(self.setbacks) >= self.returns:
            slower = f", {len(self.setbacks)} times halved" if self.setbacks else ""
            raise DivergedError(
                f"At step {step} {why}: the training diverged at a rate of {self.lr:g}{slower}. "
                "Give a lower --lr; no model has been written."
            )
        if len(self._states) > 1:
            del self._states[-1]
        state = self._states[-1]
        optimizer = trainer.optimizers[0]
        # A scheduler and the method go on from the rates of now.
        state.snapshot.restore(pl_module, optimizer, but=("lr", RATE))
        for group in optimizer.param_groups:
            group["lr"] *= _SLOWER
        self._losses.clear()
        self._losses.extend(state.losses)
        self._well = False
        rate = _SLOWER ** (len(self.setbacks) + 1)
        self.setbacks.append({"step": step, "back_to": state.step, "why": why, "rate": rate})
        progress = trainer.progress_bar_callback
        if isinstance(progress, RunProgress):
            progress.say(said_of_setback(self.setbacks[-1], self.lr))

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training has to know."""
        return {"setbacks": self.setbacks, "losses": list(self._losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what was saved."""
        self.setbacks = list(state_dict["setbacks"])
        self._losses.extend(state_dict["losses"])


def no_worse(loss: float, base_loss: float) -> bool:
    """Whether a model is as good as the base model by its loss, as far as some frames can tell."""
    return loss <= _WORSE * base_loss + 1e-12


def said_of_setback(setback: Mapping[str, Any], lr: float) -> str:
    """Return the sentence that says why and where a training went back."""
    return (
        f"At step {setback['step']} {setback['why']}: went back to step {setback['back_to']}, and "
        f"from there at {setback['rate']:g} of the learning rate of {lr:g}."
    )
