"""What the tests of all backends do with a potential."""

import numpy as np
import torch
from sample_frames import structures

from e3sparse.symmetry import PotentialSubject


def evaluate(potential):
    """Return energies, forces and stresses of a few structures as one array."""
    found = PotentialSubject(potential).evaluate(structures())
    parts = [[np.array([f.energy]), f.forces.ravel()] for f in found]
    stresses = [f.stress.ravel() for f in found if f.stress is not None]
    return np.concatenate([x for pair in parts for x in pair] + stresses)


def random_deltas(potential, targets, seed=1, **options):
    """Patch with a dense ΔW of a fifth of the spread of the weights."""
    adapter = potential.patch(targets, "dense", **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.2 * drawn)
    return adapter


def relative(a, b):
    """Return the largest difference in units of the largest entry of b."""
    return np.abs(a - b).max() / np.abs(b).max()


def tolerance(potential):
    """Return what rounding may do to `relative`."""
    return 1e-12 if potential.dtype == torch.float64 else 1e-5
