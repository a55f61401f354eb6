"""A potential that keeps every promise, and one broken in just one way for each check."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from ase.neighborlist import neighbor_list

from e3sparse.symmetry import Evaluation, Subject
from e3sparse.symmetry.structures import SPINS

# No multiple of 0.01 Å, so that no drawn distance is the cutoff itself.
CUTOFF = 4.1371
STRENGTH = {1: 1.0, 6: 1.7, 8: -0.6}


@dataclass
class Graph:
    """One structure as tensors that energies can be differentiated by."""

    positions: torch.Tensor  # (N, 3)
    strain: torch.Tensor  # (3, 3)
    spins: torch.Tensor  # (N, 3)
    numbers: torch.Tensor  # (N,)
    strength: torch.Tensor  # (N,)
    i: torch.Tensor  # (E,)
    j: torch.Tensor  # (E,)
    shifts: torch.Tensor  # (E, 3)
    batch_size: int

    @property
    def vectors(self):
        """From i to j, (E, 3)."""
        deformation = torch.eye(3, dtype=self.strain.dtype) + (self.strain + self.strain.T) / 2
        return (self.positions[self.j] - self.positions[self.i] + self.shifts) @ deformation

    @property
    def envelope(self):
        """Falls to 0 at the cutoff with three derivatives, (E,)."""
        return (1 - (self.vectors.norm(dim=1) / CUTOFF) ** 2).clamp(min=0) ** 4

    def per_atom(self, edges):
        """Sum what (E, …) edges bring to their first atoms, (N, …)."""
        shape = (len(self.numbers), *edges.shape[1:])
        return edges.new_zeros(shape).index_add(0, self.i, edges)

    def arrows(self, *powers):
        """Polar vectors of each atom, (N, 3): neighbours weighted by powers of envelope and s."""
        g, s = self.envelope, self.strength[self.j]
        return [self.per_atom((g**n * s**m)[:, None] * self.vectors) for n, m in powers]

    def swirl(self):
        """Return an axial vector of each atom that has nothing to do with spins, (N, 3)."""
        return torch.linalg.cross(*self.arrows((1, 1), (2, 1)))


def energy(graph):
    """Pairs, a density, and an angular term, each with the elements in it."""
    s, g = graph.strength, graph.envelope
    density = graph.per_atom(g * s[graph.j])
    dipole = graph.per_atom((g * s[graph.j])[:, None] * graph.vectors)
    total = (s - 2.0).sum() + 0.5 * (s[graph.i] * s[graph.j] * g).sum()
    return total + (density**2).sum() + 0.3 * (dipole**2).sum()


def exchange(graph):
    """Heisenberg exchange and an anisotropy of each spin's length."""
    pairs = (graph.spins[graph.i] * graph.spins[graph.j]).sum(1)
    return (0.2 * graph.envelope * pairs).sum() + 0.1 * (graph.spins**2).sum()


