"""The command line: what it prints, and one clear sentence for each bad input."""

import errno
import json
import re
import shutil
from importlib import import_module
from io import StringIO
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from sample_frames import isolated, labelled, with_isolated
from support import load
from tolerances import close
from typer.main import get_command

from e3sparse.cli import app
from e3sparse.frames.reading import LabelKeys, read_frames
from e3sparse.training import waiting

demo = import_module("e3sparse.cli.demo")  # the package has the function under this name


@pytest.fixture
def finetune(run, tiny_checkpoint, data_files, tmp_path):
    """Run `finetune` with small settings that arguments can override."""

    def call(*arguments, **options):
        flags = {
            "model": tiny_checkpoint, "train": data_files["train"], "valid": data_files["valid"],
            "out": tmp_path / "run", "max-steps": 4, "device": "cpu",
        } | options  # fmt: skip
        listed = [x for k, v in flags.items() if v is not None for x in (f"--{k}", v)]
        return run("finetune", *listed, *arguments)

    return call


def frames_with(tmp_path, change):
    frames = labelled(4)
    change(frames)
    path = tmp_path / "bad.xyz"
    ase.io.write(path, frames)
    return path


def drop_energy(frames):
    del frames[2].info["REF_energy"]


def drop_forces(frames):
    del frames[1].arrays["REF_forces"]


def nan_forces(frames):
    frames[3].arrays["REF_forces"][0, 1] = np.nan


def infinite_energy(frames):
    frames[0].info["REF_energy"] = np.inf


def unknown_element(frames):
    frames[1].symbols[0] = "Fe"


def isolated_atom(frames):
    frames[2].positions[0] += 50.0


def degenerate_cell(frames):
    frames[0].pbc = True


def tiny_cell(frames):
    frames[0].pbc = True
    frames[0].cell = [1.0, 1.0, 1.0]


def two_zeros_of_energy(frames):
    frames += isolated(O=-2041.5) + isolated(H=-13.6) + isolated(O=-2041.498)


def isolated_without_energy(frames):
    frames += isolated(H=-13.6, O=-2041.5)
    del frames[5].info["REF_energy"]


def isolated_nan(frames):
    frames += isolated(H=np.nan)


def isolated_only(frames):
    frames[:] = isolated(H=-13.6, O=-2041.5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop_energy, "Frame 2 of"),
        (drop_energy, "--energy-key"),
        (drop_forces, "no forces label 'REF_forces'"),
        (nan_forces, "the forces label is NaN"),
        (infinite_energy, "the energy label is NaN or infinite"),
        (unknown_element, "contains Fe, which the model does not know"),
        (isolated_atom, "has no neighbour within"),
        (two_zeros_of_energy, "Frames 4 and 6 of"),
        (two_zeros_of_energy, "both an isolated O atom, but their energies are -2041.5 and -2041"),
        (isolated_without_energy, "has no energy label 'REF_energy'"),
        (isolated_without_energy, "Frame 5 of"),
        (isolated_nan, "the energy label is NaN"),
        (isolated_only, "holds nothing but isolated atoms"),
        (degenerate_cell, "its cell is degenerate"),
        (tiny_cell, "too small"),
    ],
)
def test_bad_frames(change, says, finetune, tmp_path):
    code, _, err = finetune(train=frames_with(tmp_path, change))
    assert code == 2
    assert says in err
    assert not (tmp_path / "run").exists()


def test_a_model_that_cannot_evaluate_isolated_atoms(finetune, data_files, tmp_path, monkeypatch):
    from e3sparse.training import energy_zero as module

    def nan_when_alone(potential, frames):
        found = predict(potential, frames)
        found.energy[[len(frame.atoms) == 1 for frame in frames]] = np.nan
        return found

    predict = module.predict
    monkeypatch.setattr(module, "predict", nan_when_alone)
    code, _, err = finetune(**with_isolated(data_files, tmp_path, O=-2041.5))
    assert code == 2
    assert "gives an isolated O atom an energy of nan" in err


