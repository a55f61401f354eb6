"""MACE's own training with our delta, and what happens when MACE moves its seam."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from e3sparse_mace.run_train import SEAM, main
from mace import tools
from mace.calculators import MACECalculator
from mace.cli import run_train
from mace_models import NUMBERS, load
from sample_frames import labelled
from typer.testing import CliRunner

import e3sparse
from e3sparse.adapter.file import read_values
from e3sparse.cli import app, commands
from e3sparse.errors import ConfigError
from e3sparse.symmetry import PotentialSubject

E0S = {1: -3.0, 6: -5.0, 8: -7.0}


@pytest.fixture
def arguments_of(tiny_file, data_files, tmp_path, monkeypatch):
    """Return arguments of MACE's own training, from small settings and options that override."""
    monkeypatch.chdir(tmp_path)
    dtype = torch.get_default_dtype()

    def listed(**options):
        chosen = {
            "name": "sparse", "foundation_model": tiny_file, "train_file": data_files["train"],
            "valid_file": data_files["valid"], "E0s": "average", "multiheads_finetuning": False,
            "max_num_epochs": 6, "batch_size": 4, "lr": 0.01, "device": "cpu", "seed": 1,
            "default_dtype": "float64", "work_dir": tmp_path, "foundation_model_elements": True,
            "energy_key": "REF_energy", "forces_key": "REF_forces",
        } | options  # fmt: skip
        return [str(x) for k, v in chosen.items() for x in (f"--{k}", v)]

    yield listed
    torch.set_default_dtype(dtype)


@pytest.fixture
def train(arguments_of):
    """Run the command."""

    def call(*arguments, **options):
        main([*arguments_of(**options), *arguments])

    return call


@pytest.fixture
def plain(arguments_of):
    """Run MACE's own training, without us."""

    def call(*arguments, **options):
        parser = tools.build_default_arg_parser()
        run_train.run(parser.parse_args([*arguments_of(**options), *arguments]))

    return call


@pytest.fixture
def replay(tmp_path):
    """Options of a fine-tuning that replays what the model was trained on, on a head of its own."""
    options = {"multiheads_finetuning": True, "E0s": str(E0S)}
    for seed, split in enumerate(("train", "valid")):
        path = tmp_path / f"replay_{split}.xyz"
        ase.io.write(path, labelled(8, seed, "CH3CH2OH"))
        options[f"pt_{split}_file"] = path
    return options


def merged_and_adapted(tmp_path, stage=""):
    return tmp_path / f"sparse{stage}.model", tmp_path / f"sparse{stage}_adapter"


def counts(folder):
    """Return the entries of an adapter that are not zero, and all."""
    values = read_values(folder).values()
    return sum(int(v.count_nonzero()) for v in values), sum(v.numel() for v in values)


def kept(checkpoint):
    """Return the entries that a checkpoint of MACE's keeps, and all."""
    masks = [v for k, v in torch.load(checkpoint)["model"].items() if k.endswith(".keep")]
    return sum(int(m.sum()) for m in masks), sum(m.numel() for m in masks)


def assert_merged_is_base_and_adapter(tmp_path, stage="", head=None):
    """Compare the forces of the two files, and see that the adapter moves those of the base."""
    merged, folder = merged_and_adapted(tmp_path, stage)
    adapted = load(tmp_path / "sparse_base.model", head=head)
    before = PotentialSubject(adapted)(molecule("H2O")).forces
    adapted.load_adapter(folder)
    forces = [
        PotentialSubject(p)(molecule("H2O")).forces for p in (adapted, load(merged, head=head))
    ]
    np.testing.assert_allclose(forces[0], forces[1], atol=1e-9)
    assert np.abs(forces[0] - before).max() > 1e-3
    return forces[0]