class Toy(Subject):
    """Energy, forces, stress and magnetic forces by autograd, neighbours by ASE."""

    numbers = (1, 6, 8)
    cutoff = CUTOFF
    batched = True
    spin_orbit = False

    def __init__(self, dtype=torch.float64, magnetic=False):
        self.dtype = dtype
        self.magnetic = magnetic

    def energy(self, graph):
        return energy(graph) + (exchange(graph) if self.magnetic else 0.0)

    def forces(self, graph, forces):
        return forces

    def stress(self, stress):
        return stress

    def moments(self, graph):
        return graph.spins * (1 + graph.per_atom(graph.envelope)[:, None])

    def magnetic_forces(self, forces):
        return forces

    def leak(self, graphs, energies):
        """Return the energies as they are in a batch."""
        return energies

    def graph(self, atoms, batch_size=1):
        i, j, shifts = neighbor_list("ijS", atoms, CUTOFF)
        spins = atoms.arrays.get(SPINS, np.zeros((len(atoms), 3)))

        def leaf(values):
            return torch.tensor(values, dtype=self.dtype, requires_grad=True)

        return Graph(
            positions=leaf(atoms.positions),
            strain=leaf(np.zeros((3, 3))),
            spins=leaf(spins),
            numbers=torch.tensor(atoms.numbers),
            strength=torch.tensor([STRENGTH[z] for z in atoms.numbers], dtype=self.dtype),
            i=torch.tensor(i),
            j=torch.tensor(j),
            shifts=torch.tensor(shifts @ atoms.cell.array, dtype=self.dtype),
            batch_size=batch_size,
        )

    def evaluate(self, frames):
        return [self._one(self.graph(atoms, len(frames)), atoms) for atoms in frames]

    def _one(self, graph, atoms):
        total = self.energy(graph)
        leaves = (graph.positions, graph.strain, graph.spins)
        by_position, by_strain, by_spin = torch.autograd.grad(
            total, leaves, allow_unused=True, materialize_grads=True
        )

        def plain(tensor):
            return tensor.detach().double().numpy()

        return Evaluation(
            total.item(),
            plain(self.forces(graph, -by_position)),
            plain(self.stress(by_strain / atoms.get_volume())) if atoms.pbc.all() else None,
            plain(self.moments(graph)) if self.magnetic else None,
            plain(self.magnetic_forces(-by_spin)) if self.magnetic else None,
        )

    def leaked_gradient(self, frames):
        graphs = [self.graph(atoms, len(frames)) for atoms in frames]
        energies = self.leak(graphs, [self.energy(graph) for graph in graphs])
        leaked = 0.0
        for one, total in enumerate(energies):
            others = [graph.positions for k, graph in enumerate(graphs) if k != one]
            grads = torch.autograd.grad(
                total, others, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            leaked = max(leaked, *(float(grad.abs().max()) for grad in grads))
        return leaked


# One control for each check ------------------------------------------------------------------


class DivesWhenAlone(Toy):
    """0/0 for an atom without neighbours."""

    def energy(self, graph):
        counts = graph.per_atom(graph.envelope)
        return super().energy(graph) + 0.1 * (counts / counts).sum()


class SeesTheOrigin(Toy):
    """A pair term that depends on where the pair is."""

    def energy(self, graph):
        middle = graph.positions[graph.i] + graph.positions[graph.j]
        return super().energy(graph) + 1e-4 * (graph.envelope * (middle**2).sum(1)).sum()


class CountsAtoms(Toy):
    """Pair terms weighted by the order of the atoms in the file."""

    def energy(self, graph):
        order = graph.i + graph.j
        return super().energy(graph) + 1e-3 * (graph.envelope * order).sum()


class CartesianBias(Toy):
    """Likes the x axis."""

    def energy(self, graph):
        return super().energy(graph) + 1e-3 * (graph.envelope * graph.vectors[:, 0] ** 2).sum()


class Handed(Toy):
    """A triple product of three neighbour shells: a pseudoscalar."""

    def energy(self, graph):
        a, b, c = graph.arrows((1, 1), (2, 2), (3, 3))
        return super().energy(graph) + (torch.linalg.cross(a, b) * c).sum()


class IgnoresImages(Toy):
    """Distances between the atoms as they are written down."""

    def energy(self, graph):
        pairs = list(combinations(range(len(graph.numbers)), 2))
        if not pairs:
            return super().energy(graph)
        i, j = torch.tensor(pairs).T
        d2 = ((graph.positions[i] - graph.positions[j]) ** 2).sum(1)
        return super().energy(graph) + 1e-3 * ((1 - d2 / CUTOFF**2).clamp(min=0) ** 4).sum()


class GrowsWithTheSquare(Toy):
    """The number of neighbour pairs squared, softly."""

    def energy(self, graph):
        return super().energy(graph) + 1e-4 * graph.envelope.sum() ** 2


class CountsFrames(Toy):
    """An energy that depends on the size of the batch."""

    def energy(self, graph):
        return super().energy(graph) + 1e-3 * (graph.batch_size - 1)


class Leaks(Toy):
    """Another frame's positions times zero: no value, but a gradient."""

    def leak(self, graphs, energies):
        total = sum(graph.positions.sum() - graph.positions.sum().detach() for graph in graphs)
        return [one + 1e-6 * total for one in energies]


class Drifts(Toy):
    """Unlike pairs push both of their atoms the same way."""

    def forces(self, graph, forces):
        g, s = graph.envelope, graph.strength
        push = (g * (s[graph.i] - s[graph.j]))[:, None] * graph.vectors
        return forces + 1e-3 * graph.per_atom(push)


class TurnsPairs(Toy):
    """A couple on each pair: the sum of forces is 0, the torque is not."""

    def forces(self, graph, forces):
        g, r = graph.envelope, graph.vectors
        axis = graph.swirl()
        couple = torch.linalg.cross(axis[graph.i] + axis[graph.j], g[:, None] * r)
        return forces + 1e-2 * graph.per_atom(couple)


class StepInEnergy(Toy):
    """A constant for each pair within the cutoff."""

    def energy(self, graph):
        return super().energy(graph) + 1e-3 * (graph.envelope > 0).to(self.dtype).sum()


class StepInForces(Toy):
    """A ramp that ends at the cutoff with a slope."""

    def energy(self, graph):
        return super().energy(graph) + 1e-2 * (CUTOFF - graph.vectors.norm(dim=1)).sum()


class Deaf(Toy):
    """Atoms do not see each other, so that zero at the cutoff says nothing."""

    def energy(self, graph):
        return (graph.strength - 2.0).sum() + 0 * graph.positions.sum()


class NoGradient(Toy):
    """Forces 0.1 % too large: central, balanced, equivariant, and no gradient of the energy."""

    def forces(self, graph, forces):
        return 1.001 * forces


class WrongVolume(Toy):
    """A stress 0.1 % too small."""

    def stress(self, stress):
        return 0.999 * stress


class Rough(Toy):
    """Loses what float32 still has."""

    def energy(self, graph):
        total = super().energy(graph)
        return total if self.dtype == torch.float64 else total.bfloat16().float()


class TimeArrow(Toy):
    """S_i · (S_j x S_k): invariant under all of O(3), odd under time reversal."""

    def energy(self, graph):
        near = graph.per_atom(graph.envelope[:, None] * graph.spins[graph.j])
        far = graph.per_atom(graph.envelope[:, None] ** 2 * graph.spins[graph.j])
        triple = (graph.spins * torch.linalg.cross(near, far)).sum()
        return super().energy(graph) + 1e-2 * triple


class EvenMoment(Toy):
    """Half of the moment does not turn with the spin."""

    def moments(self, graph):
        return super().moments(graph) + graph.swirl()


class PolarSpin(Toy):
    """(S_i x S_j) · r_ij, which a spin embedded as 1o allows: even in time, odd in space."""

    spin_orbit = True

    def energy(self, graph):
        pairs = torch.linalg.cross(graph.spins[graph.i], graph.spins[graph.j])
        terms = graph.envelope * graph.strength[graph.j] * (pairs * graph.vectors).sum(1)
        return super().energy(graph) + 1e-2 * terms.sum()


class PolarMoment(Toy):
    """Part of the moment is a polar vector, as a readout of 1o would give; odd in time."""

    spin_orbit = True

    def moments(self, graph):
        (arrows,) = graph.arrows((1, 1))
        along = (graph.spins * graph.swirl()).sum(1, keepdim=True)
        return super().moments(graph) + along * arrows


class HiddenOrbit(Toy):
    """(S_i · r)(S_j · r): a coupling to the lattice in a model that claims none."""

    def energy(self, graph):
        r, g = graph.vectors, graph.envelope
        along = [(graph.spins[k] * r).sum(1) for k in (graph.i, graph.j)]
        return super().energy(graph) + 1e-2 * (g * along[0] * along[1]).sum()


class WrongField(Toy):
    """Magnetic forces 0.1 % too large."""

    def magnetic_forces(self, forces):
        return 1.001 * forces


CONTROLS = {
    DivesWhenAlone: "isolated atoms",
    SeesTheOrigin: "translation",
    CountsAtoms: "permutation",
    CartesianBias: "rotation",
    Handed: "inversion",
    IgnoresImages: "periodic images",
    GrowsWithTheSquare: "supercell",
    CountsFrames: "batch",
    Leaks: "cross-frame gradients",
    Drifts: "conservation",
    TurnsPairs: "conservation",
    StepInEnergy: "cutoff",
    StepInForces: "cutoff",
    Deaf: "cutoff",
    NoGradient: "forces",
    WrongVolume: "stress",
    Rough: "dtype",
    PolarSpin: "inversion",
    PolarMoment: "inversion",
    TimeArrow: "time reversal",
    EvenMoment: "time reversal",
    HiddenOrbit: "spin rotation",
    WrongField: "magnetic forces",
}
"""The check that is to catch each control, before any other does."""

MAGNETIC = (PolarSpin, PolarMoment, TimeArrow, EvenMoment, HiddenOrbit, WrongField)


def toy(cls=Toy, dtype=torch.float64, magnetic=False):
    """Return a toy; one of float64 has its twin in float32."""
    made = cls(dtype, magnetic or cls in MAGNETIC)
    if dtype == torch.float64:
        made.single = cls(torch.float32, made.magnetic)
    return made
