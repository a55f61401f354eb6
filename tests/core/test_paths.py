"""Blocks are e3nn's own views of the flat weight, for every layer kind and connection mode."""

from itertools import islice, pairwise

import pytest
import torch
from e3nn import nn as enn
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from e3sparse.adapter.targets import candidates
from e3sparse.layers.kinds import KINDS, LayerKind, kind_of, register_kind
from e3sparse.layers.layouts import Block, Layout
from e3sparse.symmetry.layers import CONNECTIONS, irreps, tensor_products

UNCOMPILED = {"compile_left_right": False}


def layout_of(layer):
    return kind_of(layer).layout(layer)


def passed_over(layer):
    found = candidates(nn.ModuleDict({"layer": layer}))
    assert not found.layers
    return [skip.reason for skip in found.skipped if skip.path == "layer"]


def assert_views_agree(layer, layout, operands):
    """Compare with the views that e3nn yields; views of no weights are left out."""
    weight = torch.arange(layout.numel).reshape(layout.shape)
    given = weight if layer.shared_weights else weight[None]
    paths = sum(getattr(ins, "i_in", 0) != -1 for ins in layer.instructions)  # biases come last
    theirs = [
        (ins, view if layer.shared_weights else view[0])
        for _, ins, view in islice(layer.weight_views(given, yield_instruction=True), paths)
        if view.numel()
    ]
    ours = list(layout.views(weight))
    assert len(ours) == len(theirs)
    for (block, view), (ins, expected) in zip(ours, theirs, strict=True):
        assert view.shape == expected.shape
        assert torch.equal(view, expected)
        assert block.path_weight == pytest.approx(ins.path_weight)
        assert (block.irreps_in, block.irreps_in2, block.irreps_out) == operands(ins)
    seen = torch.cat([view.reshape(*layout.lead, -1) for _, view in ours], dim=-1)
    assert torch.equal(seen.reshape(layout.shape), weight)


@given(irreps(), irreps(), st.booleans(), st.sampled_from([None, (2, 3)]))
def test_linear(one, out, biases, channels):
    f_in, f_out = channels or (None, None)
    # e3nn 0.4.4 cannot build a bias on an output that no input reaches.
    reached = {ir for mul, ir in one if mul}
    biased = [biases and ir.is_scalar() and ir in reached for _, ir in out]
    layer = o3.Linear(one, out, biases=biased, f_in=f_in, f_out=f_out)
    if layer.weight_numel == 0:
        assert passed_over(layer) == ["it has no weights"]
        return
    layout = layout_of(layer)
    assert layout.shape == tuple(layer.weight.shape)
    ends = layer.irreps_in, layer.irreps_out
    assert_views_agree(
        layer, layout, lambda ins: (str(ends[0][ins.i_in]), None, str(ends[1][ins.i_out]))
    )


def assert_tensor_product_agrees(layer, kind):
    layout = layout_of(layer)
    assert layout.kind == kind
    assert layout.parameter == ("weight" if layer.internal_weights else None)
    assert_views_agree(
        layer,
        layout,
        lambda i: (
            str(layer.irreps_in1[i.i_in1]),
            str(layer.irreps_in2[i.i_in2]),
            str(layer.irreps_out[i.i_out]),
        ),
    )


@pytest.mark.parametrize("mode", CONNECTIONS)
@given(data=st.data())
def test_tensor_product(mode, data):
    layer = data.draw(tensor_products(mode, **UNCOMPILED))
    if layer.weight_numel == 0:
        assert passed_over(layer) == ["it has no weights"]
        return
    assert_tensor_product_agrees(layer, "tp")


@given(irreps(), irreps(), irreps())
def test_fully_connected_tensor_product(one, two, out):
    layer = o3.FullyConnectedTensorProduct(one, two, out, **UNCOMPILED)
    if layer.weight_numel == 0:
        assert passed_over(layer) == ["it has no weights"]
        return
    assert_tensor_product_agrees(layer, "fctp")


@given(irreps(), irreps())
def test_tensor_square(one, out):
    layer = o3.TensorSquare(one, out, **UNCOMPILED)
    if layer.weight_numel == 0:
        assert passed_over(layer) == ["it has no weights"]
        return
    assert_tensor_product_agrees(layer, "tp")


