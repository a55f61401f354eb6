"""The algebra of time reversal, and the spin-aware layers on features of any kind."""

import functools

import pytest
import torch
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st
from magnetic_cases import SMALL, LeakyBlock, PolarBlock

from e3sparse.errors import ConfigError
from e3sparse.magnetism import SpinBlock, SpinSettings
from e3sparse.magnetism.embedding import SpinEmbedding, direction
from e3sparse.magnetism.irreps import SPIN, Irrep, graded, irreps_of, product, reachable
from e3sparse.potentials.spins import SHORT
from e3sparse.symmetry import Orthogonal, rotations

irreps = st.builds(Irrep, st.integers(0, 4), st.sampled_from([1, -1]), st.sampled_from([1, -1]))
IDENTITY, SOME = Orthogonal(), Orthogonal((1.0, -2.0, 3.0), 77.0)
NODES = "4x0e+3x1o+2x1e+2x2e"


@given(irreps, irreps)
def test_products_follow_the_selection_rule_of_e3nn_and_multiply_time_parities(a, b):
    found = product(a, b)
    assert [o3.Irrep(i.l, i.p) for i in found] == list(o3.Irrep(a.l, a.p) * o3.Irrep(b.l, b.p))
    assert {i.t for i in found} == {a.t * b.t}
    assert sorted(found) == sorted(product(b, a))


def test_two_spins_are_even_in_time_and_three_are_odd():
    assert Irrep(0, 1, 1) in product(SPIN, SPIN)
    assert {i.t for pair in product(SPIN, SPIN) for i in product(pair, SPIN)} == {-1}
    assert not any(i.p == -1 for i in product(SPIN, SPIN))


@given(st.sets(irreps, min_size=1), st.sets(irreps, min_size=1), st.integers(0, 4))
def test_reachable_is_every_product_up_to_lmax_and_no_other(one, two, lmax):
    found = set(irreps_of(reachable(graded(one, 3), graded(two, 2), lmax, 5)))
    assert found == {i for a in one for b in two for i in product(a, b) if i.l <= lmax}


