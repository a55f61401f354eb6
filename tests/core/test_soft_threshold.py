"""The published method is the paper's Eq. 2 to 4, to the letter."""

import pytest
import torch
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st
from networks import DTYPES
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import e3sparse
from e3sparse.deltas import SoftThreshold
from e3sparse.deltas.soft_threshold import SoftThresholdDelta


def patched(dtype=torch.float64, numel=12, **settings):
    model = nn.ModuleDict({"layer": o3.Linear("3x0e", f"{numel // 3}x0e").to(dtype)})
    adapter = e3sparse.patch(model, "linear", "soft_threshold", **settings)
    (delta,) = adapter.deltas().values()
    return adapter, delta


def plain(v, tau):
    """Eq. 2."""
    return torch.sign(v) * torch.relu(v.abs() - torch.sigmoid(tau))


def delta_of(v, tau):
    layout = patched()[1].layout
    return SoftThresholdDelta(layout, torch.as_tensor(v), torch.as_tensor(tau))


away_from_the_kink = st.floats(-2, 2).filter(lambda x: abs(abs(x) - 0.5) > 1e-3 and x != 0)


@given(st.lists(st.floats(-2, 2), min_size=12, max_size=12), st.floats(-8, 4))
def test_the_value_is_equation_2(values, tau):
    v = torch.tensor(values, dtype=torch.float64)
    delta = delta_of(v, torch.tensor(tau, dtype=torch.float64))
    assert torch.equal(delta().detach(), plain(v, delta.tau.detach()))
    assert torch.equal(delta().detach() == 0, v.abs() <= torch.sigmoid(delta.tau.detach()))


@given(
    st.lists(away_from_the_kink, min_size=12, max_size=12),
    st.lists(st.floats(-2, 2), min_size=12, max_size=12),
)
def test_gradients_are_those_of_the_plain_formula(values, slope):
    # τ = 0 puts the kink at |v| = 0.5.
    v, weight = torch.tensor([values, slope], dtype=torch.float64)
    delta = delta_of(v, torch.tensor(0.0, dtype=torch.float64))
    ours = torch.autograd.grad(delta() @ weight, (delta.v, delta.tau))
    theirs = torch.autograd.grad(plain(delta.v, delta.tau) @ weight, (delta.v, delta.tau))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_gradients_and_second_derivatives_by_finite_differences():
    v = torch.linspace(-2, 2, 12, dtype=torch.float64).requires_grad_()
    tau = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)

    def values(v, tau):
        delta = delta_of(v.detach(), tau.detach())
        del delta.v, delta.tau
        delta.v, delta.tau = v, tau
        return delta.values()

    assert gradcheck(values, (v, tau))
    assert gradgradcheck(values, (v, tau))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_start(dtype):
    adapter, delta = patched(dtype, numel=30_000)
    assert float(torch.sigmoid(delta.tau.double())) == pytest.approx(
        1e-3, rel=1e-6 if dtype == torch.float32 else 1e-12
    )
    assert float(delta.v.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert float(delta.v.detach().mean()) == pytest.approx(0.0, abs=3e-4)
    # |v| < δ = 0.1 σ for 8 % of a normal distribution: the 92 % of noise that training starts from.
    assert adapter.sparsity().layerwise == pytest.approx(0.0797, abs=0.01)


def test_one_threshold_for_each_layer():
    model = nn.ModuleList([o3.Linear("3x0e", "4x0e"), o3.Linear("4x0e", "2x0e")])
    adapter = e3sparse.patch(model, "linear", "soft_threshold", init_threshold=0.2, init_std=0.5)
    taus = [delta.tau for delta in adapter.deltas().values()]
    assert [tau.shape for tau in taus] == [torch.Size([]), torch.Size([])]
    assert len({id(tau) for tau in taus}) == 2
    assert float(torch.sigmoid(taus[0])) == pytest.approx(0.2)


def schedule_free(groups):
    schedulefree = pytest.importorskip("schedulefree")
    optimizer = schedulefree.AdamWScheduleFree(groups)
    optimizer.train()
    return optimizer


@pytest.mark.parametrize(
    "make",
    [torch.optim.SGD, torch.optim.AdamW, schedule_free],
    ids=["SGD", "AdamW", "schedule-free"],
)
@pytest.mark.parametrize(
    ("settings", "lr", "lr_tau"),
    [
        ({"tau_weight_decay": 0.3, "weight_decay": 0.05}, 0.1, 0.1),
        ({"tau_weight_decay": 0.3, "weight_decay": 0.05, "tau_lr": 0.7}, 0.1, 0.7),
        ({"tau_weight_decay": 0.0, "weight_decay": 0.0}, 0.1, 0.1),
    ],
    ids=["one lr", "two lrs", "no decay"],
)
def test_decays_are_decoupled(make, settings, lr, lr_tau):
    # Eq. 3 and 4 with a gradient of zero: v ← (1 − η λ_Δ) v and τ ← (1 − η_τ λ_τ) τ.
    adapter, delta = patched(**settings)
    v, tau = delta.v.detach().clone(), delta.tau.detach().clone()
    optimizer = make(adapter.param_groups(lr))
    optimizer.zero_grad()
    (0.0 * delta().sum()).backward()
    optimizer.step()
    for now, then, factor in (
        (delta.v, v, 1 - lr * settings["weight_decay"]),
        (delta.tau, tau, 1 - lr_tau * settings["tau_weight_decay"]),
    ):
        torch.testing.assert_close(now.detach(), then * factor, rtol=1e-12, atol=0)


def test_groups_hold_the_published_decays():
    adapter, delta = patched()
    v, tau = adapter.param_groups(0.02)
    assert [id(p) for p in v["params"]] == [id(delta.v)]
    assert [id(p) for p in tau["params"]] == [id(delta.tau)]
    assert (v["lr"], v["weight_decay"]) == (0.02, 1e-8)
    assert (tau["lr"], tau["weight_decay"]) == (0.02, 0.01)


def test_the_decay_of_the_threshold_makes_the_delta_sparse():
    adapter, delta = patched(tau_weight_decay=0.3, init_std=0.3)
    before = adapter.sparsity().layerwise
    optimizer = torch.optim.AdamW(adapter.param_groups(0.3))
    for _ in range(30):
        optimizer.zero_grad()
        (0.0 * delta().sum()).backward()
        optimizer.step()
    assert adapter.sparsity().layerwise > before
    assert not adapter.method.scheduled
    assert adapter.settled


def test_a_zero_entry_is_dead():
    # Why the default method is another one.
    delta = delta_of([0.1] * 11 + [0.9], 0.0)
    grads = torch.autograd.grad(delta().sum(), (delta.v, delta.tau))
    assert grads[0].tolist() == [0.0] * 11 + [1.0]
    assert float(grads[1]) == pytest.approx(-0.25)


def test_settings_are_kept():
    assert SoftThreshold(tau_weight_decay=0.3).model_dump()["tau_weight_decay"] == 0.3
