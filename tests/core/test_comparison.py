"""Two adapter folders side by side: supports and norms are those of the tensors."""

import pytest
import torch
from e3nn import o3
from networks import network, random_adapter, randomize

pytest.importorskip("pandas")

import e3sparse
from e3sparse.analysis.comparison import compare_adapters, differing_settings
from e3sparse.errors import E3SparseError

pytestmark = pytest.mark.any_e3nn


def saved(folder, targets, seed, **settings):
    adapter = random_adapter(network(), targets, "budget", seed=seed, **settings)
    return adapter.save_pretrained(folder), adapter.values()


def flat(values, paths, other):
    found = [values[p] if p in values else torch.zeros_like(other[p]) for p in paths]
    return torch.cat([value.reshape(-1) for value in found])


def test_rows_agree_with_the_tensors(tmp_path):
    a, one = saved(tmp_path / "a", "linear", 1, target_sparsity=0.6)
    b, two = saved(tmp_path / "b", ["linear", "mlp"], 2, target_sparsity=0.8)
    table = compare_adapters(a, b)
    paths = list({**one, **two})
    assert list(table.index) == [*paths, "total"]
    for row, layers in [*((p, [p]) for p in paths), ("total", paths)]:
        x = flat(one, layers, two)
        y = flat(two, layers, one)
        both, either = int(((x != 0) & (y != 0)).sum()), int(((x != 0) | (y != 0)).sum())
        said = table.loc[row]
        assert said.updated_a == int((x != 0).sum())
        assert said.updated_b == int((y != 0).sum())
        assert said.shared == both
        assert said.jaccard == pytest.approx(both / either)
        assert said.norm_a == pytest.approx(float(x.norm()))
        assert said.norm_b == pytest.approx(float(y.norm()))
        assert said.norm_difference == pytest.approx(float((x - y).norm()))
    assert table.loc["total"].shared > 0
    assert table.loc["radial.layer0"].updated_a == 0


def test_chance_is_what_random_supports_give(tmp_path):
    a, _ = saved(tmp_path / "a", "mixed", 1, target_sparsity=0.5)
    measured = []
    for seed in range(2, 12):
        b, _ = saved(tmp_path / "b", "mixed", seed, target_sparsity=0.5)
        measured.append(compare_adapters(a, b).loc["mixed"])
    mean = sum(row.jaccard for row in measured) / len(measured)
    assert measured[0].jaccard_chance == pytest.approx(1 / 3, rel=0.03)
    assert mean == pytest.approx(measured[0].jaccard_chance, abs=0.05)


def test_an_adapter_is_itself(tmp_path):
    a, _ = saved(tmp_path / "a", "all", 1)
    table = compare_adapters(a, a)
    assert (table.jaccard == 1).all()
    assert (table.norm_difference == 0).all()
    assert not differing_settings(a, a)


def test_two_adapters_without_an_update(tmp_path):
    adapter = random_adapter(network(), "linear", "dense")
    for parameter in adapter.parameters():
        parameter.data.zero_()
    folder = adapter.save_pretrained(tmp_path)
    table = compare_adapters(folder, folder)
    assert (table.updated_a == 0).all()
    assert (table.jaccard == 1).all()


def test_settings_that_differ_are_named(tmp_path):
    a, _ = saved(tmp_path / "a", "linear", 1, target_sparsity=0.6)
    b, _ = saved(tmp_path / "b", "mlp", 1, target_sparsity=0.8)
    differing = differing_settings(a, b)
    assert differing.keys() == {"settings", "targets"}
    assert differing["targets"] == ("linear", "mlp")
    adapter = randomize(random_adapter(network(), "linear", "dense"))
    assert "method" in differing_settings(a, adapter.save_pretrained(tmp_path / "c"))


def test_layers_of_different_models_are_not_compared(tmp_path):
    a, _ = saved(tmp_path / "a", "embedding", 1)
    model = network()
    model.embedding = o3.Linear("3x0e", "5x0e")
    b = e3sparse.patch(model, "embedding", "dense").save_pretrained(tmp_path / "b")
    with pytest.raises(E3SparseError, match="embedding"):
        compare_adapters(a, b)
