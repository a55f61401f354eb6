"""Training changes what it should, keeps what it promises, and can be stopped and resumed."""

import json

import ase.io
import numpy as np
import pandas as pd
import pytest
import torch
from ase import Atoms
from sample_frames import isolated, labelled, with_isolated
from sevenn.calculator import SevenNetCalculator
from support import load
from tolerances import close

from e3sparse.adapter.config import read_config as read_adapter_config
from e3sparse.adapter.file import read_values
from e3sparse.errors import ConfigError, DivergedError, Interrupted
from e3sparse.frames.batches import FrameDataset, loader
from e3sparse.frames.evaluation import errors, predict
from e3sparse.frames.reading import Frame, LabelKeys, read_frames
from e3sparse.frames.references import fit_references
from e3sparse.symmetry import PotentialSubject
from e3sparse.training.config import make_config
from e3sparse.training.losses import Loss
from e3sparse.training.module import FineTuning
from e3sparse.training.optimizers import OPTIMIZERS, make_optimizer, set_averaged
from e3sparse.training.run import finetune


def config(tiny_checkpoint, data_files, out, **values):
    defaults = {"batch_size": 4, "device": "cpu", "valid_every": 1}
    if "epochs" not in values:
        defaults["max_steps"] = 12
    return make_config(
        {"model": str(tiny_checkpoint), "out": out, **data_files, **defaults, **values}
    )


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("budget", {"target_sparsity": 0.8}),
        ("soft_threshold", {}),
        ("low_rank", {"rank": 2}),
        ("dense", {}),
        ("fixed_mask", {"score": "fisher", "target_sparsity": 0.8}),
        ("full", {}),
        ("scratch", {}),
    ],
)
def test_a_run_leaves_a_model_that_sevennet_reads(
    method, settings, tiny_checkpoint, data_files, tmp_path
):
    made = config(
        tiny_checkpoint, data_files, tmp_path / "run", method=method, method_settings=settings
    )
    result = finetune(made)
    out = result.out
    test = ase.io.read(data_files["test"], index=":")
    calculator = SevenNetCalculator(str(out / "model.pth"), device="cpu")
    off = []
    for atoms in test:
        label = atoms.arrays["REF_forces"]
        atoms.calc = calculator
        off.append(np.abs(atoms.get_forces() - label).mean() * 1000)
        # The fitted references are in the file, so total energies are those of the labels.
        assert abs(atoms.get_potential_energy() - atoms.info["REF_energy"]) < 1.0
    table = result.table
    assert np.mean(off) == close("forces_mae", table.loc["test after", "forces_mae"], torch.float32)
    assert result.table.loc["train after", "forces_mae"] != pytest.approx(
        result.table.loc["train before", "forces_mae"]
    )
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert {
        "config.yaml", "versions.json", "metrics.csv", "results.csv", "results.json", "model.pth",
        "figures/learning.png", "figures/parity.png",
    } <= files  # fmt: skip
    if settings.get("target_sparsity"):
        entries = json.loads((out / "results.json").read_text())["sparsity"]
        assert entries["updated"] <= round(0.2 * entries["entries"])
        saved = sum(int(v.count_nonzero()) for v in read_values(out / "adapter").values())
        assert saved == entries["updated"]


def test_references_of_scratch_are_fitted_to_the_weights_that_are_trained(
    tiny_checkpoint, data_files, tmp_path
):
    run = config(
        tiny_checkpoint, data_files, tmp_path / "run", method="scratch", lr=1e-9, max_steps=1,
        refit_e0s=False,
    )  # fmt: skip
    table = finetune(run).table
    for label in ("energy_mae", "forces_mae"):
        before, after = table.loc["train before", label], table.loc["train after", label]
        assert after == pytest.approx(before, rel=1e-3)


def test_budget_meets_its_target_exactly(tiny_checkpoint, data_files, tmp_path):
    result = finetune(
        config(
            tiny_checkpoint, data_files, tmp_path / "run", targets="mlp",
            method_settings={"target_sparsity": 0.75},
        )
    )  # fmt: skip
    sparsity = result.adapter.sparsity()
    assert sparsity.updated == round(0.25 * sparsity.entries)


