"""Weighted Huber losses on energy per atom, forces, stress and magnetic moments."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import huber_loss

from e3sparse.frames.batches import Batch, labels_of
from e3sparse.frames.evaluation import Predictions
from e3sparse.frames.reading import Array, Frame
from e3sparse.frames.references import reference_energy
from e3sparse.potentials.backends import Prediction


class Loss(BaseModel):
    """L = w_E·H(ΔE/N) + w_F·H(ΔF) + w_S·H(Δσ) + w_M·H(ΔM), each a mean (paper §4.1 and 4.2).

    Attributes
    ----------
    energy, forces, stress, moments
        Weights, for errors in eV/atom, eV/Å, eV/Å³ and μ_B; the last for magnetic models.
    magnetic_forces
        Weight of those of -dE/dS, in eV per radian; no part of the paper's loss.
    delta
        Where the Huber loss H turns from quadratic to linear, in the same units.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    energy: float = Field(1.0, ge=0)
    forces: float = Field(1.0, ge=0)
    stress: float = Field(1.0, ge=0)
    moments: float = Field(1.0, ge=0)
    magnetic_forces: float = Field(0.0, ge=0)
    delta: float = Field(0.01, gt=0)

    def _huber(self, predicted: Tensor, label: Tensor, known: Tensor) -> Tensor:
        if not known.any():
            return predicted.sum() * 0.0
        return huber_loss(predicted[known], label[known], delta=self.delta)

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
        # A file may hold energies without forces, or forces without energies.
        energies, forces = batch.energy.isfinite(), batch.forces.isfinite()
        # The reference energies are subtracted in float64 before anything is rounded.
        target = (batch.energy / batch.atoms).to(predicted.energy)
        per_atom = predicted.energy / batch.atoms
        loss = self.energy * self._huber(per_atom, target, energies)
        loss = loss + self.forces * self._huber(predicted.forces, batch.forces, forces)
        if predicted.stress is not None and batch.has_stress.any() and self.stress > 0:
            rows = batch.has_stress
            stress = huber_loss(predicted.stress[rows], batch.stress[rows], delta=self.delta)
            loss = loss + self.stress * stress
        if predicted.moments is not None and batch.moments is not None:
            moments = huber_loss(predicted.moments, batch.moments, delta=self.delta)
            loss = loss + self.moments * moments
        if predicted.magnetic_forces is not None and batch.magnetic_forces is not None:
            spins = batch.magnetic_forces.isfinite()
            if spins.any():
                turning = huber_loss(
                    predicted.magnetic_forces[spins], batch.magnetic_forces[spins], delta=self.delta
                )
                loss = loss + self.magnetic_forces * turning
        return loss
