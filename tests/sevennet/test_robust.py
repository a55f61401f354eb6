"""`e3sparse evaluate --robust`: the table, the exit code, what is written, and bad flags."""

import json

import ase.io
import pytest
import torch
from support import load

SMALL = ("--elements", "C,O", "--steps", 10)


@pytest.fixture(scope="module")
def tuned(tiny_checkpoint, tmp_path_factory):
    """The tiny model with each weight a little larger, so that it differs from its base."""
    potential = load(tiny_checkpoint)
    with torch.no_grad():
        for parameter in potential.module.parameters():
            parameter.mul_(1.01)
    path = tmp_path_factory.mktemp("tuned") / "tuned.pth"
    potential.save(path)
    return path


def test_a_model_next_to_itself_loses_nothing(run, tiny_checkpoint, data_files, tmp_path):
    report, out = tmp_path / "report.json", tmp_path / "looks"
    code, printed, err = run(
        "evaluate", tiny_checkpoint, "--robust", "--base", tiny_checkpoint, *SMALL,
        "--data", data_files["test"], "--json", report, "--out", out, "--seed", 3,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "Nothing that held for the base was lost." in printed
    said = json.loads(report.read_text())
    assert said["ok"]
    assert (said["steps"], said["seed"]) == (10, 3)
    looks = {look["look"]: look for look in said["looks"]}
    assert len(looks) == 8
    assert looks["structures given"]["model"]["figures"]["rms_from_base_ev_a"] == 0.0
    assert looks["structures given"]["model"]["figures"]["rmse_ev_a"] > 0
    assert [p.name for p in out.iterdir()] == ["dimers.png"]
    assert (out / "dimers.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_alone_fails_with_exit_code_1(run, tiny_checkpoint):
    # Random weights have no wall.
    code, printed, err = run("evaluate", tiny_checkpoint, "--robust", *SMALL)
    assert (code, err) == (1, "")
    assert "Fails: " in printed
    assert "short-range wall" in printed.split("Fails: ")[1]


def test_labels_that_fit_worse_are_lost(run, tiny_checkpoint, tuned, tmp_path, data_files):
    frames = ase.io.read(data_files["test"], ":")
    base = load(tiny_checkpoint)
    from e3sparse.potentials.single_points import single_points

    for atoms, found in zip(frames, single_points(base, frames), strict=True):
        atoms.arrays["REF_forces"] = found.forces
    path = tmp_path / "of_the_base.xyz"
    ase.io.write(path, frames)
    arguments = ("--robust", "--data", path, "--steps", 10)
    code, printed, _ = run("evaluate", tuned, "--base", tiny_checkpoint, *arguments)
    assert code == 1
    assert "structures given (error)" in printed.split("Held for the base and does no longer: ")[1]
    code, printed, _ = run("evaluate", tiny_checkpoint, "--base", tuned, *arguments)
    assert "structures given (error)" not in printed


def test_the_base_of_an_adapter_is_the_model_without(run, tiny_checkpoint, tmp_path):
    adapter = load(tiny_checkpoint).patch("linear", "dense")
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.fill_(0.01)
    folder, report = adapter.save_pretrained(tmp_path / "adapter"), tmp_path / "report.json"
    run(
        "evaluate", tiny_checkpoint, "--adapter", folder, "--robust", *SMALL, "--json", report
    )  # fmt: skip
    said = json.loads(report.read_text())
    assert said["base"] == str(tiny_checkpoint)
    figures = {k["look"]: k["model"] and k["model"]["figures"] for k in said["looks"]}
    assert figures["random structures"]["rms_from_base_ev_a"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Give --data FILE, or look beyond them with --robust"),
        (("--base", "7net-0", "--steps", 20), "--base and --steps would have no effect without"),
        (("--robust",), "give --elements H,C,O"),
        (("--robust", "--elements", "C,Fe"), "does not know Fe"),
        (("--robust", "--elements", "Carbon"), "'Carbon', which is no element"),
        (("--robust", "--data", "nothing.xyz"), "no file nothing.xyz"),
        (("--robust", "--skip-faulty", "--e0s", "fit"), "--e0s and --skip-faulty would have no"),
        (("--seed", 0, "--data", "nothing.xyz"), "--seed would have no effect without"),
    ],
)
def test_flags_that_say_nothing(run, tiny_checkpoint, arguments, said):
    code, _, err = run("evaluate", tiny_checkpoint, *arguments)
    assert code == 2
    assert said in err
