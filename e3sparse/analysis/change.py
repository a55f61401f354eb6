"""What a fine-tuning changed: W and ΔW of every layer, and what is known besides."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd
from torch import Tensor

from e3sparse.analysis.cells import count_cells
from e3sparse.layers.layouts import Layout


@dataclass(frozen=True)
class Rest:
    """What a fine-tuning of the whole model changed outside all path blocks.

    Attributes
    ----------
    entries, updated
        Parameters there are, such as biases, and those that are no longer the base model's.
    relative
        ‖Δ‖/‖parameters‖.
    """

    entries: int
    updated: int
    relative: float


@dataclass(frozen=True)
class Change:
    """W and ΔW of the layers that a fine-tuning could touch; `read_change` makes one.

    Attributes
    ----------
    name, method
        What to call it, and how it was trained; method `"full"` for a whole model.
    model
        Name or path of the model that the layers' W + ΔW go into: the base model, or the
        fine-tuned one where more than the layers was trained.
    base
        Name or path of the base model.
    layouts
        By module path, in the order of the model.
    weights, deltas
        W of the base model and ΔW, in the weight's shape. Where the weights come from outside,
        per edge, ΔW reweights them and W is 1.
    numbers
        Atomic numbers in the order of the model's species axis.
    trained_on
        Atomic numbers in the training frames; None if nobody recorded them.
    energy_references
        Shift in eV by atomic number; None if nobody recorded them.
    thresholds
        δ of the soft threshold by module path, where the run still has it.
    parameters
        Number of parameters of the base model.
    rest
        Of a whole model, what else changed.
    backend, head
        As for `e3sparse.backends.load_potential`.
    magnetic
        Whether spin-aware layers were trained on top of the model.
    """

    name: str
    method: str
    model: str
    base: str
    layouts: Mapping[str, Layout]
    weights: Mapping[str, Tensor]
    deltas: Mapping[str, Tensor]
    numbers: tuple[int, ...]
    trained_on: frozenset[int] | None = None
    energy_references: Mapping[int, float] | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    parameters: int = 0
    rest: Rest | None = None
    backend: str | None = None
    head: str | None = None
    magnetic: bool = False

    @cached_property
    def cells(self) -> pd.DataFrame:
        """Sums over W and ΔW of every path block and element; see `count_cells`."""
        return count_cells(self.layouts, self.weights, self.deltas, self.numbers)

    @property
    def absent(self) -> tuple[int, ...] | None:
        """Atomic numbers that the model knows and no training frame has; None if unknown."""
        if self.trained_on is None:
            return None
        return tuple(z for z in self.numbers if z and z not in self.trained_on)
