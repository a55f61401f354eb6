"""Merged models go to cuEquivariance and back; a patched one would leave its deltas behind."""

import pytest
import torch
from mace_models import load
from test_backend import evaluate, random_deltas, relative
from tolerances import rounding

import e3sparse

pytest.importorskip("cuequivariance_torch", reason="cuEquivariance is not in this environment")

from mace.cli import convert_cueq_e3nn, convert_e3nn_cueq


def converted(potential, tmp_path):
    """Return the model after a conversion to cuEquivariance and back."""
    torch.save(potential.module, tmp_path / "e3nn.model")
    there = convert_e3nn_cueq.run(str(tmp_path / "e3nn.model"), device="cpu", return_model=True)
    torch.save(there, tmp_path / "cueq.model")
    back = convert_cueq_e3nn.run(str(tmp_path / "cueq.model"), device="cpu", return_model=True)
    return there, back


@pytest.mark.parametrize("targets", ["everything", pytest.param("linear", marks=pytest.mark.slow)])
def test_a_merged_model_goes_there_and_back(tiny_file, tmp_path, targets):
    potential = load(tiny_file, torch.float64)
    base = evaluate(potential)
    random_deltas(potential, targets)
    patched = evaluate(potential)
    e3sparse.merge(potential.module)
    there, back = converted(potential, tmp_path)
    assert "cuequivariance" in str([type(m).__module__ for m in there.modules()])
    potential.module = back.double()
    # MACE's conversion has coefficients of float32.
    assert relative(evaluate(potential), patched) < rounding("forces", torch.float32)
    assert relative(base, patched) > 1e-3


def test_the_deltas_of_a_patched_model_are_left_behind(tiny_file, tmp_path):
    # What the README warns of: MACE copies the weights whose names it knows.
    potential = load(tiny_file, torch.float64)
    base = evaluate(potential)
    random_deltas(potential, "everything")
    _, back = converted(potential, tmp_path)
    potential.module = back.double()
    assert relative(evaluate(potential), base) < rounding("forces", torch.float32)
