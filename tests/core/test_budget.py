"""The budget method meets the asked-for sparsity exactly, and pruned entries can come back."""

from itertools import pairwise

import pytest
import torch
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st
from networks import SPECIES, network, output, patch, random_adapter, randomize
from torch import nn

import e3sparse
from e3sparse.deltas import Budget
from e3sparse.deltas.base import largest
from e3sparse.errors import PatchError
from e3sparse.layers.layouts import Block, Layout

sparsities = st.floats(0.0, 0.999)


def deltas_of(method, sizes, dtype=torch.float64):
    """Return deltas of layers with so many weights, outside of any model."""
    made = []
    for n in sizes:
        block = Block(f"{n}x0e", None, "1x0e", (n, 1), 0, 1.0)
        layout = Layout("linear", "weight", f"{n}x0e", None, "1x0e", (n,), (block,))
        made.append(method.delta(layout, torch.zeros(n, dtype=dtype), torch.Generator()))
    return made


def fill(deltas, values):
    """Set v of all deltas, one after the other, from one list."""
    flat = torch.as_tensor(values, dtype=torch.float64)
    parts = flat.split([d.v.numel() for d in deltas])
    with torch.no_grad():
        for delta, part in zip(deltas, parts, strict=True):
            delta.v.copy_(part)


def all_values(deltas):
    return torch.cat([delta().detach() for delta in deltas])


def all_v(deltas):
    return torch.cat([delta.v.detach() for delta in deltas])


@st.composite
def layers_with_values(draw, elements):
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=4))
    return sizes, draw(st.lists(elements, min_size=sum(sizes), max_size=sum(sizes)))


@given(layers_with_values(st.floats(0.01, 10) | st.floats(-10, -0.01)), sparsities)
def test_the_kept_number_is_exact_over_all_layers_together(layers, sparsity):
    sizes, values = layers
    method = Budget(target_sparsity=sparsity)
    deltas = deltas_of(method, sizes)
    fill(deltas, values)
    assert int((all_values(deltas) != 0).sum()) == len(values)
    v = all_v(deltas)
    method.step(deltas, 1, 1.0)
    kept = all_values(deltas) != 0
    assert int(kept.sum()) == round((1 - sparsity) * len(values))
    assert torch.equal(all_values(deltas)[kept], v[kept])
    if kept.any() and not kept.all():
        assert v[kept].abs().min() >= v[~kept].abs().max()


@given(layers_with_values(st.sampled_from([-1.0, 0.0, 1.0, 2.0])), sparsities)
def test_ties_are_counted_and_zeros_are_never_kept(layers, sparsity):
    sizes, values = layers
    method = Budget(target_sparsity=sparsity)
    deltas = deltas_of(method, sizes)
    fill(deltas, values)
    method.step(deltas, 1, 1.0)
    moved = sum(value != 0 for value in values)
    kept = torch.cat([delta.keep for delta in deltas])
    expected = round((1 - sparsity) * len(values))
    assert int((all_values(deltas) != 0).sum()) == min(expected, moved)
    if expected < len(values):
        assert int(kept.sum()) == min(expected, moved)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
    st.integers(0, 40),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_largest_agrees_with_sorting(scores, count, dtype):
    tensor = torch.tensor(scores, dtype=dtype)
    (keep,) = largest([tensor], min(count, len(scores)))
    chosen = sorted(tensor[keep].tolist(), reverse=True)
    assert chosen == [s for s in sorted(scores, reverse=True) if s > 0][:count]


@given(
    sparsities,
    st.floats(0, 0.5),
    st.floats(0.51, 1),
    st.lists(st.floats(0, 1), min_size=2, max_size=20).map(sorted),
)
def test_the_schedule_rises_from_zero_to_the_target(sparsity, warmup, ramp_end, progresses):
    method = Budget(target_sparsity=sparsity, warmup=warmup, ramp_end=ramp_end)
    scheduled = [method.sparsity_at(p) for p in progresses]
    assert scheduled == sorted(scheduled)
    assert method.sparsity_at(0.0) == method.sparsity_at(warmup) == 0
    assert method.sparsity_at(ramp_end) == method.sparsity_at(1.0) == pytest.approx(sparsity)
    assert not method.settled(0.0)
    assert method.settled(ramp_end)