@pytest.mark.parametrize("optimizer", ["schedule_free", "sgd"])
def test_the_learning_rate_of_a_budget_grows_as_entries_go(
    optimizer, tiny_checkpoint, data_files, tmp_path
):
    made = config(
        tiny_checkpoint, data_files, tmp_path / "run", optimizer=optimizer, lr=1e-4,
        method_settings={"target_sparsity": 0.75},
    )  # fmt: skip
    finetune(made)
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)
    (group,) = last["optimizer_states"][0]["param_groups"]
    assert group["lr"] == pytest.approx(1e-4 * 4**0.75)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_elements_outside_the_training_set_are_untouched(
    optimizer, tiny_checkpoint, data_files, tmp_path
):
    made = config(
        tiny_checkpoint, data_files, tmp_path / "run", targets="all", method="soft_threshold",
        optimizer=optimizer, lr=1e-3,
    )  # fmt: skip
    finetune(made)
    base, tuned = load(tiny_checkpoint), load(tmp_path / "run" / "model.pth")
    numbers = base.species.numbers
    rows = [numbers.index(z) for z in (7, 11, 17)]
    for key in ("onehot_to_feature_x.linear.weight", "rescale_atomic_energy.shift"):
        one, two = (p.module.state_dict()[key].reshape(len(numbers), -1) for p in (base, tuned))
        assert torch.equal(one[rows], two[rows])
        assert not torch.equal(one, two)


def test_training_lowers_the_error(tiny_checkpoint, data_files, tmp_path):
    made = config(
        tiny_checkpoint, data_files, tmp_path / "run", targets="all", method="dense",
        max_steps=60, lr=3e-2,
    )  # fmt: skip
    table = finetune(made).table
    assert table.loc["train after", "forces_mae"] < 0.9 * table.loc["train before", "forces_mae"]


@pytest.fixture(scope="module")
def uninterrupted(tiny_checkpoint, data_files, tmp_path_factory):
    """Return a function from settings to the values that a run with them leaves, made once."""
    made = {}

    def values(settings):
        key = str(settings)
        if key not in made:
            out = tmp_path_factory.mktemp("whole") / "run"
            made[key] = finetune(config(tiny_checkpoint, data_files, out, **settings))
        return made[key].adapter.values()

    return values


@pytest.mark.parametrize("optimizer", ["schedule_free", "adamw"])
@pytest.mark.parametrize("length", [{"epochs": 4}, {"max_steps": 11}], ids=["epochs", "steps"])
@pytest.mark.parametrize("stop", [6, 7], ids=["between_epochs", "within_an_epoch"])
def test_resumed_equals_uninterrupted(
    stop, length, optimizer, tiny_checkpoint, data_files, tmp_path, monkeypatch, uninterrupted
):
    # Few choices, so that the run stops between two.
    method = {"target_sparsity": 0.9, "choices": 4}
    settings = {"targets": "all", "method_settings": method, "dtype": "float64"}
    settings |= length | {"optimizer": optimizer}
    one = uninterrupted(settings)
    original = FineTuning.training_step

    def interrupted(self, batch, index):
        if self.trainer.global_step == stop:
            raise KeyboardInterrupt
        return original(self, batch, index)

    made = config(tiny_checkpoint, data_files, tmp_path / "parts", **settings)
    monkeypatch.setattr(FineTuning, "training_step", interrupted)
    with pytest.raises(Interrupted, match="--resume"):
        finetune(made)
    monkeypatch.setattr(FineTuning, "training_step", original)
    resumed = finetune(made, resume=True)
    two = resumed.adapter.values()
    assert sum(int(v.count_nonzero()) for v in one.values()) > 0
    for path in one:
        torch.testing.assert_close(one[path], two[path], rtol=1e-9, atol=1e-12)
    steps = pd.read_csv(tmp_path / "parts" / "metrics.csv")["step"].dropna()
    assert steps.min() == 0
    assert steps.max() >= 10


@pytest.mark.parametrize(("steps", "valid_every"), [(2, 1), (5, 2), (7, 3)])
def test_training_that_ends_within_an_epoch_is_validated_at_its_end(
    steps, valid_every, tiny_checkpoint, data_files, tmp_path
):
    settings = {"max_steps": steps, "valid_every": valid_every}
    settings["method_settings"] = {"target_sparsity": 0.9}
    made = config(tiny_checkpoint, data_files, tmp_path / "run", **settings)
    result = finetune(made)
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv").dropna(subset=["valid/loss"])
    assert metrics["step"].max() == steps - 1
    assert result.adapter.sparsity().layerwise == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(("epochs", "valid_every"), [(2, 5), (5, 3)])
