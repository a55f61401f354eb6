"""Kinds of files that went silently wrong: each is read right, or a sentence says what is odd."""

import re
from dataclasses import replace
from types import SimpleNamespace

import ase.db
import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.neighborlist import neighbor_list

from e3sparse.errors import DataError
from e3sparse.frames.evaluation import Predictions
from e3sparse.frames.facts import facts_of
from e3sparse.frames.faults import _neighbours, source_notes
from e3sparse.frames.labels import LabelKeys
from e3sparse.frames.oddities import shared
from e3sparse.frames.on_disk import read_set
from e3sparse.training import energy_zero
from e3sparse.training.plausibility import doubts, other_units

pytestmark = pytest.mark.any_e3nn

STRESS = np.array([[0.03, 0.001, 0.012], [0.001, 0.02, 0.023], [0.012, 0.023, 0.04]])


def crystals(count=6):
    frames = []
    for seed in range(count):
        atoms = bulk("Cu", cubic=True) if seed % 2 else bulk("NaCl", "rocksalt", a=5.6, cubic=True)
        atoms.rattle(0.05, seed=seed)
        rng = np.random.default_rng(seed)
        atoms.info |= {"REF_energy": -3.7 * len(atoms) + rng.normal(), "REF_stress": STRESS}
        atoms.arrays["REF_forces"] = rng.normal(size=(len(atoms), 3))
        frames.append(atoms)
    return frames


def read(path, in_memory=100, **options):
    return read_set(
        path, LabelKeys(**options), known=(1, 6, 8, 11, 17, 29), cutoff=5.0, in_memory=in_memory
    )


def notes(path, **options):
    return " ".join(read(path, **options).notes)


def written(frames, tmp_path, edit=lambda text: text):
    path = tmp_path / "frames.xyz"
    ase.io.write(path, frames, format="extxyz")
    path.write_text(edit(path.read_text()))
    return path


# What a file says of itself: a sentence is printed, and nothing of right files -----------------


def not_periodic(atoms):
    atoms.pbc = False


def in_single_precision(atoms):
    atoms.info["REF_energy"] = float(np.float32(atoms.info["REF_energy"] - 1e5 * len(atoms)))


def rounded(atoms):
    atoms.info["REF_energy"] = round(atoms.info["REF_energy"], 1)


def charged(atoms):
    atoms.info["charge"] = len(atoms) % 3 - 1


def with_moments(atoms):
    atoms.calc = SinglePointCalculator(atoms, magmoms=np.ones(len(atoms)))


def with_fixed_atoms(atoms):
    atoms.set_constraint(FixAtoms([1]))
    atoms.arrays["REF_forces"][1] = 0.0


SAID = {
    not_periodic: '6 of 6 frames of .* but pbc="F F F"',
    in_single_precision: "stored in single precision, which rounds them to 0.0",
    rounded: "rounded to 0.1 eV",
    charged: r"'charge' of 6 frames of .*: the model is not told of it\. Frames that differ in no",
    with_moments: "'magmoms' of 6 frames .* --magnetic only",
    with_fixed_atoms: "Fixed atoms of 6 frames .* these are left out",
}


@pytest.mark.parametrize("change", SAID, ids=lambda change: change.__name__)
@pytest.mark.parametrize("in_memory", [0, 100], ids=["disk", "memory"])
def test_what_is_odd_is_said(change, in_memory, tmp_path):
    frames = crystals()
    right = written(frames, tmp_path)
    assert read(right).notes == []
    if in_memory == 0:
        (left,) = read(in_database(right, tmp_path), in_memory=0).notes
        assert "left on disk" in left
        (tmp_path / "frames.db").unlink()
    for atoms in frames:
        change(atoms)
    odd = written(frames, tmp_path)
    if in_memory == 0:
        odd = in_database(odd, tmp_path)
    assert re.search(SAID[change], notes(odd, in_memory=in_memory))


def test_lengths_in_bohr_are_doubted(tmp_path):
    def in_bohr(atoms):
        return Atoms(atoms, cell=atoms.cell / units.Bohr, positions=atoms.positions / units.Bohr)

    copper, salt = crystals()[1::2], crystals()[::2]
    assert "in Bohr?" not in notes(written(copper, tmp_path))
    wrong = [in_bohr(atoms) for atoms in copper]
    for atoms, right in zip(wrong, copper, strict=True):
        atoms.info, atoms.arrays["REF_forces"] = right.info, right.arrays["REF_forces"]
    assert "as bonded atoms are. Are positions and cell in Bohr?" in notes(written(wrong, tmp_path))
    with pytest.raises(DataError, match="Most atoms of the frame have none: are"):
        read(written([in_bohr(atoms) for atoms in salt], tmp_path))


def in_database(path, tmp_path):
    """Return the frames of a file as a database."""
    with ase.db.connect(str(tmp_path / "frames.db")) as database:
        for atoms in ase.io.read(path, ":"):
            data = {k: v.item() if np.isscalar(v) else v for k, v in atoms.info.items()}
            database.write(atoms, data=data | {"REF_forces": atoms.arrays["REF_forces"]})
    return tmp_path / "frames.db"


