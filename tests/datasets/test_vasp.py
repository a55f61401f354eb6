"""OUTCAR and vasprun.xml: the order of stresses, moments step by step, and runs that broke off.

The files are written by `vasp_files.py`; none is from a real calculation.
"""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from published import assert_same, known
from vasp_files import ORDER, write_outcar, write_vasprun

from e3sparse.datasets import VASP
from e3sparse.errors import DataError

OUTCAR_DIGITS = {"atol": 1e-3, "rtol": 1e-6}  # moments have three decimals, positions five


def steps(number=3, *, moments=None, symbols="Ni2O2"):
    """Return ionic steps of one cell; what one was drawn with serves VASP as well as another."""
    frames = [known(seed, symbols, moments=moments) for seed in range(number)]
    for frame in frames:
        frame.magnetic_forces = None
    return frames


@pytest.mark.parametrize("moments", [None, "collinear", "vectors"])
@pytest.mark.parametrize("symbols", ["Ni2O2", "NiO", "H2O"])
def test_steps_of_an_outcar_come_back(tmp_path, converted, moments, symbols):
    frames = steps(moments=moments, symbols=symbols)
    path = write_outcar(tmp_path / "OUTCAR", frames, noncollinear=moments == "vectors")
    for atoms, frame in zip(converted("vasp", path), frames, strict=True):
        near = np.linalg.norm(np.reshape(atoms.arrays["spin"], (-1, 3)), axis=1)
        assert set(np.round(near, 6)) <= {0.0, 1.0}
        assert_same(atoms, frame, **OUTCAR_DIGITS | {"atol": 5e-3})
        assert atoms.info["energy_sigma0"] == pytest.approx(frame.energy + 0.01)


def test_the_stress_of_an_outcar_is_exact_to_its_digits(tmp_path, converted):
    frames = steps()
    for atoms, frame in zip(
        converted("vasp", write_outcar(tmp_path / "OUTCAR", frames)), frames, strict=True
    ):
        np.testing.assert_allclose(atoms.info["REF_stress"], frame.stress, atol=1e-8)


@pytest.mark.parametrize(
    ("i", "j"), [(0, 1), (2, 0), (3, 4), (3, 5), (4, 5), (2, 3)], ids=lambda n: str(n)
)
def test_a_stress_in_another_order_is_noticed(tmp_path, converted, i, j):
    order = list(ORDER)
    order[i], order[j] = order[j], order[i]
    frames = steps(1)
    (atoms,) = converted("vasp", write_outcar(tmp_path / "OUTCAR", frames, order=order))
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(atoms.info["REF_stress"], frames[0].stress, atol=1e-3)


def test_steps_of_a_vasprun_come_back_without_moments(tmp_path, converted):
    frames = steps(moments="collinear")
    path = write_vasprun(tmp_path / "vasprun.xml", frames)
    for atoms, frame in zip(converted("vasp", path), frames, strict=True):
        frame.moments = None
        assert_same(atoms, frame)


def test_forces_of_fixed_atoms_are_kept(tmp_path, converted):
    """ASE takes constraints from a POSCAR beside the OUTCAR and hides the forces then."""
    frames = steps(1)
    path = write_outcar(tmp_path / "OUTCAR", frames)
    rows = "\n".join("0 0 0 F F F" for _ in frames[0].atoms)
    (tmp_path / "POSCAR").write_text(
        f"cell\n1\n5 0 0\n0 5 0\n0 0 5\nNi O\n2 2\nSelective dynamics\nDirect\n{rows}\n"
    )
    (atoms,) = converted("vasp", path)
    np.testing.assert_allclose(atoms.arrays["REF_forces"], frames[0].forces, atol=1e-6)


def test_a_tree_takes_outcars_where_there_are_both(tmp_path, converted):
    both, xml = steps(2, moments="collinear"), steps(1, symbols="H2O")
    tree = tmp_path / "runs"
    write_outcar(tree / "a" / "nio" / "OUTCAR", both)
    write_vasprun(tree / "a" / "nio" / "vasprun.xml", both)
    write_vasprun(tree / "b" / "vasprun.xml", xml)
    packed = tree / "c" / "OUTCAR.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress((tree / "a" / "nio" / "OUTCAR").read_bytes()))
    frames = converted("vasp", tree)
    names = [atoms.info["config_type"] for atoms in frames]
    assert names == ["a/nio", "a/nio", "b", "c", "c"]
    assert ["REF_magmom" in atoms.arrays for atoms in frames] == [True, True, False, True, True]


def test_where_a_tree_lies_does_not_decide_on_its_split(tmp_path, monkeypatch):
    for place in ("here", "there"):
        for run in ("one", "two"):
            write_outcar(tmp_path / place / "runs" / run / "OUTCAR", steps(1))

    def groups(source):
        return [entry.group for entry in VASP().entries(source)]

    first = groups(tmp_path / "here" / "runs")
    assert len(set(first)) == 2
    monkeypatch.chdir(tmp_path / "there" / "runs")
    assert groups(Path()) == groups(tmp_path / "there" / "runs") == first
    assert groups(Path("one")) != groups(Path("two"))


