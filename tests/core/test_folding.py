"""Tensor products whose weights come from outside: folded exactly, or refused before a change."""

import pytest
import torch
from e3nn import nn as enn
from e3nn import o3
from networks import (
    FOLD_INTO,
    difference,
    explicit,
    network,
    output,
    patch,
    random_adapter,
    randomize,
    snapshot,
    weights,
)
from tolerances import close
from torch import nn

import e3sparse
from e3sparse.errors import PatchError
from e3sparse.layers.kinds import KINDS, LayerKind, PassedOver, register_kind


class Convolution(nn.Module):
    """A tensor product with external weights on top of any radial network."""

    def __init__(self, radial):
        super().__init__()
        self.radial = radial(4)
        self.conv = tensor_product(shared_weights=False)
        self.double()

    def forward(self):
        x, y, r = (torch.linspace(-1, 1, 3 * n).double().reshape(3, n) for n in (6, 4, 4))
        return self.conv(x, y, self.radial(r))


def tensor_product(**kwargs):
    """Return one with 4 weights."""
    paths = [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True)]
    return o3.TensorProduct(
        "2x0e+4x0o", "1x0e+1x1o", "2x0e+2x1o", paths, internal_weights=False, **kwargs
    )


def mlp(numel):
    return enn.FullyConnectedNet([4, 5, numel], torch.tanh)


def torch_mlp(numel, **kwargs):
    return nn.Sequential(nn.Linear(4, 5, **kwargs), nn.SiLU(), nn.Linear(5, numel, **kwargs))


class Shifted(nn.Module):
    """Something that is no layer follows the last one."""

    def __init__(self, numel):
        super().__init__()
        self.net = torch_mlp(numel)

    def forward(self, x):
        return self.net(x) + x.sum(-1, keepdim=True)


class Holder(nn.Module):
    """A radial network of bare parameters, which only a kind of its own can describe."""

    def __init__(self, numel):
        super().__init__()
        self.basis = nn.Parameter(torch.randn(3, numel, 4))
        self.offset = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return torch.einsum("knf,ef->ekn", self.basis, x).sum(1) * (1 + self.offset.sum())


@pytest.fixture
def holder():
    """Describe `Holder` to e3sparse."""

    def layout(_):
        raise PassedOver("it is a holder")

    kind = LayerKind(
        "holder", (f"{__name__}.Holder",), layout, lambda _, factor: {"basis": factor[:, None]}
    )
    register_kind(kind)
    yield
    del KINDS[f"{__name__}.Holder"]


def patched_convolution(radial, last):
    model = Convolution(radial)
    base = model()
    adapter = randomize(e3sparse.patch(model, "tp", "dense", fold_into={"conv": last}))
    assert difference(model(), base) > 1e-2
    return model, base, adapter


@pytest.mark.parametrize(
    ("radial", "last"),
    [
        (mlp, "radial.layer1"),
        (lambda n: nn.Sequential(nn.Linear(4, n, bias=False)), "radial.0"),
        (lambda n: nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.Linear(5, n)), "radial.2"),
        (lambda n: nn.Sequential(nn.Linear(4, n)), "radial.0"),  # a square matrix
    ],
    ids=["e3nn", "torch without bias", "torch", "square"],
)
def test_the_control_folds_exactly(radial, last):
    model, base, adapter = patched_convolution(radial, last)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    patched = model()
    adapter.merge()
    assert difference(model(), patched) < 1e-12
    adapter.restore()
    assert torch.equal(model(), base)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("radial", "last"),
    [
        (torch_mlp, "radial.2"),
        (lambda n: torch_mlp(n, bias=False), "radial.2"),
        (lambda n: nn.Linear(4, n), "radial"),
        (lambda n: nn.Sequential(nn.Linear(4, 5), o3.Linear("5x0e", f"{n}x0e")), "radial.1"),
        (lambda n: nn.Sequential(o3.Linear("4x0e", f"{n}x0e", biases=True)), "radial.0"),
        (Holder, "radial"),
    ],
    ids=["torch", "without bias", "one layer", "flat", "flat with bias", "holder"],
)
@pytest.mark.parametrize("train", [True, False])
def test_radial_networks_of_other_layers_fold_exactly(radial, last, train, holder):
    model, base, adapter = patched_convolution(radial, last)
    model.train(train)
    patched = model()
    with torch.autocast("cpu", torch.bfloat16):
        adapter.merge()
    assert {module.training for module in model.modules()} == {train}
    assert difference(model(), patched) < 1e-12
    adapter.restore()
    assert torch.equal(model(), base)