@pytest.mark.parametrize("alike", ["rare gas", "molecule in a box"])
def test_what_is_not_odd_is_not_said(alike, tmp_path):
    if alike == "rare gas":
        frames = [bulk("Ar", cubic=True) for _ in range(3)]
    else:
        frames = [molecule("CH3CH2OH", cell=[12, 12, 12]) for _ in range(3)]
    for n, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=n)
        atoms.info["REF_energy"] = 0.1 * n + 0.0123
        atoms.arrays["REF_forces"] = np.ones((len(atoms), 3))
    path = written(frames, tmp_path)
    found = read_set(path, LabelKeys(), known=(1, 6, 8, 18), cutoff=5.0, in_memory=100)
    assert found.notes == []


@pytest.mark.parametrize("form", ["traj", "db", "json", "xyz"])
def test_constrained_atoms_keep_the_forces_that_were_computed(form, tmp_path):
    frames = crystals(2)
    for atoms in frames:
        forces, energy = atoms.arrays.pop("REF_forces"), atoms.info.pop("REF_energy")
        atoms.info.clear()
        atoms.set_constraint(FixAtoms([0, 1]))
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    path = tmp_path / f"frames.{form}"
    ase.io.write(path, frames, format="extxyz" if form == "xyz" else None)
    found = read(path, energy="energy", forces="forces")
    for frame, atoms in zip(found.frames, frames, strict=True):
        np.testing.assert_allclose(frame.forces, atoms.calc.results["forces"], atol=1e-7)


def test_forces_of_fixed_atoms_are_no_labels_where_they_are_zero(tmp_path):
    frames = crystals(2)
    with_fixed_atoms(frames[0])
    found = read(written(frames, tmp_path)).frames
    assert np.flatnonzero(np.isnan(found[0].forces).any(axis=1)).tolist() == [1]
    assert np.isfinite(found[1].forces).all()
    assert facts_of(found).forces.all()


def test_structures_that_stand_twice_are_counted(tmp_path):
    frames = crystals()
    assert "same structure" not in notes(written(frames, tmp_path))
    twice = [*frames, frames[2].copy(), frames[3].copy()]
    assert "2 of 8 frames" in notes(written(twice, tmp_path))
    assert "energies differ" not in notes(written(twice, tmp_path))
    twice[-1].info["REF_energy"] += 1.0
    assert "differ by up to 0.25 eV/atom, so that one of them is wrong" in notes(
        written(twice, tmp_path)
    )
    read_ = read(written(frames, tmp_path)).frames
    splits = {"train": read_[:4], "valid": read_[4:], "test": read_[2:5]}
    assert list(shared(splits)) == [
        "2 of 3 test frames are train frames too: errors on them say nothing of frames that are "
        "no train frames.",
        "1 of 3 test frames are valid frames too: errors on them say nothing of frames that are "
        "no valid frames.",
    ]


# What cannot be read ----------------------------------------------------------------------------

