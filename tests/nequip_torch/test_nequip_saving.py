"""Files that are read and written again hold what they held, to the last bit."""

import numpy as np
import pytest
import torch
from e3sparse_nequip.options import nequip_state
from nequip.model.saved_models import load_saved_model
from nequip_models import MODELS, write_checkpoint
from potentials import evaluate, random_deltas

from e3sparse.potentials.backends import load_potential

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def state(path):
    with nequip_state():
        return load_saved_model(path).state_dict()


@pytest.mark.parametrize(
    ("framework", "dtype", "used"),
    [
        *(("nequip", dtype, used) for dtype in DTYPES for used in DTYPES),
        ("allegro", "float32", "float64"),
        ("allegro", "float64", "float64"),
    ],
)
def test_saving_is_idempotent(framework, dtype, used, tmp_path):
    """Also where a file is used in the other precision: it holds the constants that it held."""
    model = MODELS[framework] | {"num_layers": 3, "model_dtype": dtype}
    base = write_checkpoint(tmp_path / "base.ckpt", model)
    potential = load_potential(str(base), dtype=DTYPES[used])
    before = evaluate(potential)
    once, merged = tmp_path / "once.nequip.zip", tmp_path / "merged.nequip.zip"
    potential.save(once)
    np.testing.assert_array_equal(evaluate(potential), before)  # and nothing is left behind
    again = load_potential(str(once), dtype=DTYPES[used])
    np.testing.assert_array_equal(evaluate(again), before)
    adapter = random_deltas(again, "mlp")
    touched = {f"{p}.{name}" for p, layout in adapter.layouts.items() for name in layout.parameters}
    adapter.merge()
    again.save(merged)
    held, written, changed = map(state, (base, once, merged))
    assert touched < set(held)
    for name, values in held.items():
        assert values.dtype == written[name].dtype == changed[name].dtype, name
        assert torch.equal(values, written[name]), name
        assert torch.equal(values, changed[name]) == (name not in touched), name
