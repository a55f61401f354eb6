"""Equivariance of modules: e3nn's own layers have it, and what is off by one entry has not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from e3nn import nn as enn
from e3nn import o3
from hypothesis import given, settings
from torch import nn

from e3sparse.errors import ConfigError
from e3sparse.layers.clebsch_gordan import recompute_wigner_3j
from e3sparse.symmetry import assert_equivariance, check_equivariance, layers
from e3sparse.symmetry.result import asserting


@settings(max_examples=10)
@given(layers())
def test_drawn_layers_of_e3nn_pass(layer):
    if layer.irreps_out.dim:
        assert_equivariance(layer)


@pytest.mark.parametrize(
    ("function", "irreps_in", "irreps_out", "holds"),
    [
        (lambda x: x.norm(dim=1, keepdim=True), "1o", "0e", True),
        (lambda x: x.abs(), "1o", "1o", False),
        (lambda x: x, "1o", "1e", False),
        (lambda x: x + 1e-6, "0o", "0o", False),
        (lambda x: x[:, [1, 0, 2]], "1o", "1o", False),
        (torch.linalg.cross, ["1o", "1o"], "1e", True),
        (torch.linalg.cross, ["1o", "1o"], "1o", False),
        (torch.linalg.cross, ["1e", "1e"], "1e", True),
    ],
    ids=["norm", "abs", "parity", "bias", "swap", "axial", "polar", "axial of axial"],
)
def test_functions(function, irreps_in, irreps_out, holds):
    result = check_equivariance(function, irreps_in, irreps_out, dtype=torch.float64)
    assert result.ok == holds
    if not holds:
        with pytest.raises(AssertionError, match="by = Orthogonal"):
            assert_equivariance(function, irreps_in, irreps_out, dtype=torch.float64)


def test_a_parity_error_shrinks_to_a_mirror_and_one_component():
    result = check_equivariance(lambda x: x, "2x1o", "2x1e", dtype=torch.float64)
    assert result.worst["by"].improper
    assert sorted(result.worst["x"][0]) == [0.0] * 5 + [1.0]


def test_the_gate_and_a_network_of_layers():
    gate = enn.Gate("4x0e", [torch.tanh], "2x0e", [torch.sigmoid], "2x1o")
    assert_equivariance(gate)
    net = nn.Sequential(o3.Linear("3x1o+2x0e", gate.irreps_in), gate).double()
    assert_equivariance(net, "3x1o+2x0e", gate.irreps_out)


def test_a_module_that_does_not_tell_its_irreps():
    with pytest.raises(ConfigError, match="Linear does not declare its irreps"):
        check_equivariance(nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("module", "irreps", "says"),
    [
        (o3.Linear("1o", "1o"), ("2x1o", "1o"), r"called with \(1, 6\), raised .*irreps_in"),
        (o3.Linear("1o", "1o"), ("1o", "2x1o"), r"returned \(1, 3\), expected \(1, 6\)"),
        (lambda x, species: x, ("1o", "1o"), r"The function, called with \(1, 3\), raised TypeErr"),
        (lambda x: (x, x), ("1o", "1o"), "returned a tuple"),
    ],
    ids=["another input", "another output", "more inputs", "no tensor"],
)
def test_what_cannot_be_called_is_refused_and_not_failed(module, irreps, says):
    with pytest.raises(ConfigError, match=says):
        check_equivariance(module, *irreps)


def test_what_the_module_raises_in_some_cases_is_a_failure():
    def raising(x):
        if (x == 1.0).any():
            raise ValueError("no ones")
        return x

    result = check_equivariance(raising, "1o", "1o")
    assert result.status == "failed"
    assert result.reason == "The model raised ValueError: no ones"


class Swapped(o3.Linear):
    """Swaps two components of every vector, which no rotation commutes with."""

    def forward(self, features, weight=None, bias=None):
        found = super().forward(features, weight, bias)
        return found[..., [1, 0, *range(2, found.shape[-1])]]


def of_channels(kind, **options):
    return kind("2x1o+0e", "2x1o+1x0e", f_in=3, f_out=2, **options)


LAYERS = {
    "tensor square": lambda: o3.TensorSquare("2x0e+1o"),
    "tensor square, weights outside": lambda: o3.TensorSquare(
        "2x0e+1o", "0e+1o+2e", internal_weights=False
    ),
    "linear, weights outside": lambda: o3.Linear("2x1o", "1o+0e", internal_weights=False),
    "linear, a weight for each row": lambda: o3.Linear(
        "2x1o", "3x1o", internal_weights=False, shared_weights=False
    ),
    "linear, bias outside": lambda: o3.Linear(
        "2x0e+1o", "3x0e+1o", internal_weights=False, biases=True
    ),
    "fctp, weights outside": lambda: o3.FullyConnectedTensorProduct(
        "2x1o", "1o+0e", "2x1e+0e", internal_weights=False
    ),
    "fctp, weights outside, one for each row": lambda: o3.FullyConnectedTensorProduct(
        "2x1o", "1o+0e", "2x1e+0e", internal_weights=False, shared_weights=False
    ),
    "linear with channels": lambda: of_channels(o3.Linear),
    "reduced products": lambda: o3.ReducedTensorProducts("ij=-ji", i="2x0e+1o"),
    "norm": lambda: o3.Norm("2x1o+0e"),
    "batch norm": lambda: enn.BatchNorm("2x0e+1o").eval(),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_layers_that_are_called_otherwise(name, dtype):
    layer = LAYERS[name]().to(dtype)
    result = check_equivariance(layer, examples=10)
    assert result.status == "passed", str(result)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("internal", [True, False])
def test_such_layers_fail_where_they_should(internal, dtype):
    plain = Swapped("2x1o", "2x1o", internal_weights=internal).to(dtype)
    assert check_equivariance(plain).status == "failed"
    if internal:
        assert check_equivariance(of_channels(Swapped).to(dtype)).status == "failed"


def test_coefficients_of_seven_digits_are_explained_and_not_failed():
    layer = o3.FullyConnectedTensorProduct("2x1o+2x2e", "1x1o+1x2e", "2x1o+2x2e").double()
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    lossy = check_equivariance(layer)
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())
    assert lossy.status == "passed"
    assert "7 digits of float32" in lossy.reason
    recompute_wigner_3j(layer)
    exact = check_equivariance(layer)
    assert exact.reason == ""
    assert exact.error < 1e-13 < exact.tolerance < lossy.error


def test_seven_digits_excuse_nothing_else():
    layer = o3.FullyConnectedTensorProduct("2x1o+2x2e", "1x1o+1x2e", "2x1o+2x2e").double()
    layer.register_forward_hook(lambda module, inputs, found: found + 1e-7)
    assert check_equivariance(layer).status == "failed"


def test_a_long_counterexample_is_cut_and_written_whole():
    swap = Swapped("60x1o+60x0e", "60x1o").double()
    result = check_equivariance(nn.Sequential(swap, nn.Identity()), "60x1o+60x0e", "60x1o")
    assert result.status == "failed"
    # A case that needs many numbers, whatever hypothesis shrinks this one to.
    result = replace(result, worst={"x": np.linspace(0, 1, 5000)})
    assert len(str(result)) < 3000
    with pytest.raises(AssertionError) as raised:
        asserting(lambda: result)()
    text = str(raised.value)
    assert len(text) < 3000
    written = Path(text.rpartition("the whole is in ")[2])
    names = {"np": np}
    exec(written.read_text(), names)
    written.unlink()
    np.testing.assert_array_equal(names["x"], np.linspace(0, 1, 5000))


def test_coefficients_of_another_convention_are_left_alone():
    layer = o3.FullyConnectedTensorProduct("1o", "1o", "1e").double()
    ((name, buffer),) = [(n, b) for n, b in layer.named_buffers() if "_w3j_" in n]
    with torch.no_grad():
        buffer.neg_()
    before = buffer.clone()
    recompute_wigner_3j(layer)
    assert torch.equal(dict(layer.named_buffers())[name], before)
