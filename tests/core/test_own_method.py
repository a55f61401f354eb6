"""A method of somebody else's, in one file and without an edit elsewhere."""

import copy
from typing import ClassVar

import pytest
import torch
from networks import FOLD_INTO, SPECIES, atoms, network, output, patch, randomize
from torch import nn

import e3sparse
from e3sparse.deltas import METHODS, Delta, Method, known_methods, make_method, register_method
from e3sparse.errors import ConfigError


class ScaledDelta(Delta):
    """ΔW = s·W0, one number for each layer."""

    def __init__(self, layout, weight):
        super().__init__(layout)
        self.register_buffer("base", weight.detach().clone().expand(layout.shape).clone())
        self.s = nn.Parameter(weight.new_zeros(()))

    def values(self):
        return self.s * self.base


class Scaled(Method):
    name: ClassVar[str] = "scaled"
    start: float = 0.0

    def delta(self, layout, weight, generator):
        shaped = weight if tuple(weight.shape) == layout.shape else weight.new_ones(layout.shape)
        return ScaledDelta(layout, shaped)


@pytest.fixture
def registered():
    register_method(Scaled)
    yield
    del METHODS["scaled"]


def saved(tmp_path):
    adapter = randomize(patch(network(), method=Scaled()))
    said = output(adapter.model)
    adapter.save_pretrained(tmp_path / "adapter")
    return said, tmp_path / "adapter"


def test_it_patches_trains_saves_and_loads(registered, tmp_path):
    base = output(network())
    adapter = patch(network(), method="scaled", start=0.5)
    assert torch.equal(output(adapter.model), base)
    optimizer = torch.optim.Adam(adapter.param_groups(1e-2))
    for _ in range(3):
        optimizer.zero_grad()
        adapter.model.features(*atoms()).square().sum().backward()
        optimizer.step()
    trained = output(adapter.model)
    assert not torch.equal(trained, base)
    adapter.save_pretrained(tmp_path / "adapter")
    model = network()
    loaded = e3sparse.load(model, tmp_path / "adapter", species=SPECIES, fold_into=FOLD_INTO)
    assert loaded.method == Scaled(start=0.5)
    torch.testing.assert_close(output(model), trained, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output(copy.deepcopy(model)), trained, rtol=1e-12, atol=1e-12)


def test_one_that_is_not_registered_is_missed_by_name(tmp_path):
    _, folder = saved(tmp_path)
    with pytest.raises(e3sparse.E3SparseError, match="register_method"):
        e3sparse.load(network(), folder, species=SPECIES, fold_into=FOLD_INTO)


def test_two_of_one_name_are_refused(registered):
    class Other(Scaled):
        pass

    with pytest.raises(ConfigError, match="already"):
        register_method(Other)
    assert register_method(Scaled) is Scaled


def test_an_installed_one_is_found_by_its_entry_point(monkeypatch):
    class Point:
        name = "scaled"

        @staticmethod
        def load():
            return Scaled

    monkeypatch.setattr("e3sparse.deltas.entry_points", lambda group: [Point])
    try:
        assert known_methods()["scaled"] is Scaled
        assert make_method("scaled", start=1.0).start == 1.0
    finally:
        del METHODS["scaled"]