@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=4),
    st.booleans(),
    st.floats(0.1, 4.0),
    st.floats(0.1, 4.0),
)
def test_fully_connected_net(sizes, out_act, variance_in, variance_out):
    net = enn.FullyConnectedNet(sizes, torch.tanh, variance_in, variance_out, out_act).double()
    for layer, shape in zip(net, pairwise(sizes), strict=True):
        layout = layout_of(layer)
        (block,) = layout.blocks
        assert layout.shape == block.shape == shape
        assert (block.irreps_in, block.irreps_out) == (f"{shape[0]}x0e", f"{shape[1]}x0e")
        x = torch.randn(3, shape[0], dtype=torch.float64)
        ((_, weight),) = layout.views(layer.weight)
        expected = x @ (block.path_weight * weight)
        if layer.act is not None:
            expected = layer.act(expected) * layer.var_out**0.5
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def parametrized():
    layer = o3.Linear("2x0e", "2x0e")
    return nn.utils.parametrize.register_parametrization(layer, "weight", nn.Identity())


def with_forward_of_its_own():
    layer = o3.Linear("2x0e", "2x0e")
    layer.forward = lambda features: features
    return layer


def with_a_buffer_for_weight():
    layer = o3.Linear("2x0e", "2x0e")
    weight = layer.weight.detach()
    del layer.weight
    layer.register_buffer("weight", weight)
    return layer


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: o3.Linear("2x0e", "2x1o"), "no weights"),
        (lambda: o3.ElementwiseTensorProduct("2x1o", "2x1o"), "no weights"),
        (lambda: o3.FullTensorProduct("2x1o", "2x1o"), "no weights"),
        (lambda: o3.TensorSquare("2x1o"), "no weights"),
        (lambda: o3.Linear("2x0e", "2x0e", internal_weights=False), "come from outside"),
        (lambda: torch.jit.script(o3.Linear("2x0e", "2x0e")), "TorchScript"),
        (with_forward_of_its_own, "forward of its own"),
        (parametrized, "parametrize"),
        (with_a_buffer_for_weight, "not a parameter of its own"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_passed_over_and_why(make, reason):
    (said,) = passed_over(make())
    assert reason in said


class Subclass(o3.Linear):
    """As SevenNet and MACE have them."""


def class_in_a_package(name, qualified, *bases):
    return type(name, (*bases, nn.Module), {"__module__": qualified, "__init__": lambda s: None})


@pytest.mark.parametrize(
    ("cls", "kind"),
    [
        (o3.Linear, "linear"),
        (Subclass, "linear"),
        (o3.FullyConnectedTensorProduct, "fctp"),
        (o3.TensorProduct, "tp"),
        (o3.TensorSquare, "tp"),
        (class_in_a_package("Linear", "<torch_package_0>.e3nn.o3._linear"), "linear"),
        (class_in_a_package("_Layer", "<torch_package_17>.e3nn.nn._fc"), "mlp"),
        (class_in_a_package("Linear", "elsewhere.e3nn.o3._linear"), None),
        (nn.Linear, "mlp"),
        (nn.Bilinear, None),
    ],
)
def test_kinds_are_found_by_qualified_name(cls, kind):
    found = kind_of(cls.__new__(cls))
    assert (found and found.name) == kind


def test_a_class_that_is_named_twice_belongs_to_the_kind_named_last():
    block = Block("4x0e", None, "3x0e", (4, 3), 0, 1.0)
    layout = Layout("dense", "weight", "4x0e", None, "3x0e", (3, 4), (block,))
    name = "torch.nn.modules.linear.Bilinear"
    register_kind(LayerKind("dense", (name,), lambda _: layout))
    assert kind_of(nn.Bilinear(4, 3, 2)).name == "dense"
    try:
        other = LayerKind("other", (name,), lambda _: layout)
        register_kind(other)
        assert kind_of(nn.Bilinear(4, 3, 2)) is other
    finally:
        del KINDS[name]
    assert kind_of(nn.Bilinear(4, 3, 2)) is None


def used_weights(layer, *inputs):
    (grad,) = torch.autograd.grad(layer(*inputs).sum(), layer.weight)
    return grad != 0


@given(st.integers(1, 4), st.data())
def test_species_rows_are_the_weights_that_the_species_reach(number, data):
    chosen = data.draw(st.lists(st.integers(0, number - 1), unique=True))
    embedding = o3.Linear(f"{number}x0e", "3x0e+2x0e")
    mixing = o3.FullyConnectedTensorProduct("2x0e+2x1o", f"{number}x0e", "3x0e+2x1o")
    for layer, axis, features in ((embedding, 0, []), (mixing, 1, [torch.rand(1, 8) + 1])):
        layout = layout_of(layer).with_species(axis, number)
        used = torch.zeros_like(layer.weight, dtype=torch.bool)
        for index in chosen:
            used |= used_weights(layer, *features, torch.eye(number)[[index]])
        assert torch.equal(layout.species_rows(chosen), used)
        assert layout_of(layer).species_rows(chosen) is None
