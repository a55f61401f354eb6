"""An adapter folder says what was saved, is small, and is never half-written."""

import errno
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch
from e3nn import o3
from folders import contents, load
from networks import (
    DTYPES,
    explicit,
    network,
    output,
    patch,
    random_adapter,
    randomize,
    weights,
)
from torch import nn

import e3sparse
from e3sparse.adapter.config import AdapterConfig, read_config
from e3sparse.adapter.file import read_values
from e3sparse.adapter.fingerprint import clebsch_gordan_probe
from e3sparse.errors import E3SparseError

FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def test_the_config_says_what_the_adapter_is(tmp_path):
    model = network()
    adapter = random_adapter(model, "all", "budget")
    adapter.energy_references.update({1: -13.5, 8: 0.25})
    folder = adapter.save_pretrained(
        tmp_path / "deep" / "folder",
        base_model="a model",
        framework={"sevenn": "0.13.0"},
        metrics={"forces_mae": 1.5},
    )
    assert sorted(contents(folder)) == FILES
    config = read_config(folder)
    assert isinstance(config, AdapterConfig)
    assert config.format_version == 2
    assert (config.method, config.targets) == ("budget", "all")
    assert config.settings == adapter.method.model_dump(mode="json")
    assert (config.base_model, config.framework) == ("a model", {"sevenn": "0.13.0"})
    assert config.metrics == {"forces_mae": 1.5}
    assert config.species == [1, 6, 8]
    assert config.base_fingerprint == adapter.base_fingerprint
    assert config.clebsch_gordan == clebsch_gordan_probe()
    assert config.sparsity["updated"] == adapter.sparsity().updated
    assert list(config.layers) == list(adapter.layouts)
    for path, entry in config.layers.items():
        assert [block.shape for block in entry.blocks] == [
            block.shape for block in adapter.layouts[path].blocks
        ]
    loaded = load(network(), folder)
    assert loaded.energy_references == {1: -13.5, 8: 0.25}
    assert (loaded.method, loaded.targets) == (adapter.method, adapter.targets)
    assert loaded.settled


@pytest.mark.parametrize("sparsity", [0.0, 0.45, 0.5, 0.55, 0.99])
def test_values_come_back_however_they_are_stored(sparsity, tmp_path):
    adapter = random_adapter(network(), "all", "budget", target_sparsity=sparsity)
    adapter.save_pretrained(tmp_path)
    values = read_values(tmp_path)
    assert list(values) == list(adapter.layouts)
    for path, value in adapter.values().items():
        assert values[path].dtype == value.dtype
        assert torch.equal(values[path], value)


def test_a_delta_of_zeros_is_saved_and_loaded(tmp_path):
    patch(network(), "all", "budget").save_pretrained(tmp_path)
    model = network()
    base = output(model)
    loaded = load(model, tmp_path)
    assert loaded.sparsity().updated == 0
    assert torch.equal(output(model), base)


@pytest.mark.parametrize("saved", DTYPES, ids=str)
@pytest.mark.parametrize("here", DTYPES, ids=str)
def test_dtype_follows_the_model(saved, here, tmp_path):
    # Both are the same model: the base weights of `network` are drawn in float32.
    adapter = random_adapter(network(saved), "all", "dense")
    adapter.save_pretrained(tmp_path)
    loaded = load(network(here), tmp_path)
    for path, value in loaded.values().items():
        assert value.dtype == here
        assert torch.equal(value, adapter.values()[path].to(here))


