"""MACE's own training with our delta, and what happens when MACE moves its seam."""

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from e3sparse_mace.run_train import SEAM, main
from mace.calculators import MACECalculator
from mace.cli import run_train
from mace_models import load
from typer.testing import CliRunner

import e3sparse
from e3sparse.adapter_file import read_values
from e3sparse.cli import app, commands
from e3sparse.errors import ConfigError
from e3sparse.symmetry import PotentialSubject


@pytest.fixture
def train(tiny_file, data_files, tmp_path, monkeypatch):
    """Run the command with small settings that arguments can override."""
    monkeypatch.chdir(tmp_path)
    dtype = torch.get_default_dtype()

    def call(*arguments, **options):
        flags = {
            "name": "sparse", "foundation_model": tiny_file, "train_file": data_files["train"],
            "valid_file": data_files["valid"], "E0s": "average", "multiheads_finetuning": False,
            "max_num_epochs": 6, "batch_size": 4, "lr": 0.01, "device": "cpu", "seed": 1,
            "default_dtype": "float64", "work_dir": tmp_path, "foundation_model_elements": True,
            "energy_key": "REF_energy", "forces_key": "REF_forces",
        } | options  # fmt: skip
        listed = [str(x) for k, v in flags.items() for x in (f"--{k}", v)]
        main([*listed, *arguments])

    yield call
    torch.set_default_dtype(dtype)


def merged_and_adapted(tmp_path):
    folder = tmp_path / "sparse_adapter"
    return tmp_path / "sparse.model", folder


def test_trains_saves_and_merges(train, tiny_file, data_files, tmp_path):
    train("--e3sparse_targets", "linear", "products", "--e3sparse_target_sparsity", "0.9")
    merged, folder = merged_and_adapted(tmp_path)
    values = read_values(folder)
    entries = sum(v.numel() for v in values.values())
    updated = sum(int(v.count_nonzero()) for v in values.values())
    assert updated == round(0.1 * entries)
    model = torch.load(merged, weights_only=False)
    assert not e3sparse.adapters(model)
    assert all(p.requires_grad for p in model.parameters())
    frames = ase.io.read(data_files["test"], index=":")
    off = []
    for path in (tiny_file, merged):
        calculator = MACECalculator(str(path), device="cpu", default_dtype="float64")
        errors = []
        for atoms in frames:
            labels = atoms.arrays["REF_forces"]
            atoms.calc = calculator
            errors.append(atoms.get_forces() - labels)
        off.append(np.abs(np.concatenate(errors)).mean())
    assert off[1] < 0.9 * off[0]


def test_the_adapter_on_the_base_is_the_merged_model(train, tmp_path):
    train("--e3sparse_targets", "everything", "--e3sparse_method", "dense")
    merged, folder = merged_and_adapted(tmp_path)
    adapted = load(tmp_path / "sparse_base.model")
    before = PotentialSubject(adapted)(molecule("H2O")).forces
    adapted.load_adapter(folder)
    forces = [PotentialSubject(p)(molecule("H2O")).forces for p in (adapted, load(merged))]
    np.testing.assert_allclose(forces[0], forces[1], atol=1e-9)
    assert np.abs(forces[0] - before).max() > 1e-3


@pytest.mark.parametrize("extra", [{"ema": None}, {"optimizer": "schedulefree"}], ids=str)
def test_averages_and_other_optimizers_meet_the_target(train, tmp_path, extra):
    flags = [x for k, v in extra.items() for x in (f"--{k}", v) if x is not None]
    train("--e3sparse_target_sparsity", "0.8", *flags)
    values = read_values(tmp_path / "sparse_adapter")
    entries = sum(v.numel() for v in values.values())
    assert sum(int(v.count_nonzero()) for v in values.values()) == round(0.2 * entries)


def test_a_restart_goes_on_with_the_schedule(train, tmp_path):
    train(max_num_epochs=6)
    whole = read_values(tmp_path / "sparse_adapter")
    (tmp_path / "again").mkdir()
    work = {"work_dir": tmp_path / "again"}
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(max_num_epochs=6, **work)
    train("--restart_latest", max_num_epochs=6, **work)
    again = read_values(tmp_path / "again" / "sparse_adapter")
    assert whole.keys() == again.keys()
    counts = [sum(int(v.count_nonzero()) for v in part.values()) for part in (whole, again)]
    assert counts[0] == counts[1]


def stop_after(patch, epochs):
    """Stop a training when this many checkpoints have been written."""
    from mace.tools import CheckpointHandler

    save, saved = CheckpointHandler.save, []

    def interrupted(self, *arguments, **options):
        save(self, *arguments, **options)
        saved.append(1)
        if len(saved) == epochs:
            raise KeyboardInterrupt

    patch.setattr(CheckpointHandler, "save", interrupted)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--lora", "True"), "--lora cannot be combined with a sparse delta"),
        (("--enable_cueq", "True"), "--enable_cueq cannot be combined"),
        (("--freeze", "3"), "--freeze cannot be combined"),
        (("--lbfgs",), "--lbfgs cannot be combined"),
        (("--e3sparse_targets", "lineare"), "Did you mean 'linear'"),
        (("--e3sparse_method", "budgt"), "Did you mean 'budget'"),
    ],
)
def test_what_cannot_be_combined(train, flags, says):
    with pytest.raises(ConfigError, match=says):
        main_error(train, flags)


def main_error(train, flags):
    try:
        train(*flags)
    except e3sparse.E3SparseError as error:
        raise ConfigError(str(error)) from error


@pytest.mark.parametrize("name", SEAM)
def test_a_seam_that_moved_is_noticed(train, monkeypatch, name):
    monkeypatch.delattr(run_train, name)
    with pytest.raises(ConfigError, match=f"This version of MACE has no {name}"):
        train()


def test_a_seam_that_is_not_used_is_noticed(train, monkeypatch):
    monkeypatch.setattr(run_train, "run", lambda args: None)
    with pytest.raises(ConfigError, match=r"MACE did not call .*inject_LoRAs.*another way"):
        train()


def test_what_was_rebound_is_bound_back(train, monkeypatch):
    before = {name: getattr(run_train, name) for name in SEAM} | {"train": run_train.tools.train}
    monkeypatch.setattr(run_train, "run", lambda args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train()
    after = {name: getattr(run_train, name) for name in SEAM} | {"train": run_train.tools.train}
    assert after == before


def test_the_command_is_there(monkeypatch):
    assert "mace-run-train" in commands.installed_commands()
    called = []
    monkeypatch.setattr("e3sparse_mace.run_train.main", called.append)
    arguments = ["mace-run-train", "--name", "x", "--e3sparse_targets", "linear", "fctp", "--help"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert called == [arguments[1:]]