def test_several_files_are_joined(tmp_path, converted):
    one = write_outcar(tmp_path / "one" / "OUTCAR", steps(2))
    two = write_vasprun(tmp_path / "two" / "vasprun.xml", steps(3))
    assert len(converted("vasp", one, two)) == 5


def test_an_interrupted_outcar_keeps_its_finished_steps(tmp_path, converted):
    path = write_outcar(tmp_path / "OUTCAR", steps(3))
    text = path.read_text()
    path.write_text(text[: text.rindex("FREE ENERGIE")])
    assert len(converted("vasp", path)) == 2


def test_a_vasprun_that_broke_off_names_the_step(tmp_path, converted):
    path = write_vasprun(tmp_path / "vasprun.xml", steps(3))
    text = path.read_text()
    cut = text.rindex('<varray name="forces">')
    path.write_text(text[:cut] + text[cut:].replace('name="forces"', 'name="absent"'))
    with pytest.raises(DataError, match=r"Step 2 of .* has no forces"):
        converted("vasp", path)
    assert len(converted("vasp", path, skip_faulty=True)) == 2


@pytest.mark.parametrize(
    ("write", "name"), [(write_outcar, "OUTCAR"), (write_vasprun, "vasprun.xml")]
)
def test_a_step_whose_scf_did_not_converge_is_faulty(tmp_path, converted, write, name):
    frames = steps(3)
    path = write(tmp_path / name, frames, unconverged=[1])
    with pytest.raises(DataError, match=f"Step 1 of {path}: the SCF did not converge"):
        converted("vasp", path)
    first, last = converted("vasp", path, skip_faulty=True)
    np.testing.assert_allclose(first.arrays["REF_forces"], frames[0].forces, atol=1e-6)
    np.testing.assert_allclose(last.arrays["REF_forces"], frames[2].forces, atol=1e-6)
    assert len(converted("vasp", write(tmp_path / name, frames))) == 3


def test_unfinished_nothing_and_other_files_are_refused(tmp_path, converted):
    path = write_outcar(tmp_path / "OUTCAR", steps(1))
    path.write_text(path.read_text().replace("FREE ENERGIE", "NO ENERGY"))
    with pytest.raises(DataError, match="no finished ionic step"):
        converted("vasp", path)
    path.write_text("nothing of the kind\n")
    with pytest.raises(DataError, match="cannot be read as OUTCAR"):
        converted("vasp", path)
    (tmp_path / "vasprun.xml").write_text("<modeling>")
    with pytest.raises(DataError, match=r"cannot be read as vasprun\.xml"):
        converted("vasp", tmp_path / "vasprun.xml")
    with pytest.raises(DataError, match="no file or folder"):
        converted("vasp", tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no OUTCAR and no vasprun"):
        converted("vasp", tmp_path / "empty")
    shutil.rmtree(tmp_path / "empty")


def test_overflowed_stress_is_left_out(tmp_path, converted):
    """VASP prints asterisks where a number does not fit."""
    path = write_outcar(tmp_path / "OUTCAR", steps(1))
    lines = [
        "  in kB     " + 6 * " ***********" if "in kB" in line else line
        for line in path.read_text().splitlines()
    ]
    path.write_text("\n".join(lines) + "\n")
    with pytest.warns(UserWarning, match="badly formatted stress"):
        (atoms,) = converted("vasp", path)
    assert "REF_stress" not in atoms.info


def test_moments_that_ase_reads_as_collinear_are_not_believed(tmp_path):
    """Of one atom VASP writes no sum, and ASE misses the y and z components behind it."""
    frames = steps(1, moments="vectors", symbols="Ni")
    path = write_outcar(tmp_path / "OUTCAR", frames, noncollinear=True)
    (entry,) = VASP().entries(path)
    assert isinstance(entry, DataError)
    assert "only one component" in str(entry)
    # The control: it is the setting that tells, so without it the frame would pass.
    path.write_text(path.read_text().replace("LNONCOLLINEAR =      T", "LNONCOLLINEAR =      F"))
    (entry,) = VASP().entries(path)
    assert entry.moments.shape == (1,)


def test_what_macos_puts_into_archives_is_passed_over(tmp_path):
    from e3sparse.datasets.vasp import _is_data

    for name in ("a/OUTCAR", "a/._OUTCAR", "__MACOSX/a/._OUTCAR", "__MACOSX/a/OUTCAR"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [p for p in tmp_path.rglob("*OUTCAR") if _is_data(p)] == [tmp_path / "a" / "OUTCAR"]
