"""What is done to the files of a folder is noticed: no foreign error, no other number, no change.

The same attacks on adapters and on spin-aware layers. A folder is refused with a sentence and the
model is left as it was, or nothing that its files say has changed.
"""

import json
import os
import shutil
import struct
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import torch
from backbones import Backbone, with_spins
from folders import as_version_1, seal
from folders import load as load_adapter
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import network, random_adapter, snapshot

from e3sparse import magnetism
from e3sparse.adapter.file import read_values
from e3sparse.errors import AdapterFileError

pytestmark = pytest.mark.any_e3nn


class Adapters:
    """Adapter folders, and the network that they belong to."""

    config, tensors = "adapter_config.json", "adapter_model.safetensors"

    @staticmethod
    def save(folder, seed):
        random_adapter(network(), "all", "budget", seed=seed).save_pretrained(folder)

    @staticmethod
    def model():
        return network()

    @staticmethod
    def load(model, folder):
        """Load, and return the numbers that were loaded."""
        return dict(load_adapter(model, folder).values())

    @staticmethod
    def sizes(config):
        """Yield what decides how much memory is asked for."""
        return [(layer, "shape") for layer in config["layers"].values()]


class Spins:
    """Folders of spin-aware layers, and the backbone that they belong to."""

    config, tensors = "spin_config.json", "spin_model.safetensors"

    @staticmethod
    def save(folder, seed):
        magnetism.save(with_spins(seed), folder, {1, 8})

    @staticmethod
    def model():
        return _backbone().module

    @staticmethod
    def load(model, folder):
        return dict(magnetism.load(_backbone(), folder).layers.state_dict())

    @staticmethod
    def sizes(config):
        return [(config["settings"], name) for name in ("channels", "hidden", "radial_width")]


@cache
def _backbone():
    return Backbone()


KINDS = pytest.mark.parametrize("kind", [Adapters, Spins], ids=["adapter", "spins"])


@pytest.fixture(scope="module")
def saves(tmp_path_factory):
    """Two saves of each kind that differ in their numbers alone, and what the first holds."""
    made = {}
    for kind in (Adapters, Spins):
        folders = [tmp_path_factory.mktemp("saves") / name for name in ("one", "two")]
        for seed, folder in enumerate(folders):
            kind.save(folder, seed)
        made[kind] = (*folders, kind.load(kind.model(), folders[0]))
    return made


@pytest.fixture(scope="module")
def copied(saves, tmp_path_factory):
    """Return a function that copies the first save of a kind anew."""
    place = tmp_path_factory.mktemp("attacked")

    def copy(kind):
        for there in place.iterdir():
            shutil.rmtree(there)
        return Path(shutil.copytree(saves[kind][0], place / "folder"))

    return copy


def outcome(kind, folder):
    """Try to load; return the numbers, or None if refused with a sentence and nothing changed."""
    model = kind.model()
    before = snapshot(model)
    try:
        return kind.load(model, folder)
    except AdapterFileError as error:
        said = str(error)
    assert said.endswith(".")
    assert "\n" not in said
    assert snapshot(model) == before
    return None


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@KINDS
def test_the_control_is_loaded(kind, saves, copied):
    folder = copied(kind)
    assert same(outcome(kind, folder), saves[kind][2])
    path = folder / kind.config
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7))  # nothing else is said
    assert same(outcome(kind, folder), saves[kind][2])
    assert not same(outcome(kind, saves[kind][1]), saves[kind][2])


@KINDS
@pytest.mark.parametrize("file", ["config", "tensors"])
@settings(max_examples=25)
@given(
    edits=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(1, 255)), min_size=1, max_size=3),
    cut=st.none() | st.floats(0, 1, exclude_max=True),
)
def test_other_bytes(kind, file, saves, copied, edits, cut):
    path = copied(kind) / getattr(kind, file)
    content = bytearray(path.read_bytes())
    for where, by in edits:
        content[int(where * len(content))] ^= by
    path.write_bytes(content if cut is None else content[: int(cut * len(content))])
    loaded = outcome(kind, path.parent)
    if path.read_bytes() == (saves[kind][0] / path.name).read_bytes():
        return  # two edits of one place
    # Of a config, spaces may have become other spaces.
    assert loaded is None or (file == "config" and cut is None and same(loaded, saves[kind][2]))


@KINDS
@pytest.mark.parametrize("file", ["config", "tensors"])
def test_a_folder_with_the_files_of_two_saves(kind, file, saves, copied):
    folder = copied(kind)
    shutil.copy(saves[kind][1] / getattr(kind, file), folder)
    assert outcome(kind, folder) is None
    with pytest.raises(AdapterFileError, match="is of another save"):
        kind.load(kind.model(), folder)


def numbers(node):
    """Yield every container and key of a JSON document under which a number is."""
    children = node.items() if isinstance(node, dict) else enumerate(node)
    for key, child in children:
        if isinstance(child, dict | list):
            yield from numbers(child)
        elif isinstance(child, int | float) and not isinstance(child, bool):
            yield node, key


