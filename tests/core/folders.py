"""Adapter folders: loaded, damaged, and refused."""

import json

import pytest
import safetensors.torch
from networks import FOLD_INTO, SPECIES, network, snapshot

import e3sparse
from e3sparse.adapter.config import CONFIG_NAME
from e3sparse.adapter.file import TENSORS_NAME
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


def edit_config(folder, change):
    path = folder / CONFIG_NAME
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def edit_tensors(folder, change):
    tensors = safetensors.torch.load_file(folder / TENSORS_NAME)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    safetensors.torch.save_file(tensors, folder / TENSORS_NAME)
