"""A SevenNet adapter is refused on a model that would answer otherwise, and on no other."""

import pytest
import sevenn._keys as KEY
import torch
from potentials import random_deltas
from support import load

from e3sparse.errors import AdapterFileError


@pytest.fixture(scope="module")
def folder(tiny_checkpoint, tmp_path_factory):
    """An adapter of the tiny model in its own precision."""
    adapter = random_deltas(load(tiny_checkpoint), "linear")
    return adapter.save_pretrained(tmp_path_factory.mktemp("identity"))


def weight(name):
    def change(checkpoint):
        checkpoint["model_state_dict"][name].view(-1)[-1] += 0.5

    return change


def setting(name, value):
    def change(checkpoint):
        checkpoint["config"][name] = value

    return change


CHANGES = {
    "shift": (weight("rescale_atomic_energy.shift"), "rescale_atomic_energy.shift"),
    "scale": (weight("rescale_atomic_energy.scale"), "rescale_atomic_energy.scale"),
    "cutoff": (setting(KEY.CUTOFF, 3.5), "'cutoff' is 3.5 here and 4 in the adapter"),
    "envelope": (
        setting(KEY.CUTOFF_FUNCTION, {KEY.CUTOFF_FUNCTION_NAME: "poly_cut", "poly_cut_p_value": 5}),
        "cutoff_function.p' is 5 here and 6|cutoff_function",
    ),
    "neighbours": (weight("0_convolution.denominator"), "0_convolution.denominator"),
}


@pytest.mark.parametrize(("change", "says"), CHANGES.values(), ids=CHANGES)
def test_another_model(change, says, folder, tiny_checkpoint, tmp_path):
    checkpoint = torch.load(tiny_checkpoint, weights_only=False)
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "other.pth")
    other = load(tmp_path / "other.pth")
    before = {name: value.clone() for name, value in other.module.state_dict().items()}
    with pytest.raises(AdapterFileError, match=says):
        other.load_adapter(folder)
    after = other.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("saved", [False, True], ids=["as it was", "saved and loaded"])
def test_the_same_model(dtype, saved, folder, tiny_checkpoint, tmp_path):
    potential = load(tiny_checkpoint, dtype)
    if saved:
        potential.save(tmp_path / "again.pth")
        potential = load(tmp_path / "again.pth", dtype)
    assert potential.load_adapter(folder).sparsity().updated > 0


def test_an_adapter_of_float64(tiny_checkpoint, tmp_path):
    random_deltas(load(tiny_checkpoint, torch.float64), "linear").save_pretrained(tmp_path)
    assert load(tiny_checkpoint).load_adapter(tmp_path).sparsity().updated > 0
