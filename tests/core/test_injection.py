"""A patched layer copies, pickles and keeps its state dict as it did before."""

import copy
import io

import pytest
import torch
from e3nn import o3
from networks import (
    TARGETS,
    atoms,
    difference,
    forces,
    network,
    output,
    patch,
    random_adapter,
    randomize,
    snapshot,
    with_deltas,
)
from torch import nn

import e3sparse
from e3sparse.deltas import METHODS
from e3sparse.layers.injection import SUBMODULE, patched_class
from e3sparse.layers.kinds import KINDS, LayerKind, register_kind
from e3sparse.layers.layouts import Block, Layout


def force_loss(energy, force):
    return (energy - 1.0) ** 2 + (force - 0.5).square().sum()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("targets", TARGETS)
def test_double_backward(targets, method):
    model, base = network(), network()
    adapter = random_adapter(model, targets, method)
    energy, force = forces(model)
    grads = torch.autograd.grad(force_loss(energy, force), adapter.parameters())

    positions, species = atoms()
    positions.requires_grad_()
    values = {path: delta() for path, delta in adapter.deltas().items()}
    parameters = with_deltas(dict(base.named_parameters()), values)
    expected = torch.func.functional_call(base, parameters, (positions, species))
    expected_force = -torch.autograd.grad(expected, positions, create_graph=True)[0]
    loss = force_loss(expected, expected_force)
    expected_grads = torch.autograd.grad(loss, adapter.parameters())
    assert difference(force, expected_force) < 1e-12
    for grad, reference in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, reference, rtol=1e-9, atol=1e-9 * float(loss))
    assert any(grad.abs().max() > 0 for grad in grads)


def copied_by_deepcopy(model):
    return copy.deepcopy(model)


def copied_by_pickle(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copied_by_deepcopy, copied_by_pickle])
@pytest.mark.parametrize("method", METHODS)
def test_copies_are_patched_and_independent(copied, method):
    model = network()
    random_adapter(model, "all", method)
    base, patched = output(network()), output(model)
    twin = copied(model)
    assert torch.equal(output(twin), patched)
    e3sparse.merge(twin)
    assert difference(output(twin), patched) < 1e-12
    assert torch.equal(output(model), patched)
    e3sparse.get_adapter(model, "default").remove()
    assert torch.equal(output(model), base)
    assert difference(output(twin), patched) < 1e-12


@pytest.mark.parametrize("copied", [copied_by_deepcopy, copied_by_pickle])
def test_a_copy_can_be_trained_apart(copied):
    model = network()
    random_adapter(model)
    patched = output(model)
    twin = copied(model)
    randomize(e3sparse.get_adapter(twin, "default"), seed=9)
    assert torch.equal(output(model), patched)
    assert difference(output(twin), patched) > 1e-2


@pytest.mark.parametrize("copied", [copied_by_deepcopy, copied_by_pickle])
def test_copies_of_a_merged_model_are_ordinary(copied):
    model = network()
    random_adapter(model).merge()
    twin = copied(model)
    assert not e3sparse.adapters(twin)
    assert [type(m) for m in twin.children()] == [type(m) for m in network().children()]
    for (name, parameter), (own, expected) in zip(
        twin.named_parameters(), model.named_parameters(), strict=True
    ):
        assert name == own
        assert torch.equal(parameter, expected)
        assert parameter.requires_grad == expected.requires_grad


def test_base_state_dict_keys_are_kept_in_order():
    model = network()
    keys = list(model.state_dict())
    patch(model)
    patched = list(model.state_dict())
    assert [key for key in patched if f".{SUBMODULE}." not in key] == keys
    assert len(patched) > len(keys)
    report = model.load_state_dict(network().state_dict(), strict=False)
    assert not report.unexpected_keys
    assert all(f".{SUBMODULE}." in key for key in report.missing_keys)


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_of_a_patched_model_goes_on_where_it_stopped(method):
    model, fresh = network(), network()
    random_adapter(model, "all", method)
    patch(fresh, "all", method, seed=1)
    assert not torch.equal(output(fresh), output(model))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(output(fresh), output(model))