def test_trains_saves_and_merges(train, tiny_file, data_files, tmp_path):
    targets = ("--e3sparse_targets", "linear", "products", "--e3sparse_target_sparsity", "0.9")
    train(*targets, "--beta", "0.8")
    merged, folder = merged_and_adapted(tmp_path)
    updated, entries = counts(folder)
    assert updated == round(0.1 * entries)
    last = torch.load(tmp_path / "checkpoints" / "sparse_run-1_epoch-5.pt", weights_only=False)
    (group,) = last["optimizer"]["param_groups"]
    assert group["lr"] == pytest.approx(0.01 * 0.1**-0.75)
    assert group["betas"] == (0.8, 0.99)
    model = torch.load(merged, weights_only=False)
    assert not e3sparse.adapters(model)
    assert all(p.requires_grad for p in model.parameters())
    frames = ase.io.read(data_files["test"], index=":")
    off = []
    for path in (tiny_file, merged):
        calculator = MACECalculator(str(path), device="cpu", default_dtype="float64")
        errors = []
        for atoms in frames:
            labels = atoms.arrays["REF_forces"]
            atoms.calc = calculator
            errors.append(atoms.get_forces() - labels)
        off.append(np.abs(np.concatenate(errors)).mean())
    assert off[1] < 0.9 * off[0]


def test_the_adapter_on_the_base_is_the_merged_model(train, tmp_path):
    train("--e3sparse_targets", "everything", "--e3sparse_method", "dense")
    assert_merged_is_base_and_adapter(tmp_path)


@pytest.mark.parametrize(
    "extra",
    [
        ("--ema",),
        ("--optimizer", "schedulefree"),
        ("--scheduler", "ExponentialLR"),
        ("--optimizer", "adamw", "--lr_factor", "0.5", "--scheduler_patience", "1"),
    ],
    ids=lambda extra: extra[-1],
)
def test_averages_and_other_optimizers_meet_the_target(train, tmp_path, extra):
    train("--e3sparse_target_sparsity", "0.8", *extra)
    updated, entries = counts(tmp_path / "sparse_adapter")
    assert updated == round(0.2 * entries)


@pytest.mark.parametrize("heads", ["one", "replay"])
def test_a_restart_goes_on_with_the_schedule(train, tmp_path, heads, replay):
    options = replay if heads == "replay" else {}
    train(max_num_epochs=6, **options)
    (tmp_path / "again").mkdir()
    options = {**options, "work_dir": tmp_path / "again"}
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(max_num_epochs=6, **options)
    train("--restart_latest", max_num_epochs=6, **options)
    whole, again = (counts(folder / "sparse_adapter") for folder in (tmp_path, tmp_path / "again"))
    assert whole == again
    assert 0 < whole[0] < whole[1]


# Heads, stages, ranks, loggers ---------------------------------------------------------------


@pytest.mark.parametrize("settings", [(), ("--force_mh_ft_lr", "True")], ids=["MACE's", "ours"])
def test_replay_leaves_both_heads(train, replay, tmp_path, settings):
    train("--e3sparse_target_sparsity", "0.8", *settings, max_num_epochs=10, **replay)
    merged, folder = merged_and_adapted(tmp_path)
    model = torch.load(merged, weights_only=False)
    assert model.heads == ["pt_head", "Default"]
    known = {z: [-NUMBERS.index(z) - 1.0, E0S.get(z, 0.0)] for z in NUMBERS}
    energies = model.atomic_energies_fn.atomic_energies.T.tolist()
    assert dict(zip(NUMBERS, energies, strict=True)) == known
    updated, entries = counts(folder)
    assert updated == round(0.2 * entries)
    forces = [
        assert_merged_is_base_and_adapter(tmp_path, head=head) for head in ("pt_head", "Default")
    ]
    if settings:  # at MACE's 1e-4 no readout is among the entries that moved most
        assert np.abs(forces[0] - forces[1]).max() > 1e-4


@pytest.mark.parametrize("extra", [(), ("--ema",), ("--optimizer", "schedulefree")])
def test_both_stages_leave_a_sparse_model(train, tmp_path, extra):
    train("--e3sparse_target_sparsity", "0.8", "--swa", "--start_swa", "3", *extra)
    forces = []
    for stage, checkpoint in {"": "epoch-2", "_stagetwo": "epoch-5_swa"}.items():
        updated, entries = counts(tmp_path / f"sparse{stage}_adapter")
        assert updated == round(0.2 * entries)
        # Sparse when it was saved, not pruned when it was loaded.
        assert kept(tmp_path / "checkpoints" / f"sparse_run-1_{checkpoint}.pt") == (
            updated,
            entries,
        )
        forces.append(assert_merged_is_base_and_adapter(tmp_path, stage))
        model = torch.load(merged_and_adapted(tmp_path, stage)[0], weights_only=False)
        assert all(p.requires_grad for p in model.parameters())
    assert np.abs(forces[0] - forces[1]).max() > 1e-6


