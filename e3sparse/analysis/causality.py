"""Which changes carry the gain: the delta of one group at a time is set to zero."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from ase.data import chemical_symbols
from torch import Tensor

from e3sparse.analysis.cells import EVERY, OTHER, degree
from e3sparse.analysis.change import Change
from e3sparse.analysis.ranks import RankCorrelation, rank_correlation
from e3sparse.analysis.tables import MEASURES, group_table
from e3sparse.deltas.dense import DenseDelta
from e3sparse.errors import ConfigError, DataError
from e3sparse.frames.evaluation import predict
from e3sparse.frames.reading import Array, Frame, LabelKeys, read_frames
from e3sparse.layers.layouts import Layout
from e3sparse.layers.merging import base_parameter
from e3sparse.potentials.backends import Potential, load_potential

MEV = 1000.0
_RESAMPLES = 2000


@dataclass(frozen=True)
class Ablation:
    """What each group of changes carries of the gain in force error.

    Attributes
    ----------
    table
        `group_table` of the groups that changed, with `forces_mae`, the error in meV/Å without the
        group's delta; `carried`, its increase as a share of the gain; and `carried_low`,
        `carried_high`, the 95 % interval from resampling the frames.
    before, after
        Force MAE of the base model and of the fine-tuned one in meV/Å.
    frames
        How many frames they are measured on.
    """

    table: pd.DataFrame
    before: float
    after: float
    frames: int

    @property
    def resolved(self) -> int:
        """How many groups carry a share whose interval does not include 0."""
        return int(((self.table["carried_low"] > 0) | (self.table["carried_high"] < 0)).sum())

    @property
    def mostly_noise(self) -> bool:
        """Whether fewer than half of the shares can be told from 0: ranks of noise say nothing."""
        return 2 * self.resolved < len(self.table)

    @property
    def correlations(self) -> dict[str, RankCorrelation]:
        """Rank correlation of each measure of the change's size with the share it carries."""
        return {m: rank_correlation(self.table[m], self.table["carried"]) for m in MEASURES}


def ablate(
    change: Change,
    data: str | Path,
    *,
    keys: LabelKeys | None = None,
    device: str = "cpu",
    started: Callable[[int, int], None] | None = None,
) -> Ablation:
    """Set ΔW of one group (layer, l of the output, element) at a time to zero.

    The shares need not add up to 1: groups work together, so that what one carries depends on
    the others being there. Groups that the fine-tuning left unchanged carry exactly nothing and
    are left out, so that they cannot make a correlation look better than it is.

    Parameters
    ----------
    change
        Of one fine-tuning.
    data
        Labelled frames that it was not trained on.
    keys
        Names of the labels.
    device
        Where to evaluate.
    started
        Called before each group with its number and the number of groups.

    Raises
    ------
    ConfigError
        If the gain is not that of the delta alone, because spin-aware layers were trained too.
    DataError
        If the frames cannot be read, or the fine-tuned model is no better on them than the base
        model, so that there is no gain to share out.
    """
    if change.magnetic:
        raise ConfigError(
            f"{change.name} was trained with spin-aware layers, whose share of the gain cannot be "
            "separated from that of the delta: leave --data out."
        )
    potential = load_potential(
        change.model, backend=change.backend, head=change.head, device=device
    )
    frames = read_frames(
        data, keys or LabelKeys(), known=potential.species.numbers, cutoff=potential.cutoff
    )
    base = potential
    if change.model != change.base:
        base = load_potential(change.base, backend=change.backend, head=change.head, device=device)
    before = _force_errors(base, frames)
    with _patched(change, potential) as deltas:
        after = _force_errors(potential, frames)
        atoms = np.array([3 * len(frame.atoms) for frame in frames])
        gain = (before - after).sum()
        if gain <= 0:
            raise DataError(
                f"On {data} the forces of {change.name} are no better than the base model's "
                f"({_mae(after, atoms):.1f} and {_mae(before, atoms):.1f} meV/Å), so there is no "
                "gain to share out. Give frames of the system that it was fine-tuned for."
            )
        groups = group_table(change)
        groups = groups[groups["updated"] > 0].reset_index(drop=True)
        without = []
        for number, group in enumerate(groups.itertuples()):
            if started is not None:
                started(number, len(groups))
            layer, found = str(group.layer), group.l_out
            l_out = None if found is pd.NA else int(str(found))
            with _zeroed(change, layer, l_out, str(group.element), deltas[layer]):
                without.append(_force_errors(potential, frames))
    return Ablation(
        _shares(groups, np.array(without), before, after, atoms),
        _mae(before, atoms),
        _mae(after, atoms),
        len(frames),
    )


