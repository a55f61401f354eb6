"""Replay holds a model to what the base said, with labels that are the base's own."""

from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from rich.console import Console
from sample_frames import labelled, structures
from support import load

from e3sparse.errors import ConfigError, DataError, Interrupted
from e3sparse.frames.evaluation import predict
from e3sparse.training import replay
from e3sparse.training.config import make_config
from e3sparse.training.losses import Loss
from e3sparse.training.module import FineTuning
from e3sparse.training.replay import LARGEST_FORCE, Replay, replay_frames
from e3sparse.training.run import finetune


def config(tiny_checkpoint, data_files, out, **values):
    defaults = {
        "max_steps": 12, "batch_size": 4, "device": "cpu", "dtype": "float64",
        "replay": "auto",
    }  # fmt: skip
    if values.get("replay", "auto") == "auto":
        defaults["replay_structures"] = 12
    return make_config(
        {"model": str(tiny_checkpoint), "out": out, **data_files, **defaults, **values}
    )


@pytest.fixture
def asked(tiny_checkpoint, data_files, tmp_path):
    return config(tiny_checkpoint, data_files, tmp_path / "run")


def frames_of(asked, potential):
    return replay_frames(asked, potential, Console(quiet=True))


def drift(potential, frames):
    """Mean difference of forces from those of the frames, in eV/Å."""
    found = predict(potential, frames)
    return np.abs(np.concatenate(found.forces) - np.concatenate([f.forces for f in frames])).mean()


def test_random_structures_have_the_labels_of_the_base(asked, tiny_checkpoint):
    potential = load(tiny_checkpoint, torch.float64)
    frames = frames_of(asked, potential)
    assert len(frames) == 12
    assert {bool(f.atoms.pbc.all()) for f in frames} == {True, False}
    assert {z for f in frames for z in f.atoms.numbers} <= set(potential.species.numbers)
    assert max(np.abs(f.forces).max() for f in frames) < LARGEST_FORCE
    found = predict(potential, frames)
    np.testing.assert_allclose(found.energy, [f.energy for f in frames], rtol=1e-12)
    assert drift(potential, frames) < 1e-12


def test_a_file_is_labelled_anew(asked, tiny_checkpoint, tmp_path):
    potential = load(tiny_checkpoint, torch.float64)
    ase.io.write(tmp_path / "own.xyz", [*labelled(2), *structures()])
    asked = asked.model_copy(update={"replay": str(tmp_path / "own.xyz")})
    frames = frames_of(asked, potential)
    assert len(frames) == 4
    assert drift(potential, frames) < 1e-12
    assert frames[0].energy != labelled(2)[0].info["REF_energy"]


def test_a_fresh_delta_has_no_drift_and_a_changed_one_has(asked, tiny_checkpoint):
    potential = load(tiny_checkpoint, torch.float64)
    frames = frames_of(asked, potential)
    adapter = potential.patch("linear", "dense")
    held = Replay.of(frames, potential, asked)
    batch = held.batch(0)
    assert Loss()(potential.forward(batch.inputs), batch).item() < 1e-20
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.1
    assert Loss()(potential.forward(batch.inputs), batch).item() > 1e-6


def test_batches_depend_on_seed_step_and_rank_alone(asked, tiny_checkpoint):
    potential = load(tiny_checkpoint, torch.float64)
    frames = frames_of(asked, potential)
    one, two = (Replay.of(frames, potential, asked) for _ in range(2))
    other = Replay.of(frames, potential, asked.model_copy(update={"seed": 1}))
    assert torch.equal(one.batch(5).forces, two.batch(5).forces)
    for different in (one.batch(6), one.batch(5, rank=1), other.batch(5)):
        forces = one.batch(5).forces
        assert different.forces.shape != forces.shape or not torch.equal(different.forces, forces)


