"""The training of one adapter: optimizer groups, and the method's schedule."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from e3sparse.adapter.contents import Contents
from e3sparse.deltas import ParamGroup
from e3sparse.errors import PatchError

RATE = "e3sparse_rate"
"""Key of an optimizer group: what its learning rate has been multiplied by."""


class Scheduled(Contents):
    """What a training loop calls. See `e3sparse.adapter.handle.Adapter`."""

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

    def set_prices(self, prices: Mapping[str, Tensor]) -> None:
        """Tell the method what each entry costs, by module path, in the weights' shapes.

        A budget then keeps entries by |v| over the price. Not stored in checkpoints.
        """
        deltas = self.deltas()
        self.method.set_prices(list(deltas.values()), [prices[path] for path in deltas])

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
