"""Low-rank, fixed-mask and dense deltas, and how a method is chosen."""

import pytest
import torch
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st
from networks import atoms, network, output, patch, random_adapter, randomize
from torch import nn

import e3sparse
from e3sparse.deltas import METHODS, Budget, Dense, FixedMask, LowRank, make_method
from e3sparse.errors import ConfigError, E3SparseError


def rank(matrix):
    return int(torch.linalg.matrix_rank(matrix))


@given(st.integers(1, 5), st.floats(0.5, 20), st.booleans())
def test_the_rank_of_every_block_is_bounded_and_reached(r, alpha, channels):
    f_in, f_out = (2, 3) if channels else (None, None)
    model = nn.ModuleList(
        [
            o3.Linear("6x0e+4x1o", "3x0e+5x1o", f_in=f_in, f_out=f_out),
            o3.FullyConnectedTensorProduct("3x0e+2x1o", "2x0e", "4x0e+3x1o"),
        ]
    ).double()
    adapter = randomize(e3sparse.patch(model, "all", "low_rank", rank=r, alpha=alpha))
    for path, value in adapter.values().items():
        layout = adapter.layouts[path]
        for block, view in layout.views(value):
            matrices = view.reshape(-1, *view.shape[-2:]) if layout.kind == "linear" else view[None]
            for matrix in matrices.reshape(len(matrices), -1, block.shape[-1]):
                assert rank(matrix) == min(r, *matrix.shape)


def test_low_rank_is_alpha_over_r_times_a_b():
    model = nn.ModuleDict({"layer": o3.Linear("6x0e", "5x0e").double()})
    adapter = randomize(e3sparse.patch(model, "linear", "low_rank", rank=2, alpha=8.0))
    (delta,) = adapter.deltas().values()
    (a,), (b,) = delta.a, delta.b
    assert (a.shape, b.shape) == ((6, 2), (2, 5))
    torch.testing.assert_close(adapter.values()["layer"].reshape(6, 5), 4 * (a @ b).detach())
    assert adapter.summary().trainable == 22


def test_low_rank_starts_at_zero_and_gets_a_gradient():
    adapter = patch(network(), "all", "low_rank")
    assert all(not value.any() for value in adapter.values().values())
    loss = sum(delta().sum() for delta in adapter.deltas().values())
    grads = torch.autograd.grad(loss, adapter.parameters())
    assert any(grad.abs().max() > 0 for grad in grads)


@given(st.floats(0, 0.999), st.integers(0, 99))
def test_a_random_mask_has_the_exact_size_in_every_layer(sparsity, seed):
    model = network()
    adapter = patch(model, "all", "fixed_mask", target_sparsity=sparsity, seed=seed, score="random")
    randomize(adapter)
    for path, value in adapter.values().items():
        numel = adapter.layouts[path].numel
        assert int((value != 0).sum()) == round(numel * (1 - sparsity))
    assert sum(p.numel() for p in adapter.parameters()) == adapter.sparsity().updated


def test_a_random_mask_does_not_move_in_training():
    adapter = random_adapter(network(), "all", "fixed_mask", target_sparsity=0.8)
    supports = {path: value != 0 for path, value in adapter.values().items()}
    optimizer = torch.optim.AdamW(adapter.param_groups(0.1), weight_decay=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        sum((delta() - 1).square().sum() for delta in adapter.deltas().values()).backward()
        optimizer.step()
    after = adapter.values()
    assert all(torch.equal(after[path] != 0, support) for path, support in supports.items())


class Toy(nn.Module):
    """Two layers whose squared gradients are known: those of (w · c)."""

    def __init__(self):
        super().__init__()
        self.one, self.two = o3.Linear("4x0e", "1x0e"), o3.Linear("3x0e", "2x0e")
        self.unused = o3.Linear("2x0e", "1x0e")
        self.double()

    def losses(self, rows, paths=("one", "two")):
        for row in rows:
            weight = torch.cat([getattr(self, path).weight for path in paths])
            yield weight @ torch.as_tensor(row, dtype=torch.float64)


@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, -2.0]), min_size=10, max_size=10),
        min_size=1,
        max_size=4,
    ),
    st.floats(0, 0.99),
)
def test_fisher_keeps_the_largest_mean_squared_gradients(rows, sparsity):
    model = Toy()
    settings = {"score": "fisher", "target_sparsity": sparsity}
    adapter = e3sparse.patch(model, ["one", "two"], "fixed_mask", **settings)
    held = adapter.parameters()
    optimizer = torch.optim.AdamW(adapter.param_groups(0.1))
    adapter.calibrate(model.losses(rows))
    fisher = torch.tensor(rows).square().mean(0)
    count = min(round(10 * (1 - sparsity)), int((fisher > 0).sum()))
    assert [id(p) for p in adapter.parameters()] == [id(p) for p in held]
    sum(next(model.losses(rows)) for _ in range(2)).backward()
    optimizer.step()
    randomize(adapter)
    kept = torch.cat(list(adapter.values().values())) != 0
    assert int(kept.sum()) == count
    if 0 < count < 10:
        assert fisher[kept].min() >= fisher[~kept].max()


def test_fisher_starts_from_the_base_model():
    model = network()
    base = output(model)
    adapter = patch(model, "all", "fixed_mask", score="fisher", target_sparsity=0.5)
    adapter.calibrate(model(*atoms()) for _ in range(2))
    assert torch.equal(output(model), base)
    randomize(adapter)
    assert adapter.sparsity().updated == round(0.5 * adapter.sparsity().entries)


