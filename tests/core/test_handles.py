"""Adapters are found by name, and a handle never touches what is not its own."""

import copy

import pytest
import torch
from networks import difference, network, output, patch, random_adapter, snapshot, weights
from torch import nn

import e3sparse
from e3sparse.errors import PatchError


def three(model):
    return [random_adapter(model, name=name, seed=k) for k, name in enumerate(("a", "ab", "b"))]


def test_adapters_are_found_by_name_and_in_a_wrapper():
    model = network()
    first, second, _ = three(model)
    assert list(e3sparse.adapters(nn.Sequential(model))) == ["a", "ab", "b"]
    assert e3sparse.get_adapter(model, "ab").values().keys() == second.values().keys()
    with pytest.raises(PatchError, match=r"'abc'\. Did you mean 'ab'\? It has: a, ab, b"):
        e3sparse.get_adapter(model, "abc")
    with pytest.raises(PatchError, match="It has: none"):
        e3sparse.get_adapter(network(), "a")
    first.remove()
    assert list(e3sparse.adapters(model)) == ["ab", "b"]


def test_a_handle_of_a_removed_adapter_says_so():
    model = network()
    adapter = random_adapter(model)
    adapter.remove()
    before = snapshot(model)
    for call in (adapter.merge, adapter.restore, adapter.attach, adapter.remove, adapter.values):
        with pytest.raises(PatchError, match="'default' has been removed"):
            call()
    assert snapshot(model) == before


@pytest.mark.parametrize(
    "name", ["", "a.b", "a b", "é", "keys", "pop", "forward", "training", "_modules"]
)
def test_names_that_cannot_be_given_leave_the_model_alone(name):
    model = network()
    before = snapshot(model)
    with pytest.raises(PatchError, match=f"cannot be named '{name}'"):
        patch(model, name=name)
    assert snapshot(model) == before


def test_a_name_that_is_taken_leaves_the_adapter_alone():
    model = network()
    random_adapter(model)
    patched = output(model)
    with pytest.raises(PatchError, match="has an adapter 'default' already"):
        patch(model, "fctp", seed=5)
    assert torch.equal(output(model), patched)


def test_a_copy_has_adapters_of_its_own():
    model = network()
    three(model)
    patched = output(model)
    twin = copy.deepcopy(model)
    e3sparse.get_adapter(twin, "a").remove()
    e3sparse.merge(twin)
    assert list(e3sparse.adapters(model)) == ["a", "ab", "b"]
    assert torch.equal(output(model), patched)
    assert not torch.equal(output(twin), patched)


def merged_then_patched_anew():
    model = network()
    old = random_adapter(model)
    old.merge()
    return model, old, random_adapter(model, seed=8)


def test_an_old_handle_does_not_undo_what_came_after():
    model, old, new = merged_then_patched_anew()
    new.merge()
    before = weights(model)
    with pytest.raises(PatchError, match="patched anew since"):
        old.restore()
    assert weights(model) == before


def test_an_old_handle_does_not_replace_a_newer_adapter_of_its_name():
    model, old, new = merged_then_patched_anew()
    patched, values = output(model), new.values()
    with pytest.raises(PatchError, match="patched anew since"):
        old.attach()
    assert torch.equal(output(model), patched)
    assert all(torch.equal(new.values()[path], value) for path, value in values.items())


def test_an_old_handle_works_again_once_what_came_after_is_removed():
    model, old, new = merged_then_patched_anew()
    new.remove()
    old.restore()
    assert torch.equal(output(model), output(network()))


def test_two_patched_models_in_one_are_both_merged():
    ensemble = nn.ModuleList([network(), network()])
    for k, model in enumerate(ensemble):
        random_adapter(model, seed=k)
    patched = [output(model) for model in ensemble]
    assert e3sparse.merge(ensemble) is ensemble
    assert not any(e3sparse.adapters(model) for model in ensemble)
    for model, expected in zip(ensemble, patched, strict=True):
        assert difference(output(model), expected) < 1e-12


@pytest.mark.parametrize("again", [lambda model: nn.Sequential(model), lambda model: model.radial])
def test_what_is_patched_already_is_not_patched_as_a_part_or_a_whole(again):
    model = network()
    adapter = random_adapter(model)
    patched, before = output(model), snapshot(model)
    with pytest.raises(PatchError, match="is patched already"):
        e3sparse.patch(again(model), "mlp", "dense")
    assert snapshot(model) == before
    assert torch.equal(output(model), patched)
    assert all(parameter.requires_grad for parameter in adapter.parameters())