def test_epochs_end_with_a_validation(epochs, valid_every, tiny_checkpoint, data_files, tmp_path):
    settings = {"epochs": epochs, "valid_every": valid_every}
    settings["method_settings"] = {"target_sparsity": 0.9}
    result = finetune(config(tiny_checkpoint, data_files, tmp_path / "run", **settings))
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv").dropna(subset=["valid/loss"])
    assert metrics["step"].max() == 3 * epochs - 1
    assert result.adapter.sparsity().layerwise == pytest.approx(0.9, abs=0.01)


def test_patience_waits_until_the_delta_is_sparse(tiny_checkpoint, data_files, tmp_path):
    settings = {"method_settings": {"target_sparsity": 0.9}, "lr": 1e-9}
    made = config(tiny_checkpoint, data_files, tmp_path / "run", epochs=30, patience=1, **settings)
    result = finetune(made)
    scores = pd.read_csv(tmp_path / "run" / "metrics.csv")["valid/score"].dropna()
    assert np.isinf(scores.iloc[0])
    assert np.isfinite(scores.iloc[-1])
    assert len(scores) < 30
    assert result.adapter.sparsity().layerwise == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("recover", [True, False])
@pytest.mark.parametrize("first", [0, 5])
def test_a_training_that_diverges_leaves_no_model(
    first, recover, tiny_checkpoint, data_files, tmp_path, monkeypatch
):
    original = FineTuning.training_step

    def diverging(self, batch, index):
        loss = original(self, batch, index)
        return loss * np.nan if self.trainer.global_step >= first else loss

    monkeypatch.setattr(FineTuning, "training_step", diverging)
    settings = {"method_settings": {"target_sparsity": 0.9}, "max_steps": 24, "recover": recover}
    with pytest.raises(DivergedError, match="lower --lr"):
        finetune(config(tiny_checkpoint, data_files, tmp_path / "run", **settings))
    assert not (tmp_path / "run" / "model.pth").exists()
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_model_that_is_worse_than_the_base_is_written_only_if_that_is_allowed(
    tiny_checkpoint, data_files, tmp_path, capsys
):
    settings = {"method": "dense", "lr": 30.0, "max_steps": 12, "recover": False}
    refused = config(tiny_checkpoint, data_files, tmp_path / "run", **settings)
    with pytest.raises(DivergedError, match=r"no better.*--allow-worse"):
        finetune(refused)
    assert not (tmp_path / "run" / "model.pth").exists()
    assert not (tmp_path / "run" / "adapter").exists()
    capsys.readouterr()
    allowed = refused.model_copy(update={"allow_worse": True})
    table = finetune(allowed, resume=True).table
    assert table.loc["valid after", "forces_mae"] > table.loc["valid before", "forces_mae"]
    assert "give a lower --lr than 30" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "run" / "model.pth").exists()


def test_a_training_at_a_rate_far_too_high_goes_back_and_ends_well(
    tiny_checkpoint, data_files, tmp_path, capsys
):
    settings = {"method": "dense", "lr": 30.0, "max_steps": 60, "valid_every": 3}
    table = finetune(config(tiny_checkpoint, data_files, tmp_path / "run", **settings)).table
    assert table.loc["valid after", "forces_mae"] < table.loc["valid before", "forces_mae"]
    setbacks = json.loads((tmp_path / "run" / "results.json").read_text())["setbacks"]
    assert setbacks
    said = " ".join(capsys.readouterr().out.split())
    for setback in setbacks:
        assert f"went back to step {setback['back_to']}" in said


def test_references_are_fitted_once_more_after_training(
    tiny_checkpoint, data_files, tmp_path, capsys
):
    # Forces alone are learnt, so nothing else holds the energies.
    settings = {"method": "dense", "loss": {"energy": 0.0}, "dtype": "float64"}
    tables, shifts, saved = {}, {}, {}
    for refit in (True, False):
        out = tmp_path / str(refit)
        made = config(tiny_checkpoint, data_files, out, refit_e0s=refit, **settings)
        tables[refit] = finetune(made).table
        shifts[refit] = json.loads((out / "results.json").read_text())["e0s_shifted_after"]
        saved[refit] = read_adapter_config(out / "adapter").energy_references
    energies = {refit: table.loc["train after", "energy_mae"] for refit, table in tables.items()}
    assert energies[True] < energies[False]
    assert shifts[False] == {}
    numbers = {"H": 1, "C": 6, "O": 8}
    moved = {s: saved[True][z] - saved[False][z] for s, z in numbers.items()}
    assert moved == pytest.approx(shifts[True], abs=1e-9)
    forces = [table.loc["test after", "forces_mae"] for table in tables.values()]
    assert forces[0] == forces[1]
    assert "fitted once more after training" in " ".join(capsys.readouterr().out.split())


