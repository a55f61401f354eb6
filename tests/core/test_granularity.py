"""Whole channels and whole paths are kept or pruned together, for each element apart."""

import copy

import pytest
import torch
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st
from networks import SPECIES, network, output, patch, randomize
from torch import nn

import e3sparse
from e3sparse.errors import ConfigError
from e3sparse.layers.groups import groups_of

GRAINS = ("channel", "block")
sparsities = st.floats(0.0, 0.999)


def pruned(granularity, sparsity, seed=2, targets="all"):
    model = network()
    adapter = patch(
        model, targets, "budget", target_sparsity=sparsity, granularity=granularity, total_steps=2
    )
    for delta, scale in zip(adapter.deltas().values(), (1.0, 3.0, 0.3) * 9, strict=False):
        generator = torch.Generator().manual_seed(seed)
        delta.v.data.copy_(torch.randn(delta.v.shape, generator=generator) * scale)
    adapter.step(1.0)
    return adapter


@pytest.mark.parametrize("granularity", GRAINS)
@given(sparsities, st.integers(0, 99))
def test_groups_are_whole_and_the_budget_is_never_exceeded(granularity, sparsity, seed):
    adapter = pruned(granularity, sparsity, seed)
    kept = {path: delta.keep for path, delta in adapter.deltas().items()}
    left = round((1 - sparsity) * adapter.sparsity().entries) - adapter.sparsity().updated
    assert left >= 0
    scores = []
    for path, layout in adapter.layouts.items():
        groups = groups_of(layout, granularity)
        for number in range(int(groups.max()) + 1):
            inside = groups == number
            assert len(set(kept[path][inside].tolist())) == 1
            v = adapter.deltas()[path].v.detach()[inside]
            if not kept[path][inside].any() and v.any():
                assert int(inside.sum()) > left  # else it should have been kept
                scores.append(v)


@pytest.mark.parametrize("granularity", GRAINS)
def test_each_entry_is_in_one_group_of_one_element(granularity):
    adapter = patch(network(), "all", "budget", granularity=granularity)
    species = 0
    for path, layout in adapter.layouts.items():
        groups = groups_of(layout, granularity)
        assert int(groups.min()) == 0
        assert len(torch.unique(groups)) == int(groups.max()) + 1
        blocks = torch.empty(layout.shape, dtype=torch.long)
        for number, (_, view) in enumerate(layout.views(blocks)):
            view.fill_(number)
        for labels in (blocks, *rows_of_species(layout)):
            pairs = torch.stack([groups.reshape(-1), labels.reshape(-1)], 1).unique(dim=0)
            assert len(pairs) == int(groups.max()) + 1  # each group has one label
        species += len(rows_of_species(layout))
        if granularity == "block" and path not in SPECIES.axes:
            assert int(groups.max()) + 1 == len(layout.blocks)
    assert species == 2


def rows_of_species(layout):
    rows = [layout.species_rows([n]) for n in range(3)]
    return [] if rows[0] is None else [sum(n * row.long() for n, row in enumerate(rows))]


def test_a_linear_layer_by_hand():
    layer = o3.Linear("2x0e+1x1o", "3x0e+2x1o")
    adapter = e3sparse.patch(nn.ModuleList([layer]), "linear", granularity="channel")
    groups = groups_of(adapter.layouts["0"], "channel")
    assert groups.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert groups_of(adapter.layouts["0"], "block").tolist() == [0] * 6 + [1] * 2
    assert groups_of(adapter.layouts["0"], "entry").tolist() == list(range(8))


def test_groups_are_compared_by_what_the_base_model_has_there():
    layer = o3.Linear("4x0e+4x1o", "1x0e+1x1o")
    layer.weight.data = torch.tensor([10.0] * 4 + [1.0] * 4)

    def kept(granularity):
        model = nn.ModuleList([copy.deepcopy(layer)])
        adapter = e3sparse.patch(
            model, "linear", granularity=granularity, target_sparsity=0.5, total_steps=1
        )
        (delta,) = adapter.deltas().values()
        delta.v.data = torch.tensor([2.0] * 4 + [1.0] * 4)
        adapter.step(1.0)
        return delta.keep.tolist()

    assert kept("block") == [False] * 4 + [True] * 4  # 2/10 and 1/1
    assert kept("entry") == [True] * 4 + [False] * 4


@pytest.mark.parametrize("granularity", GRAINS)
def test_absent_species_stay_and_a_file_gives_it_back(granularity, tmp_path):
    model = network()
    adapter = patch(model, "all", "budget", target_sparsity=0.5, granularity=granularity)
    adapter.freeze_absent_species([1, 6])
    randomize(adapter)
    with torch.no_grad():
        for delta in adapter.deltas().values():
            delta.v.masked_fill_(delta.frozen, 0.0) if delta.frozen is not None else None
    adapter.step(1.0)
    for path, layout in adapter.layouts.items():
        rows = layout.species_rows([2])
        if rows is not None:
            assert not adapter.values()[path][rows].any()
    adapter.save_pretrained(tmp_path)
    loaded = e3sparse.load(network(), tmp_path, species=SPECIES)
    assert loaded.method.granularity == granularity
    assert loaded.sparsity() == adapter.sparsity()
    assert torch.equal(output(loaded.model), output(model))


def test_checkpoints_hold_no_groups_and_a_wrong_name_is_said():
    plain, grouped = (patch(network(), "all", "budget", granularity=g) for g in ("entry", "block"))
    assert list(plain.model.state_dict()) == list(grouped.model.state_dict())
    with pytest.raises(ConfigError, match="granularity"):
        patch(network(), "all", "budget", granularity="blocks")
