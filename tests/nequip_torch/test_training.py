"""`nequip-train` with a sparse delta: our configs, restarts, ranks, and what is made of them."""

import json
import re
import shutil

import ase.io
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from ase.build import molecule
from commands import shell
from e3sparse_nequip import SparseLightningModule
from nequip.integrations.ase import NequIPCalculator
from nequip.train import NequIPLightningModule
from nequip_models import CONFIGS, HERE, built
from potentials import evaluate, relative
from torch import nn

from e3sparse.errors import AdapterFileError
from e3sparse.layers.faster_products import Acceleration
from e3sparse.potentials.backends import load_potential
from e3sparse.symmetry import PotentialSubject

HALF = "training_module.sparse.target_sparsity=0.5"
QUICK = ("epochs=4", "batch_size=4", "cutoff=4.0", "elements=[H,C,O]", "trainer.accelerator=cpu")
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "base")


@pytest.fixture
def train(base_of, data_files, tmp_path):
    """Run one of our configs; returns the output folder."""

    def call(config, name, *overrides, framework="nequip", configs=CONFIGS, **options):
        checkpoint, package = base_of(framework)
        source = f"package={package}"
        if "checkpoint" in config:
            source = f"checkpoint={checkpoint}"
            overrides = ("model_types=[H,C,O,Na,Cl]", *overrides)
        said = shell(
            "nequip-train", "-cp", configs, "-cn", config, source, *QUICK, *overrides,
            f"train={data_files['train']}", f"val={data_files['valid']}",
            f"hydra.run.dir={tmp_path / name}", cwd=tmp_path, **options,
        )  # fmt: skip
        (tmp_path / name / "said.txt").write_text(said)
        return tmp_path / name

    return call


def state(folder, name="last.ckpt"):
    """Return the tensors of a checkpoint."""
    stored = torch.load(folder / name, map_location="cpu", weights_only=False)["state_dict"]
    return {key: value for key, value in stored.items() if isinstance(value, torch.Tensor)}


def deltas(folder, name="last.ckpt"):
    """Return what a checkpoint holds of deltas."""
    return {key: value for key, value in state(folder, name).items() if ".e3sparse." in key}


def metrics(folder):
    """Return the figures of each validation."""
    (path,) = folder.glob("lightning_logs/version_*/metrics.csv")
    return pd.read_csv(path).dropna(subset=["sparsity/updated"])


def evaluated(file):
    return evaluate(load_potential(str(file), backend="nequip"))


MODULES = [
    ("from_package", "SparseScheduleFreeLightningModule"),
    ("from_checkpoint", "SparseEMALightningModule"),
    ("from_checkpoint", "SparseLightningModule"),
    ("soft_threshold_low", "SparseScheduleFreeLightningModule"),
]


def options_of(config, module):
    """Return the overrides that make a config use a training module."""
    options = [f"training_module._target_=e3sparse_nequip.{module}"]
    if module == "SparseLightningModule":
        options.append("~training_module.ema_decay")
    return options if "soft" in config else [*options, HALF]


def test_a_step_runs_the_layers_that_are_differentiated_faster(monkeypatch):
    module = SparseLightningModule.__new__(SparseLightningModule)
    nn.Module.__init__(module)
    module.model = nn.ModuleDict({"sole": built().module})
    module._acceleration = Acceleration(module.model)

    def fast(self):
        return sum("forward" in vars(part) for part in self.model.modules())

    monkeypatch.setattr(NequIPLightningModule, "training_step", fast)
    assert module.training_step() > 0
    assert fast(module) == 0


# Every config --------------------------------------------------------------------------------


