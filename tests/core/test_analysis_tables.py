"""The tables of what changed say what is in the tensors, block by block and element by element."""

import numpy as np
import pytest
import torch
from networks import clone, network, patch, random_adapter

pytest.importorskip("pandas")

from changes import change_with, random_change

from e3sparse.analysis import (
    absent_table,
    block_table,
    change_of,
    channel_table,
    element_table,
    energy_table,
    group_table,
    layer_table,
    species_table,
    total,
)
from e3sparse.analysis.cells import count_cells, degree, layer_depths
from e3sparse.analysis.change import Change
from e3sparse.errors import PatchError
from e3sparse.layers.groups import channels, multiplicity
from e3sparse.layers.layouts import Block, Layout

pytestmark = pytest.mark.any_e3nn

METHODS = ("budget", "soft_threshold", "low_rank", "fixed_mask", "dense")


def numbers_of(delta, weight):
    """Return what a row of a table should say of the entries of a block, by the definitions."""
    delta, weight = (x.detach().double().numpy().ravel() for x in (delta, weight))
    residual = (((weight + delta) - weight) ** 2).sum()
    spread = ((weight - weight.mean()) ** 2).sum()
    return {
        "entries": delta.size,
        "updated": int((delta != 0).sum()),
        "relative": np.linalg.norm(delta) / np.linalg.norm(weight),
        "one_minus_r2": residual / spread if spread > 1e-9 else np.nan,
        "largest": np.abs(delta).max(),
    }


def assert_says(row, wanted):
    for name, value in wanted.items():
        assert getattr(row, name) == pytest.approx(value, rel=1e-9, nan_ok=True), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", ["embedding", "self_connection", "mixed"])
def test_blocks_are_those_of_e3nn(method, layer):
    adapter = random_adapter(network(), layer, method)
    change = change_of(adapter)
    base = network().get_submodule(layer)
    moved = clone(base)
    with torch.no_grad():
        moved.weight.copy_(adapter.values()[layer])
    # e3nn's own views of the flat weight, of W and of ΔW.
    views = zip(moved.weight_views(), base.weight_views(), strict=True)
    table = block_table(change)
    for row, (delta, weight) in zip(table.itertuples(), views, strict=True):
        assert_says(row, numbers_of(delta, weight))
    assert len(table) == len(list(base.weight_views())) > 0


@pytest.mark.parametrize("method", METHODS)
def test_elements_are_rows_of_the_species_axis(method):
    adapter = random_adapter(network(), ["embedding", "self_connection"], method)
    table = species_table(change_of(adapter))
    base, values = network(), adapter.values()
    found = table[table["layer"] == "embedding"].set_index("element")
    for index, element in enumerate(("H", "C", "O")):
        wanted = numbers_of(
            values["embedding"].reshape(3, 4)[index], base.embedding.weight.reshape(3, 4)[index]
        )
        assert_says(found.loc[element], wanted)
    # 4x0e x 3x0e -> 4x0e is the first path: (4, 3, 4), species in the middle.
    scalar = table[(table["layer"] == "self_connection") & (table["l_out"] == 0)]
    for index, element in enumerate(("H", "C", "O")):
        first = [x[:48].reshape(4, 3, 4)[:, index] for x in (
            values["self_connection"], base.self_connection.weight)]  # fmt: skip
        assert_says(scalar.set_index("element").loc[element], numbers_of(*first))


@pytest.mark.parametrize("method", METHODS)
def test_every_table_adds_up_to_the_adapter(method):
    adapter = random_adapter(network(), "all", method)
    change, counts = change_of(adapter), adapter.sparsity()
    for table in (block_table(change), group_table(change), layer_table(change)):
        assert table["entries"].sum() == counts.entries
        assert table["updated"].sum() == counts.updated
    assert total(change)["updated"] == counts.updated
    norm = sum(float(v.square().sum()) for v in change.deltas.values())
    weights = sum(float(v.square().sum()) for v in change.weights.values())
    assert total(change)["relative"] == pytest.approx((norm / weights) ** 0.5)


