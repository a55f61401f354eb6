"""Pair potentials that are sane, and one insane in just one way for each look."""

import torch
from ase.data import covalent_radii
from toys import Toy

RADII = torch.tensor(covalent_radii[:9])


class Bonds(Toy):
    """Morse bonds as long as the sum of the covalent radii; sane wherever one looks.

    Their range is short enough that what is compressed has one best volume.
    """

    depth, steepness = 1.0, 3.0

    def pairs(self, graph):
        """Distances over the bond, the bonds in Å, and the envelope of each edge, (E,)."""
        bond = (RADII[graph.numbers[graph.i]] + RADII[graph.numbers[graph.j]]).to(self.dtype)
        return graph.vectors.norm(dim=1) / bond, bond, graph.envelope

    def energy(self, graph):
        x, bond, envelope = self.pairs(graph)
        morse = (1 - torch.exp(-self.steepness * (x - 1) * bond)) ** 2 - 1
        return 0.5 * (self.depth * morse * envelope).sum() + 0 * graph.strain.sum()


class HoleInDimers(Bonds):
    """A well between C and O at 0.65 of the bond."""

    def energy(self, graph):
        x, _, _ = self.pairs(graph)
        mine = graph.numbers[graph.i] + graph.numbers[graph.j] == 14
        well = torch.exp(-(((x - 0.65) / 0.04) ** 2)) * mine
        return super().energy(graph) - 0.5 * (8.0 * well).sum()


class SoftWall(Bonds):
    """Carbons attract each other below 0.7 of the bond, down to nothing."""

    def energy(self, graph):
        x, _, _ = self.pairs(graph)
        mine = (graph.numbers[graph.i] == 6) & (graph.numbers[graph.j] == 6)
        return super().energy(graph) - 0.5 * (5e4 * mine * (0.7 - x).clamp(min=0) ** 2).sum()


class TwoVolumes(Bonds):
    """A second best length of all bonds."""

    def energy(self, graph):
        x, _, _ = self.pairs(graph)
        well = torch.exp(-(((x - 1.07) / 0.015) ** 2))
        return super().energy(graph) - 0.5 * (0.5 * well).sum()


class Squeezed(Bonds):
    """Stress of the wrong sign."""

    def stress(self, stress):
        return -stress


class Spins(Bonds):
    """A couple on each pair, which does work in every turn."""

    def forces(self, graph, forces):
        r = graph.vectors
        axis = torch.tensor([1.0, 0.0, 0.0], dtype=self.dtype).expand_as(r)
        couple = torch.linalg.cross(axis, r)
        return forces - 0.3 * graph.per_atom(graph.envelope[:, None] * couple)


class Collapses(Bonds):
    """A pull towards contact that no heat is needed for."""

    def energy(self, graph):
        x, bond, _ = self.pairs(graph)
        return 0.5 * (20.0 * x * bond).sum()


class Wild(Bonds):
    """Forces a thousand times too large."""

    def energy(self, graph):
        return 1e3 * super().energy(graph)


CONTROLS = {
    HoleInDimers: "holes in dimers",
    SoftWall: "short-range wall",
    TwoVolumes: "second minima",
    Squeezed: "pressure",
    Collapses: "rising temperature",
    Spins: "constant energy",
    Wild: "random structures",
}
"""The look that is to see through each."""
