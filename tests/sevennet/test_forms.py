"""Deltas trained through the forms of other libraries are those of the e3nn model."""

import pytest
import torch
from ase.build import bulk, molecule
from sevenn.nn import cue_helper, oeq_helper
from support import load

import e3sparse
from e3sparse.errors import ConfigError


def said(potential):
    frames = [molecule("CH3OH"), bulk("NaCl", "rocksalt", a=5.6).repeat((2, 1, 1))]
    for atoms in frames:
        atoms.rattle(0.05, seed=1)
    batch = potential.collate([potential.graph(atoms) for atoms in frames])
    potential.module.train()
    return potential.forward(batch)[:3]


@pytest.fixture
def on_a_cpu(monkeypatch):
    """Let SevenNet use cuEquivariance without a GPU, by its plain implementation."""
    pytest.importorskip("cuequivariance_torch")
    monkeypatch.setattr(cue_helper, "is_cue_available", lambda: True)
    monkeypatch.setenv("CUEQ_TP_METHOD", "naive")


@pytest.mark.parametrize("targets", ["linear", "fctp", "tp", "mlp", "everything"])
def test_outputs_and_gradients_are_those_of_e3nn(targets, on_a_cpu, tiny_checkpoint):
    potential = load(tiny_checkpoint, torch.float64)
    adapter = potential.patch(targets, "dense")
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    results = []
    for way in ("none", "cueq"):
        potential.accelerate_by(way)
        energy, forces, stress = said(potential)
        loss = energy.square().sum() + forces.square().sum() + stress.square().sum()
        gradients = torch.autograd.grad(loss, adapter.parameters())
        results.append([energy, forces, stress, *gradients])
    assert "cuequivariance" in str([type(m).__module__ for m in potential.form.form.modules()])
    for one, two in zip(*results, strict=True):
        # SevenNet's conversion has Clebsch-Gordan coefficients of float32.
        assert float((one - two).detach().abs().max()) <= 1e-6 * float(one.detach().abs().max())
    assert any(bool(gradient.any()) for gradient in results[0][3:])
    e3sparse.merge(potential.module)
    merged = said(potential)
    for one, two in zip(results[1], merged, strict=False):
        torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("library", "helper", "available"),
    [
        ("cueq", cue_helper, "is_cue_available"),
        ("oeq", oeq_helper, "is_oeq_available"),
    ],
)
def test_a_library_that_is_not_there(library, helper, available, tiny_checkpoint, monkeypatch):
    potential = load(tiny_checkpoint)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"is not installed: pip install"):
        potential.accelerate_by(library)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(helper, available, lambda: False)
    with pytest.raises(ConfigError, match="on a GPU only, and there is none"):
        potential.accelerate_by(library)
    assert potential.evaluated() is potential.module