@pytest.mark.parametrize("config", NAMES)
def test_a_config_from_train_to_calculator(config, train, base_of, data_files, tmp_path):
    soft = "soft" in config
    folder = train(config, "run", "seed=1" if soft else HALF)
    if not soft:  # half of the entries is left
        last = torch.load(folder / "last.ckpt", weights_only=False)
        (group,) = last["optimizer_states"][0]["param_groups"]
        assert group["lr"] == pytest.approx(2**0.75 * 1e-2)
    package = tmp_path / "tuned.nequip.zip"
    shell("nequip-package", "build", folder / "best.ckpt", package, cwd=tmp_path)

    tuned, base = evaluated(package), evaluated(base_of("nequip")[1])
    assert relative(tuned, base) > 1e-6
    # The checkpoint, the package, and the base with the adapter are one model.
    assert relative(evaluated(folder / "best.ckpt"), tuned) < 1e-9
    adapted = load_potential(str(base_of("nequip")[1]))
    adapter = adapted.load_adapter(folder / "adapter")
    assert relative(evaluate(adapted), tuned) < 1e-9
    again = load_potential(str(folder / "best.ckpt"), backend="nequip")
    assert relative(evaluate(again), tuned) < 1e-9
    again.graph(molecule("CH3OH"))
    again.save(tmp_path / "saved.nequip.zip")
    assert relative(evaluated(tmp_path / "saved.nequip.zip"), tuned) < 1e-9
    # What was validated last is that model too, if it was the best.
    rows = metrics(folder)
    monitored = "val0_epoch/weighted_sum"
    best = rows.loc[rows[monitored if soft else f"settled/{monitored}"].idxmin()]
    assert best["sparsity/updated"] == adapter.sparsity().updated
    calculator = NequIPCalculator._from_saved_model(
        str(package), chemical_species_to_atom_type_map=True
    )
    frames = ase.io.read(data_files["valid"], index=":")
    off = [calculator.get_forces(atoms) - atoms.arrays["REF_forces"] for atoms in frames]
    assert np.abs(off).mean() == pytest.approx(best["val0_epoch/forces_mae"], rel=1e-6)
    loaded = load_potential(str(package)).module
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_the_best_model_is_a_sparse_one(train):
    folder = train("from_package", "run", "training_module.sparse.target_sparsity=0.9")
    rows = metrics(folder)
    settled = rows["settled/val0_epoch/weighted_sum"]
    updated = rows["sparsity/updated"]
    assert np.isinf(settled.iloc[0])
    assert np.isfinite(settled.iloc[-1])
    assert updated.iloc[0] > updated.iloc[-1]
    entries = json.loads((folder / "adapter" / "adapter_config.json").read_text())["layers"]
    total = sum(np.prod(layer["shape"]) for layer in entries.values())
    assert updated.iloc[-1] == round(0.1 * total)


@pytest.mark.parametrize(("config", "module"), MODULES)
def test_what_is_validated_is_what_is_packaged(config, module, train, data_files):
    # The choice of kept entries is older than the last step of an epoch of three.
    folder = train(config, "run", *options_of(config, module), "epochs=5")
    tuned = load_potential(str(folder / "last.ckpt"), backend="nequip")
    frames = ase.io.read(data_files["valid"], index=":")
    found = PotentialSubject(tuned).evaluate(frames)
    off = [f.forces - atoms.arrays["REF_forces"] for f, atoms in zip(found, frames, strict=True)]
    rows = metrics(folder)
    last = rows[rows["epoch"] == 4].iloc[0]
    assert np.abs(off).mean() == pytest.approx(last["val0_epoch/forces_mae"], rel=1e-9)


@pytest.mark.parametrize("targets", ["all", "mlp", "tp"])
def test_allegro(targets, train, base_of, tmp_path):
    options = (f"training_module.sparse.targets={targets}", HALF)
    folder = train("from_package", "run", *options, framework="allegro")
    package = tmp_path / "tuned.nequip.zip"
    shell("nequip-package", "build", folder / "best.ckpt", package, cwd=tmp_path)
    adapted = load_potential(str(base_of("allegro")[1]))
    adapted.load_adapter(folder / "adapter")
    assert relative(evaluate(adapted), evaluated(package)) < 1e-9
    assert relative(evaluated(package), evaluated(base_of("allegro")[1])) > 1e-6


