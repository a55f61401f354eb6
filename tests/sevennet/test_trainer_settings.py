"""Clipping, accumulation, averaging, loggers and arguments of Lightning's Trainer, in a run."""

from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import Logger

from e3sparse.errors import ConfigError, Interrupted
from e3sparse.training import fitting, trainer
from e3sparse.training.config import make_config
from e3sparse.training.module import FineTuning
from e3sparse.training.run import finetune


def settings(tiny_checkpoint, data_files, out, **values):
    there = {"model": str(tiny_checkpoint), "out": out, "train": data_files["train"]}
    there |= {"valid": data_files["valid"], "batch_size": 4, "device": "cpu", "method": "dense"}
    return there | {"max_steps": 6, "dtype": "float64"} | values


def trained(*arguments, **values):
    return finetune(make_config(settings(*arguments, **values))).adapter.values()


def same(one, two, tolerance=0.0):
    return all(torch.allclose(one[p], two[p], rtol=tolerance, atol=tolerance) for p in one)


def test_gradients_are_clipped_to_the_norm_that_was_asked_for(
    tiny_checkpoint, data_files, tmp_path, monkeypatch
):
    norms = []

    def note(self, optimizer):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.cat([g.flatten() for g in grads]).norm()))

    original = FineTuning.configure_gradient_clipping

    def clipped(self, optimizer, *arguments, **options):
        note(self, optimizer)
        original(self, optimizer, *arguments, **options)
        note(self, optimizer)

    monkeypatch.setattr(FineTuning, "configure_gradient_clipping", clipped)
    trained(tiny_checkpoint, data_files, tmp_path / "run", clip_grad=1e-4)
    before, after = np.reshape(norms, (-1, 2)).T
    assert (before > 1e-4).any()
    np.testing.assert_allclose(after, np.minimum(before, 1e-4), rtol=0.02)


def test_the_usual_bound_changes_no_bit_of_an_ordinary_training(
    tiny_checkpoint, data_files, tmp_path
):
    one = trained(tiny_checkpoint, data_files, tmp_path / "usual")
    two = trained(tiny_checkpoint, data_files, tmp_path / "none", clip_grad=0)
    assert same(one, two)
    assert not same(one, trained(tiny_checkpoint, data_files, tmp_path / "low", clip_grad=1e-4))


def test_two_batches_of_two_make_the_step_of_one_of_four(tiny_checkpoint, data_files, tmp_path):
    # Frames of one size, each with all labels: a mean of means is the mean.
    one = trained(tiny_checkpoint, data_files, tmp_path / "one")
    two = trained(tiny_checkpoint, data_files, tmp_path / "two", batch_size=2, accumulate=2)
    assert same(one, two, 1e-9)
    assert not same(one, trained(tiny_checkpoint, data_files, tmp_path / "x", batch_size=2), 1e-6)


INTERPLAY = {
    "accumulate": {"batch_size": 3, "accumulate": 3, "optimizer": "schedule_free"},
    "ema": {"optimizer": "adamw", "ema": 0.9, "warmup": 0.3},
}


@pytest.mark.parametrize("chosen", INTERPLAY.values(), ids=INTERPLAY)
@pytest.mark.parametrize("stop", [4, 6, 8, 9])
def test_resumed_equals_uninterrupted(
    stop, chosen, tiny_checkpoint, data_files, tmp_path, monkeypatch
):
    # 12 frames: of batches of 3 an epoch has a step of three and a step of one.
    chosen = chosen | {"method": "budget", "method_settings": {"target_sparsity": 0.8}}
    chosen |= {"max_steps": 7, "valid_every": 2}
    whole = trained(tiny_checkpoint, data_files, tmp_path / "whole", **chosen)
    original, seen = FineTuning.training_step, []

    def interrupted(self, batch, index):
        seen.append(index)
        if len(seen) == stop:
            raise KeyboardInterrupt
        return original(self, batch, index)

    made = make_config(settings(tiny_checkpoint, data_files, tmp_path / "parts", **chosen))
    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "training_step", interrupted)
        try:
            finetune(made)
        except Interrupted:
            resumed = finetune(made, resume=True).adapter.values()
        else:
            pytest.skip("no step is left to be interrupted")
    assert any(v.any() for v in whole.values())
    assert same(whole, resumed, 1e-9)


