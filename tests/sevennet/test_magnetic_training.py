"""From frames with moments to a run with spin-aware layers, by the command line and back."""

import json
import re

import ase.io
import numpy as np
import pandas as pd
import pytest
import torch
from magnetic_cases import water as frames
from support import load
from tolerances import close

from e3sparse import magnetism
from e3sparse.errors import ConfigError, DataError, Interrupted
from e3sparse.frames.evaluation import moment_errors
from e3sparse.frames.reading import LabelKeys, read_split
from e3sparse.potentials.spins import SHORT, SPINS, as_vectors, directions_of, spins_of
from e3sparse.symmetry import PotentialSubject
from e3sparse.training.config import make_config
from e3sparse.training.module import FineTuning
from e3sparse.training.run import finetune


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spins")
    paths = {}
    for seed, (split, count) in enumerate({"train": 40, "valid": 10, "test": 10}.items()):
        paths[split] = folder / f"{split}.xyz"
        ase.io.write(paths[split], frames(count, seed))
    return paths


@pytest.fixture(scope="module")
def trained(files, tiny_checkpoint, tmp_path_factory):
    """The folder of a run."""
    out = tmp_path_factory.mktemp("run") / "run"
    settings = {
        "model": str(tiny_checkpoint),
        "magnetic": True,
        "method_settings": {"target_sparsity": 0.8},
        "loss": {"energy": 10.0},
        "spin_lr": 0.02,
        "epochs": 30,
        "valid_every": 10,
        "device": "cpu",
        "dtype": "float64",
        "out": out,
        **files,
    }
    return finetune(make_config(settings))


def test_exchange_and_moments_are_learned(trained):
    table = trained.table
    assert table.loc["test before", "energy_mae"] > 40.0  # meV/atom
    assert table.loc["test after", "energy_mae"] < 10.0
    assert table.loc["test after", "moments_mae"] < 0.15
    assert table.loc["test after", "sign_errors"] == 0.0
    assert np.isnan(table.loc["test before", "moments_mae"])
    assert trained.adapter.sparsity().layerwise == pytest.approx(0.8, abs=0.01)


def test_the_run_is_used_from_its_folder(trained, files, tiny_checkpoint, run, tmp_path):
    folder = trained.out
    after = trained.table.loc["test after"]
    where = ("--data", files["test"], "--dtype", "float64", "--json", tmp_path / "found.json")
    for model in (("--adapter", folder / "adapter"), ()):
        base = tiny_checkpoint if model else folder / "model.pth"
        code, printed, _ = run("evaluate", base, *model, "--spins", folder / "spins", *where)
        assert code == 0
        assert "moments MAE" in printed
        (found,) = json.loads((tmp_path / "found.json").read_text()).values()
        # SevenNet's file holds float32.
        dtype = torch.float64 if model else torch.float32
        for column in ("energy_mae", "forces_mae", "moments_mae", "moments_mae_O"):
            # The column of an element has the tolerance of all elements.
            quantity = column.removesuffix("_O")
            assert found[column] == close(quantity, after[column], dtype, decimals=10), column


def test_the_run_passes_the_suite(trained, tiny_checkpoint, run):
    folder = trained.out
    code, printed, _ = run(
        "check", tiny_checkpoint, "--adapter", folder / "adapter", "--spins", folder / "spins",
        "--examples", 3, "--max-atoms", 4,
    )  # fmt: skip
    assert code == 0, printed
    assert "time reversal" in printed
    assert "It reads no spins" not in printed


def test_layers_of_a_run_are_refused_without_its_adapter(trained, files, tiny_checkpoint, run):
    code, _, error = run(
        "evaluate", tiny_checkpoint, "--spins", trained.out / "spins", "--data", files["test"]
    )
    assert code == 2
    assert "not the backbone" in error


def test_a_resumed_run_equals_an_uninterrupted_one(files, tiny_checkpoint, tmp_path, monkeypatch):
    def config(name):
        settings = {"magnetic": True, "max_steps": 12, "dtype": "float64", "device": "cpu"}
        return make_config(
            {"model": str(tiny_checkpoint), "out": tmp_path / name, **settings, **files}
        )

    whole = finetune(config("whole"))
    original = FineTuning.training_step

    def interrupted(self, batch, index):
        if self.trainer.global_step == 7:
            raise KeyboardInterrupt
        return original(self, batch, index)

    monkeypatch.setattr(FineTuning, "training_step", interrupted)
    with pytest.raises(Interrupted):
        finetune(config("parts"))
    monkeypatch.setattr(FineTuning, "training_step", original)
    resumed = finetune(config("parts"), resume=True)
    pd.testing.assert_frame_equal(whole.table, resumed.table, rtol=1e-9)