def trained(sparsity, total_steps, choices):
    """Yield the adapter after each step of a training that moves all weights."""
    model = nn.ModuleList([o3.Linear("3x0e", "4x0e"), o3.Linear("4x0e", "2x0e")])
    adapter = e3sparse.patch(
        model, "linear", total_steps=total_steps, target_sparsity=sparsity, choices=choices
    )
    for _ in range(total_steps):
        for parameter in adapter.parameters():
            parameter.data.add_(torch.rand(parameter.shape) + 1)
        adapter.step()
        yield adapter


trainings = (sparsities, st.integers(1, 60), st.integers(1, 80))


@given(*trainings)
def test_a_whole_training_ends_at_the_target(sparsity, total_steps, choices):
    updated = [a.sparsity().updated for a in trained(sparsity, total_steps, choices)]
    assert updated == sorted(updated, reverse=True)
    assert updated[-1] == round((1 - sparsity) * 20)


@given(*trainings)
def test_settled_means_that_the_target_is_reached(sparsity, total_steps, choices):
    for adapter in trained(sparsity, total_steps, choices):
        if adapter.settled:
            assert adapter.sparsity().updated == round((1 - sparsity) * 20)


def test_steps_beyond_the_last_stay_at_the_target():
    *_, adapter = trained(0.9, 5, 3)
    adapter.step()
    adapter.step(1.5)
    assert adapter.sparsity().updated == 2


def test_pruned_entries_get_a_gradient_and_come_back():
    method = Budget(target_sparsity=0.5)
    (delta,) = deltas_of(method, [4])
    fill([delta], [1.0, -2.0, 3.0, 0.5])
    method.step([delta], 1, 1.0)
    assert delta().tolist() == [0.0, -2.0, 3.0, 0.0]
    slope = torch.tensor([1.0, 2.0, 3.0, -100.0], dtype=torch.float64)
    optimizer = torch.optim.SGD(method.param_groups([delta], lr=0.1))
    (delta() @ slope).backward()
    assert torch.equal(delta.v.grad, slope)
    optimizer.step()
    method.step([delta], 2, 1.0)
    assert delta.keep.tolist() == [False, False, True, True]
    assert float(delta()[3].detach()) > 5


@given(st.integers(1, 7), st.floats(1, 100))
def test_a_pruned_entry_starts_from_zero_and_forgets_slowly(every, memory):
    method = Budget(target_sparsity=0.75, warmup=0, ramp_end=0.01, choices=10, memory=memory)
    total_steps = 10 * every
    (delta,) = deltas_of(method, [4])
    fill([delta], [4.0, -2.0, 3.0, 0.5])
    for step in range(1, every):
        method.step([delta], step, step / total_steps)
        assert delta.v.tolist() == [4.0, -2.0, 3.0, 0.5]
    method.step([delta], every, every / total_steps)
    assert delta.v.tolist() == [4.0, 0.0, 0.0, 0.0]
    fill([delta], [4.0, -2.0, 3.0, 0.5])
    method.step([delta], 2 * every, 2 * every / total_steps)
    left = (1 - 1 / memory) ** every
    assert delta.v.tolist() == pytest.approx([4.0, -2.0 * left, 3.0 * left, 0.5 * left])
    assert delta().tolist() == [4.0, 0.0, 0.0, 0.0]


@given(st.integers(1, 5000), st.integers(1, 600))
def test_entries_are_chosen_at_even_distances_and_no_more_often_than_asked(total_steps, choices):
    method = Budget(target_sparsity=0.5, warmup=0, ramp_end=1e-9, choices=choices)
    (delta,) = deltas_of(method, [2])
    chosen = []
    for step in range(1, total_steps + 1):
        fill([delta], [1.0, 2.0])
        delta.keep.fill_(True)
        method.step([delta], step, step / total_steps)
        if not delta.keep.all():
            chosen.append(step)
    assert chosen[-1] == total_steps
    assert len(chosen) <= choices + (total_steps % choices > 0)
    if total_steps <= choices:
        assert chosen == list(range(1, total_steps + 1))
    assert len({after - before for before, after in pairwise([0, *chosen[:-1]])}) <= 1