def test_reweighted_paths_have_the_weight_one():
    change = random_change("conv", "dense")
    (row,) = layer_table(change).itertuples()
    delta = change.deltas["conv"]
    assert row.relative == pytest.approx(float(delta.square().mean().sqrt()))
    assert np.isnan(row.one_minus_r2)


def test_the_model_and_the_adapter_are_left_as_they_are():
    adapter = random_adapter(network(), "all", "budget")
    before = adapter.values()
    change = change_of(adapter)
    for tensor in (*change.deltas.values(), *change.weights.values()):
        tensor.zero_()
    assert all(torch.equal(before[path], value) for path, value in adapter.values().items())
    assert torch.equal(network().readout.weight, adapter.model.readout._parameters["weight"])


def test_merged_weights_are_no_base():
    adapter = random_adapter(network(), "linear", "dense")
    adapter.merge()
    with pytest.raises(PatchError, match="restore"):
        change_of(adapter)


@pytest.mark.parametrize(
    ("layer", "index", "wanted"),
    [
        # (3 species, 4 channels); (u, species, w) of 4x0e x 3x0e -> 4x0e.
        ("embedding", 1 * 4 + 2, {"channel": 2, "element": "C", "irreps_out": "4x0e"}),
        ("self_connection", (3 * 3 + 2) * 4 + 1, {"channel": 1, "element": "O"}),
        # Paths of `mixed`: 4·4·3 of uvw, then uvu (3, 4) of which u = 3 are channels.
        ("mixed", 48 + 2 * 4 + 1, {"channel": 2, "element": "", "irreps_out": "3x1o"}),
        # The two last weights of `uvuv` 4x0e x 3x1o -> 12x1o: each is a channel.
        ("mixed", 48 + 12 + 12 + 15 + 4 + 11, {"channel": 11, "irreps_out": "12x1o"}),
    ],
)
def test_the_one_channel_that_changed_is_named(layer, index, wanted):
    change = change_with(lambda deltas: deltas[layer].view(-1)[index].fill_(0.5))
    (row,) = channel_table(change).itertuples()
    assert row.layer == layer
    assert row.updated == 1
    assert {name: getattr(row, name) for name in wanted} == wanted


def test_channels_are_sorted_and_cut():
    change = random_change("all", "dense")
    table = channel_table(change, top=7)
    assert len(table) == 7
    assert table["effect"].is_monotonic_decreasing
    # The same from all channels: no block's share of the list was cut short.
    everything = channel_table(change, top=10_000)
    assert list(everything["effect"][:7]) == pytest.approx(list(table["effect"]))
    assert everything["updated"].sum() == total(change)["updated"]
    assert channel_table(change_with(lambda deltas: None)).empty


def test_channels_of_a_contracter_are_in_front():
    # Allegro: one weight a channel and path, (channels, paths), channels in front of the blocks.
    block = Block("4x0e", "4x1o", "4x1o", (1,), 0, 1.0)
    layout = Layout("tp", "weights", "4x0e", "4x1o", "4x1o", (4, 1), (block,), lead=(4,))
    view = torch.arange(4.0).reshape(4, 1)
    assert channels(layout, block, view).flatten().tolist() == [0, 1, 2, 3]
    assert channels(layout, block, view).shape == (1, 4, 1)


def test_absent_elements_are_counted():
    held = random_change("all", "dense", trained_on=(1, 8))
    table = absent_table(held)
    # 4 of the embedding; of the FCTP (4·4 + 4·3) for carbon.
    assert table.loc["absent", "entries"] == 4 + 16 + 12
    assert table.loc["absent", "updated"] == 32
    assert table.loc["trained on", "elements"] == 2
    adapter = patch(network(), "all", "dense")
    adapter.freeze_absent_species([1, 8])
    for delta in adapter.deltas().values():
        delta.v.data.fill_(0.1)
    exact = absent_table(change_of(adapter, trained_on=(1, 8)))
    assert exact.loc["absent", "updated"] == 0
    assert exact.loc["absent", "largest"] == 0
    assert exact.loc["trained on", "updated"] == exact.loc["trained on", "entries"] == 64
    assert absent_table(random_change(trained_on=None)).empty


def test_elements_say_whether_they_were_trained_on():
    table = element_table(random_change("all", "dense", trained_on=(1, 8)))
    assert dict(zip(table["element"], table["trained_on"], strict=True)) == {
        "H": True, "C": False, "O": True,
    }  # fmt: skip


