"""A layer kind without an e3nn class, registered from outside: trained, merged, checked."""

import pytest
import torch
from torch import nn

import e3sparse
from e3sparse import paths
from e3sparse.errors import TargetError
from e3sparse.layers.layouts import Block, LayerKind, Layout, Species, register_kind


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
    monkeypatch.setattr(paths, "KINDS", dict(paths.KINDS))
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