def test_an_interruption_leaves_the_best_model_alone(
    tiny_checkpoint, data_files, tmp_path, monkeypatch
):
    made = config(
        tiny_checkpoint, data_files, tmp_path / "run", method="full", epochs=4, dtype="float64"
    )
    original = FineTuning.training_step
    kept = []

    def interrupted(self, batch, index):
        if self.trainer.global_step == 7:
            kept.append((tmp_path / "run" / "checkpoints" / "best.ckpt").read_bytes())
            raise KeyboardInterrupt
        return original(self, batch, index)

    monkeypatch.setattr(FineTuning, "training_step", interrupted)
    with pytest.raises(Interrupted):
        finetune(made)
    folder = tmp_path / "run" / "checkpoints"
    assert (folder / "best.ckpt").read_bytes() == kept[0]
    assert torch.load(folder / "last.ckpt", weights_only=False)["global_step"] == 7


@pytest.mark.parametrize("method", ["full", "budget"])
@pytest.mark.parametrize("optimizer", ["schedule_free", "adamw"])
@pytest.mark.parametrize(
    "length",
    [{"epochs": 4}, {"epochs": 4, "valid_every": 2}, {"max_steps": 10, "valid_every": 2}],
    ids=["every_epoch", "every_other", "ends_early"],
)
def test_the_model_that_is_left_is_the_one_that_was_validated(
    length, optimizer, method, tiny_checkpoint, data_files, tmp_path
):
    # The schedule-free optimizer has other weights in training than in validation.
    settings = {"method": method, "optimizer": optimizer, "dtype": "float64", "lr": 3e-2}
    settings["refit_e0s"] = False  # which comes after the last validation
    if method == "budget":
        settings["method_settings"] = {"target_sparsity": 0.8}
    result = finetune(config(tiny_checkpoint, data_files, tmp_path / "run", **length, **settings))
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv").dropna(subset=["valid/score"])
    best = metrics.loc[metrics["valid/score"].idxmin()]
    found = result.table.loc["valid after"]
    # Lightning logs in float32 what was computed in float64: one rounding, of the value.
    assert found["forces_mae"] == pytest.approx(best["valid/forces_mae"], rel=1e-6)
    assert found["energy_mae"] == pytest.approx(best["valid/energy_mae"], rel=1e-6)


def test_only_the_delta_gets_gradients(tiny_checkpoint, data_files):
    potential = load(tiny_checkpoint)
    adapter = potential.patch("linear", "dense")
    module = FineTuning(potential, adapter, loss=Loss(), optimizer="sgd", lr=1.0)
    module.train()
    frames = read(data_files["train"], potential)
    batch = next(iter(loader(FrameDataset(frames, potential, {}), potential, 4)))
    module.backward(module.loss(potential.forward(batch.inputs), batch))
    trained = {id(p) for p in adapter.parameters()}
    for parameter in potential.module.parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained)


def read(path, potential):
    return read_frames(path, LabelKeys(), known=potential.species.numbers, cutoff=potential.cutoff)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_learning_rates_of_groups_reach_the_optimizer(optimizer, tiny_checkpoint):
    adapter = load(tiny_checkpoint).patch(
        "linear", "soft_threshold", tau_lr=0.5, tau_weight_decay=0.3
    )
    made, _ = make_optimizer(optimizer, adapter.param_groups(0.1), 10)
    assert [group["lr"] for group in made.param_groups] == [0.1, 0.5]
    assert [group["weight_decay"] for group in made.param_groups] == [1e-8, 0.3]
    set_averaged(made, True)
    set_averaged(made, False)


