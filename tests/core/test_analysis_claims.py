"""What a pattern is tested by: overlap against chance, rank correlations, groups, a null model."""

import ase.io
import numpy as np
import pandas as pd
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given
from hypothesis import strategies as st
from networks import SPECIES
from scipy.stats import spearmanr

pytest.importorskip("pandas")

from changes import change_with, random_change
from sample_frames import labelled

from e3sparse.analysis import agreement, group_table, rank_correlation, shuffle_labels
from e3sparse.analysis.causality import group_entries
from e3sparse.analysis.stability import TOTAL, support_overlap
from e3sparse.errors import DataError
from e3sparse.frames.reading import LabelKeys

pytestmark = pytest.mark.any_e3nn


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=5, max_size=30))
def test_rank_correlation_is_spearmans(pairs):
    x, y = map(np.array, zip(*pairs, strict=True))
    found = rank_correlation(x, y, resamples=50)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert np.isnan(found.rho)
        return
    assert found.rho == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert found.low <= found.high
    assert found.groups == len(pairs)


def test_the_interval_tells_a_relation_from_none():
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    related = rank_correlation(x, x + 0.3 * rng.normal(size=40))
    assert related.low > 0.5
    misses = sum(
        not found.low <= 0 <= found.high
        for found in (
            rank_correlation(*np.random.default_rng(s).normal(size=(2, 40)), resamples=400)
            for s in range(60)
        )
    )
    # 95 %: 3 of 60 are expected to miss, and the percentile bootstrap is a little narrow.
    assert misses <= 10


def test_a_few_pairs_are_no_correlation():
    assert np.isnan(rank_correlation([1, 2, 3, 4], [1, 2, 3, 4]).rho)
    with_gaps = rank_correlation([1, 2, 3, 4, 5, np.nan], [1, 2, 3, 4, 5, 6])
    assert with_gaps.groups == 5
    assert with_gaps.rho == pytest.approx(1)


def test_a_change_overlaps_with_itself_and_not_with_its_complement():
    change = random_change("all", "budget")
    same = support_overlap(change, change)
    assert same.loc[TOTAL, "jaccard"] == 1
    assert same.loc[TOTAL, "chance"] < 0.6

    def complement(deltas):
        for path, delta in deltas.items():
            delta.copy_((change.deltas[path] == 0).to(delta))

    other = support_overlap(change, change_with(complement))
    assert other.loc[TOTAL, "shared"] == 0
    assert other.loc[TOTAL, "jaccard"] == 0
    assert other.loc[TOTAL, "updated_a"] + other.loc[TOTAL, "updated_b"] == same["entries"].iloc[-1]


def test_overlap_by_chance_is_what_random_supports_have():
    a = random_change("mixed", "fixed_mask", seed=1)
    overlaps = [support_overlap(a, random_change("mixed", "fixed_mask", seed=s)) for s in (2, 3, 4)]
    # `random_adapter` hands its seed to the values; the supports come from that of `patch`.
    assert all(table.loc[TOTAL, "jaccard"] == 1 for table in overlaps)
    generator = torch.Generator().manual_seed(0)

    def random_support(share):
        def edit(deltas):
            for delta in deltas.values():
                delta.copy_((torch.rand(delta.shape, generator=generator) < share).to(delta))

        return change_with(edit, "mixed")

    tables = [support_overlap(random_support(0.3), random_support(0.3)) for _ in range(12)]
    measured = np.mean([table.loc[TOTAL, "jaccard"] for table in tables])
    assert measured == pytest.approx(
        np.mean([table.loc[TOTAL, "chance"] for table in tables]), abs=0.04
    )


def test_chance_in_blocks_takes_the_blocks_for_granted():
    def only_scalars(seed):
        def edit(deltas):
            generator = torch.Generator().manual_seed(seed)
            # 4x0e x 4x0e -> 3x0e comes first in the flat weight.
            flat = deltas["mixed"].view(-1)
            flat[:48] = (torch.rand(48, generator=generator) < 0.5).to(flat)

        return change_with(edit, "mixed")

    table = support_overlap(only_scalars(1), only_scalars(2)).loc[TOTAL]
    # They agree on the block, and on nothing within it but by chance.
    assert table["chance"] < table["chance_in_blocks"]
    assert table["jaccard"] == pytest.approx(table["chance_in_blocks"], abs=0.15)


def test_layers_of_one_change_alone_count_as_unchanged_in_the_other():
    table = support_overlap(random_change("linear"), random_change(["linear", "mlp"]))
    assert table.loc["radial.layer0", "updated_a"] == 0
    assert table.loc["radial.layer0", "updated_b"] > 0
    assert table.loc["radial.layer0", "jaccard"] == 0


def test_agreement_is_about_layers_that_both_could_touch():
    linear, both = random_change("linear", seed=1), random_change(["linear", "mlp"], seed=1)
    alone = random_change("mlp")
    found = agreement([linear, both, alone]).set_index(["a", "b"])
    counted = support_overlap(linear, both).drop(index=TOTAL)
    shared = counted.loc[list(linear.layouts)].sum()
    jaccard = found["jaccard"].iloc[0]
    assert jaccard == shared["shared"] / (
        shared[["updated_a", "updated_b"]].sum() - shared["shared"]
    )
    assert np.isnan(found["jaccard"].iloc[1])


