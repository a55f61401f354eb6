"""`adapter.scale = s`: the model works with W + s·ΔW, whatever the layer kind and the method."""

import copy
import json
import math

import pytest
import torch
from folders import load
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import (
    FOLD_INTO,
    SPECIES,
    TARGETS,
    atoms,
    difference,
    network,
    output,
    random_adapter,
    snapshot,
    weights,
)
from torch.func import functional_call

import e3sparse
from e3sparse.adapter.config import read_config
from e3sparse.adapter.file import read_values
from e3sparse.deltas import METHODS
from e3sparse.errors import ConfigError, PatchError
from e3sparse.layers.injection import cached

scales = st.floats(-2, 2, allow_nan=False)
ROUNDING = 1e-12


def state(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def interpolated(ends, scale):
    """Return a model whose weights lie between those of two, formed without e3sparse."""
    model = network()
    one, two = ends
    model.load_state_dict({n: one[n] + scale * (two[n] - one[n]) for n in one}, strict=False)
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("targets", TARGETS[:-1])
@settings(max_examples=4)
@given(scale=scales)
def test_it_is_an_interpolation_of_weights(method, targets, scale):
    # Not "all" at once: a weight that one delta is added to and another reweights is a product.
    model = network()
    base = state(model)
    adapter = random_adapter(model, targets, method)
    adapter.merge()
    expected = interpolated((base, state(model)), scale)
    adapter.attach()
    adapter.scale = scale
    assert difference(output(model), output(expected)) < ROUNDING
    adapter.merge()
    for name, value in state(model).items():
        torch.testing.assert_close(value, state(expected)[name], rtol=ROUNDING, atol=ROUNDING)


def test_control_at_another_scale_the_weights_are_others():
    model = network()
    adapter = random_adapter(model)
    whole = output(model)
    adapter.scale = 0.7
    assert difference(output(model), whole) > 1e-3


def test_at_one_nothing_is_different_to_the_bit_and_at_zero_it_is_the_base():
    model = network()
    base, adapter = output(model), random_adapter(model)
    whole = output(model)
    adapter.scale = 0.5
    adapter.scale = 1.0
    assert torch.equal(output(model), whole)
    adapter.scale = 0
    assert torch.equal(output(model), base)
    assert adapter.sparsity().updated == 0
    adapter.merge()
    assert weights(model) == weights(network())


@given(scales, scales)
@settings(max_examples=10)
def test_several_adapters_have_a_scale_each(first, second):
    model = network()
    one = random_adapter(model, "linear", name="one")
    two = random_adapter(model, "linear", name="two", seed=3)
    plain = state(network())
    added = [{p: v.clone() for p, v in a.values().items()} for a in (one, two)]
    one.scale, two.scale = first, second
    e3sparse.merge(model)
    for path in added[0]:
        expected = plain[f"{path}.weight"] + first * added[0][path] + second * added[1][path]
        now = model.state_dict()[f"{path}.weight"]
        torch.testing.assert_close(now, expected, rtol=ROUNDING, atol=ROUNDING)


def test_restoring_gives_the_base_to_the_bit_and_the_scale_stays():
    model = network()
    before = snapshot(model)
    adapter = random_adapter(model)
    adapter.scale = 0.3
    scaled = output(model)
    adapter.merge()
    assert difference(output(model), scaled) < ROUNDING
    adapter.restore()
    assert snapshot(model) == before
    adapter.scale = 0.3  # while it is taken out, too
    adapter.attach()
    assert torch.equal(output(model), scaled)


def test_a_copy_has_a_scale_of_its_own():
    model = network()
    adapter = random_adapter(model)
    adapter.scale = 0.5
    half = output(model)
    twin = copy.deepcopy(model)
    e3sparse.get_adapter(twin, "default").scale = 0.25
    assert torch.equal(output(model), half)
    assert not torch.equal(output(twin), half)


def test_a_merged_adapter_is_not_scaled():
    adapter = random_adapter(network())
    adapter.merge()
    with pytest.raises(PatchError, match=r"merged at a scale of 1: restore\(\)"):
        adapter.scale = 0.5


@pytest.mark.parametrize("wrong", [math.nan, math.inf, "0.5", None, True])
def test_a_scale_is_a_number(wrong):
    adapter = random_adapter(network())
    with pytest.raises(ConfigError, match="finite number, not"):
        adapter.scale = wrong
    assert adapter.scale == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_folder_keeps_it(method, tmp_path):
    model = network()
    adapter = random_adapter(model, "all", method)
    adapter.save_pretrained(tmp_path / "whole")
    adapter.scale = 0.7
    adapter.save_pretrained(tmp_path / "scaled")
    fresh = network()
    loaded = e3sparse.load(fresh, tmp_path / "scaled", species=SPECIES, fold_into=FOLD_INTO)
    assert loaded.scale == 0.7
    assert torch.equal(output(fresh), output(model))
    for path, value in read_values(tmp_path / "scaled").items():
        torch.testing.assert_close(value, adapter.values()[path], rtol=ROUNDING, atol=0)
    # What is stored is ΔW: the scale can be set anew without a loss.
    loaded.scale = 1.0
    adapter.scale = 1.0
    assert torch.equal(output(fresh), output(model))
    assert "| scale | 0.7," in (tmp_path / "scaled" / "README.md").read_text()
    assert "| scale |" not in (tmp_path / "whole" / "README.md").read_text()


def test_only_a_scaled_folder_is_of_the_newer_format(tmp_path):
    """An older e3sparse would leave the scale out; what it can read, it reads."""
    adapter = random_adapter(network())
    adapter.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (said["format_version"], "scale" in said) == (2, False)
    assert read_config(tmp_path).scale == 1
    assert load(network(), tmp_path).scale == 1
    adapter.scale = -0.5
    adapter.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (said["format_version"], said["scale"]) == (3, -0.5)


def test_the_gradient_is_that_of_the_scaled_model():
    model = network()
    adapter = random_adapter(model, "linear")
    adapter.scale = 0.5
    held = adapter.parameters()
    found = torch.autograd.grad(model.features(*atoms()).square().sum(), held)
    base = dict(network().named_parameters())
    values = {f"{path}.weight": delta() for path, delta in adapter.deltas().items()}
    moved = {name: base[name].detach() + 0.5 * value for name, value in values.items()}
    features = functional_call(
        _Features(network()), {f"model.{n}": w for n, w in moved.items()}, ()
    )
    expected = torch.autograd.grad(features.square().sum(), held)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_sums_that_are_kept_for_a_step_follow_it():
    model = network()
    adapter = random_adapter(model)
    with cached():
        whole = output(model)
        adapter.scale = 0.5
        half = output(model)
    assert not torch.equal(whole, half)
    assert torch.equal(output(model), half)


class _Features(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self):
        return self.model.features(*atoms())
