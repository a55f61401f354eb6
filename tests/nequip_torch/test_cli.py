"""The command line on NequIP files: the same commands as for every backend."""

import json

import pytest
from potentials import evaluate, relative
from typer.testing import CliRunner

from e3sparse.cli import app
from e3sparse.potentials.backends import load_potential


def run(*arguments):
    """Run a command; returns its exit code and what it said."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.output + str(result.exception or "")


@pytest.mark.parametrize("which", [0, 1], ids=["checkpoint", "package"])
def test_finetune(base, which, data_files, tmp_path):
    flags = [f"--{split}={data_files[split]}" for split in ("train", "valid", "test")]
    out = tmp_path / "run"
    code, said = run(
        "finetune", "--model", base[which], *flags, "--targets", "all", "--epochs", 6,
        "--batch-size", 4, "--target-sparsity", 0.5, "--device", "cpu", "--out", out,
    )  # fmt: skip
    assert code == 0, said
    tuned = evaluate(load_potential(str(out / "model.nequip.zip")))
    before = evaluate(load_potential(str(base[which]), backend="nequip"))
    assert relative(tuned, before) > 1e-6
    adapted = load_potential(str(base[1]))
    adapted.load_adapter(out / "adapter")
    assert relative(evaluate(adapted), tuned) < 1e-9
    results = json.loads((out / "results.json").read_text())
    assert results["sparsity"]["layerwise"] == pytest.approx(0.5, abs=1e-3)
    rows = results["errors"]
    assert rows["train after"]["forces_mae"] < rows["train before"]["forces_mae"]
    code, said = run("evaluate", out / "model.nequip.zip", "--data", data_files["test"])
    assert code == 0, said


def test_inspect(base):
    for file in base:
        code, said = run("inspect", file)
        assert code == 0, said
        assert "5: H, C, O, Na, Cl" in said
        assert " mlp " in said
        told = " ".join(said.split())
        kind = "package of nequip" if file.name.endswith(".zip") else "checkpoint"
        assert f"file {kind}" in told
        assert "l_max 2" in told
        assert "symmetry O(3)" in told
    if "fctp" in said:
        assert "family NequIP" in told
        assert "layers 2 convolutions: 1 x 4x0e" in told
        assert f"finetune {file} TRAIN --out run/" in told
    else:
        assert "family Allegro" in told
        assert "layers 2 of 8 scalar and 4 tensor features" in told
        assert f"finetune {file} TRAIN --targets mlp --out run/" in told


def test_scratch_is_left_to_nequip_train(base, data_files, tmp_path):
    code, said = run(
        "finetune", "--model", base[1], "--train", data_files["train"], "--method", "scratch",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert code != 0
    assert "trained from scratch by nequip-train" in " ".join(said.split())
    assert not (tmp_path / "run").exists()


def test_check(base, tmp_path):
    code, said = run("check", base[1], "--examples", 2, "--json", tmp_path / "check.json")
    assert code == 0, said
    assert "inversion" in said