def test_evaluate_leaves_isolated_atoms_out(run, tiny_checkpoint, data_files, tmp_path):
    path = data_files["test"]
    both = path, with_isolated({"test": path}, tmp_path, H=-13.6)["test"]
    data = [x for p in both for x in ("--data", p)]
    code, out, _ = run("evaluate", tiny_checkpoint, *data, "--json", tmp_path / "e.json")
    assert code == 0
    assert out.count(": left out") == 1
    found = json.loads((tmp_path / "e.json").read_text())
    assert found[str(both[0])] == found[str(both[1])]


def test_large_files_are_announced(run, tiny_checkpoint, data_files, monkeypatch):
    command = ["evaluate", tiny_checkpoint, "--data", data_files["test"]]
    assert "Reading" not in run(*command)[1]
    monkeypatch.setattr(waiting, "LARGE", 1000)
    assert f"Reading {data_files['test']} (0 MB) …" in run(*command)[1]


def test_a_bar_counts_the_frames_that_are_evaluated(tiny_checkpoint, data_files):
    shown = StringIO()
    console = Console(file=shown, force_terminal=True, width=200)
    potential = load(tiny_checkpoint)
    frames = read_frames(
        data_files["test"], LabelKeys(), known=potential.species.numbers, cutoff=4.0
    )
    found = waiting.predict_with_bar(potential, frames, "Evaluating test", console)
    assert len(found.energy) == len(frames)
    assert "Evaluating test" in shown.getvalue()
    assert "100%" in shown.getvalue()
    piped = StringIO()
    waiting.predict_with_bar(potential, frames, "Evaluating test", Console(file=piped))
    assert piped.getvalue() == ""


def test_the_keys_that_are_there_are_named(finetune, tmp_path):
    def rename(frames):
        for frame in frames:
            frame.info["DFT_energy"] = frame.info.pop("REF_energy")

    path = frames_with(tmp_path, rename)
    code, _, err = finetune(train=path)
    assert code == 2
    assert "Keys there: DFT_energy" in err
    code, _, _ = finetune(train=path, valid=path, **{"energy-key": "DFT_energy"})
    assert code == 0


def test_empty_and_missing_files(finetune, tmp_path):
    empty = tmp_path / "empty.xyz"
    empty.touch()
    assert finetune(train=empty)[0::2] == (2, f"error: {empty} is empty.")
    assert "There is no file" in finetune(train=tmp_path / "none.xyz")[2]
    noise = tmp_path / "noise.xyz"
    noise.write_text("not a structure\n")
    assert "cannot be read by ASE" in finetune(train=noise)[2]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"targets": "linar"}, "Did you mean 'linear'"),
        ({"targets": "no.such.layer*"}, "matches no layer"),
        ({"method": "bugdet"}, "Did you mean 'budget'"),
        ({"target-sparsity": 1.5}, "target_sparsity"),
        ({"set": "rank=4"}, "has no setting 'rank'"),
        ({"set": "rank"}, "NAME=VALUE"),
        ({"model": "7net-00"}, "Did you mean '7net-0'"),
        ({"backend": "sevenet"}, "Did you mean 'sevennet'"),
        ({"optimizer": "adam"}, "Did you mean 'adamw'"),
        ({"e0s": "average"}, "e0s"),
        ({"batch-size": 0}, "batch_size"),
        ({"method": "full", "target-sparsity": 0.9}, "without a delta"),
        ({"model": None}, "There is no MODEL"),
    ],
)
def test_bad_settings(options, says, finetune, tmp_path):
    code, _, err = finetune(**options)
    assert code == 2
    assert says in err
    assert not (tmp_path / "run").exists()


def test_a_bad_model_file(finetune, tmp_path):
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"PK\x03\x04 not a checkpoint")
    code, _, err = finetune(model=broken)
    assert code == 2
    assert "no model file of an installed backend" in err


