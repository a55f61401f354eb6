"""A MACE adapter is refused on a model that would answer otherwise, and on no other."""

import warnings

import pytest
import torch
from mace_models import load
from potentials import random_deltas

import e3sparse
from e3sparse.errors import AdapterFileError


@pytest.fixture(scope="module")
def folder(tiny_file, tmp_path_factory):
    """An adapter of the tiny model in its own precision."""
    adapter = random_deltas(load(tiny_file), "linear")
    adapter.energy_references[8] = 0.25
    return adapter.save_pretrained(tmp_path_factory.mktemp("identity"))


def buffer(name, by):
    def change(module):
        module.get_buffer(name).view(-1)[-1] += by

    return change


def neighbours(module):
    module.interactions[1].avg_num_neighbors = 2.0


def cutoff(module):
    module.r_max.fill_(3.5)


CHANGES = {
    "atomic energies": (buffer("atomic_energies_fn.atomic_energies", 0.01), "atomic_energies"),
    "scale": (buffer("scale_shift.scale", 1.0), "'scale_shift.scale' is 11 here and 10"),
    "shift": (buffer("scale_shift.shift", 1.0), "'scale_shift.shift' is 1 here and 0"),
    "cutoff": (cutoff, "'r_max' is 3.5 here and 4 in the adapter"),
    "envelope": (buffer("radial_embedding.cutoff_fn.r_max", -0.5), "cutoff_fn.r_max' is 3.5"),
    "neighbours": (neighbours, "avg_num_neighbors' is 2 here and 1 in the adapter"),
}


@pytest.mark.parametrize(("change", "says"), CHANGES.values(), ids=CHANGES)
def test_another_model(change, says, folder, tiny_file, tmp_path):
    module = torch.load(tiny_file, weights_only=False)
    change(module)
    torch.save(module, tmp_path / "other.model")
    other = load(tmp_path / "other.model")
    before = {name: value.clone() for name, value in other.module.state_dict().items()}
    with pytest.raises(AdapterFileError, match=says):
        other.load_adapter(folder)
    after = other.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("saved", [False, True], ids=["as it was", "saved and loaded"])
def test_the_same_model(dtype, saved, folder, tiny_file, tmp_path):
    potential = load(tiny_file, dtype)
    if saved:
        potential.save(tmp_path / "again.model")
        potential = load(tmp_path / "again.model", dtype)
    adapter = potential.load_adapter(folder)
    assert adapter.sparsity().updated > 0
    # Its energy references have been added to the atomic energies, which are the adapter's then.
    assert potential.load_adapter(folder, name="second").sparsity().updated > 0


def test_the_same_model_without_the_backend(tiny_file, tmp_path):
    module = torch.load(tiny_file, weights_only=False)
    adapter = e3sparse.patch(module, "linear", "dense")
    with torch.no_grad():
        adapter.parameters()[0].fill_(0.1)
    adapter.save_pretrained(tmp_path)
    module = torch.load(tiny_file, weights_only=False).double()
    assert e3sparse.load(module, tmp_path).sparsity().updated > 0
    module = torch.load(tiny_file, weights_only=False)
    cutoff(module)
    with pytest.raises(AdapterFileError, match="here and 4 in the adapter"):
        e3sparse.load(module, tmp_path)


def test_an_adapter_of_float64(tiny_file, tmp_path):
    random_deltas(load(tiny_file, torch.float64), "linear").save_pretrained(tmp_path)
    assert load(tiny_file).load_adapter(tmp_path).sparsity().updated > 0


def test_the_references_that_come_with_an_adapter_are_no_surprise(folder, tiny_file):
    potential = load(tiny_file)
    before = potential.module.atomic_energies_fn.atomic_energies.clone()
    potential.load_adapter(folder)
    assert not torch.equal(potential.module.atomic_energies_fn.atomic_energies, before)
    potential.load_adapter(folder, name="another")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        e3sparse.merge(potential.module)


def test_the_control_is_a_buffer_that_somebody_else_moved(folder, tiny_file):
    potential = load(tiny_file)
    adapter = potential.load_adapter(folder)
    potential.module.scale_shift.scale += 1.0
    with adapter.accepting_buffers():  # which excuses no change from before
        potential.shift_energies({8: 0.5})
    with pytest.warns(UserWarning, match=r"its buffers .*scale_shift.scale"):
        e3sparse.merge(potential.module)
