"""Warm-up, and the moving average of weights that an optimizer keeps."""

from copy import deepcopy

import pytest
import torch
from torch import nn

pytest.importorskip("lightning")

from e3sparse.training.optimizers import make_optimizer, set_averaged

pytestmark = pytest.mark.any_e3nn

STEPS, TARGET = 20, torch.tensor([3.0, -1.0], dtype=torch.float64)


def begun(name="adamw", **options):
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    return w, *make_optimizer(name, [{"params": [w], "lr": 0.1}], STEPS, **options)


def step(w, optimizer, schedule):
    optimizer.zero_grad()
    (w - TARGET).square().sum().backward()
    optimizer.step()
    if schedule is not None:
        schedule.step()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_average_is_that_of_its_formula_and_changes_no_step(name):
    plain, averaged = begun(name), begun(name, ema=0.8)
    expected = averaged[0].detach().clone()
    for n in range(1, STEPS + 1):
        step(*plain)
        step(*averaged)
        assert torch.equal(plain[0], averaged[0])
        kept = min(0.8, (1 + n) / (10 + n))
        expected = kept * expected + (1 - kept) * averaged[0].detach()
    w, optimizer, _ = averaged
    trained = w.detach().clone()
    assert set_averaged(optimizer, True)
    torch.testing.assert_close(w.detach(), expected, rtol=1e-13, atol=0)
    assert not torch.allclose(w, trained)
    assert not set_averaged(optimizer, True)
    assert set_averaged(optimizer, False)
    assert torch.equal(w, trained)


@pytest.mark.parametrize("stands", [True, False], ids=["average in place", "weights in place"])
def test_a_state_that_was_saved_goes_on_as_it_would_have(stands):
    whole = begun(ema=0.9)
    for _ in range(7):
        step(*whole)
    w, optimizer, schedule = begun(ema=0.9)
    set_averaged(whole[1], stands)
    w.data.copy_(whole[0])
    optimizer.load_state_dict(deepcopy(whole[1].state_dict()))
    schedule.load_state_dict(whole[2].state_dict())
    for one in (whole[1], optimizer):
        set_averaged(one, False)
    for _ in range(5):
        step(*whole)
        step(w, optimizer, schedule)
    assert torch.equal(w, whole[0])
    for one in (whole[1], optimizer):
        set_averaged(one, True)
    assert torch.equal(w, whole[0])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_rates_rise_in_a_warm_up_and_keep_what_others_made_of_them(name):
    def rates(halved_at=None):
        w, optimizer, schedule = begun(name, warmup=0.25)
        (group,) = optimizer.param_groups
        found = []
        for n in range(STEPS):
            if n == halved_at:
                group["lr"] *= 0.5
            found.append(group["lr"])
            step(w, optimizer, schedule)
        return found

    usual = rates()
    assert usual[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert usual[-1] == pytest.approx(0.1) if name == "sgd" else usual[-1] < 0.005
    halved = rates(halved_at=9)
    assert halved[:9] == usual[:9]
    assert halved[9:] == pytest.approx([0.5 * rate for rate in usual[9:]])


def test_schedule_free_warms_up_as_long_as_asked():
    for warmup, expected in ((None, 1), (0.0, 1), (0.5, 10)):
        _, optimizer, _ = begun("schedule_free", warmup=warmup)
        assert optimizer.param_groups[0]["warmup_steps"] == expected
