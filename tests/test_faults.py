"""Whether benchmarks/faults.py counts what happened: its damages, its judges, their controls."""

import json
import os
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch

pytest.importorskip("typer", reason="the command line is attacked")
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import faults
import faults_damage
import faults_outcomes
from faults_folders import Adapters
from faults_kills import Kills, contents
from faults_outcomes import Found, Printed, command, of_call, of_command, tried

import e3sparse
from e3sparse.errors import AdapterFileError, ConfigError

sevennet = pytest.mark.skipif(find_spec("sevenn") is None, reason="needs SevenNet")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    kind = Adapters(tmp_path_factory.mktemp("adapters"), 0)
    kind.limit = 5.0
    return kind


def outcomes(kind, numbers):
    return [found.outcome for found in tried(kind, list(numbers))]


def with_loader(adapters, load, monkeypatch):
    monkeypatch.setattr(adapters, "load", load)
    return adapters


def test_twenty_damaged_adapters(adapters):
    found = outcomes(adapters, range(20))
    assert len(found) == 20
    assert found.count("named") >= 10
    assert set(found) <= set(faults_outcomes.OUTCOMES)
    assert outcomes(adapters, range(20)) == found


def test_undamaged_adapters_are_right(adapters, monkeypatch):
    for name in adapters.damages:
        monkeypatch.setitem(adapters.damages, name, lambda files, others, rng: None)
    assert outcomes(adapters, range(3)) == ["right"] * 3


def careless(model, folder, **options):
    """Load what the tensors say, whatever is wrong: zeros where they cannot be read."""
    adapter = e3sparse.patch(model, "all", "dense", **options)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.zero_()
    return adapter


def test_a_loader_that_ignores_damage_is_caught(adapters, monkeypatch):
    assert set(outcomes(with_loader(adapters, careless, monkeypatch), range(13))) == {"silent"}


def leaving_the_model_changed(model, folder, **options):
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    raise AdapterFileError(f"{folder} is damaged in some way.")


def of_another_library(model, folder, **options):
    raise KeyError("data_offsets")


def without_a_sentence(model, folder, **options):
    raise AdapterFileError("bad")


def crashing(model, folder, **options):
    os.kill(os.getpid(), signal.SIGKILL)


def sleeping(model, folder, **options):
    time.sleep(60)


@pytest.mark.parametrize(
    ("load", "outcome"),
    [
        (leaving_the_model_changed, "silent"),
        (of_another_library, "foreign"),
        (without_a_sentence, "foreign"),
        (crashing, "foreign"),
        (sleeping, "hang"),
    ],
)
def test_bad_loaders_are_counted_as_such(load, outcome, adapters, monkeypatch):
    monkeypatch.setattr(adapters, "limit", 1.0)
    assert outcomes(with_loader(adapters, load, monkeypatch), [0, 1]) == [outcome] * 2


@pytest.mark.parametrize(
    ("printed", "outcome"),
    [
        (Printed(0, "1.25", ""), "right"),
        (Printed(0, "1.26", ""), "silent"),
        (Printed(2, "", "error: run/config.yaml is damaged: it is not valid YAML."), "named"),
        (Printed(2, "", "error: 'x'"), "foreign"),
        (Printed(1, "", "Aborted."), "foreign"),
        (Printed(1, "", "error: Something unforeseen, see /tmp/traceback.txt"), "foreign"),
    ],
)
def test_commands_are_judged(printed, outcome):
    assert of_command(lambda: printed, "1.25", lambda p: p.out).outcome == outcome


def test_errors_of_a_command_are_judged():
    def failing():
        raise ZeroDivisionError

    assert of_command(failing, "", str).outcome == "foreign"
    assert of_call(failing, 1).outcome == "foreign"


def test_the_command_line_is_run(tmp_path):
    printed = command("compare", tmp_path / "none")
    assert printed.code == 2
    assert "error:" in printed.err


@pytest.mark.parametrize("name", faults_damage.DAMAGES)
def test_every_damage_does_something(name, adapters, tmp_path):
    from random import Random

    from faults_subjects import restored

    changed = 0
    for number in range(8):
        folder = restored(adapters.saves[0], tmp_path / "folder")
        before = contents(folder)
        files = sorted(folder.iterdir())
        faults_damage.DAMAGES[name](files, adapters.saves[1:], Random(number))
        is_file = [path.is_file() and not path.is_symlink() for path in files]
        changed += not all(is_file) or contents(folder) != before
    assert changed >= 4


