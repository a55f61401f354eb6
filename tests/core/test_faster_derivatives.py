"""Layers that are differentiated faster are the same layers, to the bit."""

import copy
import pickle

import e3nn
import pytest
import torch
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import e3sparse
from e3sparse.layers.faster_products import Acceleration, cut_at_once

irreps = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from(["0e", "0o", "1o", "1e", "2e"])),
    min_size=1,
    max_size=3,
).map(lambda parts: o3.Irreps([(n, o3.Irrep(ir)) for n, ir in parts]))


@pytest.fixture(autouse=True, scope="module")
def not_scripted():
    """Frameworks that train in eager mode leave e3nn's code as a graph."""
    before = e3nn.get_optimization_defaults()
    e3nn.set_optimization_defaults(jit_script_fx=False)
    yield
    e3nn.set_optimization_defaults(**before)


def uvu(irreps_in, attributes):
    """Return a tensor product as in a convolution: every path to an output of its own."""
    out, instructions = [], []
    for i, (mul, ir) in enumerate(irreps_in):
        for j, (_, other) in enumerate(attributes):
            for k in ir * other:
                instructions.append((i, j, len(out), "uvu", True))
                out.append((mul, k))
    return o3.TensorProduct(
        irreps_in, attributes, o3.Irreps(out), instructions, shared_weights=False,
        internal_weights=False,
    )  # fmt: skip


def derivatives(layer, dtype, seed=0):
    """Return outputs, first derivatives, and derivatives of a function of those."""
    generator = torch.Generator().manual_seed(seed)
    dims = (layer.irreps_in1.dim, layer.irreps_in2.dim, layer.weight_numel)
    inputs = [torch.randn(5, n, generator=generator, dtype=dtype) for n in dims]
    inputs = [x.requires_grad_() for x in inputs]
    out = layer(*inputs)
    first = torch.autograd.grad(out.sin().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    return [out, *first, *second]


def same(these, those):
    return all(torch.equal(a, b) for a, b in zip(these, those, strict=True))


@given(irreps, st.sampled_from(["0e + 1o", "0e + 1o + 2e", "1o"]), st.integers(0, 99))
def test_values_and_derivatives_are_the_same_to_the_bit(irreps_in, attributes, seed):
    layer = uvu(irreps_in, o3.Irreps(attributes)).double()
    plain = derivatives(layer, torch.float64, seed)
    with Acceleration(layer)():
        assert same(derivatives(layer, torch.float64, seed), plain)
    assert same(derivatives(layer, torch.float64, seed), plain)


@pytest.mark.parametrize(
    "make",
    [
        lambda: o3.FullyConnectedTensorProduct("3x0e + 2x1o", "4x0e", "2x0e + 2x1o"),
        lambda: o3.ElementwiseTensorProduct("2x0e + 1x1o", "2x0e + 1x0e"),
        lambda: o3.FullTensorProduct("2x0e + 1x1o", "1x0e + 1x1o"),
        lambda: o3.TensorSquare("2x0e + 1x1o"),
        lambda: o3.Linear("3x0e + 2x1o", "2x0e + 2x1o + 1x0e"),
    ],
)
def test_other_layers_are_the_same(make):
    layer = make()
    dims = [getattr(layer, n).dim for n in ("irreps_in1", "irreps_in2") if hasattr(layer, n)]
    dims = dims[:1] if isinstance(layer, o3.TensorSquare) else dims or [layer.irreps_in.dim]
    inputs = [torch.randn(4, n, requires_grad=True) for n in dims]

    def found():
        out = layer(*inputs)
        first = torch.autograd.grad(out.sin().sum(), inputs, create_graph=True)
        return [out, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), inputs)]

    plain = found()
    with Acceleration(layer)():
        assert same(found(), plain)


def operations(tensor):
    """Return the names of the operations behind a tensor."""
    seen, queue = set(), [tensor.grad_fn]
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            queue += [parent for parent, _ in node.next_functions]
    return {node.name() for node in seen}


