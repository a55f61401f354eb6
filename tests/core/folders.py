"""Adapter folders: loaded, damaged, and refused."""

import hashlib
import json

import pytest
import safetensors.torch
from networks import FOLD_INTO, SPECIES, network, snapshot

import e3sparse
from e3sparse.adapter.config import CONFIG_NAME, TENSORS_NAME
from e3sparse.errors import AdapterFileError


def load(model, folder, **kwargs):
    return e3sparse.load(model, folder, species=SPECIES, fold_into=FOLD_INTO, **kwargs)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_refused(folder, says, model=None):
    model = model or network()
    before = snapshot(model)
    with pytest.raises(AdapterFileError, match=says):
        load(model, folder)
    assert snapshot(model) == before
    assert not e3sparse.adapters(model)


def digest(config, data):
    """Return the digest as the README describes it, without e3sparse."""
    rest = {key: value for key, value in config.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    parts = [hashlib.sha256(part).digest() for part in (text.encode(), data)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def seal(folder, config_name=CONFIG_NAME, tensors_name=TENSORS_NAME):
    """Write the digest that goes with what a folder holds, as another program would."""
    path = folder / config_name
    config = json.loads(path.read_text())
    if "digest" in config:
        config["digest"] = digest(config, (folder / tensors_name).read_bytes())
        path.write_text(json.dumps(config))


def edit_config(folder, change, *, sealed=True):
    path = folder / CONFIG_NAME
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    if sealed:
        seal(folder)


def edit_tensors(folder, change, *, sealed=True):
    tensors = safetensors.torch.load_file(folder / TENSORS_NAME)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    safetensors.torch.save_file(tensors, folder / TENSORS_NAME)
    if sealed:
        seal(folder)


def as_version_1(folder, config_name=CONFIG_NAME):
    """Make a folder one of version 1: no digest, of the base the parameters' hash alone."""
    path = folder / config_name
    config = json.loads(path.read_text())
    config.pop("digest", None)
    config.pop("base", None)
    config["format_version"] = 1
    path.write_text(json.dumps(config, indent=1) + "\n")
    return folder
