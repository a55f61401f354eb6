"""Nothing of the user's is lost by a run, and nothing half-written is taken for whole."""

import errno
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sample_frames import labelled

from e3sparse.errors import ConfigError, DivergedError, E3SparseError, Interrupted
from e3sparse.training import checkpoints
from e3sparse.training.config import make_config
from e3sparse.training.module import FineTuning
from e3sparse.training.run import finetune
from e3sparse.training.run_folder import LISTING, RunFolder
from e3sparse.training.run_records import read_checkpoint


@pytest.fixture
def project(tiny_checkpoint, data_files, tmp_path, monkeypatch):
    """A folder with a config, data and a model, in which the user stands."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name, path in data_files.items():
        shutil.copy(path, folder / f"{name}.xyz")
    shutil.copy(tiny_checkpoint, folder / "base.pth")
    settings = {"model": "base.pth", "train": "train.xyz", "valid": "valid.xyz", "max_steps": 2}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | {"device": "cpu"}))
    monkeypatch.chdir(folder)
    return folder


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def settings(**values):
    given = {"model": "base.pth", "train": "train.xyz", "valid": "valid.xyz", "device": "cpu"}
    return make_config(given | {"max_steps": 2, "out": "run"} | values)


def stopped_at(monkeypatch, step, error):
    """Stop the training at a step; returns what undoes that."""
    original = FineTuning.training_step

    def stopping(self, batch, index):
        if self.trainer.global_step == step:
            raise error
        return original(self, batch, index)

    patched = monkeypatch.context()
    patched.__enter__().setattr(FineTuning, "training_step", stopping)
    return patched


@pytest.mark.parametrize("out", [".", "run/..", "../project"])
def test_a_project_is_not_taken_for_a_run(out, run, project):
    before = contents(project)
    code, _, err = run("finetune", "--config", "config.yaml", "--out", out, "--overwrite")
    assert code == 2
    assert "give another --out" in err
    assert contents(project) == before


@pytest.mark.parametrize("flag", ["--train", "--model", "--config"])
def test_inputs_in_the_folder_are_refused(flag, run, project):
    finetune(settings())
    name = {"--train": "train.xyz", "--model": "base.pth", "--config": "config.yaml"}[flag]
    shutil.copy(project / name, project / "run" / f"my_{name}")
    before = contents(project)
    code, _, err = run(
        "finetune", "--config", "config.yaml", "--out", "run", "--overwrite",
        flag, f"run/my_{name}",
    )  # fmt: skip
    assert code == 2
    assert f"{flag} run/my_{name} lies in run" in err
    assert contents(project) == before


def test_only_what_the_run_wrote_is_replaced(project):
    finetune(settings(magnetic=False))
    (project / "run" / "notes.txt").write_text("mine")
    (project / "run" / "figures" / "mine.png").write_text("mine")
    first = contents(project / "run")
    finetune(settings(seed=1, method="full"), overwrite=True)
    now = contents(project / "run")
    assert {str(p) for p in first} - {str(p) for p in now} == {
        "adapter/README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"
    }  # fmt: skip
    assert (project / "run" / "notes.txt").read_text() == "mine"
    assert (project / "run" / "figures" / "mine.png").read_text() == "mine"
    assert not (project / "run.unfinished").exists()
    listed = json.loads((project / "run" / LISTING).read_text())["files"]
    assert {str(p) for p in now} == {*listed, LISTING, "notes.txt", "figures/mine.png"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_a_run_that_fails_leaves_the_one_before_it(error, project, monkeypatch):
    finetune(settings())
    before = contents(project / "run")
    patched = stopped_at(monkeypatch, 3, error)
    with pytest.raises((Interrupted, RuntimeError)):
        finetune(settings(max_steps=6), overwrite=True)
    patched.__exit__(None, None, None)
    assert contents(project / "run") == before
    result = finetune(settings(max_steps=6), resume=True)
    assert result.out.name == "run"
    assert pd.read_csv(project / "run" / "metrics.csv")["step"].max() == 5
    assert not (project / "run.unfinished").exists()


def test_a_folder_of_before_there_were_lists_is_left_alone(project):
    finetune(settings())
    (project / "run" / LISTING).unlink()
    before = contents(project / "run")
    with pytest.raises(ConfigError, match="move it away"):
        finetune(settings(), overwrite=True)
    assert contents(project / "run") == before


def change_a_label(project):
    text = (project / "train.xyz").read_text()
    (project / "train.xyz").write_text(text.replace("REF_energy=-", "REF_energy=-1", 1))


def drop_a_frame(project):
    import ase.io

    ase.io.write(project / "train.xyz", labelled(11))


def change_the_model(project):
    checkpoint = torch.load(project / "base.pth", weights_only=False)
    for value in checkpoint["model_state_dict"].values():
        if value.is_floating_point() and value.ndim == 1 and value.numel() > 10:
            value.mul_(1.01)
    torch.save(checkpoint, project / "base.pth")


@pytest.mark.parametrize(
    ("change", "named"), [(change_a_label, "train"), (drop_a_frame, "train"),
                          (change_the_model, "model"), (lambda p: None, None)]
)  # fmt: skip
def test_a_run_goes_on_only_with_what_it_was_begun_with(change, named, project, monkeypatch):
    patched = stopped_at(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(Interrupted, match="--resume --out run"):
        finetune(settings(max_steps=6))
    patched.__exit__(None, None, None)
    change(project)
    if named is None:
        finetune(settings(max_steps=6), resume=True)
        return
    with pytest.raises(ConfigError, match=f"other contents of: {named}"):
        finetune(settings(max_steps=6), resume=True)


def test_a_run_goes_on_from_another_folder(run, project, monkeypatch):
    patched = stopped_at(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(Interrupted):
        finetune(settings(max_steps=6))
    patched.__exit__(None, None, None)
    monkeypatch.chdir("/")
    code, _, err = run("finetune", "--resume", "--out", project / "run")
    assert code == 0, err
    steps = pd.read_csv(project / "run" / "metrics.csv")["step"]
    assert sorted(steps[steps.duplicated()].unique()) == sorted(
        pd.read_csv(project / "run" / "metrics.csv").dropna(subset=["valid/loss"])["step"].unique()
    )  # a step has a row of training and, some, one of validation
    assert run("report", project / "run", "--out", project / "report")[0] == 0


def test_killed_before_the_first_checkpoint(run, project, monkeypatch):
    patched = stopped_at(monkeypatch, 0, RuntimeError("killed"))
    monkeypatch.setattr(checkpoints.LastCheckpoint, "on_exception", lambda *a: None)
    with pytest.raises(RuntimeError, match="killed"):
        finetune(settings())
    patched.__exit__(None, None, None)
    code, _, err = run("finetune", "--config", "config.yaml", "--out", "run")
    assert code == 2
    assert "--resume" in err
    assert "--overwrite" in err
    code, printed, _ = run("finetune", "--resume", "--out", "run")
    assert code == 0
    assert "no checkpoint yet" in printed


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[::-1]])
def test_a_damaged_checkpoint_is_not_gone_on_from(damage, project, monkeypatch, capsys):
    patched = stopped_at(monkeypatch, 5, KeyboardInterrupt())
    with pytest.raises(Interrupted):
        finetune(settings(max_steps=9))
    patched.__exit__(None, None, None)
    folder = RunFolder(project / "run").checkpoints
    last = folder / "last.ckpt"
    steps = [read_checkpoint(p)["global_step"] for p in (last, folder / "last.previous.ckpt")]
    assert steps == [5, 4]
    last.write_bytes(damage(last.read_bytes()))
    finetune(settings(max_steps=9), resume=True)
    said = " ".join(capsys.readouterr().out.split())
    assert "last.ckpt is damaged" in said
    assert "The one before it is taken" in said
    steps = pd.read_csv(project / "run" / "metrics.csv").dropna(subset=["train/loss"])["step"]
    assert steps.tolist() == list(range(9))


def test_a_checkpoint_of_another_run_is_not_gone_on_from(project, monkeypatch, capsys):
    for out in ("run", "other"):
        patched = stopped_at(monkeypatch, 5, KeyboardInterrupt())
        with pytest.raises(Interrupted):
            finetune(settings(max_steps=9, out=out))
        patched.__exit__(None, None, None)
    mine, others = (RunFolder(project / out).checkpoints / "last.ckpt" for out in ("run", "other"))
    mine.write_bytes(others.read_bytes())
    finetune(settings(max_steps=9), resume=True)
    assert "is a checkpoint of another run" in " ".join(capsys.readouterr().out.split())


def test_all_checkpoints_damaged(project, monkeypatch):
    patched = stopped_at(monkeypatch, 5, KeyboardInterrupt())
    with pytest.raises(Interrupted):
        finetune(settings(max_steps=9))
    patched.__exit__(None, None, None)
    for path in RunFolder(project / "run").checkpoints.glob("last*"):
        path.write_bytes(b"PK")
    with pytest.raises(ConfigError, match="is whole and of this run"):
        finetune(settings(max_steps=9), resume=True)


def test_a_full_disk_leaves_the_checkpoint_before(project, monkeypatch):
    original = torch.save
    count = [0]

    def full(checkpoint, path, *arguments, **options):
        count[0] += 1
        original(checkpoint, path, *arguments, **options)
        if count[0] >= 3:
            with open(path, "r+b") as file:
                file.truncate(1000)
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.torch, "save", full)
        with pytest.raises(E3SparseError, match="No space is left"):
            finetune(settings(max_steps=9))
    folder = RunFolder(project / "run").checkpoints
    assert not list(folder.glob(".writing-*"))
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 2
    finetune(settings(max_steps=9), resume=True)


@pytest.mark.parametrize("lr", [1e3, 1e6])
def test_a_training_that_diverges_ends_at_once(lr, project):
    with pytest.raises(DivergedError, match=r"diverged at a rate of"):
        finetune(settings(lr=lr, method="full", optimizer="sgd", max_steps=300, recover=False))
    log = pd.read_csv(project / "run" / "logs" / "version_0" / "metrics.csv")
    assert log["step"].max() < 50
    assert not (project / "run" / "model.pth").exists()


@pytest.mark.parametrize("lr", [np.inf, np.nan, 0.0, -1.0])
@pytest.mark.parametrize("name", ["lr", "spin_lr"])
def test_rates_are_positive_and_finite(lr, name):
    with pytest.raises(ConfigError, match=name):
        settings(**{name: lr, "magnetic": True})


@pytest.mark.parametrize("file", ["config.yaml", "results.json"])
@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\x00\x01", b"[1, 2", b"[]", b"{}"])
def test_damaged_run_folders_are_named(file, damage, run, project):
    finetune(settings())
    (project / "run" / file).write_bytes(damage)
    for command in (("compare", "run"), ("report", "run", "--out", "report")):
        code, _, err = run(*command)
        assert code == 2, command
        assert file in err