REFUSED = {
    "key twice": (
        lambda text: text.replace("REF_energy=", "REF_energy=0.0 REF_energy=", 1),
        r"Line 2 of .* gives 'REF_energy' more than once",
    ),
    "no species column": (
        lambda text: text.replace("species:S:1", "element:S:1"),
        "has to be called 'species'",
    ),
    "cut short": (lambda text: text[: int(0.9 * len(text))], "Is the file cut short"),
    "skewed stress": (
        lambda text: text.replace("[0.001, 0.02,", "[0.005, 0.02,"),
        "'REF_stress' is not symmetric",
    ),
    "other names": (
        lambda text: text.replace("REF_energy", "Energy").replace("REF_forces", "force"),
        "Is it --energy-key Energy --forces-key force\\?$",
    ),
    "upper case": (lambda text: text.replace("REF_forces", "FORCES"), "--forces-key FORCES"),
    "a name with a blank": (
        lambda text: text.replace("REF_energy", '"my energy"'),
        "--energy-key 'my energy'",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_says_what_to_do(kind, tmp_path):
    edit, said = REFUSED[kind]
    frames = crystals(3)
    read(written(frames, tmp_path))
    with pytest.raises(DataError, match=said):
        read(written(frames, tmp_path, edit))


def test_what_is_in_quotes_is_no_key(tmp_path):
    path = written(crystals(3), tmp_path, lambda text: text.replace("pbc=", 'c="a=1 a=2" pbc='))
    assert len(read(path).frames) == 3


@pytest.mark.parametrize(("code", "named"), [("utf-16", "UTF-16"), ("latin1", "LATIN1")])
def test_another_encoding_is_named(code, named, tmp_path):
    path = written(crystals(2), tmp_path, lambda text: text.replace("pbc=", 'who="Å" pbc='))
    read(path)
    path.write_bytes(path.read_text().encode(code))
    with pytest.raises(DataError, match=f"iconv -f {named} -t UTF-8 "):
        read(path)


def test_the_end_of_a_name_is_asked_for(tmp_path):
    path = written(crystals(2), tmp_path).rename(tmp_path / "frames.txt")
    with pytest.raises(DataError, match=r"extended XYZ ends in \.xyz"):
        read(path)


# What the base model finds ---------------------------------------------------------------------


@pytest.fixture
def seen(tmp_path):
    """Frames, and a model that is off by a tenth of their labels."""
    frames = crystals(16)
    for n, atoms in enumerate(frames):
        atoms.info["REF_stress"] = STRESS * (1 + 0.5 * np.sin(n))
    found = read(written(frames, tmp_path)).frames
    rng = np.random.default_rng(0)

    def near(values):
        return values + 0.1 * np.abs(values).mean() * rng.normal(size=np.shape(values))

    return found, Predictions(
        near(np.array([f.energy for f in found])),
        [near(f.forces) for f in found],
        [near(f.stress) for f in found],
        [None] * len(found),
        [None] * len(found),
    )


def changed(frames, label, change):
    return [replace(frame, **{label: change(getattr(frame, label))}) for frame in frames]


SLOTS = {"xy yz xz": (1, 2, 0), "yz xy xz": (0, 2, 1), "xy xz yz": (2, 1, 0)}


@pytest.mark.parametrize("order", SLOTS)
def test_another_order_of_six_numbers_is_named(order, seen):
    frames, predicted = seen

    def read_wrong(stress):
        shear = np.array([stress[1, 2], stress[0, 2], stress[0, 1]])
        in_file = np.empty(3)
        in_file[list(SLOTS[order])] = shear
        yz, xz, xy = in_file
        return np.array([[stress[0, 0], xy, xz], [xy, stress[1, 1], yz], [xz, yz, stress[2, 2]]])

    assert other_units(frames, predicted) == []
    (said,) = other_units(changed(frames, "stress", read_wrong), predicted)
    assert f"in the order xx yy zz {order}:" in said


@pytest.mark.parametrize("label", ["forces", "stress", "energy"])
def test_labels_that_nobody_computed_are_refused(label, seen):
    frames, predicted = seen
    blank = changed(frames, label, lambda value: value * 0)
    said = " ".join(other_units(blank, predicted))
    assert re.search(rf"All {label} labels are -?0.*: they are none", said)
    # Where the model says the same, it may well be so.
    still = predicted.of(range(len(frames)))
    for n in range(len(frames)):
        still.forces[n] *= 0
        still.stress[n] *= 0
        still.energy[n] = -3.7 * len(frames[n].atoms)
    assert "they are none" not in " ".join(other_units(blank, still))


@pytest.mark.parametrize("kind", ["atoms", "axes"])
def test_forces_in_another_order_are_doubted(kind, seen):
    frames, predicted = seen
    assert doubts(frames, predicted) == []
    other = {"atoms": lambda f: np.roll(f, 1, axis=0), "axes": lambda f: np.roll(f, 1, axis=1)}
    (said,) = doubts(changed(frames, "forces", other[kind]), predicted)
    assert "have nothing to do with each other" in said


def test_zero_forces_of_some_atoms_are_doubted(seen):
    frames, predicted = seen

    def one_held(forces):
        return np.where(np.arange(len(forces))[:, None] == 1, 0.0, forces)

    (said,) = doubts(changed(frames, "forces", one_held), predicted)
    assert said.startswith("16 atoms of 16 frames have forces of exactly 0")


@pytest.mark.parametrize("cutoff", [1.2, 3.0, 8.0])
def test_pairs_of_a_molecule_are_those_of_ase(cutoff):
    atoms = molecule("CH3CH2OH")
    ours, theirs = _neighbours(atoms, cutoff), neighbor_list("ijd", atoms, cutoff)
    order = np.lexsort((theirs[1], theirs[0]))
    assert len(order) > 0
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, two[order], rtol=1e-12)


def test_an_atom_alone_is_no_bond(tmp_path):
    frames = crystals(3)
    atom = Atoms("Cu", info={"REF_energy": -1.23})
    assert read(written([atom, *frames], tmp_path)).notes == []


def test_unconverged_steps_of_vasp_are_warned_of():
    (said,) = source_notes("runs/3/OUTCAR.gz")
    assert "steps whose electrons have not converged too" in said
    assert source_notes("vasprun.xml")
    assert source_notes("outcars/train.xyz") == []


@pytest.mark.parametrize(("zero", "said"), [(0.0, False), (-1e5, True)])
def test_energies_with_more_digits_than_the_model_has_are_said(zero, said, seen, monkeypatch):
    frames, predicted = seen
    references = dict.fromkeys((11, 17, 29), zero)
    whole = predicted.shifted(frames, references)
    stored = replace(whole, energy=whole.energy.astype(np.float32).astype(float))
    monkeypatch.setattr(energy_zero, "predict", lambda potential, frames: stored)
    model = SimpleNamespace(dtype=torch.float32)
    sentence = energy_zero.said_of_digits(model, frames, predicted.energy, references)
    assert (sentence is not None) == said
    if said:
        assert "more digits than float32 holds. --dtype float64 keeps them" in sentence
