"""Deltas trained through cuEquivariance's form of a model are those of the e3nn model."""

import copy

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from e3sparse_mace.backend import MACEPotential
from families import FAMILIES, small
from mace_models import TARGETS, tiny
from test_acceleration import potential_of
from test_backend import random_deltas

import e3sparse
from e3sparse.errors import ConfigError

pytest.importorskip("cuequivariance_torch", reason="cuEquivariance is not in this environment")

UNKNOWN = {"embedded"}
"""With vectors in the last layer."""


def batch_of(potential):
    crystal = bulk("NaCl", "rocksalt", a=5.6)
    crystal.numbers[:] = [17, 11] if 11 in potential.species.numbers else [17, 6]
    frames = [molecule("CH3OH"), crystal.repeat((2, 1, 1))]
    for atoms in frames:
        atoms.rattle(0.05, seed=1)
    return potential.collate([potential.graph(atoms) for atoms in frames])


def said(potential):
    """Return energies, forces and stresses, differentiable by the weights."""
    potential.module.train()
    return potential.forward(batch_of(potential))[:3]


def both(potential):
    """Return what the e3nn form and the cuEquivariance form say."""
    potential.accelerate_by("none")
    own = said(potential)
    potential.accelerate_by("cueq")
    assert potential.evaluated() is not potential.module
    return own, said(potential)


def assert_same(one, two, bound=1e-10):
    for a, b in zip(one, two, strict=True):
        assert float((a - b).detach().abs().max()) <= bound * float(b.detach().abs().max())


def gradients(outputs, parameters):
    energy, forces, stress = outputs
    loss = energy.square().sum() + forces.square().sum() + 1e3 * stress.square().sum()
    return torch.autograd.grad(loss, parameters)


def most_slowly(values, quick):
    """Mark all but these as slow: a conversion takes ten seconds."""
    return [v if v in quick else pytest.param(v, marks=pytest.mark.slow) for v in values]


@pytest.mark.parametrize("targets", most_slowly(TARGETS, ("everything",)))
def test_outputs_and_gradients_are_those_of_e3nn(targets):
    potential = potential_of(copy.deepcopy(tiny()))
    adapter = random_deltas(potential, targets)
    own, fast = both(potential)
    assert "cuequivariance" in str([type(m).__module__ for m in potential.form.form.modules()])
    assert_same(fast, own)
    assert_same(gradients(fast, adapter.parameters()), gradients(own, adapter.parameters()), 1e-9)


@pytest.mark.parametrize("family", most_slowly(sorted(FAMILIES.keys() - UNKNOWN), ("mh-1",)))
def test_each_family(family):
    module = copy.deepcopy(small(family))
    head = module.heads[0]
    potential = MACEPotential("test", module, device="cpu", dtype=None, head=head)
    random_deltas(potential, "all")
    own, fast = both(potential)
    # Of reduced contractions MACE finds the matrix by a pseudo-inverse: 1e-9 of the energy.
    assert_same(fast, own, 1e-8 if getattr(module, "use_reduced_cg", False) else 1e-10)


@pytest.mark.parametrize("family", UNKNOWN)
def test_a_family_that_mace_cannot_convert(family):
    potential = potential_of(copy.deepcopy(small(family)))
    with pytest.raises(ConfigError, match=r"MACE cannot convert this ScaleShiftMACE .* last layer"):
        potential.accelerate_by("cueq")
    assert potential.evaluated() is potential.module


def test_an_adapter_is_the_same_file_by_either_form(tmp_path):
    energies = []
    for way in ("none", "cueq"):
        potential = potential_of(copy.deepcopy(tiny()))
        adapter = potential.patch("everything", "budget", target_sparsity=0.9, total_steps=5)
        potential.accelerate_by(way)
        optimizer = torch.optim.SGD(adapter.param_groups(1e-4))
        for _ in range(5):
            optimizer.zero_grad()
            energy, forces, _ = said(potential)
            (energy.square().sum() + forces.square().sum()).backward(inputs=adapter.parameters())
            optimizer.step()
            adapter.step()
        adapter.save_pretrained(tmp_path / way)
        e3sparse.merge(potential.module)
        potential.accelerate_by("none")
        energies.append(said(potential)[0])
    assert_same([energies[1]], [energies[0]])
    saved = {}
    for way in ("none", "cueq"):
        potential = potential_of(copy.deepcopy(tiny()))
        saved[way] = potential.load_adapter(tmp_path / way).values()
        if way == "cueq":
            assert_same([said(potential)[0]], [energies[0]])
    assert any(bool(values.any()) for values in saved["none"].values())
    for path, values in saved["none"].items():
        torch.testing.assert_close(saved["cueq"][path], values, rtol=1e-9, atol=1e-12)
        assert torch.equal(saved["cueq"][path] == 0, values == 0)


@pytest.mark.slow
def test_the_model_is_trained_in_full_through_it():
    potential = potential_of(copy.deepcopy(tiny()))
    parameters = [p for p in potential.module.parameters() if p.requires_grad]
    own, fast = both(potential)

    def of(outputs):
        loss = outputs[0].square().sum() + outputs[1].square().sum()
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    for a, b in zip(of(fast), of(own), strict=True):
        assert (a is None or not a.any()) == (b is None or not b.any())
        if b is not None and b.any():
            assert_same([a], [b], 1e-9)


def test_energy_references_and_merges_are_seen():
    potential = potential_of(copy.deepcopy(tiny()))
    adapter = random_deltas(potential, "all")
    potential.accelerate_by("cueq")
    before = said(potential)
    potential.shift_energies({8: -2.0})
    shifted = said(potential)
    np.testing.assert_allclose(
        (shifted[0] - before[0]).detach().numpy(), [-2.0, 0.0], rtol=0, atol=1e-10
    )
    adapter.merge()
    assert_same(said(potential), shifted)
    adapter.restore()
    base = said(potential)
    potential.accelerate_by("auto")
    assert_same(said(potential), base)
    assert not torch.allclose(base[0], shifted[0])


def test_what_is_not_there_is_said(monkeypatch):
    potential = potential_of(copy.deepcopy(tiny()))
    with pytest.raises(ConfigError, match=r"by 'cueqq'\. Did you mean 'cueq'"):
        potential.accelerate_by("cueqq")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="cuEquivariance is not installed: pip install cueq"):
        potential.accelerate_by("cueq")