@pytest.mark.parametrize(
    "method", ["full", "budget", pytest.param("dense", marks=pytest.mark.nightly)]
)
def test_replay_keeps_the_model_near_the_base(method, asked, tiny_checkpoint, data_files, tmp_path):
    away, more = {}, {"replay_structures": 64}
    unseen = frames_of(asked.model_copy(update={"seed": 7}), load(tiny_checkpoint, torch.float64))
    for weight in (None, 10.0):
        asked = config(
            tiny_checkpoint, data_files, tmp_path / str(weight), method=method, max_steps=40,
            lr=3e-2, targets="all",
            **({"replay": None} if weight is None else more | {"replay_weight": weight}),
        )  # fmt: skip
        out = finetune(asked).out
        away[weight] = drift(load(out / "model.pth", torch.float64), unseen)
    assert away[10.0] < 0.7 * away[None]


def test_resumed_equals_uninterrupted(tiny_checkpoint, data_files, tmp_path, monkeypatch):
    whole = finetune(config(tiny_checkpoint, data_files, tmp_path / "whole"))
    original = FineTuning.training_step

    def interrupted(self, batch, index):
        if self.trainer.global_step == 7:
            raise KeyboardInterrupt
        return original(self, batch, index)

    made = config(tiny_checkpoint, data_files, tmp_path / "parts")
    monkeypatch.setattr(FineTuning, "training_step", interrupted)
    with pytest.raises(Interrupted):
        finetune(made)
    monkeypatch.setattr(FineTuning, "training_step", original)
    one, two = whole.adapter.values(), finetune(made, resume=True).adapter.values()
    for path in one:
        torch.testing.assert_close(one[path], two[path], rtol=1e-9, atol=1e-12)


def test_refusals_come_before_the_run_folder(tiny_checkpoint, data_files, tmp_path):
    ase.io.write(tmp_path / "gold.xyz", Atoms("Au2", positions=[[0, 0, 0], [0, 0, 2.5]]))
    asked = config(tiny_checkpoint, data_files, tmp_path / "run", replay=str(tmp_path / "gold.xyz"))
    with pytest.raises(DataError, match="Au"):
        finetune(asked)
    ase.io.write(tmp_path / "same.xyz", Atoms("H2O", positions=np.zeros((3, 3))))
    with pytest.raises(DataError, match="are not finite"):
        finetune(asked.model_copy(update={"replay": str(tmp_path / "same.xyz")}))
    with pytest.raises(DataError, match="no file"):
        finetune(asked.model_copy(update={"replay": "automatic"}))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="scratch"):
        config(tiny_checkpoint, data_files, tmp_path / "run", method="scratch")


def test_a_base_model_that_holds_nothing_together_is_refused(asked, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(replay, "LARGEST_FORCE", 0.0)
    with pytest.raises(ConfigError, match="--replay FILE"):
        frames_of(asked, load(tiny_checkpoint, torch.float64))


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_energies_of_what_is_replayed_count_by_their_own_weight(weight, asked, tiny_checkpoint):
    potential = load(tiny_checkpoint, torch.float64)
    off = [replace(frame, energy=frame.energy + 3.0) for frame in frames_of(asked, potential)]
    potential.patch("linear", "dense")
    held = Replay.of(off, potential, asked.model_copy(update={"replay_energy_weight": weight}))
    batch = held.batch(0)
    said = potential.forward(batch.inputs)
    whole = Loss()(said, batch).item()
    assert whole > 1e-4
    assert held.loss(Loss())(said, batch).item() == pytest.approx(weight * whole, abs=1e-20)


REPLAYED = {"model": "m", "train": "t", "replay": "auto"}


@pytest.mark.parametrize(
    ("given", "bound"),
    [
        ({}, 0.07),
        ({"method_settings": {"largest_lr": 0.5}}, 0.5),
        ({"method_settings": {"largest_lr": None}}, None),
        ({"replay": None}, None),
    ],
)
def test_a_rate_grows_less_far_with_replay(given, bound, tiny_checkpoint):
    settings = make_config(REPLAYED | given).method_settings
    adapter = load(tiny_checkpoint).patch("linear", "budget", total_steps=1, **settings)
    assert adapter.method.largest_lr == bound
    optimizer = torch.optim.SGD(adapter.param_groups(lr=0.02))
    adapter.step(optimizer=optimizer)
    free = 0.02 * 0.03**-0.75  # 3 % of the entries are left
    assert optimizer.param_groups[0]["lr"] == pytest.approx(min(free, bound or free))


def test_other_methods_have_no_such_bound():
    assert make_config(REPLAYED | {"method": "dense"}).method_settings == {}
