"""Equivariance of modules: e3nn's own layers have it, and what is off by one entry has not."""

import pytest
import torch
from e3nn import nn as enn
from e3nn import o3
from hypothesis import given, settings
from torch import nn

from e3sparse.errors import ConfigError
from e3sparse.layers.clebsch_gordan import recompute_wigner_3j
from e3sparse.symmetry import assert_equivariance, check_equivariance, layers


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


def test_what_the_module_raises_is_a_failure():
    result = check_equivariance(o3.Linear("1o", "1o"), "2x1o", "1o")
    assert result.status == "failed"
    assert result.reason.startswith("The model raised")


def test_coefficients_in_the_precision_of_the_model():
    layer = o3.FullyConnectedTensorProduct("2x1o+2x2e", "1x1o+1x2e", "2x1o+2x2e").double()
    lossy = check_equivariance(layer)
    recompute_wigner_3j(layer)
    exact = check_equivariance(layer)
    assert exact.error < 1e-13 < 1e-10 < lossy.error


def test_coefficients_of_another_convention_are_left_alone():
    layer = o3.FullyConnectedTensorProduct("1o", "1o", "1e").double()
    ((name, buffer),) = [(n, b) for n, b in layer.named_buffers() if "_w3j_" in n]
    with torch.no_grad():
        buffer.neg_()
    before = buffer.clone()
    recompute_wigner_3j(layer)
    assert torch.equal(dict(layer.named_buffers())[name], before)