def _shares(
    groups: pd.DataFrame, without: Array, before: Array, after: Array, atoms: Array
) -> pd.DataFrame:
    """Turn summed errors by (group, frame) into shares of the gain."""
    table = groups.copy()
    lost = without - after  # (groups, frames)
    gained = before - after
    table["forces_mae"] = MEV * without.sum(axis=1) / atoms.sum()
    table["carried"] = lost.sum(axis=1) / gained.sum()
    drawn = np.random.default_rng(0).multinomial(
        len(gained), np.full(len(gained), 1 / len(gained)), size=_RESAMPLES
    )  # how often each frame is drawn
    shares = (lost @ drawn.T) / (drawn @ gained)
    table["carried_low"], table["carried_high"] = np.percentile(shares, [2.5, 97.5], axis=1)
    return table


def _force_errors(potential: Potential, frames: list[Frame]) -> Array:
    """Return the sum of |force error| over the components of each frame, in eV/Å."""
    predicted = predict(potential, frames).forces
    return np.array(
        [np.abs(p - frame.forces).sum() for p, frame in zip(predicted, frames, strict=True)]
    )


def _mae(summed: Array, components: Array) -> float:
    return float(MEV * summed.sum() / components.sum())


@contextmanager
def _patched(change: Change, potential: Potential) -> Iterator[dict[str, Tensor]]:
    """Put ΔW on the base weights; yields the tensors that the model reads it from."""
    if change.model != change.base:
        # The model has W + ΔW, and all else that was trained with it.
        _put_back(change, potential)
    adapter = potential.patch(lambda path, _: path in change.layouts, "dense", name="ablation")
    tensors = {}
    for path, delta in adapter.deltas().items():
        assert isinstance(delta, DenseDelta)
        tensors[path] = delta.v.data
        tensors[path].copy_(change.deltas[path])
    try:
        yield tensors
    finally:
        adapter.remove()


@torch.no_grad()
def _put_back(change: Change, potential: Potential) -> None:
    for path, layout in change.layouts.items():
        for name, part in layout.split(change.weights[path]).items():
            base_parameter(potential.module, f"{path}.{name}").copy_(part)


@contextmanager
def _zeroed(
    change: Change, path: str, l_out: int | None, element: str, delta: Tensor
) -> Iterator[None]:
    """Set the entries of one group to zero while the block runs."""
    layout = change.layouts[path]
    kept = delta.clone()
    delta.masked_fill_(group_entries(layout, l_out, element, change.numbers).to(delta.device), 0.0)
    try:
        yield
    finally:
        delta.copy_(kept)


def group_entries(
    layout: Layout, l_out: int | None, element: str, numbers: tuple[int, ...]
) -> Tensor:
    """Mark the entries of a layer that belong to a group of `group_table`.

    Returns
    -------
    Tensor
        bool, of the weight's shape.
    """
    entries = torch.zeros(layout.shape, dtype=torch.bool)
    symbols = [chemical_symbols[z] if z else OTHER for z in numbers]
    for block, view in layout.views(entries):
        if degree(block.irreps_out) != l_out:
            continue
        if element == EVERY:
            if block.species_axis is None:
                view.fill_(True)
        elif block.species_axis is not None:
            axis = len(layout.lead) + block.species_axis
            names = symbols + [OTHER] * (view.shape[axis] - len(symbols))
            rows = [i for i, name in enumerate(names) if name == element]
            view.index_fill_(axis, torch.tensor(rows, dtype=torch.long), True)
    return entries
