"""A potential with spin-aware layers on top: E = E_0 + Σ ε_ij (paper, Eq. 7 and 8)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from torch import Tensor, nn

from e3sparse.adapter.handle import Adapter
from e3sparse.adapter.targets import Targets
from e3sparse.deltas import Method
from e3sparse.errors import ConfigError
from e3sparse.layers.clebsch_gordan import recompute_wigner_3j
from e3sparse.magnetism.block import SpinBlock, SpinSettings
from e3sparse.potentials.backends import Features, Potential, Prediction
from e3sparse.potentials.spins import Array, spins_of


@dataclass(frozen=True)
class SpinBatch:
    """A batch of the backbone's, with the spins (N, 3) of its atoms; None if no frame has any."""

    backbone: Any
    spins: Tensor | None

    def to(self, device: torch.device) -> "SpinBatch":
        """Return the batch on a device."""
        spins = None if self.spins is None else self.spins.to(device)
        return replace(self, backbone=self.backbone.to(device), spins=spins)


class MagneticPotential(Potential):
    """A potential whose energy has a magnetic part, and that predicts moments.

    Structures without spins are the backbone's affair alone, and its results are returned as they
    are. What belongs to a framework (files, neighbours, energy references) is the backbone's too.

    Parameters
    ----------
    backbone
        A potential that hands over its node features.
    layers
        For that potential's node features.

    Attributes
    ----------
    magnetic_forces
        Whether predictions hold -dE/dS.
    """

    magnetic = True
    module: nn.ModuleDict

    def __init__(self, backbone: Potential, layers: SpinBlock) -> None:
        self.backbone = backbone
        self.layers = layers.to(device=backbone.device, dtype=backbone.dtype)
        recompute_wigner_3j(self.layers)
        self.module = nn.ModuleDict({"backbone": backbone.module, "spins": self.layers})
        self.magnetic_forces = False
        self.spin_orbit = layers.settings.spin_orbit
        for name in ("name", "cutoff", "species", "fold_into", "framework", "suffix", "aliases"):
            setattr(self, name, getattr(backbone, name))
        self.parity = backbone.parity

    @property
    def accelerate(self) -> bool:
        """Whether the backbone may evaluate in a faster way than its framework does."""
        return self.backbone.accelerate

    @accelerate.setter
    def accelerate(self, faster: bool) -> None:
        self.backbone.accelerate = faster

    def graph(self, atoms: Atoms) -> tuple[Any, Array | None, int]:
        return self.backbone.graph(atoms), spins_of(atoms), len(atoms)

    def collate(self, graphs: Sequence[tuple[Any, Array | None, int]]) -> SpinBatch:
        inner, spins, atoms = zip(*graphs, strict=True)
        batch = self.backbone.collate(inner)
        if all(s is None for s in spins):
            return SpinBatch(batch, None)
        rows = [
            torch.zeros(n, 3, dtype=self.dtype)
            if s is None
            else torch.as_tensor(s, dtype=self.dtype)
            for s, n in zip(spins, atoms, strict=True)
        ]
        return SpinBatch(batch, torch.cat(rows))

    def forward(self, batch: SpinBatch) -> Prediction:
        if batch.spins is None:
            return self.backbone.forward(batch.backbone)
        spins = batch.spins.detach().clone().requires_grad_(self.magnetic_forces)
        features = self.backbone.features(batch.backbone)
        found = self.layers(features.nodes, features.edge_index, features.edge_vectors, spins)
        energy = features.energy + _per_frame(features, found.edge_energy)
        leaves = (*features.leaves, *([spins] if self.magnetic_forces else []))
        gradients = torch.autograd.grad(
            energy.sum(), leaves, create_graph=self.module.training, allow_unused=True
        )
        magnetic = None
        if self.magnetic_forces:
            magnetic = torch.zeros_like(spins) if gradients[-1] is None else -gradients[-1]
        predicted = features.predict(energy, gradients[: len(features.leaves)])
        return predicted._replace(moments=found.moments, magnetic_forces=magnetic)

    def fresh_parameters(self) -> list[nn.Parameter]:
        return list(self.layers.parameters())

    def patch(
        self, targets: Targets = "linear", method: str | Method = "budget", **options: Any
    ) -> Adapter:
        """Patch the backbone; the spin-aware layers are trained whole."""
        return self.backbone.patch(targets, method, **options)

    def load_adapter(self, directory: str | Path, **options: Any) -> Adapter:
        return self.backbone.load_adapter(directory, **options)

    def write(self, path: Path) -> None:
        """Write the backbone as a file of its framework; `magnetism.save` writes the layers."""
        self.backbone.write(path)

    def shift_energies(self, shifts: Mapping[int, float]) -> None:
        self.backbone.shift_energies(shifts)

    def reinitialize(self, seed: int) -> None:
        """Draw the backbone's weights anew; the spin-aware layers are new as they are."""
        self.backbone.reinitialize(seed)


def add_spins(potential: Potential, *, seed: int = 0, **settings: Any) -> MagneticPotential:
    """Put new spin-aware layers on a potential.

    Parameters
    ----------
    potential
        Loaded by a backend that hands over node features.
    seed
        Of the random weights.
    **settings
        Of `SpinSettings`, but those that the potential decides.

    Raises
    ------
    ConfigError
        If the backend hands over no node features.
    """
    if potential.node_irreps is None:
        raise ConfigError(
            f"The backend of {potential.name} hands over no node features, so that it cannot carry "
            "spin-aware layers."
        )
    chosen = SpinSettings(node_irreps=potential.node_irreps, cutoff=potential.cutoff, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MagneticPotential(potential, SpinBlock(chosen))


def _per_frame(features: Features, edge_energy: Tensor) -> Tensor:
    """Sum edge energies over each frame, in the precision of the backbone's energies."""
    frame = features.frame[features.edge_index[1]]
    return torch.zeros_like(features.energy).index_add(
        0, frame, edge_energy.to(features.energy.dtype)
    )
