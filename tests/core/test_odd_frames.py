"""Files as people have them: the right value is read, or the sentence says why not."""

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from e3sparse.errors import DataError
from e3sparse.frames.evaluation import Predictions, setback
from e3sparse.frames.reading import LabelKeys, read_file
from e3sparse.frames.references import fit_references, outlying
from e3sparse.training.losses import Loss
from e3sparse.training.plausibility import FACTORS, faulty_frames, other_units

pytestmark = pytest.mark.any_e3nn

STRESS = np.array([[0.03, 0.001, 0.002], [0.001, 0.02, 0.003], [0.002, 0.003, 0.04]])


def crystals(count=6, **stress):
    frames = []
    for seed in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=seed)
        atoms.info |= {"REF_energy": -1.0 - 0.1 * seed, **stress}
        atoms.arrays["REF_forces"] = np.random.default_rng(seed).normal(size=(4, 3))
        frames.append(atoms)
    return frames


def written(frames, tmp_path, name="frames.xyz"):
    ase.io.write(tmp_path / name, frames, format="extxyz")
    return tmp_path / name


def read(path, keys=None, **options):
    return read_file(path, keys or LabelKeys(), known=(1, 8, 29), cutoff=5.0, **options)


def edited(path, change):
    path.write_text(change(path.read_text()))
    return path


@pytest.mark.parametrize(
    ("pbc", "cell", "used"),
    [
        ([1, 1, 1], None, True),
        ([1, 1, 0], None, False),
        ([1, 0, 0], None, False),
        ([0, 0, 0], None, False),
        ([0, 0, 0], np.zeros((3, 3)), False),
        ([1, 1, 0], np.diag([3.6, 3.6, 0.0]), False),
    ],
)
def test_a_stress_is_that_of_a_volume(pbc, cell, used, tmp_path):
    frames = crystals(2, REF_stress=STRESS)
    for atoms in frames:
        atoms.pbc = pbc
        if cell is not None:
            atoms.cell = cell
    found = read(written(frames, tmp_path))
    assert [f.stress is not None for f in found.frames] == [used] * 2
    assert any("Stress labels of 2 frames" in note for note in found.notes) != used


