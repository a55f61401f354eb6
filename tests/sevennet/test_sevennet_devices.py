"""Training, evaluation and resuming on every device that is at hand."""

import pytest
from device_runs import (
    METHODS,
    assert_a_run_leaves_what_it_says,
    assert_resumed_is_uninterrupted,
    assert_symmetries_hold,
    assert_the_same_as_on_the_cpu,
)
from devices import on_each_device

pytestmark = on_each_device


def test_outputs_and_gradients_are_those_of_the_cpu(tiny_checkpoint, device):
    assert_the_same_as_on_the_cpu(tiny_checkpoint, device)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_what_it_says(method, tiny_checkpoint, tmp_path, device):
    assert_a_run_leaves_what_it_says(tiny_checkpoint, tmp_path, device, method)


def test_replay(tiny_checkpoint, tmp_path, device):
    more = {"replay": "auto", "replay_structures": 6, "replay_batch_size": 2}
    assert_a_run_leaves_what_it_says(tiny_checkpoint, tmp_path, device, "budget", **more)


def test_resumed_is_uninterrupted(tiny_checkpoint, tmp_path, device, monkeypatch):
    assert_resumed_is_uninterrupted(tiny_checkpoint, tmp_path, device, monkeypatch)


def test_symmetries_hold(tiny_checkpoint, device):
    assert_symmetries_hold(tiny_checkpoint, device)
