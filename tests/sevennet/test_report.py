"""`e3sparse report` on SevenNet runs, from the command line to the causal check."""

import shutil

import ase.io
import pandas as pd
import pytest
import torch
from sample_frames import labelled
from support import load
from tolerances import close

from e3sparse.analysis import absent_table, origin, read_change, read_changes, total
from e3sparse.analysis.causality import ablate
from e3sparse.errors import AdapterFileError, ConfigError, DataError
from e3sparse.training.run_folder import CONFIG, LISTING, RESULTS

METHODS = {
    "budget": ["--target-sparsity", "0.9"],
    "soft_threshold": ["--set", "tau_weight_decay=0.3"],
    "low_rank": ["--set", "rank=2"],
    "full": [],
}


@pytest.fixture(scope="module")
def runs(tiny_checkpoint, data_files, tmp_path_factory):
    """One short run of each method, by method."""
    import sys

    from e3sparse.cli import main

    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        for method, more in METHODS.items():
            command = [
                "e3sparse", "finetune", "--model", tiny_checkpoint, "--train", data_files["train"],
                "--valid", data_files["valid"], "--test", data_files["test"], "--method", method,
                "--max-steps", 30, "--batch-size", 4, "--lr", 0.01, "--device", "cpu",
                "--out", folder / method, *more,
            ]  # fmt: skip
            if method != "full":
                command += ["--targets", "linear", "--targets", "fctp"]
            patch.setattr(sys, "argv", [str(word) for word in command])
            with pytest.raises(SystemExit) as exit_:
                main()
            assert not exit_.value.code
    return {method: folder / method for method in METHODS}


def test_run_folders_are_called_the_same_everywhere():
    assert (origin.RUN_CONFIG, origin.RESULTS) == (CONFIG, RESULTS)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_read_is_what_the_run_changed(runs, method, tiny_checkpoint):
    change = read_change(runs[method])
    assert change.method == method
    assert change.trained_on == {1, 6, 8}
    base, merged = load(tiny_checkpoint), load(runs[method] / "model.pth")
    before, after = (dict(p.module.named_parameters()) for p in (base, merged))
    layers = {f"{path}.weight" for path in change.layouts}
    assert layers
    for path, delta in change.deltas.items():
        moved = after[f"{path}.weight"] - before[f"{path}.weight"]
        assert delta.numpy() == close("weights", moved.detach().numpy(), moved.dtype)
        assert torch.equal(change.weights[path], before[f"{path}.weight"])
    assert total(change)["updated"] > 0
    absent = absent_table(change).loc["absent"]
    # N, Na and Cl: rows of the embedding and of the two FCTP.
    assert (absent["elements"], absent["updated"]) == (3, 0)
    assert absent["entries"] > 0


def test_only_full_fine_tuning_has_a_rest(runs):
    rest = {method: read_change(folder).rest for method, folder in runs.items()}
    assert rest["full"].updated > 0
    assert [rest[method] for method in METHODS if method != "full"] == [None] * 3


def test_the_soft_threshold_is_read_from_the_checkpoint(runs):
    change = read_change(runs["soft_threshold"])
    assert change.thresholds.keys() == change.layouts.keys()
    state = torch.load(runs["soft_threshold"] / "checkpoints/best.ckpt", weights_only=True)
    taus = {k: v for k, v in state["state_dict"].items() if k.endswith(".tau")}
    assert sorted(change.thresholds.values()) == pytest.approx(
        sorted(float(torch.sigmoid(tau)) for tau in taus.values())
    )
    assert read_change(runs["budget"]).thresholds == {}


def test_an_adapter_folder_alone_will_do(runs, tmp_path):
    import shutil

    alone = shutil.copytree(runs["budget"] / "adapter", tmp_path / "mine")
    assert read_change(alone).deltas.keys() == read_change(runs["budget"]).deltas.keys()
    assert read_change(alone).trained_on == {1, 6, 8}
    assert set(read_change(alone, elements=[1, 8]).absent) == {6, 7, 11, 17}


def test_a_report_from_the_command_line(runs, run, tmp_path, data_files):
    out = tmp_path / "out"
    code, printed, _ = run(
        "report", runs["budget"], "--compare", runs["low_rank"], runs["full"],
        "--data", data_files["test"], "--out", out,
    )  # fmt: skip
    assert code == 0
    assert "rank correlation" in printed
    overview = pd.read_csv(out / "tables" / "overview.csv")
    assert list(overview["change"]) == ["budget", "low_rank", "full"]
    assert len(pd.read_csv(out / "tables" / "ablation0.csv")) > 5
    assert "lowers the force MAE" in (out / "index.html").read_text()
    code, _, said = run("report", runs["budget"], "--out", out)
    assert code == 2
    assert "--overwrite" in said


