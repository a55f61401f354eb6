"""An adapter is refused on a model that would answer otherwise, and on no other."""

import copy
import functools
import io

import pytest
import torch
from e3nn import nn as enn
from e3nn import o3
from folders import as_version_1
from networks import clone, snapshot
from torch import nn

import e3sparse
from e3sparse.adapter.patching import adapters
from e3sparse.errors import AdapterFileError
from e3sparse.layers.clebsch_gordan import recompute_wigner_3j

ENERGIES = (-13.587222780835477, -1029.4889999755, -2041.9816003861)


class Scaled(nn.Module):
    """What frameworks put behind their layers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.8042777))
        self.register_buffer("shift", torch.tensor([0.1]))
        self.register_buffer("again", torch.tensor([1.0, 2.0]), persistent=False)
        self.exponent = 6

    def forward(self, x):
        return self.scale * x**self.exponent + self.shift


class Model(nn.Module):
    """A few e3nn layers among numbers of every form in which frameworks keep them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("atomic_energies", torch.tensor(ENERGIES, dtype=torch.float64))
        self.register_buffer("atomic_numbers", torch.tensor([1, 6, 8]))
        self.cutoff = 5.0
        self.average_neighbours = torch.tensor(12.5)
        self.widths = [0.5, 0.7]
        self.radii = {1: 0.3, 6: 0.7}
        self.product = o3.FullyConnectedTensorProduct("2x0e+2x1o", "1x0e+1x1o", "2x0e+1x1e+1x2e")
        self.norm = enn.BatchNorm("2x0e+1x1e+1x2e")
        self.linear = o3.Linear("2x0e+1x1e+1x2e", "2x0e")
        self.scaled = Scaled()

    def forward(self, x, y):
        return self.scaled(self.linear(self.norm(self.product(x, y))))


def built(dtype=torch.float64):
    """Build the base model, its weights drawn in float32."""
    torch.manual_seed(0)
    return Model().to(dtype)


_once = functools.cache(built)