@KINDS
@settings(max_examples=20)
@given(where=st.floats(0, 0.9999), by=st.sampled_from([1, -1, 1e-9, 10**20, 10**400]))
def test_another_number_in_the_config(kind, copied, where, by):
    path = copied(kind) / kind.config
    config = json.loads(path.read_text())
    places = list(numbers(config))
    node, key = places[int(where * len(places))]
    changed = node[key] + by if abs(by) < 10**300 else by
    if changed == node[key]:
        return
    node[key] = changed
    path.write_text(json.dumps(config))
    assert outcome(kind, path.parent) is None


def duplicate_key(path):
    path.write_text(path.read_text().replace("{", '{"format_version": 2,', 1))


def lost_digest(path):
    config = json.loads(path.read_text())
    del config["digest"]
    path.write_text(json.dumps(config))


def older_version(path):
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 1'))


@KINDS
@pytest.mark.parametrize("change", [lost_digest, older_version])
def test_a_digest_is_wanted_of_every_new_file(kind, change, copied):
    folder = copied(kind)
    change(folder / kind.config)
    assert outcome(kind, folder) is None


def not_a_number(path):
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": NaN'))


def directory(path):
    path.unlink()
    path.mkdir()


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def dangling_link(path):
    path.unlink()
    path.symlink_to("nowhere")


def contents_of(content):
    return lambda path: path.write_bytes(content)


PLACED = {
    "missing": Path.unlink,
    "empty": contents_of(b""),
    "no UTF-8": contents_of(b'{"format_version": "\xff"}'),
    "UTF-16": contents_of('{"format_version": 2}'.encode("utf-16")),
    "deep list": contents_of(b"[" * 200_000),
    "deep object": contents_of(b'{"settings":' * 50_000),
    "null bytes": contents_of(bytes(4096)),
    "long header": contents_of(struct.pack("<Q", 2**63) + b"{}"),
    "directory": directory,
    "pipe": pipe,
    "dangling link": dangling_link,
}


@KINDS
@pytest.mark.parametrize("file", ["config", "tensors"])
@pytest.mark.parametrize("place", PLACED.values(), ids=PLACED)
def test_something_else_in_the_place_of_a_file(kind, file, place, copied):
    folder = copied(kind)
    place(folder / getattr(kind, file))
    assert outcome(kind, folder) is None


@KINDS
@pytest.mark.parametrize("change", [duplicate_key, not_a_number])
def test_json_that_no_writer_of_ours_makes(kind, change, copied):
    folder = copied(kind)
    change(folder / kind.config)
    assert outcome(kind, folder) is None
    with pytest.raises(AdapterFileError, match=r"twice|no finite number"):
        kind.load(kind.model(), folder)


# Whoever wrote the folder may have been wrong before the digest was made, or there is none.

SEALED = pytest.mark.parametrize("version", [1, 2])
GIANT = [2**31, 2**63, 2**64, 2**64 + 1, 10**400, -1, -(2**64)]


def written_so(folder, kind, version):
    if version == 2:
        seal(folder, kind.config, kind.tensors)
    else:
        as_version_1(folder, kind.config)
    return folder


@KINDS
@SEALED
def test_the_control_of_what_another_program_writes(kind, version, copied, saves):
    folder = written_so(copied(kind), kind, version)
    assert same(outcome(kind, folder), saves[kind][2])


@KINDS
@SEALED
@pytest.mark.parametrize("file", ["config", "tensors"])
@settings(max_examples=5)
@given(edits=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(1, 255)), min_size=1, max_size=2))
def test_other_bytes_that_no_digest_tells(kind, version, file, copied, edits):
    # Other numbers may be loaded, but no other error is raised and no other model comes of it.
    path = copied(kind) / getattr(kind, file)
    content = bytearray(path.read_bytes())
    for where, by in edits:
        content[int(where * len(content))] ^= by
    path.write_bytes(content)
    with suppress(ValueError):  # where the config is no JSON any more
        written_so(path.parent, kind, version)
    outcome(kind, path.parent)


@KINDS
@SEALED
@pytest.mark.parametrize("size", GIANT)
def test_sizes_that_nothing_has(kind, version, size, copied):
    folder = copied(kind)
    config = json.loads((folder / kind.config).read_text())
    node, key = kind.sizes(config)[-1]
    for value in ([size], [0, size], [2, size]) if kind is Adapters else (size,):
        node[key] = value
        (folder / kind.config).write_text(json.dumps(config))
        assert outcome(kind, written_so(folder, kind, version)) is None
        if kind is Adapters:
            with pytest.raises(AdapterFileError):
                read_values(folder)


@KINDS
@SEALED
@pytest.mark.parametrize("dtype", ["F64", "C64", "I64", "X"])
def test_headers_that_no_tensor_has(kind, version, dtype, copied):
    folder = copied(kind)
    path = folder / kind.tensors
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for shape in (
        shape for size in (2**31, 2**63, 2**64) for shape in ([size], [0, size], [size, size])
    ):
        # In the place of a tensor, and one more, which takes no space.
        for name in (min(set(header) - {"__metadata__"}), "more"):
            wrong = {"data_offsets": [0, 0]} | header.get(name, {}) | {"shape": shape}
            text = json.dumps(header | {name: wrong | {"dtype": dtype}}).encode()
            path.write_bytes(struct.pack("<Q", len(text)) + text + data)
            assert outcome(kind, written_so(folder, kind, version)) is None
