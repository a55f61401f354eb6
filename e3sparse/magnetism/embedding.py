"""Spins as features: harmonics of their directions (paper, Appendix B, made axial and graded)."""

import torch
from e3nn import o3
from torch import Tensor, nn

from e3sparse.magnetism.irreps import EVEN, ODD, PARITIES, SPIN, Graded, Irrep, graded
from e3sparse.potentials.spins import SHORT


def direction(spins: Tensor) -> Tensor:
    """Return the direction of each spin; spins shorter than `SHORT` fade to zero.

    A direction is not continuous where the spin vanishes. Here it is s·h(|s|/SHORT)/|s| with
    h(x) = (15x - 10x³ + 3x⁵)/8 up to x = 1 and h = 1 beyond: twice differentiable everywhere,
    and zero for a spin of zero.

    Parameters
    ----------
    spins
        (N, 3), of any length.

    Returns
    -------
    Tensor
        (N, 3), of length 1 where the spin is longer than `SHORT`.
    """
    short = (spins / SHORT).square().sum(dim=1, keepdim=True)  # (N, 1), x²
    fading = (15 - 10 * short + 3 * short.square()) / (8 * SHORT)
    inside = short < 1
    # The branch that is not taken must not divide by zero in a gradient either.
    length = torch.where(inside, torch.ones_like(short), short).sqrt() * SHORT
    return spins * torch.where(inside, fading, 1 / length)


class SpinEmbedding(nn.Module):
    """`channels` copies of the harmonics of each spin's direction u, l = 0 to `lmax`.

    Each harmonic is a polynomial of degree l in the axial vector u: its parity is even and its
    time parity is (-1)^l. That of l = 0 is |u|², so that an atom without a spin has no feature.
    """

    def __init__(self, channels: int = 16, lmax: int = 3) -> None:
        super().__init__()
        found = {self.irrep(degree) for degree in range(lmax + 1)}
        single = graded(found, 1)
        self.irreps_out: Graded[o3.Irreps] = graded(found, channels)
        vector = o3.Irrep(1, self.irrep(1).p)
        self.streams = [t for t in PARITIES if single[t].dim]
        self.harmonics = nn.ModuleList(
            o3.SphericalHarmonics(
                single[t], normalize=False, normalization="component", irreps_in=str(vector)
            )
            for t in self.streams
        )
        self.linear = nn.ModuleList(o3.Linear(single[t], self.irreps_out[t]) for t in self.streams)

    @staticmethod
    def irrep(degree: int) -> Irrep:
        """Return what a harmonic of a spin is."""
        return Irrep(degree, SPIN.p**degree, SPIN.t**degree)

    def forward(self, spins: Tensor) -> Graded[Tensor]:
        """Embed spins (N, 3)."""
        u = direction(spins)
        streams = dict.fromkeys(PARITIES, u[:, :0])
        for t, harmonics, linear in zip(self.streams, self.harmonics, self.linear, strict=True):
            values = harmonics(u)  # (N, Σ 2l+1)
            if t == EVEN:
                size = u.square().sum(dim=1, keepdim=True)
                values = torch.cat([size * values[:, :1], values[:, 1:]], dim=1)
            streams[t] = linear(values)
        return Graded(streams[EVEN], streams[ODD])
