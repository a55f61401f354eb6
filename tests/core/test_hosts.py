"""Patched models inside wrappers, beside each other, with replaced parts, and checkpointed."""

import pytest
import torch
from e3nn import o3
from networks import FOLD_INTO, SPECIES, atoms, clone, network, output, patch, random_adapter
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import e3sparse
from e3sparse.deltas import METHODS
from e3sparse.errors import PatchError

WRAPPERS = {"DataParallel": nn.DataParallel, "compile": torch.compile}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_an_adapter_of_a_wrapped_model_is_the_bare_models(wrapper, tmp_path):
    wrap = WRAPPERS[wrapper]
    model = network()
    random_adapter(wrap(model)).save_pretrained(tmp_path / "a")
    bare, again = network(), network()
    known = {"species": SPECIES, "fold_into": FOLD_INTO}
    e3sparse.load(bare, tmp_path / "a", **known)
    e3sparse.load(wrap(again), tmp_path / "a", **known)
    assert torch.equal(output(bare), output(model))
    assert torch.equal(output(again), output(model))
    assert not torch.equal(output(bare), output(network()))


def test_adapters_of_several_parts_are_all_found():
    model = nn.ModuleDict({name: network() for name in ("a", "b")})
    for part in model.values():
        patch(part, "linear")
    patch(model["b"], "fctp", name="second")
    found = e3sparse.adapters(model)
    assert list(found) == ["default", "b.default", "second"]
    assert found["b.default"].model is model["b"]
    assert found["default"].model is model["a"]


def test_a_part_that_was_replaced_stays_when_the_adapter_goes():
    model = network()
    random_adapter(model, "self_connection")
    model.readout = nn.Linear(3, 3, bias=False)
    e3sparse.adapters(model)["default"].remove()
    assert type(model.self_connection) is o3.FullyConnectedTensorProduct
    assert model.self_connection.weight.requires_grad
    assert not model.embedding.weight.requires_grad
    assert not e3sparse.adapters(model)


def test_a_patched_layer_that_was_replaced_is_named_before_anything_changes():
    model = network()
    adapter = random_adapter(model, "all")
    model.readout = nn.Identity()
    classes = [type(module) for module in model.modules()]
    with pytest.raises(PatchError, match="no longer in layer 'readout'"):
        adapter.remove()
    assert [type(module) for module in model.modules()] == classes


def test_a_patched_layer_refuses_a_parametrization():
    model = network()
    random_adapter(model, "linear")
    before = output(model)
    with pytest.raises(PatchError, match="cannot be taken away or parametrized: merge"):
        parametrize.register_parametrization(model.readout, "weight", nn.Identity())
    assert torch.equal(output(model), before)
    e3sparse.merge(model)
    parametrize.register_parametrization(clone(model).readout, "weight", nn.Identity())


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_inside_a_cached_step(method):
    model = network()
    adapter = random_adapter(model, "all", method)
    positions, species = atoms()
    expected = torch.autograd.grad(model(positions, species), adapter.parameters())
    with e3sparse.cached():
        model(positions, species)
        energy = checkpoint(model, positions, species, use_reentrant=False)
        grads = torch.autograd.grad(energy, adapter.parameters())
    for gradient, reference in zip(grads, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-10)
