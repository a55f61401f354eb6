"""Several named adapters on one model: they add up, and each comes out to the bit."""

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from networks import (
    anatomy,
    difference,
    explicit,
    network,
    output,
    patch,
    random_adapter,
    snapshot,
    weights,
)

import e3sparse
from e3sparse.errors import PatchError

ADDED = ["linear", "fctp", "mixed", "mlp"]
"""The layers whose ΔW is added; those whose weights come from outside have a file of their own."""

ORDERS = list(permutations(range(3)))

names = st.sampled_from(["a", "aa", "ab", "default"])


class Lives(RuleBasedStateMachine):
    """Compare a model under any sequence of calls with explicit sums of weights."""

    @initialize()
    def start(self):
        self.model = network()
        self.base = snapshot(self.model)
        self.live = {}
        self.counts = {}

    @rule(name=names, seed=st.integers(0, 99))
    def patch(self, name, seed):
        if self.live and not any(adapter.attached for adapter in self.live.values()):
            return
        if name in self.live:
            with pytest.raises(PatchError, match="has an adapter"):
                patch(self.model, ADDED, name=name)
            return
        self.live[name] = random_adapter(self.model, ADDED, name=name, seed=seed)
        self.counts[name] = True

    @rule(name=names, on=st.booleans())
    def switch(self, name, on):
        adapter = self.live.get(name)
        if adapter is not None and adapter.attached:
            adapter.active = on
            self.counts[name] = on

    @rule(name=names)
    def merge(self, name):
        adapter = self.live.get(name)
        if adapter is not None and (adapter.active or not adapter.attached):
            adapter.merge()
            self.counts[name] = True

    @rule(name=names)
    def restore(self, name):
        if name in self.live:
            self.live[name].restore()
            self.counts[name] = False

    @rule(name=names)
    def attach(self, name):
        if name in self.live:
            self.live[name].attach()
            self.counts[name] = True

    @rule(name=names)
    def remove(self, name):
        if name in self.live:
            self.live.pop(name).remove()

    @invariant()
    def says_what_the_sum_says(self):
        values = [a.values() for name, a in self.live.items() if self.counts[name]]
        assert difference(output(self.model), output(explicit(*values))) < 1e-12

    @invariant()
    def is_ordinary_when_nothing_is_attached(self):
        if any(adapter.attached for adapter in self.live.values()):
            assert anatomy(self.model) != self.base[1]
            trainable = [n for n, p in self.model.named_parameters() if p.requires_grad]
            assert all(".e3sparse." in name for name in trainable)
            return
        assert anatomy(self.model) == self.base[1]
        if not any(adapter.merged for adapter in self.live.values()):
            assert weights(self.model) == self.base[0]


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)


def three(model, targets="all"):
    names = enumerate(("a", "ab", "b"))
    return [random_adapter(model, targets, name=name, seed=seed) for seed, name in names]


def test_deltas_add_up():
    model = network()
    adapters = three(model, ADDED)
    assert difference(output(model), output(explicit(*(a.values() for a in adapters)))) < 1e-12
    alone = [output(explicit(a.values())) for a in adapters]
    assert min(difference(output(model), one) for one in alone) > 1e-2


@pytest.mark.parametrize("order", ORDERS)
def test_each_is_removable_to_the_bit(order):
    model, fresh = network(), network()
    before = snapshot(model)
    adapters = three(model)
    kept = three(fresh)
    for index in order:
        adapters[index].remove()
        kept[index].active = False
        assert torch.equal(output(model), output(fresh))
    assert snapshot(model) == before


@pytest.mark.parametrize("order", ORDERS)
def test_neither_the_order_of_merging_nor_that_of_restoring_matters(order):
    model, fresh = network(), network()
    before = snapshot(model)
    adapters = three(model)
    patched = output(model)
    for index in order:
        adapters[index].merge()
    assert difference(output(model), patched) < 1e-12
    three(fresh)
    e3sparse.merge(fresh)
    assert weights(model) == weights(fresh)
    for index in order:
        adapters[index].restore()
    assert snapshot(model) == before


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("state", ["merge", "restore"])
def test_one_that_was_out_comes_back_to_the_bit(index, state):
    model = network()
    adapters = three(model)
    patched = output(model)
    getattr(adapters[index], state)()
    adapters[index].attach()
    assert torch.equal(output(model), patched)


@given(st.lists(st.booleans(), min_size=3, max_size=3))
def test_switching_is_exact(on):
    model, fresh = network(), network()
    chosen = [a for a, wanted in zip(three(model), on, strict=True) if wanted]
    patched = output(model)
    for adapter in e3sparse.adapters(model).values():
        adapter.active = adapter.name in [a.name for a in chosen]
    for adapter, wanted in zip(three(fresh), on, strict=True):
        if not wanted:
            adapter.remove()
    assert torch.equal(output(model), output(fresh))
    for adapter in e3sparse.adapters(model).values():
        adapter.active = True
    assert torch.equal(output(model), patched)


def test_merge_folds_the_active_and_drops_the_inactive():
    model = network()
    before = anatomy(model)
    first, second, third = three(model, ADDED)
    second.active = False
    patched = output(model)
    assert e3sparse.merge(model) is model
    assert difference(output(model), patched) < 1e-12
    assert anatomy(model) == before
    assert difference(output(model), output(explicit(first.values(), third.values()))) < 1e-12
    assert not e3sparse.adapters(model)
    with pytest.raises(PatchError, match="no adapter"):
        e3sparse.merge(model)
    with pytest.raises(PatchError, match="'ab' has been removed"):
        second.values()