def test_loss_is_what_its_docstring_says(tiny_checkpoint, data_files):
    potential = load(tiny_checkpoint, torch.float64)
    frames = read(data_files["train"], potential)
    frames = [Frame(f.atoms, f.energy, f.forces, None) for f in frames[:3]]
    batch = next(iter(loader(FrameDataset(frames, potential, {}), potential, 3)))
    out = potential.forward(batch.inputs)
    atoms = np.array([len(f.atoms) for f in frames])
    e = (out.energy.detach().numpy() - [f.energy for f in frames]) / atoms
    f = out.forces.detach().numpy() - np.concatenate([f.forces for f in frames])

    def huber(x, delta=0.01):
        x = np.abs(x)
        return np.where(x < delta, 0.5 * x**2, delta * (x - 0.5 * delta)).mean()

    loss = float(Loss(energy=2.0, forces=3.0)(out, batch))
    assert loss == pytest.approx(2.0 * huber(e) + 3.0 * huber(f), rel=1e-10)


def test_references_are_recovered_exactly():
    rng = np.random.default_rng(0)
    true = {1: -13.6, 6: -1030.0, 8: -2041.5}
    frames, base = [], []
    for symbols in ("H2O", "CH4", "CO2", "CH3OH"):
        atoms = Atoms(symbols, positions=rng.normal(size=(len(Atoms(symbols)), 3)))
        base.append(rng.normal())
        shift = sum(true[int(z)] for z in atoms.numbers)
        frames.append(Frame(atoms, base[-1] + shift, np.zeros((len(atoms), 3)), None))
    fitted = fit_references(frames, np.array(base))
    assert fitted == pytest.approx(true)


def test_errors_are_in_the_units_of_the_table(tiny_checkpoint, data_files):
    potential = load(tiny_checkpoint)
    frames = read(data_files["test"], potential)
    exact = predict(potential, frames)
    moved = [
        Frame(f.atoms, e + 0.002 * len(f.atoms), forces + 0.003, None)
        for f, e, forces in zip(frames, exact.energy, exact.forces, strict=True)
    ]
    found = errors(moved, exact)
    assert found["energy_mae"] == pytest.approx(2.0, rel=1e-6)
    assert found["forces_mae"] == pytest.approx(3.0, rel=1e-6)
    assert found["forces_mae_H"] == pytest.approx(3.0, rel=1e-6)


def test_the_adapter_records_what_it_was_trained_with(tiny_checkpoint, data_files, tmp_path):
    result = finetune(config(tiny_checkpoint, data_files, tmp_path / "run"))
    saved = read_adapter_config(tmp_path / "run" / "adapter")
    assert saved.base_model == str(tiny_checkpoint)
    assert saved.species == [1, 6, 7, 8, 11, 17] or sorted(saved.species) == [1, 6, 7, 8, 11, 17]
    assert set(saved.energy_references) == {1, 6, 8}
    assert saved.metrics["test after"]["forces_mae"] == pytest.approx(
        result.table.loc["test after", "forces_mae"]
    )
    potential = load(tiny_checkpoint)
    potential.load_adapter(tmp_path / "run" / "adapter")
    frames = read(data_files["test"], potential)
    again = errors(frames, predict(potential, frames))
    after = result.table.loc["test after"]
    for column in ("energy_mae", "forces_mae"):
        assert again[column] == close(column, after[column], torch.float32)