def test_no_slice_is_left_to_be_differentiated():
    layer = uvu(o3.Irreps("2x0e + 2x1o"), o3.Irreps("0e + 1o"))
    assert "SliceBackward0" in operations(
        sum(d.sum() for d in derivatives(layer, torch.float32)[:4])
    )
    with Acceleration(layer)():
        left = operations(sum(d.sum() for d in derivatives(layer, torch.float32)[:4]))
    assert "SplitWithSizesBackward0" in left
    assert "SliceBackward0" not in left


def test_the_model_is_as_it_was_also_after_an_error():
    layer = uvu(o3.Irreps("2x0e + 2x1o"), o3.Irreps("0e + 1o"))
    graphs = [m for m in layer.modules() if isinstance(m, fx.GraphModule)]
    before = [dict(m.__dict__) for m in graphs]
    with Acceleration(layer)():
        assert any("forward" in m.__dict__ for m in graphs)
    with pytest.raises((RuntimeError, AssertionError)), Acceleration(layer)():
        layer(torch.randn(2, 3), torch.randn(2, 3), torch.randn(2, 3))
    assert [m.__dict__.keys() for m in graphs] == [b.keys() for b in before]


def test_the_code_follows_the_module_to_another_precision():
    layer = uvu(o3.Irreps("2x0e + 2x1o"), o3.Irreps("0e + 1o"))
    acceleration = Acceleration(layer)
    with acceleration():
        derivatives(layer, torch.float32)
    layer.double()
    plain = derivatives(layer, torch.float64)
    with acceleration():
        assert same(derivatives(layer, torch.float64), plain)


@pytest.mark.parametrize("through", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_belong_to_the_copied_model(through):
    layer = nn.ModuleList([uvu(o3.Irreps("2x0e + 2x1o"), o3.Irreps("0e + 1o"))])
    acceleration = Acceleration(layer)
    with acceleration():
        pass
    copied = through(acceleration)
    assert copied.model is not layer
    plain = derivatives(copied.model[0], torch.float32)
    with copied():
        assert same(derivatives(copied.model[0], torch.float32), plain)


def test_a_patched_layer_is_the_same():
    model = nn.ModuleList([uvu(o3.Irreps("2x0e + 2x1o"), o3.Irreps("0e + 1o"))]).double()
    adapter = e3sparse.patch(model, "tp", "dense", fold_into={"0": "radial"})
    for parameter in adapter.parameters():
        parameter.data.normal_()
    plain = derivatives(model[0], torch.float64)
    with Acceleration(model)():
        assert same(derivatives(model[0], torch.float64), plain)


def test_a_trace_of_the_forward_pass_keeps_the_gradient():
    layer = uvu(o3.Irreps("2x0e + 2x1o"), o3.Irreps("0e + 1o"))
    inputs = [torch.randn(5, n) for n in (8, 4, layer.weight_numel)]
    with Acceleration(layer)():
        traced = make_fx(lambda *x: layer(*x))(*inputs)
    found = []
    for function in (layer, traced):
        leaves = [x.clone().requires_grad_() for x in inputs]
        found.append(torch.autograd.grad(function(*leaves).sin().sum(), leaves))
    for plain, kept in zip(*found, strict=True):
        torch.testing.assert_close(plain, kept)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.reshape(-1, 6)[:, 0:4] * x.reshape(-1, 6)[:, 2:6],
        lambda x: (y := x.reshape(-1, 6))[:, 0:4] * y[:, 2:6],
        lambda x: (y := x.reshape(-1, 6))[:, 0:4:2] * y[:, 2:4],
        lambda x: torch.cat([x, x], dim=0),
        lambda x: x.reshape(-1, 6)[:, 0:3],
    ],
)
def test_what_does_not_fit_is_left(function):
    assert cut_at_once(fx.symbolic_trace(function)) is None