@pytest.mark.parametrize("key", ["REF_virials", "REF_virial", "REF_stress"])
@pytest.mark.parametrize("numbers", [6, 9])
def test_virials_are_read_with_sign_volume_and_order(key, numbers, tmp_path):
    frames = crystals(2)
    for atoms in frames:
        value = -STRESS * atoms.get_volume() if "virial" in key else STRESS
        voigt = value[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        atoms.info[key] = voigt if numbers == 6 else value
    found = read(written(frames, tmp_path))
    for frame in found.frames:
        np.testing.assert_allclose(frame.stress, STRESS, rtol=1e-6)
    assert any("-virial / volume" in note for note in found.notes) == ("virial" in key)


@pytest.mark.parametrize("key", ["stress_kB", "DFT_virial", "Stress2"])
def test_a_stress_of_another_name_is_said_not_to_be_read(key, tmp_path):
    path = written(crystals(2, **{key: STRESS}), tmp_path)
    found = read(path)
    assert found.frames[0].stress is None
    assert f"Not read in {path}: '{key}' of 2 frames" in " ".join(found.notes)
    assert read(path, LabelKeys(stress=key)).frames[0].stress is not None


@pytest.mark.parametrize("name", ["energy", "forces", "stress"])
def test_a_key_that_no_frame_has_is_an_error(name, tmp_path):
    path = written(crystals(2, REF_stress=STRESS), tmp_path)
    with pytest.raises(DataError, match=rf"--{name}-key REF_{name}x: no frame .* Did you mean"):
        read(path, LabelKeys(**{name: f"REF_{name}x"}))
    read(path, LabelKeys(**{name: f"REF_{name}"}))


@pytest.mark.parametrize("nothing", ["None", "none", "null"])
def test_no_number_is_no_label(nothing, tmp_path):
    path = written(crystals(2, REF_stress=STRESS), tmp_path)
    first, rest = path.read_text().split("REF_stress=", 1)
    path.write_text(f"{first}REF_stress={nothing} {rest[rest.index('pbc=') :]}")
    assert [f.stress is None for f in read(path).frames] == [True, False]


def test_a_label_that_is_no_number_names_the_frame(tmp_path):
    path = written(crystals(2, REF_stress="large"), tmp_path)
    with pytest.raises(DataError, match=r"Frame 0 of .*'REF_stress' is not a number: 'large'"):
        read(path)


@pytest.mark.parametrize("blank", ["\n", "\n\n\n", "  \n"])
def test_frames_after_a_blank_line_are_read(blank, tmp_path):
    path = written(crystals(3), tmp_path)
    edited(path, lambda text: text.replace("\n4\n", f"\n{blank}4\n") + blank)
    assert [f.energy for f in read(path).frames] == [-1.0, -1.1, -1.2]


def test_what_is_no_frame_after_a_blank_line_is_refused(tmp_path):
    path = written(crystals(2), tmp_path)
    edited(path, lambda text: text + "\nend of file\n")
    with pytest.raises(DataError, match=r"Line 14 of .* is no number of atoms: 'end of file'"):
        read(path)


@pytest.mark.parametrize(
    ("right", "wrong"), [("Lattice", "lattice"), ("Lattice", "LATTICE"), ("pbc", "PBC")]
)
def test_another_spelling_is_refused(right, wrong, tmp_path):
    path = written(crystals(2), tmp_path)
    read(path)
    edited(path, lambda text: text.replace(f"{right}=", f"{wrong}="))
    with pytest.raises(DataError, match=rf"'{wrong}=', which ASE does not read.*'{right}'"):
        read(path)


@pytest.mark.parametrize("name", ["a b@300K [c].xyz", "x@1.xyz", "[a].extxyz", "a*.xyz"])
def test_odd_names_open(name, tmp_path):
    assert len(read(written(crystals(3), tmp_path, name)).frames) == 3


@pytest.mark.parametrize("gone", ["energy", "forces"])
def test_one_label_of_two(gone, tmp_path):
    frames = crystals(3)
    for atoms in frames:
        (atoms.info if gone == "energy" else atoms.arrays).pop(f"REF_{gone}")
    found = read(written(frames, tmp_path))
    assert np.isnan(getattr(found.frames[0], gone)).all()
    assert f"no {gone} labels" in " ".join(found.notes)
    # Where other frames have it, it was forgotten.
    with pytest.raises(DataError, match=rf"Frame 0 of .* has no {gone} label"):
        read(written([frames[0], crystals(1)[0]], tmp_path))


def test_the_free_energy_of_ase_is_found(tmp_path):
    frames = crystals(2)
    for atoms in frames:
        atoms.info["free_energy"] = atoms.info.pop("REF_energy")
    path = written(frames, tmp_path)
    assert read(path, LabelKeys(energy="free_energy")).frames[1].energy == -1.1


@pytest.mark.parametrize(("length", "alone"), [(20.0, True), (4.0, False)])
def test_an_atom_in_a_large_box_is_isolated(length, alone, tmp_path):
    atom = Atoms("Cu", cell=[length] * 3, pbc=True, info={"REF_energy": 3.5})
    atom.arrays["REF_forces"] = np.zeros((1, 3))
    assert bool(read(written([atom, *crystals(2)], tmp_path)).isolated) == alone


def test_faulty_frames_are_named_together_and_can_be_skipped(tmp_path):
    far = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 9.0]], info={"REF_energy": 0.0})
    same = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 1e-4]], info={"REF_energy": 0.0})
    for atoms in (far, same):
        atoms.arrays["REF_forces"] = np.zeros((2, 3))
    path = written([*crystals(2), far, same, far], tmp_path)
    with pytest.raises(DataError, match=r"3 frames of .* \(2, 3, 4\)\. Frame 2 .* no neighbour"):
        read(path)
    found = read(path, skip_faulty=True)
    assert len(found.frames) == 2
    assert "Left out" in found.notes[0]
    with pytest.raises(DataError, match=r"atoms 0 and 1 .* Å apart"):
        read(written([*crystals(1), same], tmp_path))


# What the base model says against the labels ---------------------------------------------------


def labelled_and_predicted(tmp_path, count=12, noise=0.1):
    """Frames, and a model that is off by a tenth of their labels."""
    rng = np.random.default_rng(0)
    frames = crystals(count)
    for atoms in frames:
        atoms.info["REF_energy"] = float(rng.normal())
        atoms.info["REF_stress"] = STRESS * (1 + rng.normal())
    read_ = read(written(frames, tmp_path)).frames

    def near(values):
        return values + noise * np.abs(values).mean() * rng.normal(size=np.shape(values))

    energy = np.array([f.energy for f in read_])
    return read_, Predictions(
        near(energy) - 4.0 * 3.5,
        [near(f.forces) for f in read_],
        [near(f.stress) for f in read_],
        [None] * count,
        [None] * count,
    )


