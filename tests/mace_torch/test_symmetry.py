"""The suite on MACE models in every state, and on a pretrained one."""

import pytest
import torch
from mace_models import SHARED, load, tiny
from potentials import assert_the_states_are_two_models, gate_or_night
from test_backend import random_deltas

import e3sparse
from e3sparse.symmetry import CHECKS, PotentialSubject

MAGNETIC = {"time reversal", "spin rotation", "magnetic forces"}
STATES = ("base", "adapted", "merged", "loaded", "restored")
PRETRAINED = ("mace_spice_small", "mace_gst")
MOST_ATOMS = 16  # shells of two layers; drawing and turning 30 atoms takes twice the time


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """Make a subject of float64 with its twin in float32; each is made once."""
    made = {}
    folder = tmp_path_factory.mktemp("model")
    torch.save(tiny(torch.float32), folder / "tiny.model")

    def in_state(model, state, dtype):
        potential = load(model, dtype)
        if state == "base":
            return potential
        adapter = random_deltas(potential, "everything")
        if state == "loaded":
            adapter.save_pretrained(folder / "adapter")
            potential = load(model, dtype)
            potential.load_adapter(folder / "adapter")
        elif state != "adapted":
            e3sparse.merge(potential.module)
        if state == "restored":
            adapter.restore()
        return potential

    def make(state, model=folder / "tiny.model"):
        if (state, model) not in made:
            pair = [in_state(model, state, dtype) for dtype in (torch.float64, torch.float32)]
            made[state, model] = PotentialSubject(*pair)
        return made[state, model]

    return make


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("state", gate_or_night(STATES, {"adapted"}))
def test_every_state(subjects, state, check, seed):
    for subject in (subjects(state), subjects(state).single):
        result = CHECKS[check](subject, seed=seed, max_atoms=MOST_ATOMS)
        assert result.ok, str(result)
        expected = check not in MAGNETIC and not (check == "dtype" and subject.single is None)
        assert (result.status == "passed") == expected


def test_states_that_are_one_model(subjects):
    assert_the_states_are_two_models(subjects)
    assert_the_states_are_two_models(lambda state: subjects(state).single)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", gate_or_night(PRETRAINED, PRETRAINED[:1]))
def test_pretrained(subjects, name, check, seed):
    path = SHARED / "models" / f"{name}.model"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    result = CHECKS[check](subjects("base", path), seed=seed, max_atoms=12)
    assert result.ok, str(result)
    assert (result.status == "passed") == (check not in MAGNETIC)


def test_a_file_of_float32_is_exact_in_float64(subjects):
    assert CHECKS["inversion"](subjects("base")).error < 1e-12
