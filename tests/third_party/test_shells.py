"""A backend of at most 150 lines does all that ours do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shells
import torch
from potentials import evaluate, relative

from e3sparse.errors import ConfigError
from e3sparse.potentials.backends import load_potential


def mae(path):
    (row,) = json.loads(path.read_text()).values()
    return row["forces_mae"]


def test_it_is_short():
    assert len(Path(shells.__file__).read_text().splitlines()) <= 150


@pytest.mark.usefixtures("installed")
def test_finetune_evaluate_merge_check(run, model, files, tmp_path):
    out = tmp_path / "run"
    code, _, said = run(
        "finetune", "--model", model, "--train", files["train"], "--valid", files["valid"],
        "--test", files["test"], "--targets", "mlp", "--target-sparsity", "0.5", "--lr", "0.03",
        "--max-steps", "60", "--device", "cpu", "--out", out,
    )  # fmt: skip
    assert code == 0, said
    merged = tmp_path / "merged.shells"
    code, _, said = run("merge", model, "--adapter", out / "adapter", "--out", merged)
    assert code == 0, said
    for name, path in {"base": model, "tuned": out / "model.shells", "merged": merged}.items():
        code, _, said = run(
            "evaluate", path, "--data", files["test"], "--json", tmp_path / f"{name}.json"
        )
        assert code == 0, said
    assert mae(tmp_path / "tuned.json") < mae(tmp_path / "base.json")
    assert mae(tmp_path / "merged.json") == pytest.approx(mae(tmp_path / "tuned.json"), rel=1e-9)
    base, tuned = (load_potential(str(path)).module for path in (model, merged))
    for path in ("embedding", "hidden", "readout"):
        before, after = base.get_submodule(path).weight, tuned.get_submodule(path).weight
        assert not torch.equal(before, after)
    code, printed, said = run("check", merged, "--examples", "5", "--max-atoms", "8")
    assert code == 0, printed + said


def test_an_adapter_is_put_on_again(potential, model, tmp_path):
    adapter = potential.patch("mlp", "dense")
    before = evaluate(potential)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(std=0.1)
    patched = evaluate(potential)
    assert relative(patched, before) > 1e-3
    adapter.save_pretrained(tmp_path / "adapter")
    fresh = shells.ShellsBackend().load(str(model), device="cpu", dtype=None, head=None)
    np.testing.assert_array_equal(evaluate(fresh), before)
    fresh.load_adapter(tmp_path / "adapter")
    np.testing.assert_array_equal(evaluate(fresh), patched)


@pytest.mark.usefixtures("installed")
def test_the_control_is_no_file_of_it(run, tmp_path, files):
    broken = tmp_path / "broken.shells"
    broken.write_bytes(b"not a model")
    code, _, said = run("evaluate", broken, "--data", files["test"])
    assert code != 0
    assert "is no file of shells" in " ".join(said.split())


COMMANDS = """
import sys
sys.modules.update(hypothesis=None, pytest=None)
sys.argv = ["e3sparse", *sys.argv[1:]]
from e3sparse.cli import main
main()
"""


@pytest.mark.usefixtures("installed")
def test_without_what_draws_cases_all_but_check_works(model, files):
    def said(*arguments):
        return subprocess.run(
            [sys.executable, "-c", COMMANDS, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )

    assert said("evaluate", model, "--data", files["test"]).returncode == 0
    checked = said("check", model)
    assert checked.returncode == 2
    assert "pip install 'e3sparse[symmetry]'" in checked.stderr


def test_it_is_found_by_its_entry_point_alone(model):
    with pytest.raises(ConfigError, match="no model file of an installed backend"):
        load_potential(str(model))
