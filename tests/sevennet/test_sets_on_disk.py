"""A set on disk is read when it is needed, and gives what the same set in memory gives."""

import gc
import weakref

import ase.db
import ase.io
import numpy as np
import pandas as pd
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from rich.console import Console
from support import load

from e3sparse.errors import DataError, Interrupted
from e3sparse.frames.facts import facts_of
from e3sparse.frames.labels import LabelKeys
from e3sparse.frames.on_disk import FramesOnDisk, read_set, sample, take, without
from e3sparse.frames.reading import Frame
from e3sparse.training import assessment
from e3sparse.training.assessment import assess
from e3sparse.training.config import make_config
from e3sparse.training.module import FineTuning
from e3sparse.training.run import finetune

KEYS = {"energy": "energy", "forces": "forces", "stress": "stress"}
COUNT = 100


def labelled(seed):
    atoms = molecule(("H2O", "CH4", "NH3")[seed % 3] if seed != 17 else "NaCl")
    atoms.rattle(0.05, seed=seed)
    forces = np.random.default_rng(seed).normal(size=(len(atoms), 3))
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0 - 0.01 * (seed % 7), forces=forces)
    return atoms


def write(path, frames):
    with ase.db.connect(str(path), serial=True) as database:
        for atoms in frames:
            database.write(atoms)
    return path


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sets") / "set.db", [labelled(s) for s in range(COUNT)])


@pytest.fixture(scope="module", params=["db", "xyz", "odd xyz"])
def large(request, database):
    """The same frames as a database, and as extended XYZ with a BOM, CRLF and blank lines."""
    if request.param == "db":
        return database
    path = database.with_name(f"{request.param}.xyz")
    frames = ase.io.read(database, ":")
    for atoms in frames:
        atoms.info["name"] = "Å"
    ase.io.write(path, frames)
    if request.param == "odd xyz":
        lines = path.read_text().split("\n")
        at = 0
        for _ in range(3):
            at += int(lines[at]) + 2
        text = "\n".join([*lines[:at], "", " ", *lines[at:]])
        path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    return path


def read(path, in_memory=0, **options):
    keys = LabelKeys(energy="energy", forces="forces")
    return read_set(
        path, keys, known=(1, 6, 7, 8, 11, 17), cutoff=4.0, in_memory=in_memory, **options
    )


def test_frames_on_disk_are_those_in_memory(large):
    ours, theirs = read(large), read(large, in_memory=COUNT)
    assert isinstance(ours.frames, FramesOnDisk)
    assert isinstance(theirs.frames, list)
    assert len(ours.frames) == COUNT
    for one, two in zip(ours.frames, theirs.frames, strict=True):
        assert (one.where, one.energy, one.stress) == (two.where, two.energy, two.stress)
        assert one.atoms == two.atoms
        np.testing.assert_array_equal(one.forces, two.forces)
    for one, two in zip(facts_of(ours.frames), facts_of(theirs.frames), strict=True):
        np.testing.assert_array_equal(one, two)
    some = [5, 2, 9]
    assert [f.where for f in take(ours.frames, some)] == [ours.frames[n].where for n in some]
    assert [f.where for f in ours.frames[2:5]] == [f.where for f in theirs.frames[2:5]]


def test_frames_are_not_held(database):
    frames = read(database).frames
    held = []
    for frame in frames:
        held.append(weakref.ref(frame))
    del frame
    gc.collect()
    assert len(held) == COUNT
    assert not [ref for ref in held if ref() is not None]
    # Other tests of the process may hold frames of theirs.
    there = [one for one in gc.get_objects() if isinstance(one, Frame)]
    assert not [one for one in there if str(database) in one.where]


def test_a_sample_has_every_element_and_depends_on_the_seed(database):
    frames = read(database).frames
    one = sample(frames, 20, seed=0)
    assert 20 <= len(one) <= 20 + 6 * 10
    assert {11, 17} <= facts_of(one).there == facts_of(frames).there
    names = {f.where for f in one}
    assert names == {f.where for f in sample(frames, 20, seed=0)}
    assert names != {f.where for f in sample(frames, 20, seed=1)}
    left = without(frames, names)
    assert len(left) == COUNT - len(one)
    assert not names & {f.where for f in left}


def faulty(kind):
    atoms = labelled(0)
    if kind == "no forces":
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    elif kind == "coincident":
        atoms.positions[1] = atoms.positions[0]
    elif kind == "nan":
        forces = np.full((len(atoms), 3), np.nan)
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=forces)
    return atoms


