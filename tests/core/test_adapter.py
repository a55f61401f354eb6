"""The life of a delta, for every layer kind, method and dtype: patched, merged, restored, saved."""

import copy

import pytest
import torch
from networks import (
    DTYPES,
    FOLD_INTO,
    SPECIES,
    TARGETS,
    anatomy,
    bits,
    difference,
    network,
    output,
    patch,
    random_adapter,
    randomize,
    snapshot,
    weights,
)
from tolerances import rounding

import e3sparse
from e3sparse.deltas import METHODS
from e3sparse.errors import PatchError

STARTS_AT_ZERO = set(METHODS) - {"soft_threshold"}
DRAWS = ("soft_threshold", "low_rank", "fixed_mask")


@pytest.fixture(params=DTYPES, ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.fixture(params=TARGETS)
def targets(request):
    return request.param


def test_step_zero_is_the_base_model_to_the_bit(targets, method, dtype):
    model = network(dtype)
    base = output(model)
    patch(model, targets, method)
    assert torch.equal(output(model), base) == (method in STARTS_AT_ZERO)


def test_merged_equals_patched_and_the_base_comes_back(targets, method, dtype):
    model = network(dtype)
    base, before = output(model), snapshot(model)
    adapter = random_adapter(model, targets, method)
    patched = output(model)
    assert difference(patched, base) > 1e-2
    with adapter.disabled():
        assert torch.equal(output(model), base)
    assert torch.equal(output(model), patched)

    assert adapter.merge() is model
    assert difference(output(model), patched) < (1e-12 if dtype == torch.float64 else 1e-5)
    assert anatomy(model) == before[1]
    merged = weights(model)
    assert merged != before[0]
    adapter.merge()
    assert weights(model) == merged

    assert adapter.restore() is model
    assert snapshot(model) == before
    adapter.attach()
    assert torch.equal(output(model), patched)
    adapter.remove()
    assert snapshot(model) == before


def test_saved_and_loaded_is_patched_to_the_bit(targets, method, dtype, tmp_path):
    model, fresh = network(dtype), network(dtype)
    base = output(fresh)
    adapter = random_adapter(model, targets, method)
    adapter.save_pretrained(tmp_path)
    loaded = e3sparse.load(fresh, tmp_path, species=SPECIES, fold_into=FOLD_INTO)
    assert torch.equal(output(fresh), output(model))
    assert not torch.equal(output(fresh), base)
    assert loaded.sparsity() == adapter.sparsity()
    for path, values in adapter.values().items():
        assert torch.equal(loaded.values()[path], values)
    adapter.merge()
    loaded.merge()
    assert weights(fresh) == weights(model)


def test_only_the_deltas_are_trainable(method):
    model = network()
    adapter = patch(model, "all", method)
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in adapter.parameters()}
    grouped = [p for group in adapter.param_groups() for p in group["params"]]
    assert {id(p) for p in grouped} == trainable
    assert len(grouped) == len(trainable)
    assert adapter.summary().trainable == sum(p.numel() for p in adapter.parameters())


def test_parameters_take_dtype_of_the_weights_and_follow_the_model(method, dtype):
    model = copy.deepcopy(network(dtype))
    adapter = random_adapter(model, "all", method)
    assert {p.dtype for p in adapter.parameters()} == {dtype}
    patched = output(model)
    model.double()
    assert {p.dtype for p in adapter.parameters()} == {torch.float64}
    assert {v.dtype for v in adapter.values().values()} == {torch.float64}
    assert difference(output(model).to(dtype), patched) < rounding("features", dtype)
    model.to("meta")
    assert {p.device.type for p in adapter.parameters()} == {"meta"}
    assert {v.device.type for v in adapter.values().values()} == {"meta"}


