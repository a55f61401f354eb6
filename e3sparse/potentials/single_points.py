"""Structures in, energies and forces out: what a potential says of each, as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from e3sparse.potentials.backends import Potential

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """What a potential says of one structure.

    Attributes
    ----------
    energy
        In eV.
    forces
        (N, 3) in eV/Å.
    stress
        (3, 3) in eV/Å³ by the volume of the cell, ASE's sign; None for structures without one.
    moments
        (N, 3) magnetic moments in μ_B that the model predicts, if it does.
    magnetic_forces
        (N, 3) −dE/dS in eV/μ_B (or per unit of direction), if it gives them.
    """

    energy: float
    forces: Array
    stress: Array | None = None
    moments: Array | None = None
    magnetic_forces: Array | None = None


def single_points(potential: Potential, structures: Sequence[Atoms]) -> list[Evaluation]:
    """Evaluate structures as one batch, in evaluation mode."""
    training = potential.module.training
    potential.module.eval()
    try:
        out = potential.forward(batch_of(potential, structures))
    finally:
        potential.module.train(training)
    ends = np.cumsum([len(atoms) for atoms in structures])[:-1]

    def per_structure(values: torch.Tensor | None) -> Sequence[Array | None]:
        return [None] * len(structures) if values is None else np.split(_array(values), ends)

    stresses = [None] * len(structures) if out.stress is None else list(_array(out.stress))
    moments, magnetic = per_structure(out.moments), per_structure(out.magnetic_forces)
    forces = np.split(_array(out.forces), ends)
    return [
        Evaluation(
            float(energy),
            forces[k],
            stresses[k] if structures[k].pbc.any() and structures[k].cell.rank == 3 else None,
            moments[k],
            magnetic[k],
        )
        for k, energy in enumerate(_array(out.energy))
    ]


def batch_of(potential: Potential, structures: Sequence[Atoms]) -> Any:
    """Return structures as one batch of the framework, on the potential's device."""
    graphs = [potential.graph(atoms) for atoms in structures]
    return potential.collate(graphs).to(potential.device)


def _array(tensor: torch.Tensor) -> Array:
    return tensor.detach().cpu().double().numpy()