@sevennet
def test_payloads_run_where_nothing_stops_them(tmp_path):
    """A hostile file is one: what unpickles it without a look is executed."""
    from random import Random

    from faults_models import hostile
    from faults_subjects import tiny_sevennet

    real = tiny_sevennet(tmp_path / "real.pth")
    mark, path = tmp_path / "executed", tmp_path / "hostile.pth"
    executed = 0
    for number in range(20):
        hostile(real, path, Random(number), mark)
        try:
            torch.load(path, weights_only=False)
        except Exception as error:
            print(number, error)
        executed += mark.exists()
        if mark.is_dir():
            mark.rmdir()
        mark.unlink(missing_ok=True)
    assert executed >= 10


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The judge of kills, a run that was stopped, and what `--resume` will say."""
    kills = Kills.__new__(Kills)
    kills.right = {"numbers": 1}
    out = tmp_path / "try" / "run"
    (out.parent / "temporary").mkdir(parents=True)
    answers = []

    class Answering:
        def __init__(self, arguments, folder):
            pass

        def ended(self):
            return answers.pop(0)(out), 0

    monkeypatch.setattr("faults_kills.Child", Answering)
    monkeypatch.setattr("faults_kills.numbers_of", lambda run: json.loads((run / "n").read_text()))
    return kills, out, answers


def ending(numbers):
    """Return a command that ends with these numbers."""

    def end(out):
        out.mkdir(exist_ok=True)
        (out / "n").write_text(json.dumps({"numbers": numbers}))
        (out / "e3sparse-run.json").write_text('{"finished": true}')
        return Printed(0, "", "")

    return end


def refusing(out):
    return Printed(2, "", "error: There is no run to resume here: begin it anew.")


@pytest.mark.parametrize(
    ("commands", "checkpoint", "outcome"),
    [
        ([ending(1)], True, "right"),
        ([ending(2)], True, "silent"),
        ([refusing, ending(1)], False, "named"),
        ([refusing, ending(2)], False, "silent"),
        ([refusing, refusing], False, "lost"),
        ([refusing], True, "lost"),
        ([lambda out: Printed(1, "", "Aborted.")], True, "foreign"),
        ([lambda out: None], True, "foreign"),
    ],
)
def test_what_a_kill_left_is_judged(commands, checkpoint, outcome, stopped):
    kills, out, answers = stopped
    answers += commands
    if checkpoint:
        (out / "checkpoints").mkdir(parents=True)
        (out / "checkpoints" / "last.ckpt").write_text("")
    assert kills.judged(out, [], None).outcome == outcome


def test_older_runs_and_litter_are_looked_at(stopped, tmp_path):
    kills, out, answers = stopped
    old = tmp_path / "old"
    for folder in (old, out):
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    answers += [ending(1)] * 3
    assert kills.judged(out, [], old).outcome == "right"
    (out / "e3sparse-run.json").unlink()
    (out / ".writing-x").write_text("")
    assert kills.judged(out, [], old) == Found("lost", "litter stays: run/.writing-x")
    (out / "e3sparse-run.json").unlink()
    (out / "notes.txt").unlink()
    assert kills.judged(out, [], old) == Found("lost", "of the older run: notes.txt")


class Three:
    """A kind of which one try in three is refused, one silent, one right."""

    tries, block, limit = 6, 3, 5.0

    def __init__(self, place, seed):
        pass

    def attack(self, number):
        return "even" if number % 2 == 0 else "odd"

    def attempt(self, number):
        def call():
            if number % 3 == 0:
                raise ConfigError("The file is damaged: copy it again.")
            return number % 3

        return of_call(call, 2)


def test_rows_go_on_where_they_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "KINDS", {"three": ("test", "Three", "three")})
    monkeypatch.setattr(faults, "make", lambda name, place, seed: Three(place, seed))
    faults.run(["three"], tries=3, seed=0, results=tmp_path)
    first = pd.read_csv(tmp_path / "faults.csv")
    faults.run(["three"], tries=None, seed=0, results=tmp_path)
    rows = pd.read_csv(tmp_path / "faults.csv")
    assert rows[: len(first)].equals(first)
    assert rows[["tries", "right", "named", "silent"]].sum().tolist() == [6, 2, 2, 2]
    found = pd.read_csv(tmp_path / "faults_found.csv")
    assert found["number"].tolist() == [1, 4]
    faults.run(["three"], tries=None, seed=0, results=tmp_path)
    assert pd.read_csv(tmp_path / "faults.csv").equals(rows)
    faults.table(results=tmp_path)
    text = (tmp_path / "faults.md").read_text()
    assert "| three | 6 | 2 | 2 | 0 | 2 |" in text


def test_tensors_of_the_saves_differ(adapters):
    one, two = (
        safetensors.torch.load_file(save / "adapter_model.safetensors")
        for save in adapters.saves[:2]
    )
    assert one.keys() == two.keys()
    assert any(not torch.equal(one[name], two[name]) for name in one)