@pytest.mark.parametrize("method", ["dense", "low_rank"])
def test_autocast_changes_nothing_about_a_merge(method):
    model = network()
    random_adapter(model, "all", method)
    patched = output(model)
    with torch.autocast("cpu", torch.bfloat16):
        e3sparse.merge(model)
    assert difference(output(model), patched) < 1e-12


@pytest.mark.parametrize(
    ("radial", "last", "says"),
    [
        (lambda n: torch_mlp(n), "radial.0", "it has 5 outputs, not 4"),
        (lambda n: nn.Sequential(*torch_mlp(n), nn.SiLU()), "radial.2", "what follows that layer"),
        (lambda n: nn.Sequential(*torch_mlp(n), nn.Linear(n, n)), "radial.2", "what follows"),
        (lambda n: Shifted(n), "radial.net.2", "what follows"),
        (lambda n: nn.Sequential(o3.Linear("1x0e+3x0e", f"{n}x0e")), "radial.0", "not one path"),
        (
            lambda n: enn.FullyConnectedNet([4, n], torch.tanh, out_act=True),
            "radial.layer0",
            "an activation follows it",
        ),
        (mlp, "radial.layer0", "not a matrix with 4 columns"),
        (mlp, "radial.layer2", "There is no layer 'radial.layer2'"),
        (mlp, "radial", "not its only parameter"),
    ],
    ids=[
        "hidden",
        "an activation behind it",
        "a layer behind it",
        "a sum behind it",
        "two paths",
        "activation",
        "first",
        "nowhere",
        "no weight",
    ],
)
def test_a_layer_that_cannot_be_folded_into_is_refused(radial, last, says):
    model, _, adapter = patched_convolution(radial, last)
    patched, before = model(), snapshot(model)
    for merge in (adapter.merge, lambda: e3sparse.merge(model)):
        with pytest.raises(PatchError, match=f"'conv'.*{says}|{says}.*'conv'"):
            merge()
        assert snapshot(model) == before
        assert torch.equal(model(), patched)


def test_merge_without_a_layer_to_fold_into_changes_nothing():
    model = network()
    adapter = random_adapter(model, fold_into=None)
    patched, before = output(model), snapshot(model)
    for merge in (adapter.merge, lambda: e3sparse.merge(model)):
        with pytest.raises(PatchError, match=r"'conv' come from outside.*fold_into=\{'conv'"):
            merge()
        assert snapshot(model) == before
        assert torch.equal(output(model), patched)
    assert adapter.active


def test_a_merge_of_all_adapters_is_all_or_nothing():
    model = network()
    random_adapter(model, "linear", name="first", fold_into=None)
    unused = random_adapter(model, "linear", name="unused", seed=4, fold_into=None)
    random_adapter(model, "conv", name="last", seed=5, fold_into=None)
    unused.active = False
    before = snapshot(model)
    with pytest.raises(PatchError, match="'conv' come from outside"):
        e3sparse.merge(model)
    assert snapshot(model) == before
    assert list(e3sparse.adapters(model)) == ["first", "unused", "last"]


@pytest.mark.parametrize("first", ["a", "b"])
def test_reweightings_say_the_same_however_many_of_them_are_merged(first):
    model = network()
    before = snapshot(model)
    adapters = {
        name: random_adapter(model, "conv", name=name, seed=k) for k, name in enumerate("ab")
    }
    patched = output(model)
    assert difference(patched, output(network())) > 1e-2
    adapters[first].merge()
    assert difference(output(model), patched) < 1e-12
    e3sparse.merge(model)
    assert difference(output(model), patched) < 1e-12
    for adapter in adapters.values():
        adapter.restore()
    assert snapshot(model) == before


@pytest.mark.parametrize("merged_first", [None, "mlp", "conv"])
@pytest.mark.parametrize("patched_first", ["mlp", "conv"])
def test_a_delta_on_the_folded_layer_is_reweighted_too(patched_first, merged_first):
    model = network()
    before = snapshot(model)
    names = sorted(["mlp", "conv"], key=lambda name: name != patched_first)
    adapters = {name: random_adapter(model, name, name=name, seed=len(name)) for name in names}
    patched = output(model)
    values = [adapter.values() for adapter in adapters.values()]
    assert difference(patched, output(explicit(*values))) < 1e-12
    if merged_first is not None:
        adapters[merged_first].merge()
        assert difference(output(model), patched) < 1e-12
    e3sparse.merge(model)
    assert difference(output(model), patched) < 1e-12
    for adapter in adapters.values():
        adapter.restore()
    assert snapshot(model) == before


