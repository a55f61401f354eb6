"""The architectures of NequIP-OAM-S to -XL, with few channels and random weights."""

import pytest
from nequip_models import built_oam
from potentials import evaluate, random_deltas, relative

from e3sparse.adapter.targets import select

LAYERS = {"S": 2, "M": 4, "L": 6, "XL": 6}


@pytest.mark.parametrize(
    "preset",
    ["S", "M", *(pytest.param(big, marks=pytest.mark.slow) for big in ("L", "XL"))],
)
def test_all_targets_of_a_preset(preset, tmp_path):
    potential = built_oam(preset)
    before = evaluate(potential)
    told = potential.describe()
    assert told["layers"].startswith(f"{LAYERS[preset]} convolutions")
    assert told["short range"] == "ZBL"
    held = select(potential.module, "all", potential.species).layers
    owned = {f"{path}.{name}" for path, layout in held.items() for name in layout.parameters}
    assert owned == {name for name, _ in potential.module.named_parameters()}
    for targets in ("linear", "fctp", "mlp", "tp", "embedding", "all"):
        adapter = random_deltas(potential, targets)
        patched = evaluate(potential)
        assert relative(patched, before) > 1e-6
        folder = adapter.save_pretrained(tmp_path / targets)
        adapter.merge()
        assert relative(evaluate(potential), patched) < 1e-11
        adapter.restore()
        assert relative(evaluate(potential), before) == 0.0
        adapter.remove()
        again = potential.load_adapter(folder)
        assert relative(evaluate(potential), patched) < 1e-12
        again.remove()
