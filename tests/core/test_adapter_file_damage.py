"""A folder without a digest is refused or read as a whole, and none is ever executed.

What a digest tells is in `test_attacks_on_folders.py`.
"""

import io
import json
import pickle
import shutil

import pytest
import torch
from folders import as_version_1, assert_refused, load
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import network, snapshot

from e3sparse.adapter.config import CONFIG_NAME, TENSORS_NAME
from e3sparse.adapter.file import read_values
from e3sparse.errors import AdapterFileError


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, 0.999])
def test_tensors_that_are_cut_off(folder, keep):
    path = folder / TENSORS_NAME
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    assert_refused(folder, "cannot be read as safetensors .* cut off or damaged")


class Bomb:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", [CONFIG_NAME, TENSORS_NAME])
@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_a_pickle_is_not_executed(folder, tmp_path, name, write):
    mark = tmp_path / "executed"
    with open(folder / name, "wb") as file:
        write(Bomb(mark), file)
    assert_refused(folder, "cannot be read as safetensors|is not valid JSON")
    assert not mark.exists()
    content = io.BytesIO((folder / name).read_bytes())
    pickle.load(content) if write is pickle.dump else torch.load(content, weights_only=False)
    assert mark.exists()


def loads_whole_or_is_refused(folder):
    """Assert that nothing but an `AdapterFileError` comes of a folder, and no half of a model."""
    model = network()
    before = snapshot(model)
    try:
        adapter = load(model, folder)
    except AdapterFileError:
        assert snapshot(model) == before
        return False
    for path, value in adapter.values().items():
        assert value.shape == adapter.layouts[path].shape
        assert torch.isfinite(value).all()
    adapter.remove()
    assert snapshot(model) == before
    return True


@pytest.mark.parametrize("name", [CONFIG_NAME, TENSORS_NAME])
@settings(max_examples=60)
@given(
    edits=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.none() | st.floats(0, 1),
)
def test_damaged_bytes(saved, tmp_path_factory, name, edits, cut):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    as_version_1(shutil.copytree(saved, folder, dirs_exist_ok=True))
    content = bytearray((folder / name).read_bytes())
    for where, byte in edits:
        content[int(where * len(content))] = byte
    (folder / name).write_bytes(content if cut is None else content[: int(cut * len(content))])
    loads_whole_or_is_refused(folder)
    try:
        values = read_values(folder)
    except AdapterFileError:
        return
    assert all(torch.isfinite(value).all() for value in values.values())


def leaves(node, path=()):
    """Yield the path of every value of a JSON document."""
    yield path
    if isinstance(node, dict | list):
        children = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in children:
            yield from leaves(child, (*path, key))


@settings(max_examples=100)
@given(
    in_layers=st.booleans(),
    where=st.floats(0, 0.9999),
    value=st.sampled_from([None, True, -1, 0, 10**18, 10**400, 1e308, float("nan")])
    | st.sampled_from([float("-inf"), "", "x", "\ud800", [], {}, [[]], {"": None}]),
)
def test_wrong_values_in_the_config(saved, tmp_path_factory, in_layers, where, value):
    folder = tmp_path_factory.getbasetemp() / "edited"
    as_version_1(shutil.copytree(saved, folder, dirs_exist_ok=True))
    config = json.loads((folder / CONFIG_NAME).read_text())
    paths = [path for path in leaves(config) if path and ("layers" in path) == in_layers]
    *parents, last = paths[int(where * len(paths))]
    node = config
    for key in parents:
        node = node[key]
    node[last] = value
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    loads_whole_or_is_refused(folder)
