"""One run with several sparsities: an adapter of each, and a way back from one too many."""

import json
import re

import pandas as pd
import pytest
import torch
from support import load
from tolerances import close

from e3sparse.adapter.file import read_values
from e3sparse.errors import Interrupted
from e3sparse.frames.evaluation import errors, predict
from e3sparse.frames.reading import LabelKeys, read_frames
from e3sparse.training.config import make_config
from e3sparse.training.module import FineTuning
from e3sparse.training.run import finetune

LEVELS = {"levels": [0.3, 0.6], "target_sparsity": 0.9}
TOO_MANY = {"levels": [0.5, 0.99], "target_sparsity": 0.998, "tolerance": 1e-9}
"""Of some 700 entries the second level keeps 7."""


@pytest.fixture
def config(tiny_checkpoint, data_files, tmp_path):
    """Return settings of a short run."""

    def make(out, valid_every=1, **method):
        return make_config(
            {
                "model": str(tiny_checkpoint), "out": tmp_path / out, **data_files,
                "batch_size": 4, "device": "cpu", "epochs": 10, "targets": "all", "lr": 0.03,
                "dtype": "float64", "method_settings": LEVELS | method,
                "valid_every": valid_every,
            }
        )  # fmt: skip

    return make


def test_a_run_leaves_an_adapter_of_each_level(config, tiny_checkpoint, data_files, tmp_path):
    result = finetune(config("run"))
    found = json.loads((tmp_path / "run" / "results.json").read_text())["levels"]
    assert list(found) == ["0.3", "0.6", "0.9"]
    listed = json.loads((tmp_path / "run" / "e3sparse-run.json").read_text())["digests"]
    potential = load(tiny_checkpoint, torch.float64)  # for the elements and the cutoff
    frames = read_frames(
        data_files["test"], LabelKeys(), known=potential.species.numbers, cutoff=4.0
    )
    for name, level in found.items():
        folder = tmp_path / "run" / level["adapter"]
        assert f"{level['adapter']}/adapter_model.safetensors" in listed
        values = read_values(folder).values()
        updated = sum(int(v.count_nonzero()) for v in values)
        assert updated == level["updated"]
        assert updated == round((1 - float(name)) * sum(v.numel() for v in values))
        adapted = load(tiny_checkpoint, torch.float64)
        adapted.load_adapter(folder)
        again = errors(frames, predict(adapted, frames))
        for column in ("energy_mae", "forces_mae"):
            said = level["errors"]["test"][column]
            assert again[column] == close(column, said, torch.float64, decimals=10)
    assert result.adapter.sparsity().updated == found["0.9"]["updated"]
    assert list(result.levels.index) == list(found)
    last, said = result.table.loc["test after"], found["0.9"]["errors"]["test"]
    assert last["forces_mae"] == close("forces_mae", said["forces_mae"], torch.float64, decimals=10)


def test_a_level_that_costs_too_much_is_left_again(config, capsys, tmp_path):
    result = finetune(config("run", **TOO_MANY))
    said = " ".join(capsys.readouterr().out.split())
    ended = re.search(r"Pruning ends at step (\d+): with ([\d.]+)% .*, with ([\d.]+)%\.", said)
    assert ended, said
    assert float(ended[3]) < float(ended[2])
    rows = pd.read_csv(tmp_path / "run" / "metrics.csv").dropna(subset=["valid/loss"])
    after = rows[rows["step"] >= int(ended[1])]
    assert len(after)
    assert set(after["sparsity"].round(4)) == {round(float(ended[3]) / 100, 4)}
    # What is left is the sparsest level of those within the tolerance, here the best.
    best = rows.loc[rows["valid/loss"].idxmin(), "sparsity"]
    assert result.adapter.sparsity().layerwise == pytest.approx(best, abs=1e-4)


def test_a_level_that_no_validation_falls_on_is_no_reason_to_go_back(config, tmp_path):
    result = finetune(config("run", valid_every=4, **TOO_MANY))
    assert list(result.levels.index) == ["0.998"]
    assert result.adapter.sparsity().updated == 1


@pytest.mark.parametrize("stop", [7, 20, 28])
def test_resumed_equals_uninterrupted(stop, config, monkeypatch, tmp_path):
    one = finetune(config("whole", **TOO_MANY)).adapter.values()
    original = FineTuning.training_step

    def interrupted(self, batch, index):
        if self.trainer.global_step == stop:
            raise KeyboardInterrupt
        return original(self, batch, index)

    monkeypatch.setattr(FineTuning, "training_step", interrupted)
    made = config("parts", **TOO_MANY)
    with pytest.raises(Interrupted, match="--resume"):
        finetune(made)
    monkeypatch.setattr(FineTuning, "training_step", original)
    two = finetune(made, resume=True).adapter.values()
    for path in one:
        torch.testing.assert_close(one[path], two[path], rtol=1e-9, atol=1e-12)
