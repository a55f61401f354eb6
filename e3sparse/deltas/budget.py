"""Sparsity by budget: ask for a share of zeros and get exactly that."""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, inf
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from e3sparse.deltas.base import AVERAGE, Method, ParamGroup, being_traced, largest
from e3sparse.deltas.grouped import Groups, largest_groups
from e3sparse.layers.delta import Delta
from e3sparse.layers.groups import Granularity
from e3sparse.layers.layouts import Layout

_AUTO = {
    "levels": (0.85, 0.93, 0.97, 0.985, 0.993),
    "target_sparsity": 0.997,
    "tolerance": 0.05,
}
"""What a target sparsity of "auto" stands for."""
_RAMP = 0.6
"""Share of the time for a level in which the sparsity rises to it, if there are several."""


class _StraightThrough(torch.autograd.Function):
    """`v * keep`, whose gradient reaches all of v, so that a pruned entry can come back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, keep: Tensor) -> Tensor:
        return v * keep

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


@torch.library.custom_op("e3sparse::straight_through", mutates_args=())
def _straight_through(v: Tensor, keep: Tensor) -> Tensor:
    """Do the same as an operator that keeps its gradient in a trace of the forward pass."""
    return v * keep


@_straight_through.register_fake
def _(v: Tensor, keep: Tensor) -> Tensor:
    return torch.empty_like(v)


_straight_through.register_autograd(_StraightThrough.backward)


class BudgetDelta(Delta):
    """ΔW = v where the entry is kept and exactly 0 elsewhere; v starts at 0."""

    keep: Tensor

    def __init__(self, layout: Layout, v: Tensor, groups: Groups | None = None) -> None:
        super().__init__(layout)
        self.groups = groups
        self.v = nn.Parameter(v)
        self.register_buffer("keep", torch.ones_like(v, dtype=torch.bool))
        # Derived anew at every start, so a checkpoint does not carry it.
        self.register_buffer("price", None, persistent=False)

    def values(self) -> Tensor:
        product = _straight_through if being_traced() else _StraightThrough.apply
        values: Tensor = product(self.v, self.keep)
        return values

    def score(self) -> Tensor:
        """Return |v|, divided by what an entry costs if that is known."""
        size = self.v.detach().abs()
        price = self._buffers.get("price")  # deltas pickled before there were prices have none
        return size if price is None else size / price


class Budget(Method):
    """Keep the entries of largest |v|, over all layers together, on a falling schedule.

    The model at step 0 is the base model. The kept share is 1 until `warmup`, falls by a cubic
    to `1 - target_sparsity` at `ramp_end`, and stays. Entries are pruned a few at each step,
    because to lose many at once throws a training off its course. A pruned entry starts again from
    0, and the gradient still reaches it, so that it comes back if it keeps being pushed one way.
    Species that no frame contains get no gradient and stay at 0.

    The learning rate is that of the start, when all entries are trained. It grows as a power of the
    share of entries that are left: by `growth` of 1/2 a step of Adam has the same Euclidean length
    at the end as at the start, by 1 the same sum of moves, though fewer entries make them. Path
    weights are of the size of 1, as e3nn normalises them, and a step of Adam moves an entry by the
    learning rate: near 1 each step undoes what the weight was, and trainings may explode. One of
    `e3sparse finetune` notices; `largest_lr` bounds the growth.

    Attributes
    ----------
    target_sparsity
        Share of exact zeros among the patched entries at the end. It is met exactly, unless
        fewer entries than that have moved at all. `"auto"` stands for several levels with a
        tolerance.
    levels
        Lower sparsities to stay at on the way. Each gets the same share of the training, in which
        the sparsity rises first and then stays; `ramp_end` has no effect.
    granularity
        What is kept or pruned together: `"entry"`, `"channel"` (the entries of a path that lead to
        one channel of its output) or `"block"` (all of a path), each apart for each element where
        there is an axis over species. Groups are compared by the root mean square of v in them, for
        that of the base model's weights. The target is met as far as whole groups allow, with
        never more entries than it leaves.
    tolerance
        If given, a level whose validation loss is so much (as a share) above that of an earlier
        one is one too many. That is for whoever validates to notice and to go back, as `e3sparse
        finetune` does; see `Adapter.hold`.
    warmup, ramp_end
        Where the fall begins and ends, as shares of the training.
    choices
        How often the kept entries are chosen, at most, in a training: at each step of one that is
        not longer, at even distances in a longer one. Fewer cost less and prune less smoothly.
    memory
        Steps that a pruned entry has to come back: at each it forgets one part in `memory` of
        where it has been pushed.
    weight_decay
        Decay of v.
    growth
        The learning rate is multiplied by the kept share to the power of -`growth`, if
        `Adapter.step` is given the optimizer; 0 leaves it as it is.
    largest_lr
        The learning rate grows no further than that; None for no bound.
    beta2
        Of an Adam: how slowly it forgets the squares of gradients. At 0.999 it learns too late that
        they have grown, which a learning rate that grows does not forgive.
    """

    name: ClassVar[str] = "budget"

    target_sparsity: float = Field(0.97, ge=0, lt=1)
    levels: tuple[float, ...] = ()
    tolerance: float | None = Field(None, gt=0)
    warmup: float = Field(0.05, ge=0, lt=1)
    granularity: Granularity = "entry"
    ramp_end: float = Field(0.8, gt=0, le=1)
    choices: int = Field(400, ge=1)
    memory: float = Field(30.0, ge=1)
    weight_decay: float = Field(0.0, ge=0)
    growth: float = Field(0.75, ge=0, le=1)
    largest_lr: float | None = Field(None, gt=0)
    beta2: float = Field(0.99, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _until_it_costs_too_much(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("target_sparsity") == "auto":
            return {**_AUTO, **values, "target_sparsity": _AUTO["target_sparsity"]}
        return values

    @model_validator(mode="after")
    def _rising(self) -> "Budget":
        if self.tolerance is not None and not self.levels:
            raise ValueError(
                "a tolerance is of several levels: give target_sparsity='auto', or levels"
            )
        steps = (0.0, *self.levels, self.target_sparsity)
        if self.levels and any(low >= high for low, high in pairwise(steps)):
            raise ValueError(
                f"levels have to rise from above 0 to below target_sparsity "
                f"({self.target_sparsity}), and are {', '.join(map(str, self.levels))}"
            )
        return self

    @model_validator(mode="after")
    def _ordered(self) -> "Budget":
        if self.warmup >= self.ramp_end:
            raise ValueError(f"warmup ({self.warmup}) has to end before ramp_end ({self.ramp_end})")
        return self

    def delta(self, layout: Layout, weight: Tensor, generator: torch.Generator) -> BudgetDelta:
        groups = None
        if self.granularity != "entry":
            groups = Groups(layout, self.granularity, weight)
        return BudgetDelta(layout, weight.new_zeros(layout.shape), groups)

    def param_groups(self, deltas: Sequence[Delta], lr: float) -> list[ParamGroup]:
        params = [p for delta in deltas for p in delta.parameters()]
        betas = (0.9, self.beta2)
        return [{"params": params, "lr": lr, "weight_decay": self.weight_decay, "betas": betas}]

    @property
    def final_sparsity(self) -> float | None:
        return None if self.judged else self.target_sparsity

    @property
    def judged(self) -> bool:
        return self.tolerance is not None

    @property
    def scheduled(self) -> bool:
        return True

    def sparsity_at(self, progress: float) -> float:
        """Return the scheduled share of zeros at `progress` in [0, 1]."""
        if self.levels:
            number, done = self._place(progress)
            low, high = ((0.0, *self.levels)[number], self.all_levels[number])
            return high - (high - low) * (1 - min(done / _RAMP, 1.0)) ** 3
        done = (progress - self.warmup) / (self.ramp_end - self.warmup)
        left = 1 - min(max(done, 0.0), 1.0)
        return self.target_sparsity * (1 - left**3)

    @property
    def all_levels(self) -> tuple[float, ...]:
        """The sparsities that the training stays at for a while, in order."""
        return (*self.levels, self.target_sparsity)

    def level(self, progress: float) -> int | None:
        """Return which of `all_levels` a training stays at, None while the sparsity rises."""
        if not self.levels:
            return 0 if progress >= self.ramp_end else None
        number, done = self._place(progress)
        return number if done >= _RAMP else None

    def progress_at(self, level: int) -> float:
        """Return a progress at which a training stays at a level."""
        turns = len(self.all_levels)
        return self.warmup + (1 - self.warmup) * (level + (1 + _RAMP) / 2) / turns

    def _place(self, progress: float) -> tuple[int, float]:
        """Return the number of the level that is in turn, and the share of its time that is up."""
        turns = len(self.all_levels)
        time = min(max(progress - self.warmup, 0.0) / (1 - self.warmup), 1.0) * turns
        number = min(int(time), turns - 1)
        return number, time - number

    def rate(self, progress: float) -> float:
        kept = 1 - self.sparsity_at(progress)
        return float(kept**-self.growth)

    def largest_rate(self, lr: float) -> float:
        return inf if self.largest_lr is None or lr <= 0 else max(1.0, self.largest_lr / lr)

    def settled(self, progress: float) -> bool:
        return self.level(progress) == len(self.levels)

    def step(
        self,
        deltas: Sequence[Delta],
        step: int,
        progress: float,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        every = self._steps_between_choices(step, progress)
        if step % every and progress < 1:
            return
        budgets = _budgets(deltas)
        kept_before = [delta.keep.clone() for delta in budgets]
        self.refresh(budgets, progress)
        remembered = (1 - 1 / self.memory) ** every
        with torch.no_grad():
            for delta, kept in zip(budgets, kept_before, strict=True):
                one = delta.v.new_ones(())
                scale = torch.where(delta.keep, one, one * remembered)
                scale.masked_fill_(kept & ~delta.keep, 0.0)  # just pruned
                for tensor in _copies(delta.v, optimizer):
                    tensor.mul_(scale)

    def _steps_between_choices(self, step: int, progress: float) -> int:
        if progress <= 0:
            return 1
        # A share of the whole is not exact to the last digit.
        return max(1, ceil(step / progress / self.choices - 1e-6))

    def set_prices(self, deltas: Sequence[Delta], prices: Sequence[Tensor]) -> None:
        for delta, price in zip(_budgets(deltas), prices, strict=True):
            delta.price = price.to(delta.v)

    def refresh(self, deltas: Sequence[Delta], progress: float) -> None:
        """Choose the kept entries anew, from v as it is now."""
        budgets = _budgets(deltas)
        total = sum(delta.v.numel() for delta in budgets)
        count = round(total * (1 - self.sparsity_at(progress)))
        if count == total:
            for delta in budgets:
                delta.keep.fill_(True)
            return
        scores = [delta.score() for delta in budgets]
        groups = [delta.groups for delta in budgets if delta.groups is not None]
        keeps = largest_groups(groups, scores, count) if groups else largest(scores, count)
        for delta, keep in zip(budgets, keeps, strict=True):
            delta.keep.copy_(keep)


def _budgets(deltas: Sequence[Delta]) -> list[BudgetDelta]:
    # A loaded adapter keeps its method's name, with deltas on a fixed support.
    return [delta for delta in deltas if isinstance(delta, BudgetDelta)]


def _copies(v: nn.Parameter, optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    """Return a parameter and the copies of it that its optimizer keeps.

    Of a schedule-free one that is the copy from which it steps: the parameter is between that copy
    and its average, and would be drawn back to it.
    """
    state = optimizer.state.get(v, {}) if optimizer is not None else {}
    return [v, *(state[name] for name in ("z", AVERAGE) if name in state)]