@pytest.mark.parametrize("state", ["merge", "restore"])
def test_deltas_that_are_out_of_the_model_follow_it_when_they_come_back(state):
    model = copy.deepcopy(network(torch.float64))
    adapter = random_adapter(model)
    patched = output(model)
    getattr(adapter, state)()
    model.float()
    adapter.attach()
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    assert difference(output(model).double(), patched) < rounding("features", torch.float32)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_seed_fixes_the_deltas_and_no_global_generator_moves(method, seed):
    state = torch.get_rng_state()
    one, two = (
        patch(network(), "all", method, seed=seed, name=name).deltas() for name in ("one", "two")
    )
    assert torch.equal(torch.get_rng_state(), state)
    for path, delta in one.items():
        assert [bits(t) for t in delta.state_dict().values()] == [
            bits(t) for t in two[path].state_dict().values()
        ]
    if method in DRAWS:
        other = patch(network(), "all", method, seed=seed + 1).deltas()
        assert any(
            bits(t) != bits(u)
            for path, delta in one.items()
            for t, u in zip(
                delta.state_dict().values(), other[path].state_dict().values(), strict=True
            )
        )


def test_the_seed_means_the_same_under_another_default_dtype(method):
    values = []
    for default in DTYPES:
        model = network()
        previous = torch.get_default_dtype()
        torch.set_default_dtype(default)
        try:
            adapter = patch(model, "all", method, seed=3)
        finally:
            torch.set_default_dtype(previous)
        values.append([bits(t) for d in adapter.deltas().values() for t in d.state_dict().values()])
    assert values[0] == values[1]


@pytest.mark.parametrize("state", ["merge", "restore"])
def test_values_are_at_hand_and_saved_alike_in_every_state(state, tmp_path):
    model = network()
    adapter = random_adapter(model, "all", "budget")
    attached = {path: bits(v) for path, v in adapter.values().items()}
    adapter.save_pretrained(tmp_path / "attached")
    getattr(adapter, state)()
    assert {path: bits(v) for path, v in adapter.values().items()} == attached
    adapter.save_pretrained(tmp_path / "out")
    for file in (tmp_path / "attached").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_merging_in_the_middle_of_a_schedule_warns():
    adapter = patch(network(), "all", "budget", total_steps=20)
    for parameter in adapter.parameters():
        parameter.data.fill_(1.0)
    adapter.step()
    with pytest.warns(UserWarning, match=r"merged at 5% of its schedule, with 0\.0% zeros"):
        adapter.merge()


def test_merging_at_the_end_of_a_schedule_does_not_warn(recwarn):
    random_adapter(network(), "all", "budget").merge()
    assert not [w for w in recwarn if "schedule" in str(w.message)]


def test_restored_and_merged_states_are_told_apart():
    adapter = randomize(patch(network()))
    assert (adapter.attached, adapter.merged, adapter.active) == (True, False, True)
    adapter.merge()
    assert (adapter.attached, adapter.merged, adapter.active) == (False, True, False)
    adapter.restore()
    assert (adapter.attached, adapter.merged, adapter.active) == (False, False, False)
    with pytest.raises(PatchError, match=r"call attach\(\) first"):
        adapter.active = True


def test_sparsity_and_summary_count_what_is_there():
    model = network()
    parameters = sum(p.numel() for p in model.parameters())
    adapter = random_adapter(model, "all", "budget")
    values = torch.cat([v.reshape(-1) for v in adapter.values().values()])
    counts = adapter.sparsity()
    assert (counts.entries, counts.parameters) == (values.numel(), parameters)
    assert counts.updated == int((values != 0).sum()) > 0
    assert counts.layerwise == pytest.approx(float((values == 0).double().mean()), abs=1e-12)
    assert counts.total == pytest.approx(1 - counts.updated / parameters)
    assert counts.updated_share == pytest.approx(counts.updated / parameters)
    rows = adapter.summary().rows
    assert sum(row.numel for row in rows) == counts.entries
    assert sum(row.updated for row in rows) == counts.updated
