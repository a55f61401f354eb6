"""Species that no frame contains keep the base model's weights to the bit."""

import pytest
import torch
from networks import SPECIES, forces, network, output, patch, random_adapter, randomize

import e3sparse
from e3sparse.deltas import METHODS
from e3sparse.errors import E3SparseError
from e3sparse.layers.layouts import Species

ABSENT = 6


def rows(model, number):
    """Return the weights that only one species reaches, sliced without e3sparse."""
    index = SPECIES.numbers.index(number)
    state = model.state_dict()
    mixing = state["self_connection.weight"]
    scalars, vectors = mixing[: 4 * 3 * 4].reshape(4, 3, 4), mixing[4 * 3 * 4 :].reshape(4, 3, 3)
    embedding = state["embedding.weight"].reshape(3, 4)
    reached = embedding[index], scalars[:, index], vectors[:, index]
    return torch.cat([part.reshape(-1) for part in reached])


def assert_only_absent_rows_are_kept(model):
    base = network()
    assert torch.equal(rows(model, ABSENT), rows(base, ABSENT))
    for number in set(SPECIES.numbers) - {ABSENT}:
        assert not torch.equal(rows(model, number), rows(base, number))


def train(model, adapter, steps=8):
    optimizer = torch.optim.AdamW(adapter.param_groups(lr=0.1))
    for step in range(steps):
        energy, force = forces(model)
        optimizer.zero_grad()
        ((energy - 3.0) ** 2 + force.square().sum()).backward()
        optimizer.step()
        adapter.step((step + 1) / steps)


def held(method):
    model = network()
    adapter = patch(model, "all", method)
    assert adapter.freeze_absent_species({1, 8}) == [ABSENT]
    return model, adapter


@pytest.mark.parametrize("method", METHODS)
def test_after_large_random_values(method, tmp_path):
    model, adapter = held(method)
    randomize(adapter)
    adapter.save_pretrained(tmp_path)
    adapter.merge()
    assert_only_absent_rows_are_kept(model)
    loaded = network()
    e3sparse.load(loaded, tmp_path, species=SPECIES).restore()
    assert torch.equal(rows(loaded, ABSENT), rows(network(), ABSENT))


@pytest.mark.parametrize("method", METHODS)
def test_after_training(method):
    model, adapter = held(method)
    train(model, adapter)
    adapter.merge()
    assert_only_absent_rows_are_kept(model)


@pytest.mark.parametrize("method", METHODS)
def test_without_the_hold_they_change(method):
    model = network()
    random_adapter(model, "all", method).merge()
    assert not torch.equal(rows(model, ABSENT), rows(network(), ABSENT))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_held_if_all_species_are_present(method):
    model, fresh = network(), network()
    adapter = patch(model, "all", method)
    assert adapter.freeze_absent_species([1, 6, 8]) == []
    randomize(adapter)
    random_adapter(fresh, "all", method)
    assert torch.equal(output(model), output(fresh))


def test_a_second_call_holds_more():
    model = network()
    adapter = patch(model)
    adapter.freeze_absent_species([1, 8])
    assert adapter.freeze_absent_species([6, 8]) == [1]
    randomize(adapter).merge()
    base = network()
    assert torch.equal(rows(model, 6), rows(base, 6))
    assert torch.equal(rows(model, 1), rows(base, 1))
    assert not torch.equal(rows(model, 8), rows(base, 8))


def test_held_entries_count_as_unchanged():
    _, adapter = held("dense")
    randomize(adapter)
    counts = adapter.sparsity()
    assert counts.entries - counts.updated == rows(network(), ABSENT).numel()


def test_species_named_with_the_second_adapter_count():
    model = network()
    patch(model, "mixed", name="first", species=None)
    adapter = patch(model, "all", name="second")
    assert adapter.freeze_absent_species([1, 8]) == [ABSENT]
    randomize(adapter).merge()
    assert_only_absent_rows_are_kept(model)


def test_a_budget_is_met_next_to_held_entries():
    model, adapter = held("budget")
    train(model, adapter)
    counts = adapter.sparsity()
    assert counts.updated == round(0.5 * counts.entries)


@pytest.mark.parametrize(
    "species",
    [
        Species((1, 6, 8), {"embeding": 0}),
        Species((1, 6, 8), {"embedding": 2}),
        Species((1, 6, 8, 9), {"embedding": 0}),
    ],
    ids=["no such layer", "no such axis", "too many species"],
)
def test_axes_that_do_not_fit_the_model_are_refused(species):
    # Otherwise the weights of absent species would be trained in silence.
    model = network()
    with pytest.raises(E3SparseError, match="embed"):
        patch(model, "linear", species=species)
    assert not e3sparse.adapters(model)


@pytest.mark.parametrize("method", METHODS)
def test_elements_are_untouched_if_no_changed_entry_is_theirs(method):
    adapter = patch(network(), "species", method)
    adapter.freeze_absent_species([1, 8])
    randomize(adapter)
    assert adapter.untouched_species() == [ABSENT]
    adapter.energy_references[ABSENT] = 0.1
    assert adapter.untouched_species() == []


@pytest.mark.parametrize("targets", ["readout", "linear"])
def test_no_element_is_untouched_if_a_changed_entry_serves_all(targets):
    adapter = patch(network(), targets)
    adapter.freeze_absent_species([1, 8])
    assert randomize(adapter).untouched_species() == []


def test_rows_behind_the_elements_are_held():
    # The third row of the axis as a modality: SevenNet puts them there.
    model, axes = network(), SPECIES.axes
    adapter = randomize(patch(model, ["species"], species=Species((1, 6), axes)))
    assert adapter.untouched_species() == []
    adapter.merge()
    assert torch.equal(rows(model, 8), rows(network(), 8))
    control = network()
    randomize(patch(control, [*axes], species=Species((1, 6), axes))).merge()
    assert not torch.equal(rows(control, 8), rows(network(), 8))
