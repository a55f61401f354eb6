"""Random structures are chemically possible, and the same for the same seed."""

from itertools import islice

import numpy as np
import pytest
from ase.data import chemical_symbols, covalent_radii
from ase.neighborlist import neighbor_list
from hypothesis import given
from hypothesis import strategies as st

from e3sparse.training.random_structures import (
    CLOSEST,
    FARTHEST,
    MOST_ATOMS,
    MOST_ELEMENTS,
    PACKING,
    random_structure,
    varied_structures,
)

pytestmark = pytest.mark.any_e3nn
ELEMENTS = st.lists(st.integers(1, 94), min_size=1, max_size=12, unique=True)


def distances(atoms, factor):
    """Pairs closer than `factor` times the sum of their radii, images included."""
    return neighbor_list("ijd", atoms, list(factor * covalent_radii[atoms.numbers]))


@pytest.mark.parametrize("periodic", [False, True], ids=["cluster", "crystal"])
@given(numbers=ELEMENTS, seed=st.integers(0, 10_000))
def test_no_two_atoms_are_too_close(numbers, seed, periodic):
    atoms = random_structure(numbers, np.random.default_rng(seed), periodic=periodic)
    assert 2 <= len(atoms) <= MOST_ATOMS
    assert set(atoms.numbers) <= set(numbers)
    assert len(set(atoms.numbers)) <= MOST_ELEMENTS
    assert atoms.pbc.all() == periodic
    assert len(distances(atoms, CLOSEST * (1 - 1e-9))[0]) == 0


@given(numbers=ELEMENTS, seed=st.integers(0, 10_000))
def test_every_atom_of_a_cluster_has_a_bond(numbers, seed):
    atoms = random_structure(numbers, np.random.default_rng(seed), periodic=False)
    assert set(distances(atoms, FARTHEST * (1 + 1e-9))[0]) == set(range(len(atoms)))


@given(numbers=ELEMENTS, seed=st.integers(0, 10_000))
def test_crystals_are_no_denser_than_asked_for(numbers, seed):
    atoms = random_structure(numbers, np.random.default_rng(seed), periodic=True)
    filled = 4 / 3 * np.pi * (covalent_radii[atoms.numbers] ** 3).sum()
    assert filled / atoms.get_volume() < PACKING[1] * (1 + 1e-9)


@given(numbers=ELEMENTS, seed=st.integers(0, 10_000))
def test_every_third_structure_is_a_known_one_of_the_elements(numbers, seed):
    drawn = list(islice(varied_structures(numbers, np.random.default_rng(seed)), 6))
    for atoms in drawn:
        assert set(atoms.numbers) <= set(numbers)
        assert len(atoms) >= 2
        assert len(distances(atoms, 0.5)[0]) == 0


@pytest.mark.parametrize("number", range(1, 95))
def test_an_element_alone_has_its_solid(number):
    *_, known = islice(varied_structures([number], np.random.default_rng(0)), 3)
    symbol = chemical_symbols[number]
    if symbol in ("Fe", "Cu", "Si", "Ti"):
        assert known.pbc.all()
    assert set(known.numbers) == {number}


@pytest.mark.parametrize("periodic", [False, True])
def test_a_seed_is_a_structure(periodic):
    def drawn(seed):
        return random_structure([1, 6, 8], np.random.default_rng(seed), periodic=periodic)

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