def test_thresholds_say_what_they_are():
    def edit(deltas):
        deltas["readout"].view(-1)[:2] = torch.tensor([0.3, -0.2])

    change = change_with(edit, targets=["readout", "mixed"])
    table = layer_table(change).set_index("layer")
    assert table.loc["readout", "threshold"] == pytest.approx(0.2)
    assert table.loc["readout", "threshold_is"] == "smallest |ΔW| > 0"
    assert np.isnan(table.loc["mixed", "threshold"])
    assert table.loc["mixed", "threshold_is"] == "nothing changed"
    known = Change(**{**fields(change), "thresholds": {"mixed": 0.07}})
    said = layer_table(known).set_index("layer")
    assert said.loc["mixed", "threshold"] == 0.07
    assert said.loc["mixed", "threshold_is"].startswith("δ")


def fields(change):
    return {name: getattr(change, name) for name in change.__dataclass_fields__}


def test_energy_references_are_listed():
    adapter = random_adapter(network(), "linear", "dense")
    adapter.energy_references.update({8: -2.5, 1: 0.5})
    table = energy_table(change_of(adapter))
    assert list(table["element"]) == ["H", "O"]
    assert list(table["shift (eV/atom)"]) == [0.5, -2.5]


def test_rows_behind_the_elements_are_no_element():
    # SevenNet puts modalities behind the elements of its one-hot axis.
    block = Block("5x0e", None, "2x0e", (5, 2), 0, 1.0, species_axis=0)
    layout = Layout("linear", "weight", "5x0e", None, "2x0e", (10,), (block,))
    ones = {"layer": torch.ones(10)}
    cells = count_cells({"layer": layout}, ones, ones, (1, 8, 0))
    assert list(cells["element"]) == ["H", "O", "other", "other", "other"]


@pytest.mark.parametrize(
    ("paths", "depths"),
    [
        (["onehot_to_feature_x.linear", "0_self_interaction_1.linear",
          "0_convolution.weight_nn.layer2", "4_self_connection_intro.linear",
          "reduce_hidden_to_energy.linear"], [0, 1, 1, 5, 6]),
        (["node_embedding.linear", "interactions.0.conv_tp_weights.layer3",
          "interactions.1.skip_tp", "products.0.linear", "readouts.1.linear_2"], [0, 1, 2, 1, 2]),
        (["model.func.type_embed.embed_module", "model.func.layer0_convnet.conv.linear_1",
          "model.func.layer2_convnet.conv.edge_mlp.mlp.0",
          "model.func.per_atom_energy_readout.mlp_module.mlp.0"], [0, 1, 3, 4]),
        (["a", "b"], [0, 0]),
    ],
)  # fmt: skip
def test_depth_is_read_off_the_names(paths, depths):
    assert list(layer_depths(paths).values()) == depths


def test_irreps_of_one_path():
    assert (degree("64x2e"), multiplicity("64x2e")) == (2, 64)
    # Several at once, as in front of a symmetric contraction, are no degree.
    assert degree("56x(1x0e+1x1o)^3") is None
    assert degree(None) is None


def test_ten_million_entries():
    elements, wide = 89, 224
    shape = (wide, elements, wide)
    block = Block(f"{wide}x0e", f"{elements}x0e", f"{wide}x0e", shape, 0, 0.1, species_axis=1)
    numel = block.numel
    blocks = (block, Block("3000x1o", None, "2000x1o", (3000, 2000), numel, 0.1))
    size = sum(b.numel for b in blocks)
    layout = Layout("fctp", "weight", "", None, "", (size,), blocks)
    delta = torch.zeros(size)
    delta[::33] = 0.5
    change = Change(
        "large", "budget", "", "", {"layer": layout}, {"layer": torch.ones(size)},
        {"layer": delta}, tuple(range(1, elements + 1)), parameters=size,
    )  # fmt: skip
    assert size > 10_000_000
    table = species_table(change)
    assert len(table) == elements
    assert block_table(change)["updated"].sum() == (size + 32) // 33
    assert len(channel_table(change, top=50)) == 50
