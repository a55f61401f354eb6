"""What torch makes of a patched model: exact, or the sentence that says to merge first."""

import e3nn
import e3nn.util.jit
import pytest
import torch
from e3nn import o3
from networks import (
    TARGETS,
    atoms,
    difference,
    explicit,
    forces,
    network,
    output,
    random_adapter,
    randomize,
)
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import e3sparse
from e3sparse.deltas import METHODS
from e3sparse.errors import PatchError

scripted_e3nn = pytest.mark.skipif(
    e3nn.__version__.startswith("0.4"), reason="e3nn 0.4 is TorchScript inside, which torch refuses"
)


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("script", [torch.jit.script, e3nn.util.jit.script, e3nn.util.jit.compile])
@pytest.mark.parametrize("path", ["embedding", "self_connection", "conv", "mixed", "radial"])
def test_torchscript_says_to_merge_first(path, script):
    model = network()
    layer = model.get_submodule(path)
    adapter = random_adapter(model)
    with pytest.raises(PatchError, match="merge the adapter first"):
        script(layer)
    with pytest.raises(PatchError, match="merge the adapter first"):
        script(nn.Sequential(layer))
    adapter.merge()
    script(layer)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("targets", TARGETS)
def test_a_trace_is_exact(targets):
    model = network()
    random_adapter(model, targets)
    positions, species = atoms()
    traced = torch.jit.trace(model, (positions, species), check_trace=False)
    assert difference(traced(0.9 * positions, species), model(0.9 * positions, species)) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_make_fx(method):
    model = network()
    random_adapter(model, "all", method)
    positions, species = atoms()

    def force(x):
        return -torch.autograd.grad(model(x, species), x, create_graph=True)[0]

    traced = make_fx(force)(positions.requires_grad_())
    moved = (0.9 * positions).detach().requires_grad_()
    torch.testing.assert_close(traced(moved), force(moved), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(forces(network())[1], forces(model)[1])


@pytest.mark.parametrize("method", METHODS)
def test_a_recorded_forward_pass_has_the_gradients_of_the_model(method):
    model = network().radial
    adapter = e3sparse.patch(model, "mlp", method)
    randomize(adapter)
    if method == "budget":  # with pruned entries, which have a gradient all the same
        adapter.step(1.0)
        randomize(adapter)
        assert adapter.sparsity().layerwise > 0.9
    x = torch.randn(5, 4, dtype=torch.float64)
    state = dict(model.named_parameters()) | dict(model.named_buffers())

    def call(state, x):
        return functional_call(model, state, (x,))

    recorded = make_fx(call)({k: v.detach() for k, v in state.items()}, x)
    again = torch.compile(recorded, backend="aot_eager")
    trainable = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(model(x).square().sum(), trainable)
    for run in (recorded, again):
        gradients = torch.autograd.grad(run(state, x).square().sum(), trainable)
        for gradient, reference in zip(gradients, expected, strict=True):
            assert gradient.any()
            torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-10)


def test_functional_call_exchanges_weights_and_deltas():
    model, other = network(), network()
    random_adapter(model)
    positions, species = atoms()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    adapter = random_adapter(other, seed=4)
    exchanged = dict(other.named_parameters())
    says = functional_call(model, exchanged, (positions, species))
    assert torch.equal(says, other(positions, species))
    assert difference(says, model(positions, species)) > 0.1
    weight = other.embedding._parameters["weight"]
    only = functional_call(model, {"embedding.weight": weight}, (positions, species))
    values = e3sparse.get_adapter(model, "default").values()
    base = network()
    base.embedding.weight = weight
    assert difference(only, explicit(values, base=base)(positions, species)) < 1e-12
    assert adapter.active


@pytest.mark.parametrize("method", METHODS)
def test_gradients_per_sample(method):
    model = network().radial
    adapter = e3sparse.patch(model, "mlp", method)
    randomize(adapter)
    x = torch.randn(5, 4, dtype=torch.float64)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def loss(parameters, sample):
        return functional_call(model, parameters, (sample,)).square().sum()

    together = vmap(grad(loss), in_dims=(None, 0))(trainable, x)
    for k, sample in enumerate(x):
        alone = torch.autograd.grad(loss({}, sample), list(trainable.values()))
        for gradient, expected in zip(together.values(), alone, strict=True):
            torch.testing.assert_close(gradient[k], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_compile_in_one_graph(method):
    model = network().radial
    x = torch.randn(5, 4, dtype=torch.float64)
    base = model(x)
    adapter = randomize(e3sparse.patch(model, "mlp", method))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert difference(compiled(x), model(x)) < 1e-12
    grads = torch.autograd.grad(compiled(x).square().sum(), adapter.parameters())
    expected = torch.autograd.grad(model(x).square().sum(), adapter.parameters())
    for gradient, reference in zip(grads, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-10)
    with adapter.disabled():
        assert torch.equal(compiled(x), base)
    assert difference(compiled(x), base) > 1e-2


@scripted_e3nn
def test_compile_of_every_kind_in_one_graph():
    model = network()
    random_adapter(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    positions, species = atoms()
    assert difference(compiled(positions, species), model(positions, species)) < 1e-12


def test_compile_with_graph_breaks():
    model = network()
    adapter = random_adapter(model, ["embedding", "conv"], "budget")
    positions, species = atoms()
    base = network()(positions, species)
    compiled = torch.compile(model, backend="eager")
    assert difference(compiled(positions, species), model(positions, species)) < 1e-12
    with adapter.disabled():
        assert difference(compiled(positions, species), base) < 1e-12
    assert difference(compiled(positions, species), base) > 1e-2


@scripted_e3nn
def test_export():
    model = network()
    random_adapter(model)
    example = atoms()
    exported = torch.export.export(model, example, strict=False).module()
    moved = (0.9 * example[0], example[1])
    assert difference(exported(*moved), model(*moved)) < 1e-12


def test_a_list_of_weights_is_reweighted():
    # e3nn's forward takes the weights of each path apart as well.
    paths = [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True)]
    conv = o3.TensorProduct("2x0e", "1x0e+1x1o", "2x0e+2x1o", paths, internal_weights=False)
    model = nn.ModuleDict({"conv": conv, "other": nn.Linear(1, 1)})
    x, y, w = torch.randn(3, 2), torch.randn(3, 4), torch.randn(4)
    randomize(e3sparse.patch(model, "tp", "dense"))
    parts = [w[:2].reshape(2, 1), w[2:].reshape(2, 1)]
    assert torch.equal(conv(x, y, parts), conv(x, y, w))


def test_gradients_are_off_where_they_are_off():
    model = network()
    random_adapter(model)
    with torch.inference_mode():
        inside = model.features(*atoms())
    assert torch.equal(inside, output(model))
    assert model(*atoms()).requires_grad
