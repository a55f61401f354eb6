"""The magnetic set that we generate: what the script draws, and what the file in the tree holds."""

import importlib.util
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.neighborlist import neighbor_list

from e3sparse.frames.reading import LabelKeys, read_split

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "datasets" / "magnetic_crystals.py"
DATA = SCRIPT.with_suffix(".xyz")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("magnetic_crystals", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def drawn(script):
    return list(script.frames(2, seed=0))


@pytest.fixture(scope="module")
def labelled():
    return ase.io.read(DATA, index=":")


def ideal(script, name, order):
    """Return a crystal without displacements, with the moments that the order starts from."""

    class Still:
        def uniform(self, low, high):
            return 0.0

        def normal(self, mean, sigma, shape):
            return np.zeros(shape)

    return script.sampled(name, order, Still())


def neighbour_signs(atoms, shortest, longest):
    """Return for each pair of metal atoms at such a distance whether they are parallel (±1)."""
    moments = atoms.get_initial_magnetic_moments()
    i, j, d = neighbor_list("ijd", atoms, longest)
    pairs = (d > shortest) & (moments[i] != 0) & (moments[j] != 0)
    return np.sign(moments[i] * moments[j])[pairs] / (moments != 0).sum()


@pytest.mark.parametrize("name", ["NiO", "MnO"])
def test_afm_ii_has_opposite_spins_across_every_oxygen(script, name):
    edge = script.MATERIALS[name].edge
    afm, fm = ideal(script, name, "AFM-II"), ideal(script, name, "FM")
    # Six nearest metals are parallel and six antiparallel; all six next nearest are antiparallel.
    assert neighbour_signs(afm, 0.1, 0.72 * edge).sum() == pytest.approx(0)
    assert neighbour_signs(afm, 0.72 * edge, 1.01 * edge).sum() == pytest.approx(-6)
    assert neighbour_signs(fm, 0.72 * edge, 1.01 * edge).sum() == pytest.approx(6)


@pytest.mark.parametrize(("name", "neighbours", "total"), [("Fe", 8, -8), ("Mn", 12, -4)])
def test_afm_metals_have_opposite_layers(script, name, neighbours, total):
    longest = {"Fe": 0.9, "Mn": 0.75}[name] * script.MATERIALS[name].edge
    signs = neighbour_signs(ideal(script, name, "AFM"), 0.1, longest)
    assert np.abs(signs).sum() == neighbours
    assert signs.sum() == total


def test_draws_are_the_same_again_and_different_with_another_seed(script, drawn):
    again, other = script.frames(2, seed=0), script.frames(2, seed=1)
    for one, two, three in zip(drawn, again, other, strict=True):
        np.testing.assert_array_equal(one.positions, two.positions)
        assert not np.allclose(one.positions, three.positions)


def test_every_material_is_drawn_in_every_order(script, drawn):
    expected = {f"{n}_{o}" for n, m in script.MATERIALS.items() for o in m.orders}
    names = [atoms.info["config_type"] for atoms in drawn]
    assert {name: names.count(name) for name in names} == dict.fromkeys(expected, 2)
    assert all(abs(atoms.info["relative_volume"] - 1) <= script.VOLUMES for atoms in drawn)


@pytest.mark.parametrize(
    ("name", "order", "setups"),
    [("NiO", "FM", {"Ni": ":d,6.2"}), ("MnO", "FM", {"Mn": ":d,3.9"}), ("Ni", "FM", {})],
)
def test_only_oxides_have_a_u(script, name, order, setups):
    assert script.settings(ideal(script, name, order))["setups"] == setups


def test_the_file_can_be_trained_on(labelled):
    frames, isolated = read_split(
        DATA, LabelKeys(), known=(8, 25, 26, 28), cutoff=6.0, magnetic=True
    )
    assert len(frames) == len(labelled) >= 6
    assert not isolated
    assert all(frame.stress is not None for frame in frames)


def test_the_file_holds_frames_that_the_script_draws(drawn, labelled):
    there = {atoms.info["config_type"]: atoms for atoms in reversed(drawn)}
    assert {"Fe_FM", "Fe_AFM", "Fe_NM", "Ni_FM", "NiO_AFM-II"} <= {
        atoms.info["config_type"] for atoms in labelled
    }
    for atoms in labelled:
        mine = there[atoms.info["config_type"]]
        np.testing.assert_allclose(atoms.positions, mine.positions, atol=1e-8)
        np.testing.assert_allclose(atoms.cell[:], mine.cell[:], atol=1e-8)


def test_moments_are_those_of_the_crystals(labelled):
    """In μ_B; of the frames that are meant, at volumes within 6 % of the experiment's."""
    ranges = {"Fe_FM": (1.9, 2.6), "Ni_FM": (0.5, 0.75), "NiO": (1.5, 1.9), "MnO": (4.2, 4.8)}
    for atoms in labelled:
        kind = atoms.info["config_type"]
        moments, spins = atoms.arrays["REF_magmom"], atoms.arrays["spin"]
        np.testing.assert_array_equal(spins[:, 2], np.sign(moments) * (np.abs(moments) > 0.1))
        assert not spins[:, :2].any()
        metal = moments[atoms.numbers != 8]
        if "AFM" in kind:
            assert abs(metal.sum()) < 0.1
            # Nickel loses its moments where they are opposed.
            assert (np.abs(metal) > 1).all() or kind == "Ni_AFM"
        if "NM" in kind:
            assert not moments.any()
        for prefix, (low, high) in ranges.items():
            if kind.startswith(prefix):
                assert (low < np.abs(metal)).all()
                assert (np.abs(metal) < high).all()


def test_forces_of_a_crystal_add_up_to_nothing(labelled):
    for atoms in labelled:
        assert np.abs(atoms.arrays["REF_forces"].sum(axis=0)).max() < 0.02
