"""Weights of frames, read by MACE's names, and what they do to the loss."""

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from sample_frames import labelled

from e3sparse.errors import DataError
from e3sparse.frames.batches import labels_of
from e3sparse.frames.on_disk import FramesOnDisk, read_set
from e3sparse.frames.reading import LabelKeys, read_file
from e3sparse.frames.references import fit_references
from e3sparse.potentials.backends import Prediction
from e3sparse.training.files_table import read_row
from e3sparse.training.losses import Loss

pytestmark = pytest.mark.any_e3nn

LOOSE = LabelKeys()
WEIGHTS = [
    {},
    {"config_weight": 3.0},
    {"config_weight": 2.0, "config_forces_weight": 5.0, "config_energy_weight": 0.5},
    {"config_stress_weight": 0.0, "config_type": "slab"},
]


def images():
    rng, found = np.random.default_rng(0), []
    for n, info in enumerate(WEIGHTS):
        atoms = bulk("NaCl", "rocksalt", a=5.6).repeat((1, 1, n + 1))
        atoms.rattle(0.05, seed=n)
        atoms.info |= info | {"REF_energy": float(rng.normal())}
        stress = rng.normal(size=(3, 3)) * 1e-2
        atoms.info["REF_stress"] = (stress + stress.T).ravel()
        atoms.arrays["REF_forces"] = rng.normal(size=(len(atoms), 3))
        found.append(atoms)
    return found


def read(tmp_path, made, keys=LOOSE):
    path = tmp_path / "frames.xyz"
    ase.io.write(path, made)
    return read_set(path, keys, known=(1, 6, 8, 11, 17), cutoff=4.0, in_memory=100)


def batch(frames):
    return labels_of(frames, [0.0] * len(frames), torch.float64)


def predicted(frames):
    rng = np.random.default_rng(1)
    atoms = sum(len(frame.atoms) for frame in frames)
    return Prediction(
        torch.tensor(rng.normal(size=len(frames))),
        torch.tensor(rng.normal(size=(atoms, 3))),
        torch.tensor(rng.normal(size=(len(frames), 3, 3)) * 1e-2),
    )


def huber(error, delta):
    size = np.abs(error)
    return np.where(size < delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def test_the_loss_is_the_one_computed_by_hand(tmp_path):
    frames = list(read(tmp_path, images()).frames)
    out, loss = predicted(frames), Loss(energy=2.0, forces=3.0, stress=5.0, delta=0.01)
    overall = np.array([1.0, 3.0, 2.0, 1.0])
    energy, forces = overall * [1, 1, 0.5, 1], overall * [1, 1, 5, 1]
    stress = overall * [1, 1, 1, 0]
    counts = np.array([len(frame.atoms) for frame in frames])
    expected = 0.0
    label = np.array([frame.energy for frame in frames])
    expected += 2 * (energy * huber((out.energy.numpy() - label) / counts, 0.01)).mean()
    label = np.concatenate([frame.forces for frame in frames])
    of_atoms = np.repeat(forces, counts)[:, None]
    expected += 3 * (of_atoms * huber(out.forces.numpy() - label, 0.01)).mean()
    label = np.stack([frame.stress for frame in frames])
    expected += 5 * (stress[:, None, None] * huber(out.stress.numpy() - label, 0.01)).mean()
    assert float(loss(out, batch(frames))) == pytest.approx(expected, rel=1e-12)
    plain = [atoms.copy() for atoms in images()]
    for atoms in plain:
        atoms.info = {k: v for k, v in atoms.info.items() if not k.startswith("config")}
    unweighted = loss(out, batch(list(read(tmp_path, plain).frames)))
    assert float(unweighted) != pytest.approx(expected, rel=1e-3)


def test_a_frame_of_weight_two_pulls_as_two_frames(tmp_path):
    one, two = labelled(2, seed=3)
    two.info["config_weight"] = 2.0
    weighted = list(read(tmp_path, [one, two]).frames)
    del two.info["config_weight"]
    twice = list(read(tmp_path, [one, two, two]).frames)
    forces = torch.randn(len(one), 3, dtype=torch.float64)
    energy = torch.tensor([1.0, 2.0], dtype=torch.float64)
    loss = Loss()

    def total(frames, rows):
        made = Prediction(energy[rows], torch.cat([forces * (r + 1) for r in rows]), None)
        return len(frames) * float(loss(made, batch(frames)))

    assert total(weighted, [0, 1]) == pytest.approx(total(twice, [0, 1, 1]), rel=1e-12)


@pytest.mark.parametrize(
    ("suffix", "in_memory"), [(".xyz", 100), (".db", 100), (".db", 1)], ids=str
)
def test_types_have_weights_wherever_frames_are(suffix, in_memory, tmp_path):
    keys = LabelKeys(type_weights={"slab": 4.0, "Default": 0.5, "slob": 1.0})
    made = images()
    if suffix == ".db":
        keys = keys.model_copy(update={"energy": "energy", "forces": "forces"})
        with connect(tmp_path / "frames.db") as db:
            for atoms in made:
                named = {k: v for k, v in atoms.info.items() if k.startswith("config")}
                labels = {"energy": atoms.info["REF_energy"], "forces": atoms.arrays["REF_forces"]}
                atoms.calc = SinglePointCalculator(atoms, **labels)
                db.write(atoms, key_value_pairs=named)
        path = tmp_path / "frames.db"
        reading = read_set(path, keys, known=(11, 17), cutoff=4.0, in_memory=in_memory)
    else:
        reading = read(tmp_path, made, keys)
    assert isinstance(reading.frames, FramesOnDisk) == (in_memory == 1)
    found = [frame.weights.get("forces", 1.0) for frame in reading.frames]
    assert found == [0.5, 1.5, 5.0, 4.0]
    (note,) = [note for note in reading.notes if "slob" in note]
    assert "slab" in note


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), "heavy"])
def test_a_weight_that_is_none_is_refused(wrong, tmp_path):
    made = labelled(2)
    made[1].info["config_forces_weight"] = wrong
    with pytest.raises(DataError, match=r"Frame 1 .*config_forces_weight.*0 or more"):
        read(tmp_path, made)


def test_an_energy_that_does_not_count_moves_no_reference(tmp_path):
    made = labelled(6)
    made[2].info |= {"REF_energy": 1e4, "config_energy_weight": 0.0}
    path = tmp_path / "frames.xyz"
    ase.io.write(path, made)
    frames = list(read_file(path, LOOSE, known=(1, 6, 8), cutoff=4.0).frames)
    without = [frame for n, frame in enumerate(frames) if n != 2]
    assert fit_references(frames, np.zeros(6)) == pytest.approx(
        fit_references(without, np.zeros(5))
    )


@pytest.mark.parametrize("in_memory", [100, 1])
def test_the_table_of_files_shows_the_range_of_weights(in_memory, tmp_path):
    path = tmp_path / "frames.xyz"
    ase.io.write(path, images())
    reading = read_set(path, LOOSE, known=(11, 17), cutoff=4.0, in_memory=in_memory)
    said = read_row(path, reading, references="fitted")[4]
    ranges = "energy 1 to 3, forces 1 to 10, stress 0 to 3"
    assert said.endswith(f"weights in the loss: {ranges}")
    ase.io.write(path, images()[:1])
    reading = read_set(path, LOOSE, known=(11, 17), cutoff=4.0, in_memory=in_memory - 1)
    assert "weights" not in read_row(path, reading, references="fitted")[4]
