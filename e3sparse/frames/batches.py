"""Labelled frames with their graphs, in batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from e3sparse.frames.reading import Array, Frame
from e3sparse.potentials.backends import Potential
from e3sparse.potentials.quantities import Quantity, further_quantities


@dataclass(frozen=True)
class Batch:
    """B frames with N atoms in all.

    Attributes
    ----------
    inputs
        The framework's own batch.
    energy
        (B,) float64, eV, less the per-element references; NaN where there is no label.
    forces
        (N, 3) in eV/Å; NaN where there is no label.
    stress
        (B, 3, 3) in eV/Å³; zero where there is no label.
    has_stress
        (B,) bool.
    atoms
        (B,) number of atoms.
    numbers
        (N,) atomic numbers.
    moments
        (N, 3) in μ_B, for magnetic models.
    magnetic_forces
        (N, 3) in eV per radian, where every frame has them.
    others
        Further quantities by name, where a frame has them: (N, …) or (B, …), NaN where there is
        no label.
    weights
        (B,) how much each frame's labels count in the loss, by quantity, where one is not 1.
    """

    inputs: Any
    energy: Tensor
    forces: Tensor
    stress: Tensor
    has_stress: Tensor
    atoms: Tensor
    numbers: Tensor
    moments: Tensor | None = None
    magnetic_forces: Tensor | None = None
    others: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> "Batch":
        parts = {name: part for name, part in vars(self).items() if part is not None}
        others, weights = (
            {name: part.to(device) for name, part in parts.pop(kind).items()}
            for kind in ("others", "weights")
        )
        moved = {name: part.to(device) for name, part in parts.items()}
        return replace(self, **moved, others=others, weights=weights)


class FrameDataset(Dataset[tuple[Any, Frame, float]]):
    """Frames with their graphs, which are built once for a list and on access otherwise.

    Parameters
    ----------
    frames
        Labelled frames: a list, or a sequence that reads them when they are needed.
    potential
        Makes the graphs.
    references
        Per-element energies in eV that are subtracted from the labels.
    """

    def __init__(
        self, frames: Sequence[Frame], potential: Potential, references: dict[int, float]
    ) -> None:
        self.frames = frames
        self.potential, self.references = potential, references
        self.items = [self._item(frame) for frame in frames] if isinstance(frames, list) else None

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Any, Frame, float]:
        return self._item(self.frames[index]) if self.items is None else self.items[index]

    def _item(self, frame: Frame) -> tuple[Any, Frame, float]:
        offset = sum(self.references.get(int(z), 0.0) for z in frame.atoms.numbers)
        return self.potential.graph(frame.atoms), frame, offset


def loader(
    dataset: FrameDataset,
    potential: Potential,
    batch_size: int,
    sampler: Any = None,
    workers: int = 0,
) -> DataLoader[Any]:
    """Return batches of a data set, in order unless a sampler is given.

    With workers, that many processes read frames, build graphs and batch them.
    """
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        collate_fn=partial(collate, potential),
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def collate(potential: Potential, items: Sequence[tuple[Any, Frame, float]]) -> Batch:
    """Return items of a `FrameDataset` as one batch."""
    graphs, frames, offsets = zip(*items, strict=True)
    return labels_of(frames, offsets, potential.dtype, potential.collate(graphs))


def labels_of(
    frames: Sequence[Frame], offsets: Sequence[float], dtype: torch.dtype, inputs: Any = None
) -> Batch:
    """Return the labels of frames as one batch, energies less an offset for each frame."""
    stress = [torch.zeros(3, 3) if f.stress is None else f.stress for f in frames]
    return Batch(
        inputs=inputs,
        energy=torch.tensor(
            [f.energy - o for f, o in zip(frames, offsets, strict=True)], dtype=torch.float64
        ),
        forces=torch.cat([torch.as_tensor(f.forces, dtype=dtype) for f in frames]),
        stress=torch.stack([torch.as_tensor(s, dtype=dtype) for s in stress]),
        has_stress=torch.tensor([f.stress is not None for f in frames]),
        atoms=torch.tensor([len(f.atoms) for f in frames]),
        numbers=torch.cat([torch.as_tensor(f.atoms.numbers) for f in frames]).long(),
        moments=_per_atom([f.moments for f in frames], dtype),
        magnetic_forces=_per_atom([f.magnetic_forces for f in frames], dtype),
        others={
            quantity.name: _further(quantity, frames, dtype)
            for quantity in further_quantities()
            if any(quantity.name in frame.others for frame in frames)
        },
        weights={
            name: torch.tensor([frame.weights.get(name, 1.0) for frame in frames], dtype=dtype)
            for name in sorted({name for frame in frames for name in frame.weights})
        },
    )


def _per_atom(labels: Sequence[Array | None], dtype: torch.dtype) -> Tensor | None:
    known = [label for label in labels if label is not None]
    if len(known) < len(labels):
        return None
    return torch.as_tensor(np.concatenate(known), dtype=dtype)


def _further(quantity: Quantity, frames: Sequence[Frame], dtype: torch.dtype) -> Tensor:
    labels = []
    for frame in frames:
        rows = len(frame.atoms) if quantity.per_atom else 1
        label = frame.others.get(quantity.name, np.nan)
        labels.append(np.broadcast_to(label, (rows, *quantity.shape)))
    return torch.as_tensor(np.concatenate(labels), dtype=dtype)
