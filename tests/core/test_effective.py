"""The weights that a patched model works with are those of the merged one, gradients and all."""

import pytest
import torch
from networks import atoms, network, patch, randomize
from torch.func import functional_call

import e3sparse
from e3sparse.adapter.effective import effective_weights

TARGETS = ["linear", "fctp", "mlp", "tp", "everything"]


def output(model):
    """Return what the model says of some atoms, differentiable."""
    return model(*atoms())


def call(model, weights):
    """Run another copy of the model with these weights."""
    return functional_call(model, weights, atoms())


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("method", ["dense", "low_rank", "budget", "soft_threshold"])
def test_they_are_what_a_merge_writes(method, targets):
    model, other = network(), network()
    adapter = randomize(patch(model, targets, method))
    patched = output(model)
    weights = effective_weights(model)
    assert list(weights) == [name for name, _ in other.named_parameters()]
    torch.testing.assert_close(call(other, weights), patched, rtol=1e-12, atol=1e-12)
    of_other = torch.autograd.grad(call(other, weights).square().sum(), adapter.parameters())
    own = torch.autograd.grad(output(model).square().sum(), adapter.parameters())
    torch.testing.assert_close(of_other, own, rtol=1e-10, atol=1e-10)
    merged = dict(e3sparse.merge(model).named_parameters())
    for name, weight in weights.items():
        torch.testing.assert_close(weight, merged[name], rtol=1e-15, atol=0.0)


def test_several_adapters_some_merged_or_switched_off():
    model, other = network(), network()
    for number, targets in enumerate(TARGETS):
        randomize(patch(model, targets, name=f"a{number}"))
    adapters = e3sparse.adapters(model)
    for change in (
        lambda: adapters["a3"].merge(),
        lambda: setattr(adapters["a0"], "active", False),
        lambda: adapters["a4"].merge(),
        lambda: adapters["a1"].remove(),
    ):
        found = call(other, effective_weights(model))
        torch.testing.assert_close(found, output(model), rtol=1e-10, atol=1e-10)
        change()
    found = call(other, effective_weights(model))
    torch.testing.assert_close(found, output(model), rtol=1e-10, atol=1e-10)


def test_of_a_model_without_adapters_they_are_its_parameters():
    model = network()
    weights = effective_weights(model)
    assert all(weights[name] is parameter for name, parameter in model.named_parameters())
    adapter = patch(model, "linear")
    adapter.remove()
    assert effective_weights(model).keys() == weights.keys()