def test_a_schedule_free_optimizer_forgets_pruned_entries():
    schedulefree = pytest.importorskip("schedulefree")
    method = Budget(target_sparsity=0.5)
    (delta,) = deltas_of(method, [4])
    optimizer = schedulefree.AdamWScheduleFree(method.param_groups([delta], lr=0.1))
    optimizer.train()
    slope = torch.tensor([1.0, 2.0, 3.0, -4.0], dtype=torch.float64)
    for _ in range(3):
        optimizer.zero_grad()
        (delta() @ slope).backward()
        optimizer.step()
    fill([delta], [0.1, 0.2, 3.0, -4.0])
    method.step([delta], 1, 1.0, optimizer)
    optimizer.eval()
    averages = delta.v.tolist()
    # Without the optimizer they would be drawn to where its steps had brought them.
    assert averages[:2] == [0.0, 0.0]
    assert averages[2] > 3
    assert averages[3] < -4


@given(st.floats(0.5, 0.999), st.integers(20, 400))
def test_few_entries_are_pruned_at_once(sparsity, total_steps):
    method = Budget(target_sparsity=sparsity)
    kept = [1 - method.sparsity_at(step / total_steps) for step in range(total_steps + 1)]
    steepest = 3 / (0.75 * total_steps)  # of a cubic that falls over three quarters
    for before, after in pairwise(kept):
        assert before - after <= steepest * sparsity * (1 + 1e-9)
    assert Budget().choices >= 400


def test_second_derivatives_pass_straight_through():
    (delta,) = deltas_of(Budget(), [3])
    fill([delta], [1.0, 2.0, 3.0])
    (first,) = torch.autograd.grad(delta().pow(3).sum(), delta.v, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), delta.v)
    assert torch.equal(second, 6 * delta.v.detach())


def test_the_number_of_steps_has_to_be_known():
    adapter = patch(network(), "all", "budget")
    with pytest.raises(PatchError, match=r"follows a schedule: call patch\(…, total_steps=N\)"):
        adapter.step()
    adapter.step(0.5)
    patch(network(), "all", "dense").step()


def test_step_zero_and_the_warmup_keep_everything():
    model = network()
    base = output(model)
    adapter = patch(model, "all", "budget", total_steps=100)
    assert torch.equal(output(model), base)
    assert adapter.sparsity().updated == 0
    for parameter in adapter.parameters():
        parameter.data.fill_(1.0)
    adapter.step(0.05)
    assert adapter.sparsity().layerwise == 0.0


def test_refresh_follows_parameters_that_were_exchanged():
    adapter = random_adapter(network(), "all", "budget", target_sparsity=0.9)
    before = {path: delta.keep.clone() for path, delta in adapter.deltas().items()}
    count = adapter.sparsity().updated
    generator = torch.Generator().manual_seed(5)
    for parameter in adapter.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    assert {p: d.keep.tolist() for p, d in adapter.deltas().items()} == {
        path: keep.tolist() for path, keep in before.items()
    }
    adapter.refresh()
    keeps = [delta.keep for delta in adapter.deltas().values()]
    scores = [delta.v.detach().abs() for delta in adapter.deltas().values()]
    assert any(not torch.equal(k, b) for k, b in zip(keeps, before.values(), strict=True))
    assert all(torch.equal(k, e) for k, e in zip(keeps, largest(scores, count), strict=True))
    assert adapter.sparsity().updated == count


def test_the_average_of_a_schedule_free_optimizer_meets_the_budget():
    schedulefree = pytest.importorskip("schedulefree")
    model = network()
    adapter = patch(model, "all", "budget", target_sparsity=0.8, total_steps=20, choices=7)
    optimizer = schedulefree.AdamWScheduleFree(adapter.param_groups(lr=0.05))
    optimizer.train()
    for _ in range(20):
        optimizer.zero_grad()
        sum((delta() - 1.0).square().sum() for delta in adapter.deltas().values()).backward()
        optimizer.step()
        adapter.step()
    kept = round(0.2 * adapter.sparsity().entries)
    assert adapter.sparsity().updated == kept
    trained = [p.detach().clone() for p in adapter.parameters()]
    optimizer.eval()
    adapter.refresh()
    assert any(not torch.equal(p, t) for p, t in zip(adapter.parameters(), trained, strict=True))
    assert adapter.sparsity().updated == kept


def test_a_loaded_adapter_stays_on_its_support(tmp_path):
    random_adapter(network(), "all", "budget", target_sparsity=0.9).save_pretrained(tmp_path)
    adapter = e3sparse.load(network(), tmp_path, trainable=True, species=SPECIES)
    supports = {path: value != 0 for path, value in adapter.values().items()}
    randomize(adapter)
    adapter.refresh()
    for path, value in adapter.values().items():
        assert torch.equal(value != 0, supports[path])


