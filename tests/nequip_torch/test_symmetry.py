"""The suite on NequIP and Allegro models in every state of an adapter's life."""

import pytest
import torch
from e3sparse_nequip.backend import NequIPPotential
from nequip_models import MODELS, built
from potentials import gate_or_night, random_deltas

import e3sparse
from e3sparse.potentials.backends import load_potential
from e3sparse.symmetry import CHECKS, PotentialSubject

MAGNETIC = {"time reversal", "spin rotation", "magnetic forces"}
STATES = ("base", "adapted", "merged", "packaged", "restored")


@pytest.fixture(scope="module")
def subject_of(tmp_path_factory, base_of):
    """Return a function that makes a subject of float64 with its twin in float32, once."""
    made = {}

    def potential_of(framework, state, precision):
        if state == "packaged":
            potential = load_potential(str(base_of(framework)[1]))
        else:
            potential = built(framework, model_dtype=precision)
            # Weights are not drawn alike in both precisions.
            potential.module.load_state_dict(built(framework).module.state_dict())
        if state == "base":
            return potential
        adapter = random_deltas(potential, "all")
        if state != "adapted":
            e3sparse.merge(potential.module)
        if state == "packaged":
            path = tmp_path_factory.mktemp(framework) / "merged.nequip.zip"
            potential.save(path)
            potential = load_potential(str(path))
        if state == "restored":
            adapter.restore()
        return potential

    def make(framework, state):
        if (framework, state) not in made:
            precisions = ("float64",) if state == "packaged" else ("float64", "float32")
            potentials = [potential_of(framework, state, p) for p in precisions]
            made[framework, state] = PotentialSubject(*potentials)
        return made[framework, state]

    return make


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("state", gate_or_night(STATES, {"adapted", "packaged"}))
@pytest.mark.parametrize("framework", MODELS)
def test_every_state(subject_of, framework, state, check, seed):
    subject = subject_of(framework, state)
    result = CHECKS[check](subject, seed=seed)
    assert result.ok, str(result)
    expected = check not in MAGNETIC and not (check == "dtype" and state == "packaged")
    assert (result.status == "passed") == expected


@pytest.mark.parametrize("framework", MODELS)
def test_a_model_of_float32_is_exact_in_float64(framework):
    single = built(framework, model_dtype="float32")
    double = NequIPPotential("in float64", single.module, dtype=torch.float64)
    assert CHECKS["inversion"](PotentialSubject(double)).error < 1e-12
    assert CHECKS["rotation"](PotentialSubject(double)).error < 1e-12