def spins(atoms, seed=0):
    """Unit spins, the last of them zero."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.nn.functional.normalize(
        torch.randn(atoms, 3, generator=generator, dtype=torch.float64), dim=1
    )
    drawn[-1] = 0.0
    return drawn


def test_embedded_spins_have_the_time_parity_of_their_degree_and_vanish_with_the_spin():
    embedding = SpinEmbedding(4, 3).double()
    one, two = embedding(spins(6)), embedding(-spins(6))
    torch.testing.assert_close(one.even, two.even, rtol=0, atol=0)
    torch.testing.assert_close(one.odd, -two.odd, rtol=0, atol=0)
    assert one.even[:-1].abs().min() > 0
    assert not one.even[-1].any()
    assert not one.odd[-1].any()
    assert str(embedding.irreps_out.even) == "4x0e+4x2e"
    assert str(embedding.irreps_out.odd) == "4x1e+4x3e"


@pytest.mark.parametrize("length", [0.0, 0.3 * SHORT, SHORT, 2.2])
def test_directions_are_smooth_in_the_spin(length):
    axis = torch.tensor([[0.6, 0.0, 0.8]], dtype=torch.float64)
    spin = (length * axis).requires_grad_()
    assert torch.autograd.gradcheck(direction, spin, eps=1e-5, atol=1e-5)
    assert torch.autograd.gradgradcheck(direction, spin, eps=1e-5, atol=1e-3)
    if length >= SHORT:
        torch.testing.assert_close(direction(spin), axis)


class Graph:
    """Random node features and edges, and what an operation makes of them."""

    def __init__(self, nodes=NODES, atoms=6, edges=20, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.irreps = o3.Irreps(nodes)
        self.nodes = draw(atoms, self.irreps.dim)
        self.edges = torch.randint(0, atoms, (2, edges), generator=generator)
        self.vectors = draw(edges, 3)
        self.spins = spins(atoms, seed)

    def acted_on(self, block, lattice=IDENTITY, spins=IDENTITY, time=1):
        """Evaluate after elements of O(3) on the lattice and on the spins, and time reversal."""
        nodes = self.nodes @ lattice.on_irreps(self.irreps).T
        vectors = torch.from_numpy(lattice.act(self.vectors.numpy()))
        turned = torch.from_numpy(spins.act_axial(self.spins.numpy()))
        return block(nodes, self.edges, vectors, time * turned)


@functools.cache
def block(kind=SpinBlock, spin_orbit=False, nodes=NODES):
    """Return small layers in double precision, whose energy is not zero."""
    settings = SpinSettings(node_irreps=nodes, cutoff=4.0, spin_orbit=spin_orbit, **SMALL)
    torch.set_default_dtype(torch.float64)
    try:
        made = kind(settings)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        torch.nn.init.normal_(list(made.energy.parameters())[-1])
    return made


def broken_by(made, graph, **operation):
    """Return the change of edge energies and of the moments, turned back, by an operation."""
    with torch.no_grad():
        here, there = graph.acted_on(made), graph.acted_on(made, **operation)
    expected = operation.get("spins", IDENTITY).act_axial(here.moments.numpy())
    expected = torch.from_numpy(expected) * operation.get("time", 1)
    energies = (there.edge_energy - here.edge_energy).abs().max()
    return float(energies), float((there.moments - expected).abs().max())


@pytest.mark.parametrize("spin_orbit", [False, True])
@given(by=rotations(), seed=st.integers(0, 100))
def test_energies_are_even_and_moments_odd_and_both_turn_with_lattice_and_spins(
    spin_orbit, by, seed
):
    made, graph = block(spin_orbit=spin_orbit), Graph(seed=seed)
    assert max(broken_by(made, graph, time=-1)) < 1e-12
    assert max(broken_by(made, graph, lattice=by, spins=by)) < 1e-9


@given(by=rotations())
def test_without_spin_orbit_coupling_lattice_and_spins_turn_by_themselves(by):
    made = block(spin_orbit=False)
    assert max(broken_by(made, Graph(), spins=by)) < 1e-9
    assert max(broken_by(made, Graph(), lattice=by)) < 1e-9


def test_with_spin_orbit_coupling_they_do_not():
    assert min(broken_by(block(spin_orbit=True), Graph(), spins=SOME)) > 1e-3


@pytest.mark.parametrize("kind", [PolarBlock, LeakyBlock])
def test_controls_break_time_reversal_alone(kind):
    made, graph = block(kind, spin_orbit=True), Graph()
    assert max(broken_by(made, graph, lattice=SOME, spins=SOME)) < 1e-9
    assert broken_by(made, graph, time=-1)[0] > 1e-3


def test_a_polar_spin_turns_inversion_into_something_else():
    made, inversion = block(PolarBlock, spin_orbit=True), Orthogonal(improper=True)
    assert max(broken_by(made, Graph(), lattice=inversion, spins=inversion)) > 1e-3


@pytest.mark.parametrize("spin_orbit", [False, True])
def test_atoms_without_spins_have_neither_energy_nor_moments(spin_orbit):
    graph = Graph()
    graph.spins = torch.zeros_like(graph.spins)
    found = graph.acted_on(block(spin_orbit=spin_orbit))
    assert not found.edge_energy.any()
    assert not found.moments.any()


@pytest.mark.parametrize("spin_orbit", [False, True])
def test_a_moment_can_be_induced_where_there_is_no_spin(spin_orbit):
    graph = Graph()
    assert not graph.spins[-1].any()
    assert graph.acted_on(block(spin_orbit=spin_orbit)).moments[-1].norm() > 1e-3


def test_layers_start_at_an_energy_of_zero():
    made = SpinBlock(SpinSettings(node_irreps=NODES, cutoff=4.0, **SMALL)).double()
    assert not Graph().acted_on(made).edge_energy.any()


def test_features_without_invariants_are_refused():
    with pytest.raises(ConfigError, match="no invariants"):
        SpinBlock(SpinSettings(node_irreps="4x1o", cutoff=4.0))


def test_size_on_the_features_of_mace_mp_0b3():
    nodes = "128x0e+128x1o+128x0e"
    settings = SpinSettings(node_irreps=nodes, cutoff=6.0, spin_orbit=True)
    count = sum(p.numel() for p in SpinBlock(settings).parameters())
    assert 0.07 < count / 9_063_204 < 0.10
