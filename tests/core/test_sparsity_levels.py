"""A schedule with several levels stays at each, and one that is held keeps its sparsity."""

import warnings
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import network, patch

from e3sparse.deltas import Budget, make_method
from e3sparse.errors import ConfigError

several = st.lists(st.floats(0.01, 0.99), min_size=2, max_size=5, unique=True).map(sorted)
warmups = st.floats(0, 0.5)


@given(several, warmups, st.lists(st.floats(0, 1), min_size=2))
def test_the_schedule_rises_from_level_to_level(levels, warmup, times):
    method = Budget(levels=levels[:-1], target_sparsity=levels[-1], warmup=warmup)
    assert method.all_levels == tuple(levels)
    assert method.sparsity_at(0.0) == method.sparsity_at(warmup) == 0
    for number, level in enumerate(levels):
        time = method.progress_at(number)
        assert method.level(time) == number
        assert method.sparsity_at(time) == pytest.approx(level, rel=1e-9)
        assert method.settled(time) == (number == len(levels) - 1)
    assert method.level(1.0) == len(levels) - 1
    assert method.sparsity_at(1.0) == levels[-1]
    for early, late in pairwise(sorted(times)):
        assert method.sparsity_at(early) <= method.sparsity_at(late) + 1e-12


@given(several, warmups, st.floats(0, 1))
def test_a_time_at_no_level_is_on_the_way_to_one(levels, warmup, time):
    method = Budget(levels=levels[:-1], target_sparsity=levels[-1], warmup=warmup)
    number = method.level(time)
    if number is None:
        assert method.sparsity_at(time) <= levels[-1]
    else:
        assert method.sparsity_at(time) == pytest.approx(levels[number], rel=1e-9)


def zeros(adapter):
    return round(adapter.sparsity().layerwise, 6)


@pytest.mark.parametrize("at", [None, 0.4])
def test_a_held_schedule_keeps_its_sparsity(at):
    method = Budget(target_sparsity=0.9, warmup=0.0, ramp_end=0.8)
    adapter = patch(network(), "all", method, total_steps=10)
    seen = []
    for step in range(1, 11):
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(torch.randn_like(parameter))
        adapter.step()
        seen.append(zeros(adapter))
        if step == 6:
            assert not adapter.settled
            adapter.hold(at)
            held = zeros(adapter)
            assert adapter.settled
    entries = sum(v.numel() for v in adapter.values().values())
    wanted = method.sparsity_at(0.6 if at is None else at)
    assert held == pytest.approx(wanted, abs=1 / entries)
    assert set(seen[6:]) == {held}
    assert len(set(seen[:6])) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter.merge()


def test_a_schedule_is_held_where_it_was_when_a_training_goes_on():
    for held, progress in ((0.5, 0.5), (None, 0.8)):
        adapter = patch(network(), "all", Budget(target_sparsity=0.9), total_steps=10)
        adapter.resume_at(8, 0.8, held)
        assert adapter.progress == progress
        assert adapter.sparsity().updated == 0  # the deltas are as they were
        adapter.resume_at(9, 0.9)
        assert adapter.progress == (0.5 if held else 0.9)


def test_auto_stands_for_levels_and_a_tolerance():
    method = make_method("budget", target_sparsity="auto")
    assert method.tolerance == 0.05
    assert method.final_sparsity is None
    assert method.judged
    assert not make_method("budget", levels=[0.5]).judged
    assert len(method.all_levels) > 3
    assert make_method("budget", target_sparsity="auto", tolerance=0.2).tolerance == 0.2
    assert make_method("budget", **method.model_dump()) == method
    assert make_method("budget").tolerance is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"target_sparsity": "autp"}, "target_sparsity has to be a number, and is 'autp'"),
        ({"tolerance": 0}, "tolerance has to be greater than 0"),
        ({"tolerance": 0.1}, "a tolerance is of several levels"),
        (
            {"levels": [0.9, 0.5]},
            "levels have to rise from above 0 to below target_sparsity (0.97)",
        ),
        ({"levels": [0.5], "target_sparsity": 0.5}, "levels have to rise"),
        ({"levels": [0.0]}, "levels have to rise"),
    ],
)
def test_levels_that_are_none_are_refused(settings, says):
    with pytest.raises(ConfigError) as refused:
        make_method("budget", **settings)
    assert says in str(refused.value)
