"""Frozen means buffers too: running statistics stay the base model's, or belong to the adapter."""

import copy
import io
import warnings

import pytest
import torch
from e3nn import nn as enn
from e3nn import o3
from networks import clone, difference, randomize, snapshot
from torch import nn

import e3sparse
from e3sparse.errors import AdapterFileError, PatchError


class Counting(nn.Module):
    """Moves a buffer in every forward pass, and nobody has registered it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return x * (1 + 0.1 * torch.tanh(self.calls))


NORMS = {
    "e3nn": lambda: enn.BatchNorm("4x0e+2x1o"),
    "torch": lambda: nn.BatchNorm1d(10),
    "e3nn, max": lambda: enn.BatchNorm("4x0e+2x1o", affine=False, reduce="max"),
}


class Normalised(nn.Module):
    """A normalisation layer between two linear layers, as in DiffDock's convolutions."""

    def __init__(self, norm):
        super().__init__()
        self.first = o3.Linear("3x0e+2x1o", "4x0e+2x1o")
        self.norm = norm()
        self.last = o3.Linear("4x0e+2x1o", "2x0e+1x1o")

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


@pytest.fixture(params=NORMS)
def base(request):
    torch.manual_seed(0)
    return Normalised(NORMS[request.param]).double().train()


def inputs():
    return torch.randn(20, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3


@torch.no_grad()
def evaluated(model):
    mode = model.training
    model.eval()
    output = model(inputs())
    model.train(mode)
    return output


def train(model, adapter):
    optimizer = torch.optim.Adam(adapter.parameters(), 0.05)
    for _ in range(5):
        optimizer.zero_grad()
        (model.train()(inputs()) - 1).square().sum().backward()
        optimizer.step()
    return adapter


def test_training_moves_no_statistics_and_leaves_the_base_model(base, tmp_path):
    model = clone(base)
    before, expected = snapshot(model), evaluated(base)
    adapter = train(model, e3sparse.patch(model, "linear", "dense"))
    trained = evaluated(model)
    assert difference(trained, expected) > 1e-2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with adapter.disabled():
            assert torch.equal(evaluated(model), expected)
        adapter.save_pretrained(tmp_path)
        assert torch.equal(model.train()(inputs()), trained)
        fresh = clone(base)
        e3sparse.load(fresh, tmp_path)
        assert torch.equal(evaluated(fresh), trained)
        adapter.merge()
        assert difference(evaluated(model), trained) < 1e-12
        adapter.restore()
    assert snapshot(model) == before
    assert model.norm.training


def test_the_control_moves(base):
    expected = evaluated(base)
    base(inputs())
    assert difference(evaluated(base), expected) > 1e-2


def test_a_mode_that_is_set_while_patched_holds_afterwards(base):
    adapter = e3sparse.patch(base, "linear", "dense")
    for mode in (False, True):
        for module in base.modules():  # as Lightning puts modes back
            module.training = mode
        assert not base.norm.training
    assert base.last.training
    base.eval()
    adapter.remove()
    assert not base.norm.training


def test_copies_hold_still_too(base):
    original = type(base.norm)
    e3sparse.patch(base, "linear", "dense")
    file = io.BytesIO()
    torch.save(base, file)
    file.seek(0)
    for twin in (copy.deepcopy(base), torch.load(file, weights_only=False)):
        expected = evaluated(twin)
        twin.train()(inputs())
        assert torch.equal(evaluated(twin), expected)
        e3sparse.adapters(twin)["default"].remove()
        assert type(twin.norm) is original
        twin.train()(inputs())
        assert not torch.equal(evaluated(twin), expected)


def test_statistics_that_move_belong_to_their_adapter(base, tmp_path):
    model = clone(base)
    before, expected = snapshot(model), evaluated(base)
    adapter = train(model, e3sparse.patch(model, "linear", "dense", moving_statistics=True))
    trained = evaluated(model)
    own = adapter.statistics()
    assert own
    assert any(not torch.equal(v, base.state_dict()[n]) for n, v in own.items())
    with adapter.disabled():
        assert torch.equal(evaluated(model), expected)
        model.train()(inputs())  # held, since it is the base model's now
        assert torch.equal(evaluated(model), expected)
    assert torch.equal(evaluated(model), trained)
    adapter.save_pretrained(tmp_path)
    fresh = clone(base)
    loaded = e3sparse.load(fresh, tmp_path)
    fresh.train()(inputs())
    assert torch.equal(evaluated(fresh), trained)
    loaded.remove()
    assert snapshot(fresh) == before
    adapter.merge()
    assert difference(evaluated(model), trained) < 1e-12
    adapter.restore()
    assert snapshot(model) == before
    adapter.attach()
    assert torch.equal(evaluated(model), trained)


def test_a_second_adapter_with_statistics_is_refused(base):
    e3sparse.patch(base, "linear", "dense", moving_statistics=True)
    e3sparse.patch(base, "linear", "dense", name="still")
    with pytest.raises(PatchError, match="running statistics of its own already"):
        e3sparse.patch(base, "linear", "dense", name="b", moving_statistics=True)


def test_statistics_of_another_model_are_refused(base, tmp_path):
    adapter = e3sparse.patch(base, "linear", "dense", moving_statistics=True)
    randomize(adapter).save_pretrained(tmp_path)
    adapter.remove()
    base.norm = nn.Identity()
    with pytest.raises(AdapterFileError):
        e3sparse.load(base, tmp_path)


def test_a_buffer_that_moves_for_another_reason_is_noticed(tmp_path):
    model = Normalised(Counting).double()
    adapter = randomize(e3sparse.patch(model, "linear", "dense"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with adapter.disabled():
            pass
        model.double()
        adapter.save_pretrained(tmp_path)
    model(inputs())
    with (
        pytest.warns(UserWarning, match=r"norm\.calls have changed.*not the base model"),
        adapter.disabled(),
    ):
        pass
    with pytest.warns(UserWarning, match=r"norm\.calls have changed.*loaded onto will differ"):
        adapter.save_pretrained(tmp_path)
    for change in (adapter.merge, adapter.restore):
        with pytest.warns(UserWarning, match=r"norm\.calls have changed"):
            change()


def test_a_cast_model_has_moved_nothing():
    model = Normalised(NORMS["e3nn"])
    adapter = e3sparse.patch(model, "linear", "dense")
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model.to(dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with adapter.disabled():
                pass