def fisher_toy(**kwargs):
    model = Toy()
    return model, e3sparse.patch(model, "linear", "fixed_mask", score="fisher", **kwargs)


def test_a_layer_that_the_loss_does_not_use_is_left_alone():
    model, adapter = fisher_toy(target_sparsity=0.5)
    adapter.calibrate(model.losses([[1.0] * 10]))
    assert {path: delta.v.numel() for path, delta in adapter.deltas().items()}["unused"] == 0
    assert sum(p.numel() for p in adapter.parameters()) == 6


def test_a_checkpoint_of_a_calibrated_mask_goes_on_where_it_stopped():
    model, adapter = fisher_toy(target_sparsity=0.5)
    adapter.calibrate(model.losses([range(1, 13)], paths=("one", "two", "unused")))
    randomize(adapter)
    fresh, again = fisher_toy(target_sparsity=0.5)
    fresh.load_state_dict(model.state_dict())
    for path, value in adapter.values().items():
        assert torch.equal(again.values()[path], value)


def test_a_mask_that_was_never_calibrated_is_not_merged_in_silence():
    _, adapter = fisher_toy(target_sparsity=0.5)
    randomize(adapter)
    with pytest.warns(UserWarning, match="calibrate"):
        adapter.merge()


def test_calibrating_again_does_not_prune_again():
    model, adapter = fisher_toy(target_sparsity=0.5)
    rows = [range(1, 13)]
    adapter.calibrate(model.losses(rows, paths=("one", "two", "unused")))
    before = {path: delta.indices.tolist() for path, delta in adapter.deltas().items()}
    with pytest.raises(E3SparseError, match="calibrate"):
        adapter.calibrate(model.losses(rows, paths=("one", "two", "unused")))
    assert {path: delta.indices.tolist() for path, delta in adapter.deltas().items()} == before


def test_calibrating_on_nothing_does_not_prune_everything():
    _, adapter = fisher_toy(target_sparsity=0.5)
    with pytest.raises(E3SparseError, match="no loss"):
        adapter.calibrate([])
    assert sum(p.numel() for p in adapter.parameters()) == 12


def test_a_method_with_nothing_to_calibrate_says_so():
    with pytest.raises(E3SparseError, match="'dense' has nothing to calibrate"):
        patch(network(), "all", "dense").calibrate([])


def test_dense_is_every_entry():
    adapter = patch(network(), "all", "dense")
    assert adapter.sparsity().updated == 0
    randomize(adapter)
    assert adapter.sparsity().updated == adapter.sparsity().entries


@pytest.mark.parametrize("method", METHODS)
def test_settings_survive_a_round_trip(method):
    made = make_method(method)
    assert make_method(method, **made.model_dump()) == made
    assert make_method(made) is made
    assert made.name == method


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        ("budgt", {}, "There is no method 'budgt'. Did you mean 'budget'?"),
        ("lora", {}, "Methods: budget, soft_threshold, low_rank, dense, fixed_mask."),
        ("budget", {"sparsity": 0.9}, "no setting 'sparsity'. Did you mean 'target_sparsity'?"),
        ("dense", {"rank": 3}, "Its settings: none."),
        ("budget", {"target_sparsity": 1.0}, "target_sparsity has to be less than 1, and is 1.0"),
        ("budget", {"target_sparsity": -0.1}, "target_sparsity has to be at least 0, and is -0.1"),
        ("budget", {"target_sparsity": float("nan")}, "target_sparsity"),
        ("budget", {"warmup": 0.6, "ramp_end": 0.5}, "warmup (0.6) has to end before ramp_end"),
        ("budget", {"choices": 0}, "choices has to be at least 1, and is 0"),
        ("low_rank", {"rank": 0}, "rank has to be at least 1, and is 0"),
        ("low_rank", {"alpha": "much"}, "alpha has to be a number, and is 'much'"),
        (
            "soft_threshold",
            {"init_threshold": 1.0},
            "init_threshold has to be less than 1, and is 1.0",
        ),
        ("soft_threshold", {"tau_lr": 0.0}, "tau_lr has to be greater than 0, and is 0.0"),
        ("fixed_mask", {"score": "best"}, "score has to be 'random' or 'fisher', and is 'best'"),
        (Budget(), {"target_sparsity": 0.5}, "not both"),
    ],
)
def test_methods_and_settings_that_do_not_exist(method, settings, says):
    with pytest.raises(ConfigError) as refused:
        make_method(method, **settings)
    assert says in str(refused.value)


def test_a_setting_that_does_not_exist_leaves_the_model_alone():
    model = network()
    with pytest.raises(ConfigError):
        patch(model, "all", "budget", rank=3)
    assert not e3sparse.adapters(model)
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("made", [Budget(choices=3), LowRank(rank=2), Dense(), FixedMask()])
def test_a_method_object_is_taken_as_it_is(made):
    assert e3sparse.patch(network(), "linear", made).method is made


@pytest.mark.parametrize("total_steps", [0, -5])
def test_a_training_of_no_steps_is_refused(total_steps):
    model = network()
    with pytest.raises(ConfigError, match="total_steps"):
        patch(model, "all", "budget", total_steps=total_steps)
    assert not e3sparse.adapters(model)


def test_a_resumed_schedule_goes_on_where_it_stopped():
    adapter = patch(network(), "all", "budget", total_steps=10, ramp_end=0.6)
    adapter.resume_at(5, 0.5)
    assert not adapter.settled
    adapter.step()
    assert adapter.settled