@pytest.mark.parametrize("framework", ["nequip", "allegro"])
def test_types_that_are_not_in_the_data_stay_as_they_are(framework, train, base_of, tmp_path):
    options = ("training_module.sparse.targets=all",)
    folder = train("soft_threshold_low", "run", *options, framework=framework)
    package = tmp_path / "tuned.nequip.zip"
    shell("nequip-package", "build", folder / "best.ckpt", package, cwd=tmp_path)
    before, after = (
        load_potential(str(file)).module.state_dict() for file in (base_of(framework)[1], package)
    )
    embeddings = [key for key in before if re.search(r"(embed_module|_embed)\.weight$", key)]
    assert embeddings
    for key in embeddings:
        assert torch.equal(before[key][3:], after[key][3:])  # Na, Cl
        assert not torch.equal(before[key][:3], after[key][:3])


@pytest.mark.parametrize("config", ["from_package", "from_checkpoint"])
def test_energies_of_another_level_of_theory_by_a_modifier(config, train, base_of, tmp_path):
    copied = tmp_path / "configs"
    shutil.copytree(CONFIGS, copied)
    settings = yaml.safe_load((copied / f"{config}.yaml").read_text())
    settings["training_module"]["model"] = {
        "_target_": "nequip.model.modify",
        "modifiers": [{"modifier": "modify_PerTypeScaleShift", "shifts": {"H": -3.5, "C": -7.0}}],
        "model": settings["training_module"]["model"],
    }
    (copied / f"{config}.yaml").write_text(yaml.safe_dump(settings))
    folder = train(config, "run", configs=copied)
    tuned = load_potential(str(folder / "best.ckpt"), backend="nequip")
    file = base_of("nequip")[config == "from_package"]
    base = load_potential(str(file), backend="nequip")
    shifts = tuned.module.state_dict()["model.func.per_type_energy_scale_shift.shifts"]
    assert shifts.flatten().tolist() == [-3.5, -7.0, -3.0, -4.0, -5.0]
    written = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert written["base_model"] == str(file)
    # The delta belongs to the model with these shifts, and the file has others.
    with pytest.raises(AdapterFileError, match=r"per_type_energy_scale_shift\.shifts' has other"):
        base.load_adapter(folder / "adapter")


# Restart, ranks, compilation -----------------------------------------------------------------


@pytest.fixture
def stopping(tmp_path):
    """Our configs with a callback that interrupts the training after two epochs."""
    copied = tmp_path / "stopping"
    shutil.copytree(CONFIGS, copied)
    config = yaml.safe_load((copied / "base.yaml").read_text())
    stop = {"_target_": "interruptions.StopAfter", "epochs": 2}
    config["trainer"]["callbacks"].append(stop)
    (copied / "base.yaml").write_text(yaml.safe_dump(config))
    return copied


@pytest.mark.parametrize(("config", "module"), MODULES)
def test_a_restart_is_an_uninterrupted_run(config, module, train, stopping):
    # NequIP shuffles in another order after a restart, with or without a delta.
    options = [*options_of(config, module), "data.train_dataloader.shuffle=false"]
    whole = train(config, "whole", *options)
    part = train(config, "part", *options, configs=stopping, check=False, PYTHONPATH=str(HERE))
    assert torch.load(part / "last.ckpt", weights_only=False)["epoch"] == 1
    restarted = train(config, "restarted", *options, f"++ckpt_path={part / 'last.ckpt'}")
    first, second = state(whole), state(restarted)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    assert any(value.any() for key, value in deltas(whole).items() if key.endswith(".v"))