class TwoConvolutions(Convolution):
    """Both are fed by one radial network."""

    def __init__(self):
        super().__init__(mlp)
        self.other = tensor_product(shared_weights=False).double()

    def forward(self):
        x, y, r = (torch.linspace(-1, 1, 3 * n).double().reshape(3, n) for n in (6, 4, 4))
        w = self.radial(r)
        return self.conv(x, y, w) + 2 * self.other(x, y, w)


@pytest.mark.parametrize("targets", ["tp", "conv"])
def test_a_radial_network_of_two_convolutions_is_refused(targets):
    model = TwoConvolutions()
    both = dict.fromkeys(("conv", "other"), "radial.layer1")
    adapter = randomize(e3sparse.patch(model, targets, "dense", fold_into=both))
    before = snapshot(model)
    with pytest.raises(PatchError, match="more than one tensor product is fed by it"):
        adapter.merge()
    assert snapshot(model) == before


@pytest.mark.parametrize("shared", [True, False])
def test_a_zero_weight_stays_zero(shared):
    model = nn.ModuleDict({"conv": tensor_product(shared_weights=shared), "other": nn.Linear(1, 1)})
    randomize(e3sparse.patch(model, "tp", "dense"))
    x, y, w = torch.randn(3, 6), torch.randn(3, 4), torch.randn(3, 4)
    w = w[0] if shared else w
    assert torch.equal(model["conv"](x, y, 0 * w), torch.zeros(3, 8))
    assert not torch.equal(model["conv"](x, y, w), torch.zeros(3, 8))
    with pytest.raises(RuntimeError, match="Weights must be provided"):
        model["conv"](x, y)


def test_the_right_hand_operator_is_reweighted_alike():
    conv = tensor_product(shared_weights=True, compile_right=True)
    model = nn.ModuleDict({"conv": conv, "other": nn.Linear(1, 1)})
    x, y, w = torch.randn(3, 6), torch.randn(3, 4), torch.randn(4)
    base = conv.right(y, w)
    randomize(e3sparse.patch(model, "tp", "dense"))
    right = conv.right(y, w)
    assert not torch.allclose(right, base)
    folded = torch.einsum("zik,zi->zk", right, x).detach().numpy()
    assert folded == close("features", conv(x, y, w).detach().numpy(), torch.float32)


def test_a_model_without_a_parameter_of_its_own():
    conv = tensor_product(shared_weights=True)
    x, y, w = torch.randn(3, 6), torch.randn(3, 4), torch.randn(4)
    base = conv(x, y, w)
    adapter = e3sparse.patch(conv, "tp", "dense")
    assert torch.equal(conv(x, y, w), base)
    randomize(adapter)
    assert not torch.allclose(conv(x, y, w), base)


def test_a_patch_leaves_the_radial_network_as_it_is():
    model = network()
    before = {key: value for key, _, value in weights(model)}
    adapter = patch(model, "conv")
    assert list(adapter.layouts) == ["conv"]
    assert not any(key.startswith("radial") and "e3sparse" in key for key in model.state_dict())
    randomize(adapter).merge()
    after = {key: value for key, _, value in weights(model)}
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {f"{FOLD_INTO['conv']}.weight"}


def test_what_cannot_be_merged_is_said_when_it_is_patched(recwarn):
    cannot = "1 of 1 patched layers cannot be merged.*'tp:internal' picks"
    with pytest.warns(UserWarning, match=cannot):
        e3sparse.patch(Convolution(mlp), "tp")
    with pytest.warns(UserWarning, match="1 of 3 patched layers cannot be merged"):
        e3sparse.patch(Convolution(mlp), ["tp", "mlp"])
    recwarn.clear()
    e3sparse.patch(Convolution(mlp), "tp", fold_into={"conv": "radial.layer1"})
    e3sparse.patch(network(), ["linear", "fctp", "tp:internal"])
    assert [str(warning.message) for warning in recwarn if "merged" in str(warning.message)] == []