@pytest.mark.parametrize("stopped", [2, 4], ids=["stage one", "stage two"])
def test_a_restart_goes_on_in_its_stage(train, tmp_path, stopped):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, stopped)
        with pytest.raises(KeyboardInterrupt):
            train("--start_swa", "3")
    train("--start_swa", "3", "--restart_latest")
    for stage in ("", "_stagetwo"):
        updated, entries = counts(tmp_path / f"sparse{stage}_adapter")
        assert updated == round(0.03 * entries)


def test_a_stage_two_that_never_starts(train, tmp_path):
    train("--swa", "--start_swa", "6", max_num_epochs=6)
    assert (tmp_path / "sparse_adapter").is_dir()
    assert not (tmp_path / "sparse_stagetwo_adapter").exists()


def test_the_last_checkpoint_is_sparse_if_not_all_epochs_leave_one(train, tmp_path):
    train("--e3sparse_target_sparsity", "0.8", eval_interval=3)
    updated, entries = counts(tmp_path / "sparse_adapter")
    assert updated == round(0.2 * entries)
    assert kept(tmp_path / "checkpoints" / "sparse_run-1_epoch-3.pt") == (updated, entries)


@pytest.mark.parametrize("head", [None, "Default", pytest.param("pt_head", marks=pytest.mark.slow)])
def test_plain_mace_goes_on_from_a_merged_model(train, plain, replay, tmp_path, head):
    options = {} if head is None else replay
    train("--e3sparse_targets", "everything", **options)
    merged, _ = merged_and_adapted(tmp_path)
    named = () if head is None else ("--foundation_head", head)
    plain(*named, name="plain", foundation_model=merged, max_num_epochs=1, lr=0.0)
    found = [load(merged, head=head), load(tmp_path / "plain.model")]
    forces = [PotentialSubject(p)(molecule("H2O")).forces for p in found]
    np.testing.assert_allclose(forces[0], forces[1], atol=1e-9)


def test_elements_outside_the_training_set_are_untouched(train, tmp_path):
    train(
        "--e3sparse_targets", "everything", "--e3sparse_method", "soft_threshold",
        "--optimizer", "adamw", "--swa", max_num_epochs=2,
    )  # fmt: skip
    models = [load(tmp_path / f"sparse{part}.model").module for part in ("_base", "", "_stagetwo")]
    absent = [NUMBERS.index(z) for z in (7, 11, 17)]
    name = "products.0.symmetric_contractions.contractions.0.weights_max"
    base, *merged = (dict(model.named_parameters())[name] for model in models)
    for after in merged:
        assert torch.equal(after[absent], base[absent])
        assert not torch.equal(after, base)