def test_stress_is_learned_where_it_is_labelled(tiny_checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    frames = labelled(6)
    for seed in range(6):
        atoms = ase.build.bulk("NaCl", "rocksalt", a=5.6, cubic=True)
        atoms.rattle(0.05, seed=seed)
        atoms.info["REF_energy"] = -3.0 * len(atoms)
        atoms.info["REF_stress"] = 0.01 * np.eye(3)
        atoms.arrays["REF_forces"] = rng.normal(scale=0.1, size=(len(atoms), 3))
        frames.append(atoms)
    ase.io.write(tmp_path / "train.xyz", frames)
    made = make_config(
        {
            "model": str(tiny_checkpoint), "train": tmp_path / "train.xyz", "out": tmp_path / "run",
            "method": "full", "max_steps": 40, "device": "cpu", "valid_fraction": 0.2,
            "loss": {"stress": 1000.0, "forces": 0.0, "energy": 0.0},
        }
    )  # fmt: skip
    table = finetune(made).table
    assert table.loc["train after", "stress_mae"] < 0.8 * table.loc["train before", "stress_mae"]


@pytest.mark.parametrize(
    ("name", "value", "switch"),
    [
        ("spin_orbit", True, "magnetic"),
        ("spin_settings", {"channels": 4}, "magnetic"),
        ("replay_weight", 1.0, "replay"),
        ("replay_structures", 12, "replay"),
    ],
)
def test_settings_without_effect_are_refused(name, value, switch, tiny_checkpoint, data_files):
    with pytest.raises(ConfigError, match=f"{name} has no effect without {switch}"):
        config(tiny_checkpoint, data_files, "run", **{name: value})
    made = config(
        tiny_checkpoint, data_files, "run", **{name: value, switch: switch == "magnetic" or "auto"}
    )
    assert make_config(made.model_dump()) == made


def test_two_ranks_equal_one(tiny_checkpoint, data_files, tmp_path):
    values = []
    for devices, batch_size in ((1, 4), (2, 2)):
        made = config(
            tiny_checkpoint, data_files, tmp_path / str(devices), targets="all", dtype="float64",
            method_settings={"target_sparsity": 0.8}, devices=devices, batch_size=batch_size,
        )  # fmt: skip
        values.append(finetune(made).adapter.values())
    assert sum(int(v.count_nonzero()) for v in values[0].values()) > 0
    for path in values[0]:
        torch.testing.assert_close(values[0][path], values[1][path], rtol=1e-9, atol=1e-12)


def test_isolated_atoms_set_the_references(tiny_checkpoint, data_files, tmp_path, capsys):
    potential = load(tiny_checkpoint)
    labels = {"H": -14.0, "N": -50.0, "O": -2041.5}
    files = with_isolated(data_files, tmp_path, **labels)
    # Those that are fitted once more are not what the base model left.
    result = finetune(config(tiny_checkpoint, files, tmp_path / "run", refit_e0s=False))
    printed = "".join(capsys.readouterr().out.split())  # wrapped where the paths leave off
    assert "train.xyz(H,N,O):theirlabelssettheenergyreferences" in printed
    assert "test.xyz(H,N,O):leftout" in printed
    saved = read_adapter_config(tmp_path / "run" / "adapter").energy_references
    for atom in isolated(**labels):
        energy = PotentialSubject(potential)(atom).energy
        wanted = atom.info["REF_energy"] - energy  # the label is of float64
        assert saved[atom.numbers[0]] == close("energy", wanted, torch.float32, scale=1.0)
    # Carbon has no isolated atom: its shift is what the frames, all CH4O, leave on average.
    frames = read(data_files["train"], potential)
    left = np.array([f.energy for f in frames]) - predict(potential, frames).energy
    whole = sum(saved[z] for z in frames[0].atoms.numbers)
    assert whole == close("energy", left.mean(), torch.float32, scale=12.0)
    merged = load(tmp_path / "run" / "model.pth")
    shifts = [p.module.state_dict()["rescale_atomic_energy.shift"] for p in (potential, merged)]
    moved = dict(zip(merged.species.numbers, (shifts[1] - shifts[0]).tolist(), strict=True))
    assert moved == close("weights", dict.fromkeys(moved, 0.0) | saved, torch.float32)
    tested = read(data_files["test"], merged)
    found = errors(tested, predict(merged, tested))
    # The shift of an oxygen atom is 2 keV, so sums have the digits of a tenth of that an atom.
    after = result.table.loc["test after", "energy_mae"]
    assert found["energy_mae"] == close("energy_mae", after, torch.float32, scale=340e3)


def test_isolated_atoms_are_not_used_where_references_are_kept(
    tiny_checkpoint, data_files, tmp_path, capsys
):
    potential = load(tiny_checkpoint)
    for name, path in data_files.items():
        frames = ase.io.read(path, index=":")
        for atoms in frames:
            atoms.info["REF_energy"] = PotentialSubject(potential)(atoms).energy
        ase.io.write(tmp_path / f"{name}.xyz", frames)
    without = {name: tmp_path / f"{name}.xyz" for name in data_files}
    (tmp_path / "isolated").mkdir()
    files = {"without": without, "with": with_isolated(without, tmp_path / "isolated", H=-14.0)}
    tables = [
        finetune(config(tiny_checkpoint, splits, tmp_path / out, e0s="keep")).table
        for out, splits in files.items()
    ]
    printed = "".join(capsys.readouterr().out.split())  # wrapped where the paths leave off
    assert "train.xyz(H):notused(--e0skeep)" in printed
    pd.testing.assert_frame_equal(*tables)
    assert read_adapter_config(tmp_path / "with" / "adapter").energy_references == {}
