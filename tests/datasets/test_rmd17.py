"""rMD17 and MD17: kcal/mol to eV, and archives that are something else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from published import assert_same, known, write_npz

from e3sparse.datasets import RMD17
from e3sparse.errors import DataError

RMD17_KEYS = ("nuclear_charges", "coords", "energies", "forces")
MD17_KEYS = ("z", "R", "E", "F")


@pytest.mark.parametrize("keys", [RMD17_KEYS, MD17_KEYS], ids=["rmd17", "md17"])
@given(seed=st.integers(0, 2**31), symbols=st.sampled_from(["H2O", "C2H6O", "CH4"]))
def test_molecules_come_back(tmp_path_factory, keys, seed, symbols):
    frames = [known(seed + i, symbols, periodic=False) for i in range(3)]
    path = write_npz(tmp_path_factory.mktemp("npz") / "m.npz", frames, keys)
    for entry, frame in zip(RMD17().entries(path), frames, strict=True):
        entry.check()
        assert_same(entry.to_atoms(), frame)


def test_energies_of_md17_are_a_column(tmp_path, converted):
    frames = [known(i, "H2O", periodic=False) for i in range(3)]
    path = write_npz(tmp_path / "m.npz", frames, MD17_KEYS)
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"E": arrays["E"][:, None]})
    for atoms, frame in zip(converted("rmd17", path), frames, strict=True):
        assert_same(atoms, frame)


def test_the_frames_of_md17_are_kept(tmp_path, converted):
    frames = [known(i, "H2O", periodic=False) for i in range(3)]
    path = write_npz(tmp_path / "rmd17_water.npz", frames, RMD17_KEYS, old_indices=[7, 3, 99])
    atoms = converted("rmd17", path)
    assert [a.info["source_index"] for a in atoms] == [7, 3, 99]
    assert {a.info["config_type"] for a in atoms} == {"rmd17_water"}


def test_a_kilocalorie_is_43_meV(tmp_path):  # noqa: N802 -- the unit
    frame = known(0, "H2O", periodic=False)
    path = write_npz(tmp_path / "m.npz", [frame], RMD17_KEYS)
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"energies": np.ones(1), "forces": np.ones((1, 3, 3))})
    (entry,) = RMD17().entries(path)
    assert entry.energy == pytest.approx(0.0433641, rel=1e-6)
    np.testing.assert_allclose(entry.forces, 0.0433641, rtol=1e-6)


def nan_force(arrays):
    arrays["forces"][2, 0, 0] = np.nan


def half_the_energies(arrays):
    arrays["energies"] = arrays["energies"][:1]


def swapped_axes(arrays):
    arrays["coords"] = arrays["coords"].transpose(0, 2, 1)[:, :, :2]


def in_hartree(arrays):
    arrays["e_unit"] = "Ha"


def charge_200(arrays):
    arrays["nuclear_charges"][0] = 200


def no_forces(arrays):
    del arrays["forces"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (nan_force, "Frame 2 of .*m.npz: the forces are NaN"),
        (half_the_energies, r"energies has shape \(1,\), expected \(3,\)"),
        (swapped_axes, r"coords has shape"),
        (in_hartree, "its e_unit is 'Ha', not 'kcal/mol'"),
        (charge_200, "not atomic numbers"),
        (no_forces, "has no forces. rMD17 has"),
    ],
)
def test_a_damaged_archive_is_refused(tmp_path, converted, damage, says):
    frames = [known(i, "H2O", periodic=False) for i in range(3)]
    path = write_npz(tmp_path / "m.npz", frames, RMD17_KEYS)
    arrays = dict(np.load(path))
    damage(arrays)
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=says):
        converted("rmd17", path)
    assert not (tmp_path / "out.xyz").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"a,b\n1,2\n"])
def test_another_file_is_refused(tmp_path, converted, content):
    (tmp_path / "m.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"not an \.npz"):
        converted("rmd17", tmp_path / "m.npz")