def test_saving_a_loaded_adapter_again_changes_nothing(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    random_adapter(network(), "all", "budget").save_pretrained(first)
    load(network(), first).save_pretrained(second)
    assert read_config(second) == read_config(first)
    values = read_values(second)
    assert all(torch.equal(values[path], value) for path, value in read_values(first).items())


@pytest.mark.parametrize("state", ["attached", "merged", "out"])
def test_several_are_loaded_onto_one_model(state, tmp_path):
    values = {}
    for seed, name in enumerate(("a", "b")):
        adapter = random_adapter(network(), ["linear", "mixed"], seed=seed)
        adapter.save_pretrained(tmp_path / name)
        values[name] = adapter.values()
    model = network()
    first = load(model, tmp_path / "a", name="a")
    anchor = patch(model, "fctp", name="anchor")
    if state == "merged":
        first.merge()
    if state == "out":
        first.restore()
    load(model, tmp_path / "b", name="b")
    anchor.remove()
    present = ["b"] if state == "out" else ["a", "b"]
    expected = output(explicit(*(values[name] for name in present)))
    torch.testing.assert_close(output(model), expected, rtol=1e-12, atol=1e-10)


def test_only_the_saved_entries_are_trainable_if_any_is(tmp_path):
    random_adapter(network(), "all", "budget").save_pretrained(tmp_path)
    model = network()
    frozen = load(model, tmp_path)
    assert not frozen.parameters()
    assert not any(p.requires_grad for p in model.parameters())
    trainable = load(network(), tmp_path, trainable=True)
    assert sum(p.numel() for p in trainable.parameters()) == trainable.sparsity().updated
    supports = {path: value != 0 for path, value in trainable.values().items()}
    randomize(trainable)
    assert all(torch.equal(v != 0, supports[p]) for p, v in trainable.values().items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sparse_adapter_is_a_tenth_of_its_model(dtype, tmp_path):
    model = nn.ModuleDict({"layer": o3.Linear("230x0e", "230x0e").to(dtype)})
    adapter = randomize(e3sparse.patch(model, "linear", "budget", target_sparsity=0.97))
    assert adapter.sparsity().entries >= 50_000
    assert adapter.sparsity().layerwise == pytest.approx(0.97)
    adapter.save_pretrained(tmp_path)
    adapter.merge()
    size = sum(len(content) for content in contents(tmp_path).values())
    assert 10 * size <= sum(len(bytes_) for *_, bytes_ in weights(model))


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for_the_tensors(monkeypatch):
    monkeypatch.setattr(safetensors.torch, "save_file", no_space)
    monkeypatch.setattr(Path, "write_bytes", no_space)


def full_for_the_config(monkeypatch):
    monkeypatch.setattr(Path, "write_text", no_space)


def full_when_flushed(monkeypatch):
    monkeypatch.setattr(os, "fsync", no_space)


def full_when_renamed(monkeypatch):
    monkeypatch.setattr(os, "replace", no_space)


@pytest.mark.parametrize("before", [True, False], ids=["over an old one", "into a new folder"])
@pytest.mark.parametrize(
    "fail", [full_for_the_tensors, full_for_the_config, full_when_flushed, full_when_renamed]
)
def test_a_full_disk_leaves_the_old_files(fail, before, tmp_path, monkeypatch):
    adapter = random_adapter(network(), "all", "budget")
    if before:
        adapter.save_pretrained(tmp_path)
        randomize(adapter, seed=9)
    old = contents(tmp_path)
    fail(monkeypatch)
    with pytest.raises(E3SparseError, match="No space is left on the disk"):
        adapter.save_pretrained(tmp_path)
    monkeypatch.undo()
    assert contents(tmp_path) == old
    adapter.save_pretrained(tmp_path)
    assert contents(tmp_path) != old
    assert sorted(contents(tmp_path)) == FILES


@contextmanager
def files_of_at_most(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_the_system_refuses_leaves_the_old_files(tmp_path):
    # What safetensors itself makes of an error of the disk, which is no OSError.
    adapter = random_adapter(network(), "all", "budget")
    adapter.save_pretrained(tmp_path)
    old = contents(tmp_path)
    randomize(adapter, seed=9)
    with pytest.raises(E3SparseError, match="cannot be written"), files_of_at_most(100):
        adapter.save_pretrained(tmp_path)
    assert contents(tmp_path) == old


def test_metrics_that_json_cannot_hold_leave_the_old_files(tmp_path):
    adapter = random_adapter(network(), "all", "budget")
    adapter.save_pretrained(tmp_path)
    old = contents(tmp_path)
    randomize(adapter, seed=9)
    with pytest.raises((E3SparseError, TypeError, ValueError)):
        adapter.save_pretrained(tmp_path, metrics={"mae": object()})
    assert contents(tmp_path) == old


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(E3SparseError, match="cannot be written"):
        patch(network()).save_pretrained(tmp_path / "file" / "adapter")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_of_a_training_that_diverged_leave_the_old_files(value, tmp_path):
    adapter = random_adapter(network(), "all", "dense")
    adapter.save_pretrained(tmp_path)
    old = contents(tmp_path)
    adapter.parameters()[0].data[0] = value
    with pytest.raises(E3SparseError, match="not all finite"):
        adapter.save_pretrained(tmp_path)
    assert contents(tmp_path) == old


@pytest.mark.parametrize("state", ["attached", "merged", "out"])
def test_the_base_is_the_one_whose_weights_are_in_the_model(state, tmp_path):
    # As in a restart: the model is built anew, patched, and its checkpoint loaded into it.
    checkpoint = network()
    random_adapter(checkpoint, "linear")
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    adapter = patch(model, "linear")
    model.load_state_dict(checkpoint.state_dict())
    if state != "attached":
        adapter.merge()
    if state == "out":
        adapter.restore()
    adapter.save_pretrained(tmp_path)
    loaded = network()
    load(loaded, tmp_path)
    assert torch.equal(output(loaded), output(checkpoint))