def test_e0s_keep_with_another_zero_of_energy(finetune, tmp_path):
    code, _, err = finetune(e0s="keep")
    assert code == 2
    assert "Use --e0s fit" in err
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_safe(finetune, tmp_path):
    assert finetune()[0] == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    code, _, err = finetune()
    assert code == 2
    assert "--overwrite" in err
    code, _, err = finetune("--overwrite", targets="linar")
    assert code == 2
    assert {p: p.read_bytes() for p in before} == before
    assert finetune("--overwrite", seed=1)[0] == 0
    assert {p: p.read_bytes() for p in before if p.exists()} != before


def test_overwrite_leaves_a_folder_that_is_no_run_alone(finetune, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    code, _, err = finetune("--overwrite")
    assert code == 2
    assert "not a run folder" in err
    assert (tmp_path / "run" / "thesis.tex").exists()


def test_resume_without_a_run(run, tmp_path):
    code, _, err = run("finetune", "--resume", "--out", tmp_path)
    assert code == 2
    assert "no run to resume" in err
    assert "e3sparse-run.json" in err


@pytest.mark.parametrize("target", ["safetensors.torch.save", "torch.save"])
def test_a_full_disk(target, finetune, monkeypatch, tmp_path):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(target, full)
    code, _, err = finetune()
    assert code == 2
    assert "No space is left" in err
    assert not list(tmp_path.rglob(".writing-*"))
    assert not (tmp_path / "run" / "model.pth").exists()


def test_flags_count_more_than_the_file(finetune, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump({"seed": 7, "method": "dense", "loss": {"forces": 3.0}}))
    code, _, _ = finetune(config=settings, method="low_rank", set="rank=2")
    assert code == 0
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert resolved["seed"] == 7
    assert resolved["method"] == "low_rank"
    assert resolved["method_settings"] == {"rank": 2}
    assert resolved["loss"]["forces"] == 3.0
    assert "learning_rat" not in resolved
    settings.write_text("learning_rate: 0.1\n")
    code, _, err = finetune(config=settings, out=tmp_path / "other")
    assert code == 2
    assert "learning_rate" in err


def test_from_run_to_merged_model_and_back(finetune, run, data_files, tiny_checkpoint, tmp_path):
    test = data_files["test"]
    code, out, _ = finetune(test=test, targets="mlp", **{"target-sparsity": 0.5})
    assert code == 0
    assert "layer-wise sparsity 50.00%" in out
    folder = tmp_path / "run"
    code, _, _ = run(
        "merge", tiny_checkpoint, "--adapter", folder / "adapter", "--out", tmp_path / "m.pth"
    )
    assert code == 0
    errors = []
    for arguments in (
        (folder / "model.pth",),
        (tmp_path / "m.pth",),
        (tiny_checkpoint, "--adapter", folder / "adapter"),
    ):
        code, out, _ = run("evaluate", *arguments, "--data", test, "--json", tmp_path / "e.json")
        assert code == 0
        assert "meV/atom" in out
        errors.append(json.loads((tmp_path / "e.json").read_text())[str(test)]["forces_mae"])
    assert errors == close("forces_mae", [errors[0]] * 3, torch.float32)
    code, _, err = run(
        "merge", tiny_checkpoint, "--adapter", folder / "adapter", "--out", tmp_path / "m.pth"
    )
    assert code == 2
    assert "--overwrite" in err
    code, out, _ = run("compare", folder)
    assert code == 0
    assert "zero-shot" in out
    code, out, _ = run("adapters", "diff", folder / "adapter", folder)
    assert code == 0
    assert "total" in out


def test_model_and_training_frames_are_arguments_too(
    finetune, run, data_files, tiny_checkpoint, tmp_path
):
    code, out, _ = finetune(
        tiny_checkpoint, data_files["train"], model=None, train=None, **{"target-sparsity": 0.9}
    )
    assert code == 0
    said = re.search(r"([\d,]+) trainable parameters in .* model\), ([\d,]+) entries kept", out)
    trainable, kept = (int(number.replace(",", "")) for number in said.groups())
    assert kept == round(0.1 * trainable)
    code, _, err = finetune("other.pth")
    assert code == 2
    assert "was given as MODEL" in err


def test_two_adapters_add_up_in_a_merge(finetune, run, data_files, tiny_checkpoint, tmp_path):
    for name in ("a", "b"):
        assert finetune(out=tmp_path / name, seed=0 if name == "a" else 1)[0] == 0
    folders = [x for name in ("a", "b") for x in ("--adapter", tmp_path / name / "adapter")]
    code, out, _ = run("merge", tiny_checkpoint, *folders, "--out", tmp_path / "both.pth")
    assert code == 0
    assert out.count("updated of") == 2


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: shutil.rmtree(folder), "is not an adapter folder"),
        (
            lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\0" * 9),
            "safetensors",
        ),
    ],
)
def test_a_damaged_adapter(damage, says, finetune, run, tiny_checkpoint, data_files, tmp_path):
    assert finetune()[0] == 0
    damage(tmp_path / "run" / "adapter")
    code, _, err = run(
        "evaluate", tiny_checkpoint, "--adapter", tmp_path / "run" / "adapter",
        "--data", data_files["test"],
    )  # fmt: skip
    assert code == 2
    assert says in err


