"""Structures in, energies and forces out: what a potential says of each, as arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from e3sparse.potentials.backends import Potential, Prediction
from e3sparse.potentials.quantities import QUANTITIES, record_values, values_of

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
    others
        Further quantities by name.
    """

    energy: float
    forces: Array
    stress: Array | None = None
    moments: Array | None = None
    magnetic_forces: Array | None = None
    others: Mapping[str, Array] = field(default_factory=dict)


def single_points(potential: Potential, structures: Sequence[Atoms]) -> list[Evaluation]:
    """Evaluate structures as one batch, in evaluation mode."""
    training = potential.module.training
    potential.module.eval()
    try:
        out = potential.forward(batch_of(potential, structures))
    finally:
        potential.module.train(training)
    found = []
    for atoms, values in zip(
        structures, by_structure(out, [len(a) for a in structures]), strict=True
    ):
        if not (atoms.pbc.any() and atoms.cell.rank == 3):
            values.pop("stress", None)
        found.append(Evaluation(**record_values(values | {"energy": float(values["energy"])})))
    return found


def by_structure(predicted: Prediction, atoms: Sequence[int]) -> list[dict[str, Array]]:
    """Return the quantities of a batch for each of its structures, in float64.

    Parameters
    ----------
    predicted
        What a potential says of the batch.
    atoms
        How many atoms each structure has.
    """
    ends = np.cumsum(atoms)[:-1]
    found: list[dict[str, Array]] = [{} for _ in atoms]
    for name, values in values_of(predicted).items():
        array = values.detach().cpu().double().numpy()
        parts = np.split(array, ends) if QUANTITIES[name].per_atom else list(array)
        for structure, part in zip(found, parts, strict=True):
            structure[name] = part
    return found


def batch_of(potential: Potential, structures: Sequence[Atoms]) -> Any:
    """Return structures as one batch of the framework, on the potential's device."""
    graphs = [potential.graph(atoms) for atoms in structures]
    return potential.collate(graphs).to(potential.device)