def model():
    """Return a fresh copy of it; e3nn's compiled functions are shared."""
    return clone(_once())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An adapter of that model; not to be written to."""
    adapter = e3sparse.patch(model(), "linear", "dense", constants={"edges": 5.0})
    with torch.no_grad():
        adapter.parameters()[0].normal_()
    return adapter.save_pretrained(tmp_path_factory.mktemp("identity"))


def assert_loaded(base, folder, **options):
    """Assert that an adapter is put on a model, with values."""
    assert e3sparse.load(base, folder, **options).sparsity().updated > 0


def assert_refused(base, folder, says, **options):
    """Assert that it is refused with what differs, and nothing changes."""
    before = snapshot(base)
    with pytest.raises(AdapterFileError, match=says):
        e3sparse.load(base, folder, **options)
    assert snapshot(base) == before
    assert not adapters(base)


@torch.no_grad()
def buffer_changed(name, by):
    """Return a change of the last entry of a buffer."""

    def change(base):
        base.get_buffer(name).view(-1)[-1] += by

    return change


def attribute_changed(name, value):
    def change(base):
        path, _, attribute = name.rpartition(".")
        setattr(base.get_submodule(path), attribute, value)

    return change


def without_a_buffer(base):
    del base.scaled.shift
    base.scaled.shift = 0.1


def with_another_term(base):
    base.repulsion = Scaled()


def trained_statistics(base):
    base.train()
    base(torch.randn(5, 8).double(), torch.randn(5, 4).double())


CHANGES = {
    "scale": (buffer_changed("scaled.scale", 1e-3), "'scaled.scale' is 0.8052.* 0.80427"),
    "shift": (buffer_changed("scaled.shift", 0.1), "'scaled.shift' is 0.2 here and 0.1"),
    "energy": (buffer_changed("atomic_energies", 1e-3), "'atomic_energies' has other values"),
    "species": (buffer_changed("atomic_numbers", 1), "'atomic_numbers' has other values"),
    "cutoff": (attribute_changed("cutoff", 4.5), "'cutoff' is 4.5 here and 5 in the adapter"),
    "whole cutoff": (attribute_changed("cutoff", 4), "'cutoff' is 4 here and 5 in the adapter"),
    "exponent": (attribute_changed("scaled.exponent", 5), "'scaled.exponent' is 5 here and 6"),
    "tensor": (attribute_changed("average_neighbours", torch.tensor(12.0)), "12 here and 12.5"),
    "list": (attribute_changed("widths", [0.5, 0.8]), "'widths' has other values"),
    "by element": (attribute_changed("radii", {1: 0.3, 7: 0.7}), "'radii' has other values"),
    "no buffer": (without_a_buffer, "has no buffer 'scaled.shift'"),
    "one more term": (with_another_term, "has a buffer 'repulsion.scale' besides"),
    "statistics": (trained_statistics, r"'norm.running_(mean|var)' has other values"),
}


@pytest.mark.parametrize(("change", "says"), CHANGES.values(), ids=CHANGES)
def test_what_decides_the_answer_is_compared(change, says, folder):
    base = model()
    change(base)
    assert_refused(base, folder, f"weights fit, but .* not the one .*{says}")


def test_a_parameter_that_differs_is_named(folder):
    base = model()
    with torch.no_grad():
        base.linear.weight[0] += 1
    assert_refused(base, folder, "parameter 'linear.weight' has other values .*fingerprint")


def test_what_a_backend_knows_besides_is_compared(folder):
    assert_refused(model(), folder, "'edges' is 4 here and 5", constants={"edges": 4.0})
    assert_loaded(model(), folder, constants={"edges": 5.0})
    assert_loaded(model(), folder, constants={"other": 1.0})
    assert_loaded(model(), folder)


def saved_and_loaded(base):
    torch.manual_seed(9)
    other = Model().double()
    other.load_state_dict(base.state_dict())
    return other


def pickled(base):
    file = io.BytesIO()
    torch.save(base, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def in_float32_and_back(base):
    return base.float().double()


def with_exact_coefficients(base):
    assert recompute_wigner_3j(base)
    return base


@torch.no_grad()
def of_another_kernel(base):
    constants = [b for name, b in base.named_buffers() if "_w3j_" in name or "_mask" in name]
    assert len(constants) > 2
    for buffer in constants:
        buffer += 1e-7
    return base


@torch.no_grad()
def with_buffers_made_anew(base):
    base.scaled.again += 1e-7
    return base


def with_more(base):
    base.newer_version = 3
    base.register_buffer("newer", torch.ones(2))
    base.scaled.register_buffer("newer", torch.ones(2))
    return base


def used(base):
    base.eval().requires_grad_(False)
    base(torch.randn(5, 8).double(), torch.randn(5, 4).double())
    base.train(True)
    return base


SAME = [
    copy.deepcopy,
    torch.nn.Module.float,
    in_float32_and_back,
    saved_and_loaded,
    pickled,
    with_exact_coefficients,
    of_another_kernel,
    with_buffers_made_anew,
    with_more,
    used,
]


@pytest.mark.parametrize("treat", SAME)
def test_the_same_model_is_accepted(treat, folder):
    assert_loaded(treat(built()), folder)


def test_an_adapter_of_a_float32_model_is_accepted_in_float64(tmp_path):
    adapter = e3sparse.patch(built(torch.float32), "linear", "dense")
    with torch.no_grad():
        adapter.parameters()[0].normal_()
    assert_loaded(model(), adapter.save_pretrained(tmp_path))


@pytest.mark.parametrize("state", ["attached", "merged", "out"])
def test_the_base_is_told_in_every_state(state, folder, tmp_path):
    base = model()
    adapter = e3sparse.load(base, folder)
    if state != "attached":
        adapter.merge() if state == "merged" else adapter.restore()
    again = adapter.save_pretrained(tmp_path)
    assert_loaded(model(), again)
    assert_refused(_changed(), again, "'scaled.scale'")


def _changed():
    base = model()
    CHANGES["scale"][0](base)
    return base


def test_the_base_is_the_one_that_is_loaded_into_a_patched_model(tmp_path):
    # As in a restart: the model is built anew, patched, and its checkpoint loaded into it.
    base = _changed()
    adapter = e3sparse.patch(base, "linear", "dense")
    with torch.no_grad():
        adapter.parameters()[0].normal_()
    base.load_state_dict(model().state_dict(), strict=False)
    folder = adapter.save_pretrained(tmp_path)
    assert_loaded(model(), folder)
    assert_refused(_changed(), folder, "'scaled.scale'")


def test_a_second_adapter_is_compared_with_the_base_below_the_first(folder):
    base = model()
    e3sparse.load(base, folder, name="one")
    e3sparse.load(base, folder, name="two")
    # Energy references are added to a model that has an adapter.
    base.atomic_energies += 1.0
    e3sparse.load(base, folder, name="three")


@pytest.mark.parametrize("restarted", [False, True])
def test_statistics_of_its_own_are_no_part_of_the_base(restarted, tmp_path):
    base = model()
    adapter = e3sparse.patch(base, "linear", "dense", moving_statistics=True)
    with torch.no_grad():
        adapter.parameters()[0].normal_()
    trained_statistics(base)
    if restarted:  # the statistics of the adapter are loaded as the model's
        base.load_state_dict(copy.deepcopy(base.state_dict()))
    folder = adapter.save_pretrained(tmp_path)
    assert_loaded(model(), folder)
    other = model()
    trained_statistics(other)
    assert_loaded(other, folder)
    assert_refused(_changed(), folder, "'scaled.scale'")


def test_files_of_version_1_are_held_to_the_parameters_alone(folder, tmp_path):
    adapter = e3sparse.load(model(), folder)
    old = as_version_1(adapter.save_pretrained(tmp_path))
    assert_loaded(model(), old)
    assert_loaded(_changed(), old)
    base = model()
    with torch.no_grad():
        base.linear.weight[0] += 1
    assert_refused(base, old, "the weights of this model are not those")


def test_a_model_that_an_older_version_pickled_can_save(folder, tmp_path):
    base = model()
    adapter = e3sparse.load(base, folder)
    del base._e3sparse.identity
    assert_loaded(model(), adapter.save_pretrained(tmp_path))