def test_inspect_says_what_targets_would_patch(run, tiny_checkpoint):
    code, out, _ = run("inspect", tiny_checkpoint, "--targets", "fctp")
    assert code == 0
    assert "0_self_connection_intro.fc_tensor_product" in out
    listed, passed_over = out.split("Passed over", 1)
    assert "0_self_interaction_1.linear" not in listed
    assert "0_self_interaction_1.linear" in passed_over
    assert "BesselBasis: of no kind that e3sparse knows" in passed_over
    assert "parameters 728 " in " ".join(out.split())


def test_inspect_says_what_the_model_is_and_how_to_train_it(run, tiny_checkpoint):
    code, out, err = run("inspect", tiny_checkpoint)
    assert code == 0, err
    said = " ".join(out.split())
    for words in (
        "family SevenNet, file of version",
        "layers 2 convolutions, 4x0e",
        "l_max 1 self-connections nequip",
        "symmetry O(3)",
        "precision float32",
        "elements 6: H, C, N, O, Na, Cl",
        "level of theory the file does not say",
        f"Fine-tune it: e3sparse finetune {tiny_checkpoint} TRAIN --out run/",
    ):
        assert words in said
    assert "heads" not in said


@pytest.mark.parametrize(("head", "shown"), [((), "HEAD"), (("--head", "PBE"), "PBE")])
def test_inspect_needs_no_choice_of_a_head(run, head, shown):
    code, out, err = run("inspect", "7net-mf-0", *head)
    assert code == 0, err
    assert "R2SCAN, PBE (choose one by --head)" in out
    assert "SO(3): it claims nothing of mirror images" in out
    assert "89: H–Bi, Ac–Pu" in out
    assert f"e3sparse finetune 7net-mf-0 TRAIN --head {shown} --out run/" in out
    assert run("inspect", "7net-mf-0", "--head", "PBEsol")[0] == 2


def test_help_names_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    for command in ("finetune", "evaluate", "merge", "inspect", "compare", "adapters"):
        assert command in out


def test_the_demo_prints_each_command_and_runs_it(run, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "commands", lambda *a: [["inspect", str(tiny_checkpoint)]] * 2)
    code, printed, _ = run("demo", "--out", tmp_path)
    assert code == 0
    assert printed.count(f"$ e3sparse inspect {tiny_checkpoint}") == 2
    assert printed.count("onehot_to_feature_x") == 2


def test_the_demo_stops_at_what_goes_wrong(run, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "commands", lambda *a: [["inspect", "no-such-model"]] * 2)
    code, printed, complaint = run("demo", "--out", tmp_path)
    assert code == 2
    assert printed.count("$ e3sparse inspect no-such-model") == 1
    assert "no-such-model" in complaint


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_commands_of_the_demo_are_such(overwrite, tmp_path):
    root = get_command(app)
    for name, *arguments in demo.commands(tmp_path, 3, overwrite):
        given = root.commands[name].make_context(name, list(arguments)).params
        assert bool(given.get("overwrite")) == (overwrite and name != "compare")
        for argument in arguments:
            assert not argument.endswith(".xyz") or Path(argument).is_file()
