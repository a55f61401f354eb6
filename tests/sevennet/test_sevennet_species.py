"""`targets="species"` on SevenNet: what has none of the trained elements does not change."""

import numpy as np
import pytest
import sevenn._keys as KEY
import torch
from potentials import assert_only_trained_elements_change, random_deltas, said_of
from sample_frames import structures
from sevenn.model_build import build_E3_equivariant_model
from support import load

from e3sparse.adapter.targets import select


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_only_trained_elements_change(dtype, tiny_checkpoint, tmp_path):
    assert_only_trained_elements_change(
        lambda: load(tiny_checkpoint, dtype), lambda file: load(file, dtype), tmp_path
    )


def test_of_seven_net_0_it_is_the_embedding():
    potential = load("7net-0")
    layers = select(potential.module, "species", potential.species).layers
    assert list(layers) == ["onehot_to_feature_x.linear"]


@pytest.fixture
def of_two_levels(tiny_checkpoint, tmp_path):
    """A model that knows its level of theory from a row behind those of the elements."""
    checkpoint = torch.load(tiny_checkpoint, weights_only=False)
    checkpoint["config"] |= {
        KEY.USE_MODALITY: True,
        KEY.USE_MODAL_NODE_EMBEDDING: True,
        KEY.MODAL_MAP: {"PBE": 0, "R2SCAN": 1},
        KEY.NUM_MODALITIES: 2,
        KEY.USE_MODAL_WISE_SHIFT: False,
        KEY.USE_MODAL_WISE_SCALE: False,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_E3_equivariant_model(dict(checkpoint["config"]))
    torch.save(checkpoint | {"model_state_dict": model.state_dict()}, tmp_path / "two.pth")
    return load(tmp_path / "two.pth", head="PBE")


def test_modalities_behind_the_elements_are_held(of_two_levels):
    base = of_two_levels
    _, salt = structures()
    before, count = said_of(base, salt), len(base.species.numbers)
    adapter = random_deltas(base, ["species"])
    beyond = [path for path, x in adapter.layouts.items() if x.of_no_species(count) is not None]
    assert beyond == ["onehot_to_feature_x.linear"]
    adapter.freeze_absent_species([1, 8])
    np.testing.assert_array_equal(said_of(base, salt), before)
    adapter.remove()
    adapter = random_deltas(base, beyond)  # the control: they are trained with it
    adapter.freeze_absent_species([1, 8])
    assert adapter.untouched_species() == []
    assert not np.array_equal(said_of(base, salt), before)


def test_a_run_changes_its_elements_only_and_says_which(run, tiny_checkpoint, data_files, tmp_path):
    said = {}
    for targets in ("species", "linear"):
        code, said[targets], _ = run(
            *("finetune", tiny_checkpoint, data_files["train"], "--valid", data_files["valid"]),
            *("--targets", targets, "--out", tmp_path / targets, "--max-steps", 4),
            *("--device", "cpu", "--allow-worse"),
        )
        assert code == 0
    _, salt = structures()
    before = said_of(load(tiny_checkpoint), salt)
    after = {name: said_of(load(tmp_path / name / "model.pth"), salt) for name in said}
    np.testing.assert_array_equal(after["species"], before)
    assert "Only weights and energies of H, C, O have changed" in said["species"]
    assert not np.array_equal(after["linear"], before)
    assert "Only weights" not in said["linear"]