def test_what_is_written_is_the_average(tiny_checkpoint, data_files, tmp_path):
    chosen = {"optimizer": "adamw", "lr": 3e-2}
    plain = trained(tiny_checkpoint, data_files, tmp_path / "plain", **chosen)
    averaged = trained(tiny_checkpoint, data_files, tmp_path / "ema", ema=0.99, **chosen)
    last = torch.load(tmp_path / "ema" / "checkpoints" / "last.ckpt", weights_only=False)
    kept = last["optimizer_states"][0]["state"]
    # The checkpoint holds the average in the place of the weights, and these in its own.
    held = torch.cat([kept[n]["average"].flatten() for n in sorted(kept)])
    assert held.norm() > 0
    one, two = (torch.cat([v.flatten() for v in values.values()]) for values in (plain, averaged))
    torch.testing.assert_close(held.sort().values, one.sort().values)
    assert two.norm() < one.norm()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ema": 0.99}, "averages? .*adamw"),
        ({"trainer": {"gradient_clip_val": 1.0}}, "--clip-grad"),
        ({"trainer": {"max_epochs": 1}}, "--epochs"),
        ({"trainer": {"precision": "bf16-mixed"}}, "forces .*--matmul-precision"),
        ({"trainer": {"profiller": "simple"}}, "no argument 'profiller'.*profiler"),
        ({"trainer": {"profiler": "simpel"}}, "Lightning says: .*profiler"),
        ({"trainer": {"callbacks": ["LearningRateMonitr"]}}, "LearningRateMonitor"),
        ({"trainer": {"callbacks": [3]}}, "class_path"),
        ({"logger": "tensorbord"}, "no logger 'tensorbord'.*tensorboard"),
        ({"logger": ["csv", "wandb"]}, "pip install wandb"),
        ({"strategy": "fsdp"}, "strategy fsdp"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_what_can(
    wrong, message, tiny_checkpoint, data_files, tmp_path, monkeypatch
):
    monkeypatch.setattr(trainer, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=message):
        make_config(settings(tiny_checkpoint, data_files, tmp_path / "run", **wrong))


class Notes(Logger):
    """A logger of somebody's that remembers what it is told."""

    made: ClassVar = []

    def __init__(self, name, run_name=None):
        super().__init__()
        self.rows = []
        Notes.made.append(self)

    name, version = "notes", 0

    def log_hyperparams(self, *arguments, **options):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows.append(dict(metrics))


def test_loggers_and_further_arguments_reach_lightning(
    tiny_checkpoint, data_files, tmp_path, monkeypatch
):
    monkeypatch.setattr(trainer, "find_spec", lambda package: True)
    monkeypatch.setattr(trainer, "MLFlowLogger", Notes)
    made, original = [], fitting.Trainer

    def noted(**options):
        made.append(original(**options))
        return made[-1]

    monkeypatch.setattr(fitting, "Trainer", noted)
    monitor = {"class_path": "LearningRateMonitor", "init_args": {"logging_interval": "step"}}
    trained(
        tiny_checkpoint, data_files, tmp_path / "run", logger="mlflow", optimizer="adamw",
        matmul_precision="high", trainer={"log_every_n_steps": 3, "callbacks": [monitor]},
    )  # fmt: skip
    (one,) = made
    assert one.log_every_n_steps == 3
    named = {name for row in Notes.made[-1].rows for name in row}
    assert {"train/loss", "valid/loss", "lr-AdamW"} <= named
    assert len(pd.read_csv(tmp_path / "run" / "metrics.csv")) > 0
    assert torch.get_float32_matmul_precision() == "highest"
