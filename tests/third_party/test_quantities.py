"""A sixth quantity, by one entry: from a file to the loss, the error and the symmetry suite."""

from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sample_frames import labelled
from shells import ShellsPotential

from e3sparse import symmetry
from e3sparse.datasets.base import Entry
from e3sparse.errors import ConfigError, DataError
from e3sparse.frames.batches import FrameDataset, collate
from e3sparse.frames.evaluation import errors, predict
from e3sparse.frames.labels import LabelKeys
from e3sparse.frames.reading import read_frames
from e3sparse.potentials.quantities import QUANTITIES, Quantity, register_quantity
from e3sparse.potentials.single_points import single_points
from e3sparse.training.losses import Loss

CHARGES = Quantity("charges", per_atom=True, unit="e", key="REF_charges", by_element=True)
DIPOLE = Quantity(
    "dipole",
    per_atom=False,
    unit="e Å",
    key="REF_dipole",
    rank=1,
    error_unit="me Å/atom",
    error_scale=1000.0,
    error_per_atom=True,
    weight=2.0,
)


class Charged(ShellsPotential):
    """Says charges by the first feature of each atom, and their dipole."""

    def forward(self, batch):
        out = super().forward(batch)
        edges, _ = out.geometry
        q = self.module.features(edges, batch["ends"], batch["kinds"])[:, 0]  # (N,)
        dipole = q.new_zeros(len(out.energy), 3)
        dipole = dipole.index_add(0, batch["frame"], q[:, None] * batch["positions"])
        return out._replace(others={"charges": q, "dipole": dipole})


class Wrong(Charged):
    """Says charges that see in which direction neighbours are."""

    def forward(self, batch):
        out = super().forward(batch)
        edges, _ = out.geometry
        bias = torch.zeros_like(out.others["charges"]).index_add(0, batch["ends"][0], edges[:, 0])
        return out._replace(others={"charges": out.others["charges"] + 0.1 * bias})


@pytest.fixture(autouse=True)
def _registered():
    known = dict(QUANTITIES)
    register_quantity(CHARGES)
    register_quantity(DIPOLE)
    yield
    for name in set(QUANTITIES) - set(known):
        del QUANTITIES[name]


@pytest.fixture
def charged(potential):
    return Charged("charged", potential.module)


def frames_of(tmp_path, keys=None, change=lambda frames: None):
    """Labelled frames, read from a file: the third without charges."""
    rng = np.random.default_rng(0)
    frames = labelled(4)
    for atoms in frames:
        atoms.arrays["REF_charges"] = rng.normal(size=len(atoms))
        atoms.info["REF_dipole"] = rng.normal(size=3)
    del frames[2].arrays["REF_charges"]
    change(frames)
    path = tmp_path / "frames.xyz"
    ase.io.write(path, frames)
    return read_frames(path, keys or LabelKeys(), known=[1, 6, 8, 11, 17], cutoff=4.0)


def test_from_a_file_to_an_error(charged, tmp_path):
    frames = frames_of(tmp_path)
    assert set(frames[0].others) == {"charges", "dipole"}
    assert set(frames[2].others) == {"dipole"}
    predicted = predict(charged, frames, batch_size=3)
    found = errors(frames, predicted)
    alone = single_points(charged, [frame.atoms for frame in frames])
    off = np.concatenate(
        [
            one.others["charges"] - frame.others["charges"]
            for one, frame in zip(alone, frames, strict=True)
            if "charges" in frame.others
        ]
    )
    assert found["charges_mae"] == pytest.approx(np.abs(off).mean(), rel=1e-12)
    assert found["charges_rmse"] == pytest.approx(np.sqrt((off**2).mean()), rel=1e-12)
    assert {"charges_mae_H", "charges_mae_C", "charges_mae_O"} <= set(found)
    off = np.stack(
        [
            (one.others["dipole"] - frame.others["dipole"]) / len(frame.atoms)
            for one, frame in zip(alone, frames, strict=True)
        ]
    )
    assert found["dipole_mae"] == pytest.approx(1000 * np.abs(off).mean(), rel=1e-12)
    some = errors(frames[:2], predicted.of([0, 1]))
    assert some["charges_mae"] != found["charges_mae"]


