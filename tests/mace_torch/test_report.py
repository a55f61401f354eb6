"""`e3sparse report` on MACE runs: every kind of layer, products and reweighted paths too."""

import pandas as pd
import pytest
import torch
from mace_models import load, tiny
from potentials import random_deltas
from tolerances import close
from typer.testing import CliRunner

from e3sparse.analysis import change_of, group_table, read_change, species_table, total
from e3sparse.analysis.causality import ablate, group_entries
from e3sparse.cli import app

RUNS = {
    "budget": ["--targets", "everything", "--target-sparsity", 0.9],
    "low_rank": ["--targets", "all", "--set", "rank=2"],
    "full": [],
}


def run(*arguments):
    """Run a command; returns its exit code and what it said."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.output + str(result.exception or "")


@pytest.fixture(scope="module")
def runs(tiny_file, data_files, tmp_path_factory):
    """One short run of each method."""
    folder = tmp_path_factory.mktemp("runs")
    splits = [f"--{split}={data_files[split]}" for split in ("train", "valid", "test")]
    for method, more in RUNS.items():
        code, said = run(
            "finetune", "--model", tiny_file, *splits, "--method", method, "--max-steps", 30,
            "--batch-size", 4, "--lr", 0.01, "--device", "cpu", "--out", folder / method, *more,
        )  # fmt: skip
        assert code == 0, said
    return {method: folder / method for method in RUNS}


def test_a_report_on_three_methods(runs, data_files, tmp_path):
    out = tmp_path / "out"
    code, said = run(
        "report", runs["budget"], runs["low_rank"], runs["full"], "--data", data_files["test"],
        "--out", out,
    )  # fmt: skip
    assert code == 0, said
    overview = pd.read_csv(out / "tables" / "overview.csv").set_index("change")
    assert overview.loc["budget", "updated"] == round(0.1 * overview.loc["budget", "entries"])
    kinds = set(pd.read_csv(out / "tables" / "blocks.csv")["kind"])
    assert kinds == {"linear", "fctp", "tp", "mlp", "products"}
    assert (out / "figures" / "species.png").stat().st_size > 0
    elements = pd.read_csv(out / "tables" / "absent.csv").set_index(["change", "of"])
    assert (elements.xs("absent", level="of")["updated"] == 0).all()
    assert (elements.xs("trained on", level="of")["updated"] > 0).all()


def test_the_model_is_the_base_plus_what_is_reported(runs, tiny_file):
    for method in RUNS:
        change = read_change(runs[method])
        base, merged = load(tiny_file), load(runs[method] / "model.model")
        before, after = (dict(p.module.named_parameters()) for p in (base, merged))
        for path, layout in change.layouts.items():
            for name, part in layout.split(change.deltas[path]).items():
                moved = after[f"{path}.{name}"] - before[f"{path}.{name}"]
                if path in base.fold_into.values() and method == "budget":
                    continue  # the reweighting of its tensor product is folded in too
                wanted = close("weights", moved.detach().numpy(), moved.dtype)
                assert part.detach().numpy() == wanted, f"{path}.{name}"


def test_the_causal_check_starts_from_the_run(runs, data_files):
    for method in ("budget", "full"):
        found = ablate(read_change(runs[method]), data_files["test"])
        wanted = pd.read_csv(runs[method] / "results.csv", index_col="split")["forces_mae"]
        assert found.before == close("forces_mae", wanted["test before"], torch.float32)
        assert found.after == close("forces_mae", wanted["test after"], torch.float32)
        assert found.table["carried"].abs().max() > 1e-3


def test_species_of_every_layer_that_has_them():
    potential = load_copy()
    change = change_of(random_deltas(potential, "everything"), trained_on=(1, 6, 8))
    table = species_table(change)
    assert set(table["kind"]) == {"linear", "fctp", "products"}
    assert set(table["element"]) == {"H", "C", "N", "O", "Na", "Cl"}
    # Figure 2's rows: one for each l that skip_tp writes.
    skip = table[table["layer"] == "interactions.0.skip_tp"]
    written = potential.module.interactions[0].skip_tp.irreps_out
    assert set(skip["l_out"]) == {ir.l for _, ir in written}
    groups = group_table(change)
    assert groups["updated"].sum() == total(change)["updated"]
    for path, layout in change.layouts.items():
        count = sum(
            group_entries(layout, g.l_out, g.element, change.numbers).int()
            for g in groups[groups["layer"] == path].itertuples()
        )
        assert (count == 1).all(), path


def load_copy():
    """Return a potential of a tiny model of its own."""
    import copy

    from e3sparse_mace import MACEPotential

    return MACEPotential("tiny", copy.deepcopy(tiny()), device="cpu", dtype=None, head=None)