# The learning rate ---------------------------------------------------------------------------


@given(sparsities, st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1), st.floats(0, 1))
def test_a_step_of_adam_stays_as_long_as_it_was(sparsity, growth, progress):
    method = Budget(target_sparsity=sparsity, growth=growth)
    entries, kept = 1000.0, 1000.0 * (1 - method.sparsity_at(progress))
    # Every entry moves by the learning rate.
    if growth == 0.5:
        assert method.rate(progress) * kept**0.5 == pytest.approx(entries**0.5)
    if growth == 1:
        assert method.rate(progress) * kept == pytest.approx(entries)
    assert method.rate(0.0) == 1
    assert 1 <= method.rate(progress) <= method.rate(1.0)
    assert Budget(target_sparsity=sparsity, growth=0).rate(progress) == 1


def drive(adapter, optimizer, steps, scheduler=None):
    """Train towards 1; returns the learning rates of each step."""
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.zero_grad()
        sum((delta() - 1.0).square().sum() for delta in adapter.deltas().values()).backward()
        optimizer.step()
        adapter.step(optimizer=optimizer)
        if scheduler is not None:
            scheduler.step()
    return rates


def with_optimizer(**settings):
    """Return an adapter of 20 steps, AdamW of it and of one more parameter, and that parameter."""
    other = nn.Parameter(torch.zeros(3))
    adapter = patch(network(), "all", total_steps=20, **settings)
    groups = [*adapter.param_groups(lr=0.01), {"params": [other], "lr": 0.2}]
    return adapter, torch.optim.AdamW(groups)


@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_the_learning_rate_of_the_delta_follows_and_no_other(decay):
    adapter, optimizer = with_optimizer(method="budget", target_sparsity=0.96)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
    for step, (mine, other) in enumerate(drive(adapter, optimizer, 20, scheduler)):
        assert mine == pytest.approx(0.01 * decay**step * adapter.method.rate(step / 20))
        assert other == pytest.approx(0.2 * decay**step)
    assert mine == pytest.approx(0.01 * 25**0.75 * decay**19)


@given(
    sparsities, st.floats(1e-4, 10), st.floats(1e-2, 2), st.sampled_from(["constant", "falling"])
)
def test_the_learning_rate_grows_no_further_than_the_largest(sparsity, lr, largest, schedule):
    settings = {"target_sparsity": sparsity, "largest_lr": largest, "total_steps": 20}
    adapter = patch(network(), "all", "budget", **settings)
    optimizer = torch.optim.SGD(adapter.param_groups(lr=lr))
    decay = 1.0 if schedule == "constant" else 0.9
    for step in range(1, 21):
        adapter.step(optimizer=optimizer)
        own, grown = lr * decay ** (step - 1), adapter.method.rate(step / 20)
        (group,) = optimizer.param_groups
        assert group["lr"] == pytest.approx(max(own, min(own * grown, largest)))
        group["lr"] *= decay


def test_an_adam_forgets_squares_as_the_method_says():
    _, optimizer = with_optimizer(method="budget", beta2=0.9)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.9, 0.9), (0.9, 0.999)]


def test_learning_rates_are_left_alone_by_other_methods_and_without_the_optimizer():
    for settings in ({"method": "dense"}, {"method": "budget", "growth": 0}):
        adapter, optimizer = with_optimizer(**settings)
        assert drive(adapter, optimizer, 20) == [[0.01, 0.2]] * 20
    adapter, optimizer = with_optimizer(method="budget")
    adapter.step(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.2]


def test_the_learning_rate_goes_on_from_a_saved_optimizer():
    adapter, optimizer = with_optimizer(method="budget", target_sparsity=0.96)
    rates = drive(adapter, optimizer, 20)
    adapter, optimizer = with_optimizer(method="budget", target_sparsity=0.96)
    drive(adapter, optimizer, 8)
    saved = optimizer.state_dict()
    again, resumed = with_optimizer(method="budget", target_sparsity=0.96)
    resumed.load_state_dict(saved)
    again.resume_at(8, 8 / 20)
    assert drive(again, resumed, 12) == rates[8:]
