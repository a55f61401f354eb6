"""Spin-aware layers on MACE."""

import ase.io
import pytest
import torch
from mace_models import load
from magnetic_cases import water
from magnetic_potentials import *  # noqa: F403
from tolerances import close

from e3sparse import magnetism
from e3sparse.frames.evaluation import errors, predict
from e3sparse.frames.reading import LabelKeys, read_split
from e3sparse.training.config import make_config
from e3sparse.training.run import finetune


@pytest.fixture(scope="module")
def load_tiny(tiny_file):
    return lambda dtype: load(tiny_file, dtype)


def test_a_run_ends_in_files_that_give_its_errors(tiny_file, tmp_path):
    for seed, split in enumerate(("train", "valid", "test")):
        ase.io.write(tmp_path / f"{split}.xyz", water(8, seed))
    files = {split: tmp_path / f"{split}.xyz" for split in ("train", "valid", "test")}
    settings = {"magnetic": True, "targets": "all", "max_steps": 6, "dtype": "float64"}
    settings |= {"model": str(tiny_file), "out": tmp_path / "run", "device": "cpu"}
    result = finetune(make_config(settings | files))
    merged = magnetism.load(load(tmp_path / "run" / "model.model"), tmp_path / "run" / "spins")
    test, _ = read_split(
        files["test"], LabelKeys(), known=(1, 8), cutoff=merged.cutoff, magnetic=True
    )
    found = errors(test, predict(merged, test))
    after = result.table.loc["test after"]
    for column in ("energy_mae", "forces_mae", "moments_mae"):
        assert found[column] == close(column, after[column], torch.float64)
    assert found["sign_errors"] == after["sign_errors"]
