"""Inside `cached()`, W + ΔW is computed once for each layer, and nothing else is different."""

import pytest
import torch
from e3nn import o3
from networks import atoms, difference, network, output, patch, random_adapter, randomize
from torch import nn
from torch.func import functional_call

import e3sparse
from e3sparse.deltas import METHODS, Delta


@pytest.fixture
def calls(monkeypatch):
    """Count the forward calls of deltas, by delta."""
    counts = {}
    original = Delta.forward

    def counting(self):
        counts[self] = counts.get(self, 0) + 1
        return original(self)

    monkeypatch.setattr(Delta, "forward", counting)
    return counts


def loss(model):
    """Use every layer three times."""
    positions, species = atoms()
    return sum(model(scale * positions, species) for scale in (0.9, 1.0, 1.1))


@pytest.mark.parametrize("method", METHODS)
def test_once_for_each_layer_with_the_same_gradients(method, calls):
    model = network()
    adapter = random_adapter(model, "all", method)
    expected = torch.autograd.grad(loss(model), adapter.parameters())
    assert set(calls.values()) == {3}
    calls.clear()
    with e3sparse.cached():
        value = loss(model)
        grads = torch.autograd.grad(value, adapter.parameters())
    assert {path: calls[delta] for path, delta in adapter.deltas().items()} == dict.fromkeys(
        adapter.layouts, 1
    )
    assert torch.equal(value, loss(model))
    for gradient, reference in zip(grads, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-10)


def test_one_layer_that_is_used_three_times(calls):
    model = nn.ModuleDict({"layer": o3.Linear("4x0e", "4x0e").double()})
    layer = model["layer"]
    x = torch.randn(2, 4, dtype=torch.float64)
    adapter = randomize(e3sparse.patch(model, "linear", "dense"))
    expected = torch.autograd.grad(layer(layer(layer(x))).sum(), adapter.parameters())
    calls.clear()
    with e3sparse.cached():
        grads = torch.autograd.grad(layer(layer(layer(x))).sum(), adapter.parameters())
    assert list(calls.values()) == [1]
    torch.testing.assert_close(grads, expected, rtol=1e-12, atol=1e-12)


def test_each_block_starts_anew():
    model = network()
    adapter = patch(model)
    outputs = []
    for seed in (2, 3):
        randomize(adapter, seed)
        with e3sparse.cached():
            outputs.append(output(model))
        assert torch.equal(outputs[-1], output(model))
    assert difference(*outputs) > 1e-2


def test_a_block_that_fails_leaves_nothing_behind():
    model = network()
    adapter = random_adapter(model)

    def fail():
        with e3sparse.cached():
            output(model)
            raise ZeroDivisionError

    before = output(model)
    with pytest.raises(ZeroDivisionError):
        fail()
    randomize(adapter, seed=9)
    assert difference(output(model), before) > 1e-2


def test_blocks_can_be_nested():
    model = network()
    random_adapter(model)
    with e3sparse.cached():
        first = output(model)
        with e3sparse.cached():
            assert torch.equal(output(model), first)
        assert torch.equal(output(model), first)


def test_gradients_reach_the_deltas_after_a_use_without_gradients():
    model = network()
    adapter = random_adapter(model)
    with e3sparse.cached():
        with torch.no_grad():
            value = loss(model)
        again = loss(model)
        assert torch.equal(value, again)
        assert all(g.abs().max() > 0 for g in torch.autograd.grad(again, adapter.parameters()))


def test_switching_inside_a_block_counts():
    model, base = network(), output(network())
    adapter = random_adapter(model)
    with e3sparse.cached():
        patched = output(model)
        with adapter.disabled():
            assert torch.equal(output(model), base)
        assert torch.equal(output(model), patched)
    assert difference(patched, base) > 1e-2


def test_other_weights_inside_a_block_count():
    model = network()
    random_adapter(model)
    weight = {"embedding.weight": 2 * model.embedding._parameters["weight"]}
    expected = functional_call(model, weight, atoms())
    with e3sparse.cached():
        plain = model(*atoms())
        assert torch.equal(functional_call(model, weight, atoms()), expected)
    assert not torch.allclose(plain, expected)


def test_other_deltas_inside_a_block_count():
    model = network()
    random_adapter(model)
    deltas = {name: 2 * p for name, p in model.named_parameters() if p.requires_grad}
    expected = functional_call(model, deltas, atoms())
    with e3sparse.cached():
        plain = model(*atoms())
        assert torch.equal(functional_call(model, deltas, atoms()), expected)
    assert not torch.allclose(plain, expected)
