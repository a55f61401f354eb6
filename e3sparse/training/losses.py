"""Weighted Huber losses on energy per atom, forces, stress and magnetic moments."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from e3sparse.frames.batches import Batch, labels_of
from e3sparse.frames.evaluation import Predictions
from e3sparse.frames.reading import Array, Frame
from e3sparse.frames.references import reference_energy
from e3sparse.potentials.backends import Prediction
from e3sparse.potentials.quantities import QUANTITIES, value_of, values_of
from e3sparse.training.loss_weights import LossWeights


class Loss(LossWeights):
    """L = w_E·H(ΔE/N) + w_F·H(ΔF) + w_S·H(Δσ) + w_M·H(ΔM), each a mean (paper §4.1 and 4.2).

    In a mean, each entry counts as much as the weight of its frame says; weights do not divide it,
    as in MACE, so that frames of weight 2 pull as much as if each stood there twice.
    """

    def on_frames(
        self,
        frames: Sequence[Frame],
        predicted: Predictions,
        references: Mapping[int, float],
    ) -> float:
        """Return the loss of all frames together, references added to what was predicted."""
        dtype = torch.float64
        offsets = [reference_energy(frame, references) for frame in frames]

        def joined(parts: Sequence[Array | None], join: Callable[..., Array]) -> Tensor | None:
            known = [part for part in parts if part is not None]
            return torch.as_tensor(join(known), dtype=dtype) if len(known) == len(parts) else None

        made = Prediction(
            torch.as_tensor(predicted.energy, dtype=dtype),
            torch.as_tensor(np.concatenate(predicted.forces), dtype=dtype),
            joined(predicted.stress, np.stack),
            moments=joined(predicted.moments, np.concatenate),
            magnetic_forces=joined(predicted.magnetic_forces, np.concatenate),
        )
        return float(self(made, labels_of(frames, offsets, dtype)))

    def __call__(self, predicted: Prediction, batch: Batch) -> Tensor:
        """Return the loss of a batch, a scalar."""
        # A file may hold energies without forces, or forces without energies: the sum, times 0,
        # keeps the graph.
        loss = predicted.energy.sum() * 0.0 + predicted.forces.sum() * 0.0
        for name, value in values_of(predicted).items():
            label = value_of(batch, name)
            if label is None or self.weight(name) == 0:
                continue
            if name == "energy":
                # Reference energies are subtracted in float64 before anything is rounded.
                label, value = (label / batch.atoms).to(value), value / batch.atoms
            known = batch.has_stress if name == "stress" else label.isfinite()
            if known.any():
                pair = value[known], label[known].to(value)
                if name not in batch.weights:
                    huber = huber_loss(*pair, delta=self.delta)
                else:
                    each = huber_loss(*pair, delta=self.delta, reduction="none")
                    huber = (_of_entries(name, value, batch)[known] * each).mean()
                loss = loss + self.weight(name) * huber
        return loss


def _of_entries(name: str, value: Tensor, batch: Batch) -> Tensor:
    """Return the weights of a quantity's frames in the shape of its values."""
    weight = batch.weights[name].to(value)
    if QUANTITIES[name].per_atom:
        weight = weight.repeat_interleave(batch.atoms)
    return weight.reshape(-1, *[1] * (value.dim() - 1)).expand_as(value)


def compared(weights: LossWeights) -> Loss:
    """Return the loss by which a model is compared with the base model, which has no moments."""
    return Loss(**weights.model_dump() | {"moments": 0.0, "magnetic_forces": 0.0})