def changed(frames, **labels):
    from dataclasses import replace

    return [
        replace(f, **{k: change(getattr(f, k), f) for k, change in labels.items()}) for f in frames
    ]


@pytest.mark.parametrize(
    ("label", "meant"), [(label, meant) for label, of in FACTORS.items() for meant in of]
)
def test_another_unit_is_named(label, meant, tmp_path):
    frames, predicted = labelled_and_predicted(tmp_path)
    assert other_units(frames, predicted) == []
    factor = FACTORS[label][meant]
    (sentence,) = other_units(changed(frames, **{label: lambda x, f: x / factor}), predicted)
    assert f"The {label} labels seem to be {meant}:" in sentence
    assert f"multiply by {factor:.6g}" in sentence


@pytest.mark.parametrize(("sign", "says"), [(1, "by 1/volume"), (-1, "by -1/volume")])
def test_a_virial_that_is_called_a_stress(sign, says, tmp_path):
    frames, predicted = labelled_and_predicted(tmp_path)
    virials = changed(frames, stress=lambda x, f: sign * x * f.atoms.get_volume())
    assert says in other_units(virials, predicted)[0]


@pytest.mark.parametrize("energy", [1e30, -45012.0, 400.0])
def test_a_bad_energy_is_named_and_moves_no_reference(energy, tmp_path):
    frames, predicted = labelled_and_predicted(tmp_path)
    assert faulty_frames(frames, predicted) == []
    bad = [*changed(frames[:1], energy=lambda x, f: energy), *frames[1:]]
    (fault,) = faulty_frames(bad, predicted)
    assert fault.number == 0
    assert "eV/atom from what the base model and all other frames say" in fault.why
    assert list(outlying(bad, predicted.energy)) == [0]
    assert abs(fit_references(bad, predicted.energy)[29] - 3.5) > 1.0  # why the run stops


@pytest.mark.parametrize(
    ("label", "value", "says"),
    [
        ("forces", 1e300, "the forces label reaches 1e+300"),
        ("stress", 1e9, "the stress label reaches 1e+09"),
    ],
)
def test_labels_beyond_all_others_are_named(label, value, says, tmp_path):
    frames, predicted = labelled_and_predicted(tmp_path)
    bad = [*changed(frames[:1], **{label: lambda x, f: np.full_like(x, value)}), *frames[1:]]
    (fault,) = faulty_frames(bad, predicted)
    assert (fault.number, says in fault.why) == (0, True)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_frames_that_the_model_cannot_evaluate_are_named(value, tmp_path):
    frames, predicted = labelled_and_predicted(tmp_path)
    predicted.forces[2][0, 0] = value
    assert [fault.number for fault in faulty_frames(frames, predicted)] == [2]


# After the training ----------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["energy", "forces", "stress", "moments"])
@pytest.mark.parametrize("kind", [None, "slab"])
def test_every_label_that_got_worse_is_said(label, kind):
    names = ("energy", "forces", "stress", "moments")
    before = {f"{name}_mae": 5.0 for name in names}
    worse = before | {f"{label}_mae": 33.0}
    rows = {"valid before": before, "valid after": before if kind else worse}
    kinds = {kind: (before, worse)} if kind else {}
    said = setback(rows, 0.01, kinds)
    assert f"{label} " in said
    assert "off by 33" in said
    assert (f"of kind '{kind}'" in said) == (kind is not None)
    assert setback(rows | {"valid after": before}, 0.01) is None


def test_the_loss_takes_what_has_a_label():
    import torch

    from e3sparse.frames.batches import Batch
    from e3sparse.potentials.backends import Prediction

    energy, forces = torch.zeros(2, requires_grad=True), torch.zeros(4, 3, requires_grad=True)
    nan = float("nan")

    def loss(energies, of_atoms):
        return Loss()(
            Prediction(energy, forces, None),
            Batch(
                None,
                torch.tensor(energies, dtype=torch.float64),
                torch.tensor(of_atoms).repeat(4, 3),
                torch.zeros(2, 3, 3),
                torch.zeros(2, dtype=torch.bool),
                torch.tensor([2, 2]),
                torch.ones(4),
            ),
        )

    both = float(loss([1.0, 1.0], 2.0))
    without_energy, without_forces = loss([nan, nan], 2.0), loss([1.0, 1.0], nan)
    assert float(without_energy + without_forces) == pytest.approx(both)
    assert min(float(without_energy), float(without_forces)) > 0
    (gradient,) = torch.autograd.grad(without_energy, forces)
    assert gradient.isfinite().all()
    assert gradient.any()