@pytest.mark.parametrize("method", ["budget", "full"])
def test_the_causal_check_is_what_a_model_without_the_group_says(
    runs, method, tiny_checkpoint, data_files, tmp_path, monkeypatch
):
    change = read_change(runs[method])
    found = ablate(change, data_files["test"])
    wanted = pd.read_csv(runs[method] / "results.csv", index_col="split")["forces_mae"]
    assert found.before == close("forces_mae", wanted["test before"], torch.float32)
    assert found.after == close("forces_mae", wanted["test after"], torch.float32)
    row = found.table.sort_values("carried").iloc[-1]
    # By hand: the merged model, with the base's weights back in all blocks of that l.
    merged = load(runs[method] / "model.pth")
    layer = merged.module.get_submodule(row["layer"])
    layout = change.layouts[row["layer"]]
    numbers = list(change.numbers)
    with torch.no_grad():
        blocks = zip(
            layout.views(layer.weight.data), layout.views(change.weights[row["layer"]]), strict=True
        )
        for (block, now), (_, base) in blocks:
            if int(block.irreps_out.split("x")[1][0]) != row["l_out"]:
                continue
            if row["element"]:
                from ase.data import atomic_numbers

                place = numbers.index(atomic_numbers[row["element"]])
                now = now.select(block.species_axis, place)
                base = base.select(block.species_axis, place)
            now.copy_(base)
    merged.save(tmp_path / "without.pth")
    from e3sparse.frames.evaluation import errors, predict
    from e3sparse.frames.reading import LabelKeys, read_frames

    model = load(tmp_path / "without.pth")
    frames = read_frames(
        data_files["test"], LabelKeys(), known=model.species.numbers, cutoff=model.cutoff
    )
    mae = errors(frames, predict(model, frames))["forces_mae"]
    assert row["forces_mae"] == close("forces_mae", mae, torch.float32)
    assert abs(mae - found.after) > 1e-3
    assert row["carried"] == pytest.approx(
        (mae - found.after) / (found.before - found.after), rel=1e-3
    )
    assert (found.table["carried_low"] <= found.table["carried_high"]).all()


def test_no_gain_is_not_shared_out(runs, tmp_path):
    frames = labelled(4, seed=9)
    for atoms in frames:
        # The labels of another world: a fine-tuned model cannot be better on them.
        atoms.arrays["REF_forces"] = -20 * atoms.arrays["REF_forces"]
    ase.io.write(tmp_path / "other.xyz", frames)
    with pytest.raises(DataError, match="no gain"):
        ablate(read_change(runs["budget"]), tmp_path / "other.xyz")


def test_the_gain_of_spin_aware_layers_is_not_shared_out(runs, data_files, tmp_path):
    folder = shutil.copytree(runs["budget"], tmp_path / "magnetic")
    config = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(config.replace("magnetic: false", "magnetic: true"))
    (folder / LISTING).unlink()  # which knows the settings of the run as they were
    change = read_change(folder)
    assert change.magnetic
    with pytest.raises(ConfigError, match="spin-aware"):
        ablate(change, data_files["test"])


def refusal(call, error=ConfigError):
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def test_what_cannot_be_read_is_refused_with_the_way_out(runs, tmp_path, tiny_checkpoint):
    assert "Did you mean 'budget'" in refusal(lambda: read_change(runs["budget"].parent / "budgt"))
    assert "neither a run folder" in refusal(lambda: read_change(tmp_path))
    assert "--base" in refusal(lambda: read_change(runs["budget"], base="no-such-model"))
    assert "given twice" in refusal(lambda: read_changes([runs["budget"], runs["budget"]]))
    other = load(tiny_checkpoint)
    with torch.no_grad():
        next(other.module.parameters()).add_(1.0)
        other.module.get_submodule("onehot_to_feature_x.linear").weight.add_(1.0)
    other.save(tmp_path / "other.pth")
    said = refusal(
        lambda: read_change(runs["budget"], base=str(tmp_path / "other.pth")), AdapterFileError
    )
    assert "not those that the adapter was trained on" in said
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / CONFIG).write_text((runs["budget"] / CONFIG).read_text())
    assert "--resume" in refusal(lambda: read_change(unfinished))
    scratch = (runs["full"] / CONFIG).read_text().replace("method: full", "method: scratch")
    (unfinished / CONFIG).write_text(scratch)
    (unfinished / RESULTS).write_text("{}")
    assert "from scratch" in refusal(lambda: read_change(unfinished))


def test_a_wrong_element_is_named(runs, run, tmp_path):
    code, _, said = run("report", runs["budget"], "--elements", "H,Xx", "--out", tmp_path / "o")
    assert code == 2
    assert "'Xx' is no element" in said
    assert not (tmp_path / "o").exists()
