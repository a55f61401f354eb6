"""Magnetic potentials that the tests of several backends share, and two that are broken."""

import numpy as np
import torch
from ase.build import molecule

from e3sparse.magnetism import MagneticPotential, SpinBlock, SpinSettings, add_spins
from e3sparse.magnetism.embedding import SpinEmbedding
from e3sparse.magnetism.graded_products import GradedDot
from e3sparse.magnetism.irreps import EVEN, PARITIES, Irrep
from e3sparse.potentials.spins import SPINS

SMALL = {"channels": 3, "hidden": 2, "radial_width": 8, "readout_width": 8, "lmax": 2}


def scramble(potential, seed=3):
    """Give the readouts, which start at an energy of zero, weights that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        last = list(potential.layers.energy.parameters())[-1]
        drawn = torch.randn(last.shape, generator=generator, dtype=torch.float64)
        last.copy_(5.0 * drawn)
    potential.magnetic_forces = True
    return potential


def magnetic(potential, spin_orbit, **settings):
    """Put small random spin-aware layers on a potential."""
    return scramble(add_spins(potential, spin_orbit=spin_orbit, seed=1, **SMALL | settings))


def water(count, seed=0, collinear=False):
    """Water with Heisenberg exchange: E = -J Σ S_i·S_j, M = 2 S on O and S/2 on H."""
    lengths = np.array([[2.0], [0.5], [0.5]])
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        atoms = molecule("H2O")
        spins = rng.normal(size=(3, 3))
        if collinear:
            spins[:, :2] = 0.0
        spins /= np.linalg.norm(spins, axis=1, keepdims=True)
        pairs = sum(spins[i] @ spins[j] for i, j in ((0, 1), (0, 2), (1, 2)))
        moments = spins * lengths
        # -dE/dm, with what a spin of fixed length cannot feel in it.
        field = 0.2 * (spins.sum(axis=0) - spins) / lengths
        atoms.arrays["REF_magforces"] = field + 0.3 * spins
        atoms.info["REF_energy"] = float(-30.0 - 0.2 * pairs)
        atoms.arrays["REF_forces"] = 1e-6 * np.eye(3)  # of labels that are all 0 none is taken
        atoms.arrays["REF_magmom"] = moments[:, 2] if collinear else moments
        if not collinear:
            atoms.arrays[SPINS] = spins
        made.append(atoms)
    return made


class PolarEmbedding(SpinEmbedding):
    """The embedding of the paper: a polar vector without a time parity."""

    @staticmethod
    def irrep(degree):
        """Return 0e, 1o, 2e, 3o, all in the stream that energies are read from."""
        return Irrep(degree, (-1) ** degree, EVEN)


class PolarBlock(SpinBlock):
    """Layers that allow S·r in the energy."""

    def _embedding(self, settings):
        return PolarEmbedding(settings.channels, settings.lmax)


class LeakyDot(GradedDot):
    """Products of the even with the odd stream, which are odd in time, among the invariants."""

    def __init__(self, irreps):
        super().__init__(irreps)
        wanted = {ir for _, ir in irreps.even} & {ir for _, ir in irreps.odd}
        assert wanted, "The two streams have no irrep in common to leak through."
        self.leak = min(wanted)
        self.dim += 1

    def forward(self, one, two):
        """Return the invariants and one that is odd in time."""
        parts = []
        for stream, t in zip((one, two), PARITIES, strict=True):
            pairs = zip(self.irreps[t].slices(), self.irreps[t], strict=True)
            parts += [stream[t][:, s] for s, (_, ir) in pairs if ir == self.leak]
        leaked = (parts[0] * parts[1]).sum(dim=1, keepdim=True)
        return torch.cat([super().forward(one, two), leaked], dim=1)


class LeakyBlock(SpinBlock):
    """Layers with one path that is odd in time in the energy."""

    def _dot(self, hidden):
        return LeakyDot(hidden)


def broken(potential, block):
    """Put layers of a broken kind on a potential."""
    settings = SpinSettings(
        node_irreps=potential.node_irreps, cutoff=potential.cutoff, spin_orbit=True, **SMALL
    )
    torch.manual_seed(2)
    return scramble(MagneticPotential(potential, block(settings)))
