"""Layer kinds without an e3nn class, registered from outside: trained, merged, checked."""

import pytest
import torch
from torch import nn

import e3sparse
from e3sparse.adapter.targets import candidates
from e3sparse.errors import PatchError, TargetError
from e3sparse.layers import kinds
from e3sparse.layers.kinds import LayerKind, register_kind
from e3sparse.layers.layouts import Arrival, Block, Layout, Species


class PerElementMix(nn.Module):
    """Features (N, channels, 3) mixed by a matrix for each element, as no layer of e3nn does."""

    def __init__(self, elements, channels):
        super().__init__()
        self.mixing = nn.Parameter(torch.randn(elements, channels, channels, dtype=torch.float64))

    def forward(self, vectors, species):
        return torch.einsum("ncd,ndi->nci", self.mixing[species], vectors)


class Model(nn.Module):
    """Vectors in, vectors out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = PerElementMix(3, 4), PerElementMix(3, 4)

    def forward(self, vectors, species):
        hidden = self.first(vectors, species)
        norms = hidden.square().sum(-1, keepdim=True)
        return self.second(hidden * torch.sigmoid(norms), species)


def _layout(layer):
    shape = tuple(layer.mixing.shape)
    channels = f"{shape[1]}x1o"
    block = Block(channels, f"{shape[0]}x0e", channels, shape, 0, 1.0, channel_axis=1)
    return Layout("mix", "mixing", channels, f"{shape[0]}x0e", channels, shape, (block,))


NAME = f"{PerElementMix.__module__}.{PerElementMix.__qualname__}"
SPECIES = Species((1, 6, 8), {"first": 0, "second": 0})


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(kinds, "KINDS", dict(kinds.KINDS))
    register_kind(LayerKind("mix", (NAME,), _layout))


def inputs():
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(6, 4, 3, generator=generator, dtype=torch.float64)
    return vectors, torch.tensor([0, 0, 1, 1, 0, 1])  # no oxygen


def test_the_control_is_not_known():
    with pytest.raises(TargetError, match="no layer of a kind that e3sparse knows"):
        e3sparse.patch(Model(), "everything")


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("method", "settings"),
    [("budget", {"target_sparsity": 0.3}), ("dense", {}), ("low_rank", {})],
)
def test_patched_trained_merged_checked(method, settings, tmp_path):
    model = Model()
    vectors, species = inputs()
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    before = model(vectors, species).detach()
    adapter = e3sparse.patch(model, "mix", method, species=SPECIES, total_steps=100, **settings)
    assert set(adapter.layouts) == {"first", "second"}
    assert adapter.freeze_absent_species([1, 6]) == [8]
    label = 0.5 * vectors
    optimizer = torch.optim.Adam(adapter.param_groups(0.02))
    losses = []
    for step in range(100):
        optimizer.zero_grad()
        loss = (model(vectors, species) - label).square().mean()
        loss.backward()
        optimizer.step()
        adapter.step((step + 1) / 100, optimizer=optimizer)
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
    patched = model(vectors, species).detach()
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    turned = model(vectors @ rotation.T, species).detach()
    assert torch.allclose(turned, patched @ rotation.T, rtol=0.0, atol=1e-12)
    folder = adapter.save_pretrained(tmp_path / "adapter")
    adapter.merge()
    assert torch.allclose(model(vectors, species), patched, rtol=0.0, atol=1e-12)
    assert not torch.equal(patched, before)
    for name, weight in model.named_parameters():
        assert torch.equal(weight[2], base[name][2])  # oxygen's
        assert not torch.equal(weight[:2], base[name][:2])
    fresh = Model()
    e3sparse.load(fresh, folder, species=SPECIES)
    assert torch.allclose(fresh(vectors, species), patched, rtol=0.0, atol=1e-12)
    adapter.restore()
    assert torch.equal(model(vectors, species), before)


class Radial(nn.Module):
    """Two layers that make weights (R, paths, channels) of distances, in one row each."""

    def __init__(self, paths, channels):
        super().__init__()
        self.first, self.last = nn.Linear(1, 8).double(), nn.Linear(8, paths * channels).double()

    def forward(self, lengths):
        return self.last(torch.tanh(self.first(lengths)))


class Paths(nn.Module):
    """Vectors along edges (R, channels, 3), by paths whose weights are an argument."""

    def __init__(self, paths, channels):
        super().__init__()
        self.paths, self.channels = paths, channels

    def forward(self, edges, weights, power=1):
        lengths = edges.norm(dim=1)[:, None]  # (R, 1)
        powers = torch.cat([lengths ** (k * power) for k in range(self.paths)], dim=1)
        scales = torch.einsum("rp,rpc->rc", powers, weights)
        return scales[:, :, None] * edges[:, None, :]


class External(nn.Module):
    """Edges in, vectors out."""

    def __init__(self, by_name):
        super().__init__()
        torch.manual_seed(0)
        self.radial, self.mix, self.by_name = Radial(3, 4), Paths(3, 4), by_name

    def forward(self, edges):
        weights = self.radial(edges.norm(dim=1, keepdim=True)).unflatten(1, (3, 4))
        return self.mix(edges, weights=weights) if self.by_name else self.mix(edges, weights, 1)


def _paths_layout(layer):
    shape = (layer.paths, layer.channels)
    block = Block("1x1o", None, f"{shape[1]}x1o", shape, 0, 1.0)
    arrival = Arrival("forward", "weights")
    return Layout("other", None, "1x1o", None, block.irreps_out, shape, (block,), arrival=arrival)


@pytest.fixture
def with_paths(monkeypatch):
    monkeypatch.setattr(kinds, "KINDS", dict(kinds.KINDS))
    register_kind(LayerKind("paths", (f"{Paths.__module__}.Paths",), _paths_layout))


@pytest.mark.usefixtures("with_paths")
@pytest.mark.parametrize("by_name", [True, False], ids=["by name", "by position"])
@pytest.mark.parametrize(
    ("method", "settings"), [("budget", {"target_sparsity": 0.3}), ("dense", {})]
)
def test_weights_from_outside_are_reweighted_and_folded(method, settings, by_name, tmp_path):
    model = External(by_name)
    edges = torch.randn(7, 3, dtype=torch.float64)
    before = model(edges).detach()
    fold = {"mix": "radial.last"}
    adapter = e3sparse.patch(model, "paths", method, fold_into=fold, total_steps=40, **settings)
    assert adapter.layouts["mix"].external
    assert torch.equal(model(edges), before)
    optimizer = torch.optim.Adam(adapter.param_groups(0.05))
    for step in range(40):
        optimizer.zero_grad()
        (model(edges) - 0.5 * edges[:, None, :]).square().mean().backward()
        optimizer.step()
        adapter.step((step + 1) / 40, optimizer=optimizer)
    patched = model(edges).detach()
    assert float((patched - before).abs().max()) > 1e-3
    folder = adapter.save_pretrained(tmp_path / "adapter")
    fresh = External(by_name)
    e3sparse.load(fresh, folder, fold_into=fold)
    assert torch.equal(fresh(edges), patched)
    adapter.merge()
    assert torch.allclose(model(edges), patched, rtol=0.0, atol=1e-12)
    adapter.restore()
    assert torch.equal(model(edges), before)


@pytest.mark.usefixtures("with_paths")
def test_the_control_cannot_be_folded_into_a_layer_that_is_not_the_last():
    adapter = e3sparse.patch(External(True), "paths", "dense", fold_into={"mix": "radial.first"})
    with pytest.raises(PatchError, match="cannot be folded"):
        adapter.merge()


@pytest.mark.usefixtures("with_paths")
def test_a_kind_gives_its_layers_their_name():
    # Whatever the layout function says, which is "other" here.
    assert candidates(External(True)).layers["mix"].kind == "paths"


def test_a_kind_may_say_where_it_applies(monkeypatch):
    monkeypatch.setattr(kinds, "KINDS", dict(kinds.KINDS))
    asked = []

    def applies(model, path):
        asked.append((model, path))
        return path == "second"

    register_kind(LayerKind("mix", (NAME,), _layout, applies=applies))
    model = Model()
    adapter = e3sparse.patch(model, "everything", "dense")
    assert set(adapter.layouts) == {"second"}
    assert asked == [(model, "first"), (model, "second")]


def test_an_embedding_of_something_else_is_left_alone():
    pytest.importorskip("e3sparse_nequip.layers")
    model = nn.ModuleDict({"words": nn.Embedding(4, 2), "scale": nn.Linear(2, 1)})
    assert set(candidates(model).layers) == {"scale"}
