"""A layer whose weight is spread over several parameters, some of them in a `ParameterList`."""

import copy
import io
import pickle

import pytest
import torch
from networks import DTYPES, SETTINGS, bits, randomize, snapshot
from torch import nn

import e3sparse
from e3sparse.errors import TargetError
from e3sparse.layers.injection import cached
from e3sparse.layers.kinds import KINDS, LayerKind, register_kind
from e3sparse.layers.layouts import Block, Layout, Species

METHODS = ("budget", "soft_threshold", "low_rank", "dense", "fixed_mask")
SHAPES = {"top": (3, 2, 4), "rest.0": (3, 1, 4), "rest.2": (3, 5, 4)}


class Polynomial(nn.Module):
    """Three weights (species, paths, channels); the middle one of the list is left alone."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(3, n, 4, generator=generator) for n in (2, 1, 3, 5)]
        self.top = nn.Parameter(drawn[0])
        self.rest = nn.ParameterList(drawn[1:])

    def forward(self, one_hot):
        weights = [self.top, *self.rest]
        return sum((k + 1) * torch.einsum("ne,epc->nc", one_hot, w) for k, w in enumerate(weights))


def layout(layer):
    blocks, start = [], 0
    for shape in SHAPES.values():
        blocks.append(Block("4x0e", None, "4x0e", shape, start, 1.0))
        start += blocks[-1].numel
    return Layout(
        "polynomial", None, "4x0e", None, "4x0e", (start,), tuple(blocks), parts=tuple(SHAPES)
    )


@pytest.fixture(autouse=True)
def kind():
    register_kind(LayerKind("polynomial", (f"{__name__}.Polynomial",), layout))
    yield
    del KINDS[f"{__name__}.Polynomial"]


def model(dtype=torch.float64):
    return nn.ModuleDict({"layer": Polynomial()}).to(dtype)


def output(net):
    return net["layer"](torch.eye(3, dtype=net["layer"]._parameters["top"].dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_the_life_of_a_delta(method, dtype, tmp_path):
    net = model(dtype)
    before, base = snapshot(net), output(net)
    adapter = randomize(e3sparse.patch(net, "polynomial", method, **SETTINGS.get(method, {})))
    patched = output(net)
    plain = model(dtype)
    (values,) = adapter.values().values()
    with torch.no_grad():
        for name, part in layout(None).split(values).items():
            plain.get_parameter(f"layer.{name}").add_(part)
    assert (patched - base).abs().max() > 1e-2
    torch.testing.assert_close(patched, output(plain))
    patched.sum().backward()
    assert all(p.grad is not None for p in adapter.parameters())
    assert all(p.grad is None for name, p in net.named_parameters() if "e3sparse" not in name)
    folder = adapter.save_pretrained(tmp_path)
    adapter.merge()
    torch.testing.assert_close(output(net), output(plain))
    assert [type(m) for m in net.modules()] == [type(m) for m in plain.modules()]
    adapter.restore()
    assert snapshot(net) == before
    e3sparse.load(net, folder)
    torch.testing.assert_close(output(net), output(plain))


@pytest.mark.parametrize("twin", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_patched_and_independent(twin):
    net = model()
    randomize(e3sparse.patch(net, "polynomial", "dense"))
    patched = output(net)
    if twin == "deepcopy":
        other = copy.deepcopy(net)
    elif twin == "pickle":
        other = pickle.loads(pickle.dumps(net))
    else:
        buffer = io.BytesIO()
        torch.save(net, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    assert bits(output(other)) == bits(patched)
    e3sparse.merge(other)
    assert bits(output(net)) == bits(patched)
    assert "e3sparse" in net["layer"]._modules


def test_two_adapters_add_up_and_come_out_one_by_one():
    net = model()
    before, base = snapshot(net), output(net)
    one = randomize(e3sparse.patch(net, "polynomial", "dense", name="one"), seed=1)
    with_one = output(net)
    two = randomize(e3sparse.patch(net, "polynomial", "dense", name="two"), seed=2)
    with_both = output(net)
    with one.disabled():
        torch.testing.assert_close(output(net) - base, with_both - with_one)
    one.merge()
    torch.testing.assert_close(output(net), with_both)
    two.remove()
    torch.testing.assert_close(output(net), with_one)
    one.restore()
    assert snapshot(net) == before


def test_sums_are_formed_once_in_a_cached_block(monkeypatch):
    net = model()
    adapter = randomize(e3sparse.patch(net, "polynomial", "dense"))
    (delta,) = adapter.deltas().values()
    calls = []
    values = type(delta).values
    monkeypatch.setattr(type(delta), "values", lambda self: calls.append(1) or values(self))
    with cached():
        first, again = output(net), output(net)
        assert len(calls) == 1
    assert bits(first) == bits(again) == bits(output(net))
    assert len(calls) > 1


def test_absent_species_are_held():
    net = model()
    adapter = e3sparse.patch(net, "polynomial", "dense", species=Species((1, 6, 8), {"layer": 0}))
    adapter.freeze_absent_species([6])
    base = output(model())
    randomize(adapter)
    changed = (output(net) != base).any(dim=1)
    assert changed.tolist() == [False, True, False]


def test_shared_parameters_are_refused():
    net = model()
    net["other"] = Polynomial()
    net["other"].rest[0] = net["layer"].rest[0]
    with pytest.raises(TargetError, match="share one weight tensor"):
        e3sparse.patch(net, "polynomial", "dense")