@pytest.mark.parametrize("method", ["full", "low_rank", "scratch"])
def test_every_method_carries_spin_layers(method, files, tiny_checkpoint, tmp_path):
    settings = {"model": str(tiny_checkpoint), "magnetic": True, "method": method, "max_steps": 4}
    result = finetune(make_config(settings | {"out": tmp_path / "run", "device": "cpu", **files}))
    assert np.isfinite(result.table.loc["test after", "moments_mae"])
    magnetism.load(load(tmp_path / "run" / "model.pth"), tmp_path / "run" / "spins")


def test_layers_start_from_the_seed(tiny_checkpoint):
    one, two, other = (
        magnetism.add_spins(load(tiny_checkpoint), seed=seed).layers.state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)


def test_collinear_moments_point_along_z_and_give_the_spins(tiny_checkpoint, tmp_path, run):
    path = tmp_path / "collinear.xyz"
    made = frames(3, collinear=True)
    made[0].arrays["REF_magmom"][1] = 0.05
    ase.io.write(path, made)
    read, _ = read_split(path, LabelKeys(), known=(1, 8), cutoff=4.0, magnetic=True)
    np.testing.assert_allclose(read[0].moments[:, 2], made[0].arrays["REF_magmom"], atol=1e-8)
    assert not read[0].moments[:, :2].any()
    expected = np.sign(made[0].arrays["REF_magmom"])
    expected[1] = 0.0
    np.testing.assert_array_equal(read[0].atoms.arrays[SPINS][:, 2], expected)


def drop(frame):
    del frame.arrays["REF_magmom"]


def nan(frame):
    frame.arrays["REF_magmom"][1, 2] = np.nan


def two_columns(frame):
    frame.arrays["REF_magmom"] = frame.arrays["REF_magmom"][:, :2]


def nan_spin(frame):
    frame.arrays[SPINS][0] = np.nan


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop, "Frame 2 .* no moments label 'REF_magmom'.*--moments-key"),
        (nan, "Frame 2 .* not all finite"),
        (two_columns, r"shape \(3, 2\)"),
        (nan_spin, "Frame 2 .* spins 'spin' are not all finite"),
    ],
)
def test_bad_moments_are_refused_before_anything_is_written(
    change, says, tiny_checkpoint, run, tmp_path
):
    made = frames(4)
    change(made[2])
    ase.io.write(tmp_path / "bad.xyz", made)
    code, _, error = run(
        "finetune", "--model", tiny_checkpoint, "--magnetic", "--train", tmp_path / "bad.xyz",
        "--out", tmp_path / "run", "--device", "cpu",
    )  # fmt: skip
    assert code == 2
    assert re.search(says, error), error
    assert not (tmp_path / "run").exists()


def test_a_run_without_spins_does_not_read_them(tiny_checkpoint, tmp_path, run):
    made = frames(4)
    nan(made[2])
    ase.io.write(tmp_path / "train.xyz", made)
    code, _, error = run(
        "finetune", "--model", tiny_checkpoint, "--train", tmp_path / "train.xyz", "--max-steps", 2,
        "--out", tmp_path / "run", "--device", "cpu", "--allow-worse",
    )  # fmt: skip
    assert code == 0, error
    assert not (tmp_path / "run" / "spins").exists()


def test_bad_spin_settings_name_the_setting(tiny_checkpoint, files, tmp_path):
    settings = {"model": str(tiny_checkpoint), "magnetic": True, "spin_settings": {"channel": 3}}
    with pytest.raises(ConfigError, match=r"spin_settings: 'channel' is unknown"):
        finetune(make_config(settings | {"out": tmp_path / "run", **files}))
    assert not (tmp_path / "run").exists()


