"""`e3sparse report` on NequIP runs, and its tables on NequIP and Allegro models."""

import pandas as pd
import pytest
from nequip_models import MODELS, TYPES, built
from potentials import random_deltas
from test_cli import run

from e3sparse.analysis import change_of, channel_table, element_table, group_table, total
from e3sparse.analysis.causality import group_entries


@pytest.mark.parametrize("framework", MODELS)
def test_tables_of_every_layer(framework):
    potential = built(framework)
    change = change_of(random_deltas(potential, "all"), trained_on=(1, 6, 8))
    groups = group_table(change)
    assert groups["updated"].sum() == total(change)["updated"] == total(change)["entries"]
    for path, layout in change.layouts.items():
        count = sum(
            group_entries(layout, g.l_out, g.element, change.numbers).int()
            for g in groups[groups["layer"] == path].itertuples()
        )
        assert (count == 1).all(), path
    assert set(element_table(change)["element"]) == set(TYPES)
    assert channel_table(change, top=10**6)["updated"].sum() == total(change)["updated"]


def test_report_on_a_run(base_of, data_files, tmp_path):
    package = base_of("nequip")[1]
    flags = [f"--{split}={data_files[split]}" for split in ("train", "valid", "test")]
    for method, more in (("budget", ["--target-sparsity", 0.5, "--targets", "all"]), ("full", [])):
        code, said = run(
            "finetune", "--model", package, *flags, "--method", method, "--max-steps", 30,
            "--batch-size", 4, "--device", "cpu", "--out", tmp_path / method, *more,
        )  # fmt: skip
        assert code == 0, said
    out = tmp_path / "report"
    code, said = run(
        "report", tmp_path / "budget", "--compare", tmp_path / "full", "--data",
        data_files["test"], "--out", out,
    )  # fmt: skip
    assert code == 0, said
    assert "rank correlation" in said
    overview = pd.read_csv(out / "tables" / "overview.csv").set_index("change")
    assert overview.loc["budget", "updated"] == round(0.5 * overview.loc["budget", "entries"])
    absent = pd.read_csv(out / "tables" / "absent.csv").set_index(["change", "of"])
    # Na and Cl have rows in the embedding alone: the convolutions see what it makes of them.
    assert (absent.xs("absent", level="of")["updated"] == 0).all()
    assert (absent.xs("absent", level="of")["elements"] == 2).all()
