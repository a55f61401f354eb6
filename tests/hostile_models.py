"""A model file that would run something, and every command that loads a model file."""

import zipfile

import torch
from typer.testing import CliRunner

from e3sparse.cli import app

NAMES = ("inspect", "evaluate", "check", "merge", "finetune", "report")


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return eval, (f"__import__('pathlib').Path({str(self.path)!r}).touch()",)


def commands(model, data, folder):
    """Return the arguments of each command; `folder` holds an adapter or will be written."""
    return {
        "inspect": ["inspect", model],
        "evaluate": ["evaluate", model, "--data", data["valid"]],
        "check": ["check", model, "--examples", "1", "--max-atoms", "2"],
        "merge": ["merge", model, "--adapter", folder, "--out", folder / "merged.pth"],
        "finetune": ["finetune", "--model", model, "--train", data["train"], "--out", folder],
        "report": ["report", folder, "--base", model],
    }


def assert_no_command_runs_it(make, potential, data, tmp_path):
    """Try each command on a file that `make` writes, given its path and what touches a marker.

    The control is that torch runs it.
    """
    path, marker, adapter = tmp_path / "hostile", tmp_path / "marker", tmp_path / "adapter"
    path = make(path, Touches(marker))
    potential.patch("linear", "dense").save_pretrained(adapter, base_model=str(path))
    for name in NAMES:
        folder = tmp_path / "run" if name == "finetune" else adapter
        arguments = [str(a) for a in commands(path, data, folder)[name]]
        ended = CliRunner().invoke(app, arguments)
        said = str(ended.exception)
        assert "would run" in said, (name, ended.output, said)
        assert ".eval" in said
        assert "--trust-model" in said
        assert not marker.exists(), name
    CliRunner().invoke(app, ["inspect", str(path), "--trust-model"])
    assert marker.exists()


def with_pickle(archive, changed, name, payload):
    """Copy an archive, with the payload in the place of the pickle whose name ends so."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(changed, "w") as new:
        for item in old.infolist():
            data = old.read(item)
            new.writestr(item, payload if item.filename.endswith(name) else data)
    return changed


def saved_beside(loaded, path, payload):
    """Save what was loaded with a payload in it: a dictionary's entry, or a module's attribute."""
    if isinstance(loaded, dict):
        loaded = loaded | {"more": payload}
    else:
        loaded.more = payload
    torch.save(loaded, path)
    return path