@pytest.mark.parametrize("kind", ["no forces", "coincident", "nan"])
def test_faults_are_those_that_are_found_in_memory(kind, tmp_path):
    path = write(tmp_path / "set.db", [labelled(0), labelled(1), faulty(kind), labelled(2)])
    said = []
    for in_memory in (0, 100):
        with pytest.raises(DataError, match=r"Frame 2 of ") as refused:
            read(path, in_memory)
        said.append(str(refused.value))
        left = read(path, in_memory, skip_faulty=True)
        assert [f.where for f in left.frames] == [f"Frame {n} of {path}" for n in (0, 1, 3)]
        assert any("Left out" in note and "Frame 2" in note for note in left.notes)
    assert said[0] == said[1]


def test_isolated_atoms_of_a_set_on_disk_are_references(tmp_path):
    atom = Atoms("H")
    atom.calc = SinglePointCalculator(atom, energy=-13.0)
    path = write(tmp_path / "set.db", [labelled(0), atom, labelled(1)])
    found = read(path)
    assert found.isolated[1].energy == -13.0
    assert len(found.frames) == 2
    atom.calc = SinglePointCalculator(atom, energy=-12.0)
    write(path, [atom])
    with pytest.raises(DataError, match=r"Frames 1 and 3 of .* both an isolated H"):
        read(path)


def config(tiny_checkpoint, database, out, **values):
    return make_config(
        {
            "model": str(tiny_checkpoint), "train": database, "out": out, "keys": KEYS,
            "batch_size": 20, "max_steps": 8, "device": "cpu", "dtype": "float64",
            "targets": "all", "method_settings": {"target_sparsity": 0.9},
            "check_units": False, "skip_faulty": True, "examined_frames": COUNT,
            **values,
        }
    )  # fmt: skip


@pytest.fixture
def no_stress(monkeypatch):
    """No molecule has a stress, so nobody may ask for its key."""
    monkeypatch.setitem(KEYS, "stress", "REF_stress")


def same(one, two):
    assert sum(int(v.count_nonzero()) for v in one.adapter.values().values()) > 0
    for path, value in one.adapter.values().items():
        torch.testing.assert_close(value, two.adapter.values()[path], rtol=0, atol=0)
    pd.testing.assert_frame_equal(one.table, two.table, check_exact=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_on_disk_is_training_in_memory(
    workers, tiny_checkpoint, database, tmp_path, no_stress, monkeypatch
):
    inside = finetune(config(tiny_checkpoint, database, tmp_path / "memory"))
    outside = config(tiny_checkpoint, database, tmp_path / "disk", in_memory=0, workers=workers)
    original = FineTuning.training_step

    def interrupted(self, batch, index):
        if self.trainer.global_step == 7:  # within the second epoch, of 5 steps each
            raise KeyboardInterrupt
        return original(self, batch, index)

    same(inside, finetune(outside))
    parts = outside.model_copy(update={"out": tmp_path / "parts"})
    monkeypatch.setattr(FineTuning, "training_step", interrupted)
    with pytest.raises(Interrupted):
        finetune(parts)
    monkeypatch.setattr(FineTuning, "training_step", original)
    same(inside, finetune(parts, resume=True))


@pytest.mark.parametrize("wrong", ["12x", "4", "7"])
def test_a_wrong_number_of_atoms_in_a_large_file_is_said(wrong, database, tmp_path):
    path = tmp_path / "set.xyz"
    ase.io.write(path, ase.io.read(database, "1:4"))
    text = path.read_text()
    assert len(read(path).frames) == 3
    path.write_text(wrong + text[text.index("\n") :])
    with pytest.raises(DataError, match=r"set\.xyz cannot be read"):
        read(path)


@pytest.mark.parametrize("fit", [False, True])
def test_errors_of_a_set_on_disk_are_those_in_memory(fit, tiny_checkpoint, large, monkeypatch):
    monkeypatch.setattr(assessment, "_AT_A_TIME", 7)
    held = []
    original = assessment.counted_errors
    monkeypatch.setattr(
        assessment, "counted_errors", lambda f, *of: (held.append(len(f)), original(f, *of))[1]
    )
    options = {"fit": fit, "skip_faulty": False, "console": Console(quiet=True)}
    keys = LabelKeys(energy="energy", forces="forces")
    potential = load(tiny_checkpoint, torch.float64)
    inside = assess(potential, large, keys, **options)
    assert held == [COUNT]
    outside = assess(potential, large, keys, **options, in_memory=0)
    assert held[1:] == [7] * 14 + [2]
    assert isinstance(outside.reading.frames, FramesOnDisk)
    assert inside.errors.keys() == outside.errors.keys()
    for name, value in inside.errors.items():
        assert outside.errors[name] == pytest.approx(value, rel=1e-9), name
    assert inside.reading.account == outside.reading.account