def test_from_a_batch_to_the_loss(charged, tmp_path):
    frames = frames_of(tmp_path)
    dataset = FrameDataset(frames, charged, {})
    batch = collate(charged, [dataset[n] for n in range(4)]).to(torch.device("cpu"))
    assert batch.others["charges"].shape == (24,)
    assert batch.others["dipole"].shape == (4, 3)
    known = batch.others["charges"].isfinite()
    assert known.tolist() == [n // 6 != 2 for n in range(24)]
    out = charged.forward(batch.inputs)
    plain = out._replace(others={})
    without = float(Loss()(plain, batch))

    def huber(name, where):
        return torch.nn.functional.huber_loss(
            out.others[name][where], batch.others[name][where], delta=0.01
        )

    charges, dipole = huber("charges", known), huber("dipole", torch.ones(4, dtype=torch.bool))
    assert float(Loss()(out, batch)) == pytest.approx(float(without + charges + 2 * dipole))
    weighed = Loss(others={"charges": 3.0, "dipole": 0.0})
    assert float(weighed(out, batch)) == pytest.approx(float(without + 3 * charges))


def test_other_keys_and_wrong_labels(tmp_path):
    keys = LabelKeys(others={"charges": "REF_dipole"})
    with pytest.raises(DataError, match=r"'REF_dipole' has shape \(3,\), expected \(6,\)"):
        frames_of(tmp_path, keys)

    def damage(frames):
        frames[1].arrays["REF_charges"][0] = np.nan

    with pytest.raises(DataError, match="the charges label is NaN"):
        frames_of(tmp_path, change=damage)
    for model in (LabelKeys, Loss):
        with pytest.raises(ValidationError, match=r"no further quantity 'charge'.*'charges'"):
            model(others={"charge": 1.0 if model is Loss else "q"})


def test_a_data_set_hands_it_on():
    atoms = labelled(1)[0]
    charges = np.arange(6.0)
    entry = Entry("here", "", atoms, -1.0, atoms.arrays["REF_forces"], others={"charges": charges})
    entry.check()
    np.testing.assert_array_equal(entry.to_atoms().arrays["REF_charges"], charges)
    with pytest.raises(DataError, match="the charges have shape"):
        replace(entry, others={"charges": charges[:3]}).check()


@pytest.mark.parametrize("check", ["rotation", "permutation", "supercell", "batch", "translation"])
def test_its_symmetry_is_tested(charged, check):
    # A dipole of charges that do not add up to zero, or in a cell, depends on the origin.
    del QUANTITIES["dipole"]
    result = symmetry.CHECKS[check](charged, examples=5, max_atoms=6)
    assert result.ok, result


def test_the_dipole_turns_along(charged):
    result = symmetry.check_rotation(charged, examples=5, max_atoms=6)
    assert result.ok, result


def test_the_control_of_wrong_charges_is_caught(potential):
    result = symmetry.check_rotation(Wrong("wrong", potential.module), max_atoms=6)
    assert result.status == "failed"
    assert result.quantity == "charges"


def test_the_control_of_a_dipole_that_does_not_turn_is_caught(charged):
    QUANTITIES["dipole"] = replace(DIPOLE, axial=True)
    result = symmetry.check_inversion(charged, max_atoms=6)
    assert result.quantity == "dipole"
    assert result.status == "failed"


def test_a_name_is_taken_once():
    register_quantity(CHARGES)
    with pytest.raises(ConfigError, match="a quantity 'charges' already, in e"):
        register_quantity(replace(CHARGES, unit="C"))
