"""Energy references: what least squares finds, what isolated atoms say, and who counts more."""

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from hypothesis import given
from hypothesis import strategies as st
from sample_frames import isolated, labelled

from e3sparse.errors import DataError
from e3sparse.frames.reading import Frame, LabelKeys, read_frames, read_split
from e3sparse.frames.references import fit_references, reference_energy

pytestmark = pytest.mark.any_e3nn
TRUE = {1: -13.6, 6: -1030.0, 8: -2041.5}
MOLECULES = ("H2O", "CH4", "CO2", "CH3OH")


def read(images, tmp_path, reader=read_split):
    ase.io.write(tmp_path / "frames.xyz", images)
    return reader(tmp_path / "frames.xyz", LabelKeys(), known=(1, 6, 7, 8), cutoff=4.0)


@given(known=st.dictionaries(st.sampled_from([1, 6, 7, 8]), st.floats(-1e3, 1e3)))
def test_known_references_stay_and_the_others_fit_what_is_left(known):
    shifts = TRUE | known
    frames = []
    for name in MOLECULES:
        atoms = molecule(name)
        energy = sum(shifts[int(z)] for z in atoms.numbers)
        frames.append(Frame(atoms, energy, np.zeros((len(atoms), 3)), None))
    base = np.arange(1.0, 5.0)
    moved = [
        Frame(f.atoms, f.energy + e, f.forces, None) for f, e in zip(frames, base, strict=True)
    ]
    fitted = fit_references(moved, base, known)
    assert {z: fitted[z] for z in known} == known
    assert fitted == pytest.approx(shifts)
    assert [reference_energy(f, fitted) for f in frames] == pytest.approx(
        [f.energy for f in frames]
    )


def test_isolated_atoms_are_set_apart(tmp_path):
    with_forces = isolated(H=-13.6)
    with_forces[0].arrays["REF_forces"] = np.zeros((1, 3))
    plain = Atoms("O", info={"REF_energy": -2041.5})
    molecules = labelled(3)
    split = read([*with_forces, *molecules[:2], plain, molecules[2]], tmp_path)
    assert {z: atom.energy for z, atom in split.isolated.items()} == {1: -13.6, 8: -2041.5}
    energies = [atoms.info["REF_energy"] for atoms in molecules]
    assert [frame.energy for frame in split.frames] == pytest.approx(energies)
    frames = read([*with_forces, *molecules[:2], plain, molecules[2]], tmp_path, read_frames)
    assert [frame.energy for frame in frames] == [frame.energy for frame in split.frames]


@pytest.mark.parametrize(("apart", "agree"), [(0.9e-3, True), (1.1e-3, False)])
def test_two_frames_of_an_isolated_atom_agree_to_a_millielectronvolt(apart, agree, tmp_path):
    images = labelled(1) + isolated(N=-50.0) + isolated(N=-50.0 + apart)
    if agree:
        assert read(images, tmp_path).isolated[7].energy == -50.0
    else:
        with pytest.raises(DataError, match=r"Frames 1 and 2 of .* isolated N atom"):
            read(images, tmp_path)