def test_agreement_of_every_pair():
    one = random_change(seed=1, target_sparsity=0.8)
    dense = random_change(method="dense", seed=3)
    scaled = change_with(
        lambda deltas: [delta.copy_(2 * one.deltas[path]) for path, delta in deltas.items()],
        name="scaled",
    )
    table = agreement([one, scaled, dense]).set_index(["a", "b"])
    assert len(table) == 3
    same = table.loc[(one.name, "scaled")]
    assert same["jaccard"] == 1
    assert same["rho"] == pytest.approx(1)
    # A dense ΔW has no support to compare.
    assert np.isnan(table.loc[(one.name, dense.name), "jaccard"])
    assert same["rho"] > table.loc[(one.name, dense.name), "rho"]


def test_groups_share_the_entries_out():
    change = random_change("all", "dense")
    table = group_table(change)
    for path, layout in change.layouts.items():
        count = torch.zeros(layout.shape, dtype=torch.int)
        for group in table[table["layer"] == path].itertuples():
            entries = group_entries(layout, group.l_out, group.element, SPECIES.numbers)
            assert int(entries.sum()) == group.entries
            assert int(change.deltas[path][entries].count_nonzero()) == group.updated
            count += entries
        # Each entry in exactly one group.
        assert (count == 1).all()
    assert set(table["element"]) == {"", "H", "C", "O"}


def forces_of(atoms):
    return atoms.arrays["REF_forces"]


def test_shuffled_labels_belong_to_other_frames():
    frames = [*labelled(6, seed=1), *labelled(4, seed=2, name="H2O")]
    before = [forces_of(atoms).copy() for atoms in frames]
    shuffled = shuffle_labels(frames, seed=3)
    for old, new in zip(frames, shuffled, strict=True):
        assert (old.positions == new.positions).all()
        assert (old.numbers == new.numbers).all()
        assert old.info["REF_energy"] != new.info["REF_energy"]
        assert not np.allclose(forces_of(old), forces_of(new))
    for group in (slice(6), slice(6, None)):
        energies = [sorted(a.info["REF_energy"] for a in x[group]) for x in (frames, shuffled)]
        assert energies[0] == energies[1]
        partner = [
            next(i for i, o in enumerate(frames) if o.info["REF_energy"] == n.info["REF_energy"])
            for n in shuffled[group]
        ]
        # Energy and forces come from one frame.
        for new, index in zip(shuffled[group], partner, strict=True):
            assert (forces_of(new) == before[index]).all()
    assert all((a == forces_of(b)).all() for a, b in zip(before, frames, strict=True))
    again, otherwise = shuffle_labels(frames, seed=3), shuffle_labels(frames, seed=4)
    assert all((forces_of(a) == forces_of(b)).all() for a, b in zip(shuffled, again, strict=True))
    assert any(
        (forces_of(a) != forces_of(b)).any() for a, b in zip(shuffled, otherwise, strict=True)
    )


def test_labels_of_calculators_are_dealt_out_too(tmp_path):
    frames = labelled(4)
    keys = LabelKeys(energy="energy", forces="forces")
    computed = [atoms.copy() for atoms in frames]
    for atoms in computed:
        results = {"energy": atoms.info.pop("REF_energy"), "forces": atoms.arrays.pop("REF_forces")}
        atoms.calc = SinglePointCalculator(atoms, **results)
    ase.io.write(tmp_path / "shuffled.xyz", shuffle_labels(computed, seed=3, keys=keys))
    back = ase.io.read(tmp_path / "shuffled.xyz", index=":")
    for atoms, new in zip(shuffle_labels(frames, seed=3), back, strict=True):
        assert new.get_potential_energy() == pytest.approx(atoms.info["REF_energy"])
        np.testing.assert_allclose(new.get_forces(), forces_of(atoms), atol=1e-7)


def test_magnetic_forces_go_with_the_moments():
    frames = labelled(3)
    for number, atoms in enumerate(frames):
        atoms.arrays["REF_magmom"] = np.full(len(atoms), float(number))
        atoms.arrays["REF_magforces"] = np.full((len(atoms), 3), float(number))
    for number, new in enumerate(shuffle_labels(frames)):
        moment = new.arrays["REF_magmom"][0]
        assert moment != number
        assert (new.arrays["REF_magforces"] == moment).all()


def test_forces_stay_with_their_element():
    one, two = labelled(2, seed=1, name="H2O")
    two = two[[1, 0, 2]]  # H before O
    (new, _) = shuffle_labels([one, two])
    hydrogen = one.numbers == 1
    assert (forces_of(new)[hydrogen] == forces_of(two)[two.numbers == 1]).all()
    assert (forces_of(new)[~hydrogen] == forces_of(two)[two.numbers != 1]).all()


def test_a_frame_without_a_partner_is_refused():
    frames = [*labelled(2), *labelled(1, name="H2O")]
    with pytest.raises(DataError, match="H2O"):
        shuffle_labels(frames)
    unequal = labelled(2)
    del unequal[1].info["REF_energy"]
    with pytest.raises(DataError, match="REF_energy"):
        shuffle_labels(unequal)
    with pytest.raises(DataError, match="'energie'"):
        shuffle_labels(labelled(2), keys=LabelKeys(energy="energie"))


def test_shuffled_frames_can_be_written(tmp_path):
    shuffled = shuffle_labels(labelled(3))
    ase.io.write(tmp_path / "shuffled.xyz", shuffled)
    back = ase.io.read(tmp_path / "shuffled.xyz", index=":")
    assert pd.Series([a.info["REF_energy"] for a in back]).is_unique
