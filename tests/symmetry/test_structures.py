"""Drawn structures are legal, varied, and shrink to a few atoms."""

import numpy as np
import pytest
from ase import Atoms
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from hypothesis import HealthCheck, Phase, find, given, note, seed, settings
from hypothesis import strategies as st

from e3sparse.symmetry import irreps, layers, structures
from e3sparse.symmetry.structures import SPINS, directions, python_code, spins

pytestmark = pytest.mark.any_e3nn
NUMBERS = (1, 6, 8, 79)
SAME = settings(derandomize=True, suppress_health_check=list(HealthCheck))
thorough = settings(max_examples=200, suppress_health_check=list(HealthCheck))


@thorough
@given(structures(NUMBERS))
def test_legal(atoms):
    note(python_code("atoms", atoms))
    assert 1 <= len(atoms) <= 30
    assert set(atoms.numbers) <= set(NUMBERS)
    assert np.isfinite(atoms.positions).all()
    diameter = max(1.2, 2 * max(covalent_radii[z] for z in atoms.numbers))
    assert len(neighbor_list("i", atoms, 0.6 * diameter - 1e-5)) == 0
    assert atoms.pbc.all() == bool(atoms.cell.rank == 3)


def skewed(atoms):
    return atoms.pbc.all() and atoms.cell.angles().min() < 75


def coincident(atoms):
    distances = np.round(atoms.get_all_distances()[np.triu_indices(len(atoms), 1)], 9)
    return len(distances) > 2 and len(set(distances)) < len(distances)


SORTS = {
    "thirty": lambda a: len(a) == 30,
    "one": lambda a: len(a) == 1,
    "crystal": lambda a: a.pbc.all() and len(a) > 12,
    "cluster": lambda a: not a.pbc.any() and len(a) > 12,
    "three elements": lambda a: len(set(a.numbers)) == 3,
    "skewed": skewed,
    "coincident distances": coincident,
}


def test_all_sorts_are_drawn():
    drawn = []

    @settings(max_examples=300, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @seed(0)
    @given(structures(NUMBERS))
    def collect(atoms):
        drawn.append(atoms)

    collect()
    counts = {name: sum(map(bool, map(condition, drawn))) for name, condition in SORTS.items()}
    assert min(counts.values()) >= 2, counts


def test_shrunk_to_something_readable():
    found = find(structures(NUMBERS), lambda a: len(a) >= 2, settings=SAME)
    assert found.get_chemical_symbols() == ["H", "H"]
    assert not found.pbc.any()
    np.testing.assert_allclose(found.positions, [[0, 0, 0], [0, 0, 1.2]])
    crystal = find(structures(NUMBERS), lambda a: a.pbc.all(), settings=SAME)
    np.testing.assert_allclose(crystal.cell.array, 1.2 * np.eye(3))
    assert len(crystal) == 1


def test_spins():
    strategy = structures(NUMBERS, with_spins=True)
    zero = find(strategy, lambda a: len(a) > 1 and (a.arrays[SPINS] == 0).all(axis=1).any())
    assert zero.arrays[SPINS].shape == (len(zero), 3)
    assert find(spins(2), lambda s: np.abs(s).max() == 3.0).shape == (2, 3)
    assert SPINS not in find(structures(NUMBERS), lambda a: True).arrays


@given(st.integers(1, 9).flatmap(directions))
def test_directions_have_length_one(direction):
    assert np.linalg.norm(direction) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "options", [{"min_atoms": 0}, {"max_atoms": 31}, {"min_atoms": 9, "max_atoms": 8}]
)
def test_sizes_that_are_refused(options):
    with pytest.raises(ValueError, match="1 to 30"):
        find(structures(NUMBERS, **options), lambda a: True)


@given(structures(NUMBERS, with_spins=True))
def test_the_code_makes_the_structure_again(atoms):
    note(python_code("atoms", atoms))
    made = {"Atoms": Atoms, "np": np}
    exec(python_code("atoms", atoms) + "\n" + python_code("frames", [atoms]), made)
    for again in (made["atoms"], *made["frames"]):
        assert again == atoms
        for name, values in atoms.arrays.items():
            np.testing.assert_array_equal(again.arrays[name], values)


@given(irreps(), layers())
def test_irreps_and_layers(drawn, layer):
    assert drawn.dim > 0
    assert layer.irreps_out is not None
