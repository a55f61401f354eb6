"""The stress of slabs and wires is that of their own cell."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from mace_models import load

from e3sparse.symmetry import PotentialSubject


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 1, 0), (0, 1, 1), (0, 1, 0)])
def test_stress_is_the_derivative_by_strain(pbc, tiny_file):
    subject = PotentialSubject(load(tiny_file, torch.float64))
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.1, seed=2)
    atoms.pbc = pbc
    atoms.cell[0, 1] = 0.7
    atoms.cell[~atoms.pbc] *= 2
    strain = np.array([[0.3, 0.2, 0.1], [0.2, -0.4, 0.3], [0.1, 0.3, 0.5]])

    def energy(step):
        strained = atoms.copy()
        strained.set_cell(atoms.cell.array @ (np.eye(3) + step * strain), scale_atoms=True)
        return subject(strained).energy

    slope = (energy(1e-4) - energy(-1e-4)) / 2e-4
    assert abs(slope) > 1e-3
    predicted = float((subject(atoms).stress * strain).sum() * atoms.get_volume())
    assert predicted == pytest.approx(slope, rel=1e-5)