@pytest.mark.parametrize("config", ["from_package", "soft_threshold_low"])
def test_both_strategies_for_two_ranks_agree(config, train):
    strategies = (
        "{_target_: nequip.train.SimpleDDPStrategy, process_group_backend: gloo}",
        "ddp",
    )
    simple, ddp = (
        train(
            config, f"strategy{k}", *([] if "soft" in config else [HALF]), "batch_size=2",
            "+trainer.devices=2", f"+trainer.strategy={strategy}", fresh=True,
        )
        for k, strategy in enumerate(strategies)
    )  # fmt: skip
    assert (simple / "adapter" / "adapter_config.json").is_file()
    first, second = deltas(simple), deltas(ddp)
    assert first.keys() == second.keys()
    for key, value in first.items():
        if value.dtype == torch.bool:
            assert torch.equal(value, second[key])
        else:
            torch.testing.assert_close(value, second[key], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["from_package", "soft_threshold_low"])
def test_compiled_training_is_eager_training(config, train):
    options = [] if "soft" in config else [HALF]
    eager = train(config, "eager", *options, fresh=True)
    mode = "training_module.model.compile_mode=compile"
    compiled = train(config, "compiled", *options, mode, fresh=True)
    for key, value in deltas(eager).items():
        other = deltas(compiled)[key]
        torch.testing.assert_close(value, other, rtol=1e-8, atol=1e-10, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["nequip", "allegro"])
def test_a_compiled_package(framework, train, tmp_path):
    options = ("training_module.sparse.targets=all", HALF)
    folder = train("from_package", "run", *options, framework=framework)
    package, compiled = tmp_path / "tuned.nequip.zip", tmp_path / "tuned.nequip.pt2"
    shell("nequip-package", "build", folder / "best.ckpt", package, cwd=tmp_path)
    shell(
        "nequip-compile", package, compiled, "--mode", "aotinductor", "--device", "cpu",
        "--target", "ase", cwd=tmp_path,
    )  # fmt: skip
    atoms = molecule("CH3OH")
    atoms.calc = NequIPCalculator.from_compiled_model(
        str(compiled), chemical_species_to_atom_type_map=True
    )
    expected = PotentialSubject(load_potential(str(package)))(atoms)
    assert atoms.get_potential_energy() == pytest.approx(expected.energy, rel=1e-10)
    np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-9)


# What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("+training_module.sparse.target_sparsty=0.9", "Did you mean 'target_sparsity'"),
        ("training_module.sparse.elements=[H,Cc]", "'Cc' is no chemical symbol"),
        ("training_module.sparse.method=bugdet", "Did you mean 'budget'"),
        ("training_module.sparse.targets=liner", "Did you mean 'linear'"),
        (
            "training_module.sparse.method=fixed_mask +training_module.sparse.score=fisher",
            "calibrated on the data cannot be made by nequip-train",
        ),
        ("training_module.sparse.target_sparsity=auto", "cannot stop pruning by itself"),
        ("+training_module.optimizer.weight_decay=0.1", "write sparse.weight_decay"),
        ("+training_module.optimizer.betas=[0.9,0.9]", "write sparse.beta2"),
        ("~training_module.optimizer.lr", "optimizer needs 'lr'"),
        ("trainer.max_epochs=-1", "has no end: set max_epochs"),
        (
            "trainer.callbacks=[{_target_: lightning.pytorch.callbacks.EarlyStopping, "
            "monitor: val0_epoch/weighted_sum}]",
            "EarlyStopping could end the training before the delta is sparse",
        ),
        (
            "training_module._target_=nequip.train.NequIPLightningModule",
            "unexpected keyword argument 'sparse'",
        ),
        (
            "trainer.callbacks=[{_target_: e3sparse_nequip.SparsityMonitor}] "
            "+trainer.enable_checkpointing=false",
            "add a ModelCheckpoint",
        ),
    ],
)
def test_what_cannot_be_trained(override, sentence, train):
    folder = train("from_package", "run", *override.replace(" +", "\n+").split("\n"), check=False)
    said = (folder / "said.txt").read_text()
    assert re.search(sentence, said.replace("\n", " ")), said[-2000:]
    assert not list(folder.glob("*.ckpt"))
