"""DeePMD systems: virials, spins, mixed types, and systems that do not fit together."""

import os
from pathlib import Path

import ase.io
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from published import Known, assert_same, known, write_deepmd

from e3sparse.datasets import DeePMD
from e3sparse.errors import DataError

NIO = (
    Path(os.environ.get("E3SPARSE_DATA", Path(__file__).parents[3] / "shared" / "data"))
    / "nio_deltaspin"
)


@given(
    seed=st.integers(0, 2**31),
    symbols=st.sampled_from(["NiO", "ONi3", "Ni2O2"]),
    periodic=st.booleans(),
    moments=st.sampled_from([None, "vectors"]),
    sets=st.integers(1, 3),
)
def test_systems_come_back(tmp_path_factory, seed, symbols, periodic, moments, sets):
    frames = [known(seed + i, symbols, periodic=periodic, moments=moments) for i in range(4)]
    folder = write_deepmd(tmp_path_factory.mktemp("deepmd") / "system", frames, sets=sets)
    entries = list(DeePMD().entries(folder))
    for entry, frame in zip(entries, frames, strict=True):
        entry.check()
        assert_same(entry.to_atoms(), frame)


def test_a_tree_of_systems_is_read(tmp_path, converted):
    one = [known(i, "NiO", moments="vectors") for i in range(2)]
    two = [known(5, "H2O", periodic=False)]
    write_deepmd(tmp_path / "tree" / "a" / "nio", one)
    write_deepmd(tmp_path / "tree" / "water", two)
    frames = converted("deepmd", tmp_path / "tree")
    for atoms, frame in zip(frames, [*one, *two], strict=True):
        assert_same(atoms, frame)
    assert [a.info["config_type"] for a in frames] == 2 * ["tree/a/nio"] + ["tree/water"]


def test_the_virial_has_the_other_sign(tmp_path):
    """Under pressure a virial is positive, and the stress of ASE negative."""
    frame = known(0)
    frame.stress = -0.1 * np.eye(3)
    folder = write_deepmd(tmp_path / "s", [frame])
    assert (np.diagonal(np.load(folder / "set.000" / "virial.npy").reshape(3, 3)) > 0).all()
    (entry,) = DeePMD().entries(folder)
    np.testing.assert_allclose(entry.stress, -0.1 * np.eye(3), atol=1e-12)


def test_mixed_types_lose_their_virtual_atoms(tmp_path, converted):
    folder = write_deepmd(tmp_path / "s", [known(0, "Ni2O"), known(1, "Ni2O")])
    np.save(folder / "set.000" / "real_atom_types.npy", np.array([[1, 0, -1], [0, 0, 1]]))
    short, full = converted("deepmd", folder)
    assert list(short.symbols) == ["O", "Ni"]
    assert list(full.symbols) == ["Ni", "Ni", "O"]
    np.testing.assert_allclose(short.arrays["REF_forces"], known(0, "Ni2O").forces[:2], atol=1e-8)


def change_array(key, change):
    def damage(folder):
        path = folder / "set.000" / f"{key}.npy"
        np.save(path, change(np.load(path)))

    return damage


def nan_in_frame_1(array):
    array[1, 2] = np.nan
    return array


def skewed(array):
    return np.tile(np.arange(9.0), (len(array), 1))


DAMAGE = {
    "no force": (lambda f: (f / "set.000" / "force.npy").unlink(), "has no force.npy"),
    "no energy": (lambda f: (f / "set.000" / "energy.npy").unlink(), "has no energy.npy"),
    "no box": (lambda f: (f / "set.000" / "box.npy").unlink(), "has no box.npy"),
    "no type map": (lambda f: (f / "type_map.raw").unlink(), "has no type_map.raw"),
    "no types": (lambda f: (f / "type.raw").unlink(), "no DeePMD system"),
    "no sets": (lambda f: (f / "set.000").rename(f / "sets"), r"no set\.\* folder"),
    "type without name": (lambda f: (f / "type_map.raw").write_text("Ni\n"), "Frame 0 .* type 1"),
    "not an element": (
        lambda f: (f / "type_map.raw").write_text("Ni\nOo\n"),
        "Frame 0 .*'Oo' is not an element",
    ),
    "other atoms": (lambda f: (f / "type.raw").write_text("0 1 1\n"), "coord.npy has shape"),
    "words as types": (lambda f: (f / "type.raw").write_text("Ni O\n"), "whole numbers"),
    "nan force": (change_array("force", nan_in_frame_1), "Frame 1 .*forces are NaN"),
    "nan spin": (change_array("spin", nan_in_frame_1), "Frame 1 .*moments are not all finite"),
    "fewer energies": (change_array("energy", lambda a: a[:1]), "energy.npy has shape"),
    "virial of six": (change_array("virial", lambda a: a[:, :6]), "virial.npy has shape"),
    "virial in disorder": (change_array("virial", skewed), "Frame 0 .*not symmetric"),
    "flat cell": (change_array("box", lambda a: a * 0), "Frame 0 .*no volume"),
    "not an array": (
        lambda f: (f / "set.000" / "coord.npy").write_text("1 2 3"),
        "not an array of numbers",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_system_is_refused(tmp_path, converted, name):
    damage, says = DAMAGE[name]
    frames = [known(i, "NiO", moments="vectors") for i in range(2)]
    folder = write_deepmd(tmp_path / "system", frames)
    damage(folder)
    with pytest.raises(DataError, match=says) as error:
        converted("deepmd", folder)
    assert str(folder) in str(error.value)
    assert not (tmp_path / "out.xyz").exists()


def test_the_undamaged_system_is_read(tmp_path, converted):
    frames = [known(i, "NiO", moments="vectors") for i in range(2)]
    assert len(converted("deepmd", write_deepmd(tmp_path / "system", frames))) == 2


@pytest.mark.skipif(not NIO.is_dir(), reason=f"the DeltaSpin set of NiO is not at {NIO}")
@pytest.mark.parametrize("name", ["train", "test"])
def test_nio_of_deltaspin_comes_back(tmp_path, converted, name):
    """The set was converted by others: its arrays, written as a system again, give the same."""
    theirs = ase.io.read(NIO / f"{name}.xyz", index=":")
    folder = write_deepmd(
        tmp_path / "nio",
        [
            Known(
                atoms,
                atoms.info["REF_energy"],
                atoms.arrays["REF_forces"],
                moments=atoms.arrays["REF_magmom"],
                magnetic_forces=atoms.arrays["REF_magforces"],
            )
            for atoms in theirs
        ],
        sets=3,
    )
    ours = converted("deepmd", folder)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        # dpdata sorts atoms by element and so does the source: the order must be kept as it is.
        assert list(mine.symbols) == list(other.symbols)
        assert mine.info["REF_energy"] == other.info["REF_energy"]
        for key in ("positions", "REF_forces", "REF_magmom", "REF_magforces", "spin"):
            np.testing.assert_allclose(mine.arrays[key], other.arrays[key], atol=1.1e-8)
