"""Commands do not run what is in a model file, and say in one sentence what is wrong with it."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hostile_models import NAMES, Touches, commands

from e3sparse.errors import ConfigError
from e3sparse.potentials.backends import load_potential


@pytest.fixture
def hostile(tiny_checkpoint, tmp_path):
    """Return a model that works, in a file that makes another file, and that file."""
    checkpoint = torch.load(tiny_checkpoint, weights_only=False)
    path, marker = tmp_path / "hostile.pth", tmp_path / "marker"
    torch.save(checkpoint | {"hash": Touches(marker)}, path)
    return path, marker


@pytest.mark.parametrize("command", NAMES)
def test_nothing_in_a_model_file_is_run(
    command, hostile, data_files, run, tmp_path, trained_folder
):
    path, marker = hostile
    folder = tmp_path / "folder"
    if command in ("merge", "report"):
        shutil.copytree(trained_folder, folder)
    code, _, err = run(*commands(path, data_files, folder)[command])
    assert code == 2
    assert "would run" in err
    assert ".eval" in err
    assert "--trust-model" in err
    assert not marker.exists()


def test_a_file_that_is_trusted_is_loaded(hostile, run):
    path, marker = hostile
    code, out, _ = run("inspect", path, "--trust-model")
    assert code == 0
    assert "onehot_to_feature_x" in out
    assert marker.exists()
    marker.unlink()
    assert run("inspect", path)[0] == 2  # trust ends with the command
    assert not marker.exists()
    load_potential(str(path), trust=True)
    assert marker.exists()


@pytest.fixture
def asked(monkeypatch):
    """What torch was asked to read with `weights_only`, call by call."""
    calls = []
    honest = torch.load

    def load(path, **options):
        calls.append(options["weights_only"])
        return honest(path, **options)

    monkeypatch.setattr(torch, "load", load)
    return calls


def test_published_models_are_read_as_tensors_and_plain_data(asked):
    load_potential("7net-0")
    assert asked == [True]


def test_other_content_that_passes_the_look_is_read_too(tiny_checkpoint, tmp_path, asked):
    checkpoint = torch.load(tiny_checkpoint, weights_only=False)
    torch.save(checkpoint | {"hash": Path("somewhere")}, tmp_path / "model.pth")
    asked.clear()
    load_potential(str(tmp_path / "model.pth"))
    assert asked == [True, False]


def test_a_base_model_that_a_folder_brings_along_is_not_run(hostile, run, trained_folder, tmp_path):
    path, marker = hostile
    folder = tmp_path / "theirs"
    shutil.copytree(trained_folder, folder)
    shutil.copy(path, folder / "base.pth")
    config = folder / "adapter_config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"base_model": str(folder / "base.pth")}))
    code, _, _ = run("report", folder, "--out", tmp_path / "report")
    assert code != 0
    assert not marker.exists()


@pytest.fixture(scope="module")
def trained_folder(tiny_checkpoint, tmp_path_factory):
    """An adapter folder."""
    potential = load_potential(str(tiny_checkpoint))
    adapter = potential.patch("linear", "dense")
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    adapter.save_pretrained(folder, base_model=str(tiny_checkpoint))
    return folder


DAMAGE = {
    "empty": lambda data: b"",
    "text": lambda data: b"this is no model\n",
    "cut in half": lambda data: data[: len(data) // 2],
    "cut at the end": lambda data: data[:-100],
    "beginning only": lambda data: data[:10],
    "zeros": lambda data: bytes(len(data)),
    "another archive": lambda data: b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("backend", [None, "sevennet"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_is_one_sentence(damage, backend, tiny_checkpoint, tmp_path):
    path = tmp_path / "damaged.pth"
    path.write_bytes(DAMAGE[damage](Path(tiny_checkpoint).read_bytes()))
    with pytest.raises(ConfigError) as refused:
        load_potential(str(path), backend=backend)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("backend", [None, "sevennet"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_folder_or_a_pipe_is_no_model(make, backend, tmp_path):
    make(tmp_path / "model.pth")
    with pytest.raises(ConfigError, match=r"model.pth' is no model"):
        load_potential(str(tmp_path / "model.pth"), backend=backend)
