"""The layers that read spins: a moment of each atom and an exchange energy of each edge.

Paper, Appendix B, Eq. 6-8, with what it leaves to chance made exact: moments are axial and odd in
time, energies even, and without spin-orbit coupling the spins may be turned by themselves.
"""

from typing import NamedTuple

import torch
from e3nn import o3
from e3nn.math import soft_one_hot_linspace
from e3nn.nn import FullyConnectedNet
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import silu

from e3sparse.errors import ConfigError
from e3sparse.magnetism.embedding import SpinEmbedding
from e3sparse.magnetism.graded_products import GradedConvolution, GradedDot, GradedTensorProduct
from e3sparse.magnetism.irreps import Graded, reachable

_NONE = o3.Irreps("")
_SMALL = 1e-4
"""Added to a mean square, so that features of zero stay zero."""
_ENERGY_SCALE = 0.1
"""In eV per atom: a few times what magnetic orders differ by, so that a learning rate fits it."""


class SpinSettings(BaseModel):
    """What decides the shape of a `SpinBlock`.

    Attributes
    ----------
    node_irreps
        Of the node features that the backbone hands over.
    cutoff
        In Å; of the backbone.
    spin_orbit
        Whether spins may feel the lattice. If not, a rotation of all spins by itself changes no
        energy: only such terms as S_i·S_j are left, as in collinear and in scalar-relativistic
        calculations.
    average_neighbours
        Edges per atom in the training frames, for normalisation.
    channels
        Copies of each harmonic of a spin.
    hidden
        Copies of each irrep of the spin-augmented features.
    lmax
        Largest angular momentum of spins, features and edges.
    radial_basis, radial_width, readout_width
        Of the networks that make edge weights, and of the readouts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    node_irreps: str
    cutoff: float = Field(gt=0)
    spin_orbit: bool = False
    average_neighbours: float = Field(20.0, gt=0)
    channels: int = Field(16, ge=1)
    hidden: int = Field(16, ge=1)
    lmax: int = Field(3, ge=1, le=6)
    radial_basis: int = Field(8, ge=1)
    radial_width: int = Field(64, ge=1)
    readout_width: int = Field(64, ge=1)


class SpinOutput(NamedTuple):
    """What the layers find for N atoms and R edges.

    Attributes
    ----------
    edge_energy
        (R,) ε_ij in eV of the edge to atom i from its neighbour j, other than ε_ji in general.
    moments
        (N, 3) magnetic moments in μ_B.
    """

    edge_energy: Tensor
    moments: Tensor


class SpinBlock(nn.Module):
    """Spin-aware layers on the node features of a potential.

    With e_i the embedded spin, x_i the node features over their root mean square (models differ
    in their size), and Y_ij, R_ij the harmonics and a radial network of an edge,

    * x'_i = x_i ⊗ e_i, fully connected: the spin-augmented features;
    * e'_ij = R_ij (x'_j ⊗ Y_ij): the neighbour's, seen from i along the edge, and n_i their mean;
    * ε_ij = f(⟨x'_i, e'_ij⟩, ⟨W x_i, e'_ij⟩): invariants, one per channel and irrep;
    * M_i = Σ_c g_c(x_i, ⟨x'_i, n_i⟩) v_ic, with v_i the axial, time-odd vectors of x'_i and n_i.

    f has no constant and Y_0 of a spin is |u|², so that all is zero where no atom has a spin. f
    starts at 0: at the first step the energy is the backbone's. Without spin-orbit coupling x_i
    are the invariant features alone and Y_ij that of l = 0: whatever turns, turns with the spins.

    Parameters
    ----------
    settings
        See `SpinSettings`.

    Raises
    ------
    ConfigError
        If the node features hold no invariants.
    """

    def __init__(self, settings: SpinSettings) -> None:
        super().__init__()
        self.settings = settings
        nodes = o3.Irreps(settings.node_irreps)
        lmax = settings.lmax if settings.spin_orbit else 0
        kept = [k for k, (_, ir) in enumerate(nodes) if ir.l <= lmax and (lmax or ir.p == 1)]
        self._kept = [nodes.slices()[k] for k in kept]
        self._scalars = [
            s for s, (_, ir) in zip(nodes.slices(), nodes, strict=True) if ir == (0, 1)
        ]
        scalars = sum(s.stop - s.start for s in self._scalars)
        if not scalars:
            raise ConfigError(f"Node features {nodes} hold no invariants (0e) to read out.")
        lattice = Graded(o3.Irreps([nodes[k] for k in kept]), _NONE)

        self.embedding = self._embedding(settings)
        spins = self.embedding.irreps_out
        self.irreps_hidden = reachable(lattice, spins, settings.lmax, settings.hidden)
        hidden = self.irreps_hidden
        self.augment = GradedTensorProduct(lattice, spins, hidden)
        self.lattice = o3.Linear(lattice.even, hidden.even)

        self.irreps_edge = o3.Irreps.spherical_harmonics(lmax)
        self.harmonics = o3.SphericalHarmonics(
            self.irreps_edge, normalize=True, normalization="component"
        )
        self.convolution = GradedConvolution(hidden, self.irreps_edge, settings.hidden)
        width = settings.radial_width
        self.radial = FullyConnectedNet(
            [settings.radial_basis, width, width, self.convolution.weight_numel], silu
        )

        self.dot = self._dot(hidden)
        self.energy = FullyConnectedNet([2 * self.dot.dim, settings.readout_width, 1], silu)
        with torch.no_grad():
            list(self.energy.parameters())[-1].zero_()

        spin = self.embedding.irrep(1)
        self._stream = spin.t
        vectors = zip(hidden[spin.t].slices(), hidden[spin.t], strict=True)
        self._vectors = [s for s, (_, ir) in vectors if ir == (spin.l, spin.p)]
        count = 2 * sum((s.stop - s.start) // 3 for s in self._vectors)
        self.moment = FullyConnectedNet(
            [scalars + self.dot.dim, settings.readout_width, count], silu
        )

    def _embedding(self, settings: SpinSettings) -> SpinEmbedding:
        return SpinEmbedding(settings.channels, settings.lmax)

    def _dot(self, hidden: Graded[o3.Irreps]) -> GradedDot:
        return GradedDot(hidden)

    def forward(
        self, nodes: Tensor, edge_index: Tensor, edge_vectors: Tensor, spins: Tensor
    ) -> SpinOutput:
        """Read spins.

        Parameters
        ----------
        nodes
            (N, dim of the node irreps).
        edge_index
            (2, R): neighbours j, then the atoms i that see them.
        edge_vectors
            (R, 3) in Å, between j and i; all in the same direction.
        spins
            (N, 3) directions; zero where an atom has none.
        """
        senders, receivers = edge_index
        nodes = nodes / (nodes.square().mean(dim=1, keepdim=True) + _SMALL).sqrt()
        scalars = torch.cat([nodes[:, s] for s in self._scalars], dim=1)
        lattice = Graded(torch.cat([nodes[:, s] for s in self._kept], dim=1), nodes[:, :0])

        augmented = self.augment(lattice, self.embedding(spins))  # x'
        weights = self.radial(self._basis(edge_vectors))  # (R, W)
        seen = self.convolution(
            augmented.map(lambda x: x[senders]), self.harmonics(edge_vectors), weights
        )  # e'

        here = augmented.map(lambda x: x[receivers])
        bare = self.lattice(lattice.even)[receivers]
        without_spin = Graded(bare, torch.zeros_like(here.odd))
        energy = self.energy(
            torch.cat([self.dot(here, seen), self.dot(without_spin, seen)], dim=1)
        )  # (R, 1)

        around = seen.map(lambda x: self._gather(x, receivers, len(nodes)))  # n
        gates = self.moment(torch.cat([scalars, self.dot(augmented, around)], dim=1))  # (N, C)
        vectors = [
            stream[self._stream][:, s].reshape(len(nodes), -1, 3)
            for stream in (augmented, around)
            for s in self._vectors
        ]
        moments = torch.einsum("nc,ncx->nx", gates, torch.cat(vectors, dim=1))
        moments = moments / gates.shape[1] ** 0.5
        return SpinOutput(energy[:, 0] * _ENERGY_SCALE / self.settings.average_neighbours, moments)

    def _basis(self, edge_vectors: Tensor) -> Tensor:
        """Return smooth bumps in the distance, all of whose derivatives vanish at the cutoff."""
        basis: Tensor = soft_one_hot_linspace(
            edge_vectors.norm(dim=1),
            0.0,
            self.settings.cutoff,
            self.settings.radial_basis,
            basis="smooth_finite",
            cutoff=True,
        )
        return basis.mul(self.settings.radial_basis**0.5)  # (R, B)

    def _gather(self, edges: Tensor, receivers: Tensor, atoms: int) -> Tensor:
        summed: Tensor = edges.new_zeros(atoms, edges.shape[1]).index_add(0, receivers, edges)
        return summed.div(self.settings.average_neighbours)