def test_weights_and_biases_hears_of_every_epoch(train, monkeypatch, tmp_path):
    logged, begun = [], []
    wandb = SimpleNamespace(
        init=lambda **options: begun.append(options),
        log=logged.append,
        run=SimpleNamespace(summary={}),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    train("--wandb", "--wandb_project", "p", "--wandb_entity", "e", "--wandb_name", "n")
    assert len(begun) == 1
    epochs = [entry["Default"]["epoch"] for entry in logged if "Default" in entry]
    assert epochs == list(range(6))
    assert (tmp_path / "sparse_adapter").is_dir()


def test_two_ranks_train_one_delta(arguments_of, tmp_path):
    # MACE itself starts ranks on GPUs only: the process group of CPUs is made for it.
    script = Path(__file__).with_name("two_ranks.py")
    arguments = arguments_of(max_num_epochs=4, batch_size=2)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(script), *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    values = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    assert sum(int(v.count_nonzero()) for v in values[0].values()) > 0
    for path, value in values[0].items():
        assert torch.equal(value, values[1][path])
    updated, entries = counts(tmp_path / "sparse_adapter")
    assert updated == round(0.03 * entries)


def test_an_earlier_run_is_not_taken_for_this_one(train, tmp_path):
    train(max_num_epochs=2)
    before = (tmp_path / "sparse.model").read_bytes()
    with pytest.raises(ConfigError, match=r"holds 2 checkpoints of an earlier run .* --restart_l"):
        train("--e3sparse_target_sparsity", "0.5", max_num_epochs=1)
    assert (tmp_path / "sparse.model").read_bytes() == before
    train("--e3sparse_target_sparsity", "0.5", max_num_epochs=1, seed=2)


def stop_after(patch, epochs):
    """Stop a training when this many checkpoints have been written."""
    from mace.tools import CheckpointHandler

    save, saved = CheckpointHandler.save, []

    def interrupted(self, *arguments, **options):
        save(self, *arguments, **options)
        saved.append(1)
        if len(saved) == epochs:
            raise KeyboardInterrupt

    patch.setattr(CheckpointHandler, "save", interrupted)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--lora", "True"), "--lora cannot be combined with a sparse delta"),
        (("--enable_cueq", "True"), "--enable_cueq cannot be combined"),
        (("--freeze", "3"), "--freeze cannot be combined"),
        (("--lbfgs",), "--lbfgs cannot be combined"),
        (("--e3sparse_targets", "lineare"), "Did you mean 'linear'"),
        (("--e3sparse_method", "budgt"), "Did you mean 'budget'"),
        (("--e3sparse_method", "soft_threshold"), "add --optimizer=adamw"),
    ],
)
def test_what_cannot_be_combined(train, flags, says):
    with pytest.raises(ConfigError, match=says):
        main_error(train, flags)


def test_there_has_to_be_a_foundation():
    with pytest.raises(ConfigError, match="Give --foundation_model"):
        main(["--name", "x", "--train_file", "x.xyz"])


def main_error(train, flags):
    try:
        train(*flags)
    except e3sparse.E3SparseError as error:
        raise ConfigError(str(error)) from error


@pytest.mark.parametrize("name", SEAM)
def test_a_seam_that_moved_is_noticed(train, monkeypatch, name):
    monkeypatch.delattr(run_train, name)
    with pytest.raises(ConfigError, match=f"This version of MACE has no {name}"):
        train()


def test_a_training_that_cannot_judge_its_validations_does_not_prune_by_them(train):
    with pytest.raises(ConfigError, match="cannot stop pruning by itself"):
        train("--e3sparse_settings", '{"target_sparsity": "auto"}')


def test_a_seam_that_is_not_used_is_noticed(train, monkeypatch):
    monkeypatch.setattr(run_train, "run", lambda args: None)
    with pytest.raises(ConfigError, match=r"MACE did not call .*inject_LoRAs.*another way"):
        train()


def test_what_was_rebound_is_bound_back(train, monkeypatch):
    before = {name: getattr(run_train, name) for name in SEAM} | {"train": run_train.tools.train}
    monkeypatch.setattr(run_train, "run", lambda args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train()
    after = {name: getattr(run_train, name) for name in SEAM} | {"train": run_train.tools.train}
    assert after == before


def test_the_command_is_there(monkeypatch):
    assert "mace-run-train" in commands.installed_commands()
    called = []
    monkeypatch.setattr("e3sparse_mace.run_train.main", called.append)
    arguments = ["mace-run-train", "--name", "x", "--e3sparse_targets", "linear", "fctp", "--help"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert called == [arguments[1:]]


def test_the_help_explains_our_flags_before_maces(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    ours, _, theirs = capsys.readouterr().out.partition("--foundation_model")
    for flag in ("targets", "method", "target_sparsity", "settings"):
        assert ours.count(f"--e3sparse_{flag}") == 2  # in the usage, and with what it does
        assert f"--e3sparse_{flag}" not in theirs
    assert "`e3sparse inspect MODEL` lists them" in " ".join(ours.split())