def test_errors_of_moments():
    wanted = np.array([[0, 0, 2.0], [0, 0, -2.0], [0, 0, 0.05]])
    found = np.array([[0, 0, 1.0], [0, 0, 1.0], [0, 0, -0.05]])
    errors = moment_errors(np.array([26, 26, 8]), found, wanted)
    assert errors["moments_mae"] == pytest.approx((1 + 3 + 0.1) / 3)
    assert errors["magnitude_mae"] == pytest.approx(2 / 3)
    assert errors["sign_errors"] == 0.5  # the third atom is not magnetic
    assert errors["moments_mae_Fe"] == pytest.approx(2.0)
    assert errors["moments_mae_O"] == pytest.approx(0.1)


def test_directions_of_moments():
    moments = as_vectors([2.0, -0.5, 0.05], 3, "moments")
    np.testing.assert_array_equal(directions_of(moments), [[0, 0, 1], [0, 0, -1], [0, 0, 0]])


@pytest.mark.parametrize("given", [[2.0, 0.3, 0.05], np.diag([0.2, -4.0, 0.09])])
def test_initial_moments_become_the_spins_that_training_made_of_labels(given, tmp_path):
    atoms = frames(1, collinear=True)[0]
    atoms.arrays["REF_magmom"] = np.asarray(given)
    ase.io.write(tmp_path / "frame.xyz", atoms)
    split = read_split(
        tmp_path / "frame.xyz",
        LabelKeys(magnetic_forces="none"),
        known=(1, 8),
        cutoff=4.0,
        magnetic=True,
    )
    atoms.set_initial_magnetic_moments(given)
    np.testing.assert_array_equal(split.frames[0].atoms.arrays[SPINS], spins_of(atoms))
    assert np.ptp(np.linalg.norm(spins_of(atoms), axis=1)) == 1.0  # the last one has no spin


@pytest.mark.parametrize("length", [1.0, 2.2, 0.6, 0.3])
def test_labels_of_magnetic_forces_are_derivatives_by_the_spins_as_given(files, length, tmp_path):
    given = ase.io.read(files["test"], index=":")
    for atoms in given:
        atoms.arrays[SPINS] *= length
    path = tmp_path / "given.xyz"
    ase.io.write(path, given)
    read, _ = read_split(path, LabelKeys(), known=(1, 8), cutoff=4.0, magnetic=True)
    for frame in read:
        np.testing.assert_array_equal(spins_of(frame.atoms), frame.atoms.arrays[SPINS])
        spins = frame.atoms.arrays[SPINS] / length
        field = 0.2 * (spins.sum(axis=0) - spins)
        across = field - (field * spins).sum(axis=1, keepdims=True) * spins
        if length < SHORT:
            assert np.isnan(frame.magnetic_forces).all()  # not of a turn alone
        else:
            np.testing.assert_allclose(frame.magnetic_forces, across / length, atol=1e-6)


def test_magnetic_forces_teach_the_exchange(files, tiny_checkpoint, tmp_path):
    settings = {"model": str(tiny_checkpoint), "magnetic": True, "spin_lr": 0.02, "max_steps": 60}
    settings |= {"device": "cpu", "valid_every": 4, **files}
    found = {}
    for weight in (1e-9, 10.0):
        loss = {"energy": 0.0, "magnetic_forces": weight}
        result = finetune(make_config(settings | {"loss": loss, "out": tmp_path / f"{weight}"}))
        found[weight] = result.table.loc["test after"]
    learned, control = (found[weight]["magnetic_forces_mae"] for weight in (10.0, 1e-9))
    assert learned < 30.0  # meV per radian, of 160
    assert control > 3 * learned


def test_a_weight_without_labels_is_refused(files, tiny_checkpoint, tmp_path):
    bare = ase.io.read(files["train"], index=":")
    del bare[3].arrays["REF_magforces"]
    ase.io.write(tmp_path / "train.xyz", bare)
    settings = {"model": str(tiny_checkpoint), "magnetic": True, "loss": {"magnetic_forces": 1.0}}
    settings |= {"train": tmp_path / "train.xyz", "out": tmp_path / "run", "device": "cpu"}
    with pytest.raises(DataError, match="REF_magforces"):
        finetune(make_config(settings))
    assert not (tmp_path / "run").exists()


def test_magnetic_forces_are_predicted_when_asked_for(tiny_checkpoint):
    potential = magnetism.add_spins(load(tiny_checkpoint))
    atoms = frames(1)[0]
    assert PotentialSubject(potential)(atoms).magnetic_forces is None
    potential.magnetic_forces = True
    assert PotentialSubject(potential)(atoms).magnetic_forces.shape == (3, 3)