class Scaled(o3.Linear):
    """A subclass with a forward of its own, as frameworks have them."""

    def forward(self, features):
        return 3 * super().forward(features)


@pytest.mark.parametrize("make", [Scaled, o3.Linear])
def test_a_class_from_elsewhere_is_itself_while_patched_and_after(make):
    model = nn.ModuleDict({"layer": make("2x0e+2x1o", "2x0e+2x1o")})
    layer, x = model["layer"], torch.randn(3, 8)
    before, base = snapshot(model), layer(x)
    adapter = e3sparse.patch(model, "linear", "dense")
    assert isinstance(layer, make)
    assert type(layer) is not make
    assert type(layer).__module__ == make.__module__
    assert torch.equal(layer(x), base)
    randomize(adapter)
    patched = layer(x)
    assert not torch.allclose(patched, base)
    assert torch.equal(copied_by_pickle(model)["layer"](x), patched)
    adapter.remove()
    assert type(layer) is make
    assert snapshot(model) == before
    assert torch.equal(layer(x), base)


def test_one_patched_class_for_each_class():
    model = network()
    adapter = patch(model)
    assert type(model.embedding) is type(model.readout) is patched_class(o3.Linear, "weight")
    assert type(model.conv) is not type(model.mixed)
    assert type(model.conv) is patched_class(o3.TensorProduct, None)
    second = patch(model, name="second")
    assert type(model.embedding) is patched_class(o3.Linear, "weight")
    adapter.remove()
    assert type(model.embedding) is patched_class(o3.Linear, "weight")
    second.remove()
    assert type(model.embedding) is o3.Linear


class Contracter(nn.Module):
    """A layer of no e3nn class, whose tensor is not called `weight`."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(2, 3))

    def forward(self, x):
        return x @ self.weights


@pytest.fixture
def contracter_kind():
    def layout(layer):
        block = Block("2x0e", None, "3x0e", (2, 3), 0, 1.0)
        return Layout("contracter", "weights", "2x0e", None, "3x0e", (2, 3), (block,))

    name = f"{Contracter.__module__}.{Contracter.__qualname__}"
    register_kind(LayerKind("contracter", (name,), layout))
    yield
    del KINDS[name]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("contracter_kind")
def test_a_registered_kind_with_a_weight_of_another_name(method, tmp_path):
    model = nn.Sequential(Contracter())
    fresh = copy.deepcopy(model)
    x, before = torch.randn(4, 2), snapshot(model)
    base = model(x)
    adapter = randomize(e3sparse.patch(model, "contracter", method))
    patched = model(x)
    adapter.save_pretrained(tmp_path)
    e3sparse.load(fresh, tmp_path)
    assert torch.equal(fresh(x), patched)
    assert torch.equal(adapter.merge()(x), patched)
    assert torch.equal(patched, base) == (adapter.sparsity().updated == 0)
    adapter.restore()
    assert snapshot(model) == before


def test_a_layer_may_be_the_whole_model(tmp_path):
    layer, fresh = o3.Linear("2x0e", "3x0e"), o3.Linear("2x0e", "3x0e")
    fresh.load_state_dict(layer.state_dict())
    x, before = torch.randn(4, 2), snapshot(layer)
    adapter = randomize(e3sparse.patch(layer, "linear", "dense"))
    patched = layer(x)
    adapter.save_pretrained(tmp_path)
    e3sparse.load(fresh, tmp_path)
    assert torch.equal(fresh(x), patched)
    assert torch.equal(adapter.merge()(x), patched)
    adapter.restore()
    assert snapshot(layer) == before


def test_base_weights_can_be_exchanged_while_patched():
    model, other = network(), network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    adapter = random_adapter(model)
    before = output(model)
    model.load_state_dict(other.state_dict(), strict=False)
    parameters = with_deltas(dict(other.named_parameters()), adapter.values())
    positions, species = atoms()
    expected = torch.func.functional_call(other, parameters, (positions, species))
    assert float(model(positions, species)) == pytest.approx(float(expected), rel=1e-12)
    assert not torch.equal(output(model), before)
