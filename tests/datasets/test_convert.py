"""`e3sparse convert`: splits by material, the magnetic subset, and files that stay whole."""

import sys
from collections import defaultdict

import ase.io
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from published import known, write_deepmd, write_mptrj, write_npz

from e3sparse.cli import main
from e3sparse.datasets import FORMATS, make_format
from e3sparse.datasets.base import Format
from e3sparse.datasets.conversion import convert
from e3sparse.datasets.splits import SPLITS, Split
from e3sparse.errors import ConfigError, DataError
from e3sparse.frames.label_keys import LabelKeys
from e3sparse.frames.on_disk import FramesOnDisk, read_set
from e3sparse.frames.reading import read_file


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line; return the exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["e3sparse", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        return exit_.value.code, " ".join(printed.out.split()), " ".join(printed.err.split())

    return call


@pytest.fixture
def materials(tmp_path):
    """200 materials of 1 to 3 frames, every other one without moments."""
    return write_mptrj(
        tmp_path / "mptrj.json",
        {
            f"mp-{i}": [
                known(10 * i + j, "NiO", moments=None if i % 2 else "collinear")
                for j in range(1 + i % 3)
            ]
            for i in range(200)
        },
    )


def materials_in(path):
    return {atoms.info["mp_id"] for atoms in ase.io.iread(path, index=":")}


def test_no_two_sets_share_a_material(run, materials, tmp_path):
    code, out, _ = run(
        materials, "--format", "mptrj", "--out", tmp_path / "split", "--split", "8:1:1"
    )
    assert code == 0, out
    sets = {name: materials_in(tmp_path / "split" / f"{name}.xyz") for name in SPLITS}
    assert sum(map(len, sets.values())) == len(set.union(*sets.values())) == 200
    assert 140 <= len(sets["train"]) <= 180
    assert f"{len(sets['valid'])} materials" in out
    assert sorted(p.name for p in (tmp_path / "split").iterdir()) == sorted(
        f"{name}.xyz" for name in SPLITS
    )


def test_a_source_that_cannot_be_read_is_not_the_output(tmp_path):
    class Unreadable(Format):
        name = "unreadable"

        def entries(self, source):
            yield (source / "frames").read_text()

    with pytest.raises(DataError, match="nowhere/frames cannot be read"):
        convert(Unreadable(), [tmp_path / "nowhere"], tmp_path / "out.xyz")
    assert not (tmp_path / "out.xyz").exists()


def test_a_split_by_frame_would_share_materials(materials):
    """The control: the same hash on frames instead of materials."""
    split, found = Split((8, 1, 1)), defaultdict(set)
    for entry in FORMATS["mptrj"]().entries(materials):
        found[split.of(str(entry.info["frame_id"]))].add(entry.group)
    assert found["train"] & found["test"]


@given(
    shares=st.tuples(*3 * [st.integers(0, 10)]).filter(any),
    seed=st.integers(0, 2**32),
    group=st.text(),
)
def test_a_split_depends_on_nothing_but_seed_and_group(shares, seed, group):
    name = Split(shares, seed).of(group)
    assert name == Split(shares, seed).of(group)
    assert name in Split(shares, seed).wanted()


def test_shares_are_met_and_seeds_differ():
    groups = [f"mp-{i}" for i in range(20_000)]
    one, two = ([Split((8, 1, 1), seed).of(g) for g in groups] for seed in (0, 1))
    for name, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        # Four standard deviations of a binomial.
        width = 4 * np.sqrt(share * (1 - share) / len(groups))
        assert abs(one.count(name) / len(groups) - share) < width
    assert 0.6 < np.mean(np.array(one) == np.array(two)) < 0.72  # 0.8² + 2·0.1² = 0.66


def test_where_a_material_goes_is_settled():
    """Sets that were made once must come out the same with every later version."""
    dealt = [Split((8, 1, 1)).of(f"mp-{i}") for i in range(24)]
    assert [i for i, name in enumerate(dealt) if name == "valid"] == [1]
    assert [i for i, name in enumerate(dealt) if name == "test"] == [13, 14]


@pytest.mark.parametrize("text", ["8:1", "8:1:1:1", "a:b:c", "0:0:0", "1:-1:1", "nan:1:1", ""])
def test_shares_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match="--split"):
        Split.parse(text)


def test_only_magnetic_frames(run, materials, tmp_path):
    out = tmp_path / "magnetic.xyz"
    code, printed, _ = run(materials, "--format", "mptrj", "--out", out, "--magnetic")
    assert code == 0
    frames = ase.io.read(out, index=":")
    every = list(FORMATS["mptrj"]().entries(materials))
    expected = [e for e in every if e.moments is not None and np.abs(e.moments).max() > 0.1]
    assert [a.info["frame_id"] for a in frames] == [e.info["frame_id"] for e in expected]
    assert f"not magnetic or too large: {len(every) - len(expected)} frames" in printed


@pytest.mark.parametrize(
    ("symbols", "moment", "kept"),
    [
        ("Ni", 0.1001, True),
        ("Ni", -0.1001, True),
        ("Ni", 0.1, False),
        ("Ni99", 2.0, True),
        ("Ni100", 2.0, False),
    ],
)
def test_what_is_magnetic(tmp_path, symbols, moment, kept):
    frame = known(0, symbols, moments="collinear")
    frame.moments[:] = 0
    frame.moments[-1] = moment
    path = write_mptrj(tmp_path / "m.json", {"mp-1": [frame]})
    if kept:
        convert(make_format("mptrj"), [path], tmp_path / "o.xyz", magnetic=True)
        spins = ase.io.read(tmp_path / "o.xyz").arrays["spin"]
        np.testing.assert_array_equal(spins[-1], [0, 0, np.sign(moment)])
        assert not spins[:-1].any()
    else:
        with pytest.raises(DataError, match="1 are not magnetic or too large"):
            convert(make_format("mptrj"), [path], tmp_path / "o.xyz", magnetic=True)
        assert not (tmp_path / "o.xyz").exists()


def test_a_fault_leaves_old_files_as_they_were(run, tmp_path):
    frames = [known(i, "NiO") for i in range(5)]
    frames[4].forces[0, 0] = np.inf
    source = write_deepmd(tmp_path / "system", frames)
    out = tmp_path / "out.xyz"
    out.write_text("old")
    code, _, errors = run(source, "--format", "deepmd", "--out", out, "--overwrite")
    assert code == 2
    assert "Frame 4" in errors
    assert out.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.xyz", "system"]
    code, printed, _ = run(
        source, "--format", "deepmd", "--out", out, "--overwrite", "--skip-faulty"
    )
    assert code == 0
    assert "faulty: 1 frames" in printed
    assert "Frame 4" in printed
    assert len(ase.io.read(out, index=":")) == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--format", "mptraj", "--out", "new.xyz"], "no format 'mptraj'. Did you mean 'mptrj'?"),
        (["--format", "rmd17", "--out", "old.xyz"], "old.xyz exists"),
        (["--format", "rmd17", "--out", "."], "is a folder"),
        (["--format", "rmd17", "--out", "new", "--split", "8-1-1"], "8:1:1, not '8-1-1'"),
        (["--format", "deepmd", "--out", "new.xyz"], "There is no folder m.npz"),
        (["--format", "rmd17", "--out", "new", "--split", "98:1:1"], "there are only 3"),
    ],
)
def test_bad_arguments_are_one_sentence(run, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    write_npz(
        tmp_path / "m.npz",
        [known(i, "H2O", periodic=False) for i in range(3)],
        ("z", "R", "E", "F"),
    )
    (tmp_path / "old.xyz").write_text("old")
    code, _, errors = run("m.npz", *arguments)
    assert code == 2
    assert says in errors
    assert not list(tmp_path.glob("new*/*"))


def test_what_is_written_can_be_trained_on(tmp_path):
    """Our own reader of training data takes it, moments and stress included."""
    from e3sparse.frames.reading import LabelKeys, read_split

    frames = [known(i, "Ni2O2", moments="vectors") for i in range(3)]
    convert(make_format("deepmd"), [write_deepmd(tmp_path / "s", frames)], tmp_path / "o.xyz")
    read, _ = read_split(tmp_path / "o.xyz", LabelKeys(), known=(8, 28), cutoff=6.0, magnetic=True)
    for mine, frame in zip(read, frames, strict=True):
        assert mine.energy == pytest.approx(frame.energy)
        np.testing.assert_allclose(mine.stress, frame.stress, atol=1e-8)
        np.testing.assert_allclose(mine.moments, frame.moments, atol=1e-8)


def same_frames(xyz, db):
    theirs = read_file(xyz, LabelKeys(), known=range(1, 100), cutoff=8.0)
    ours = read_set(db, LabelKeys(), known=range(1, 100), cutoff=8.0, in_memory=0)
    assert isinstance(ours.frames, FramesOnDisk)
    assert ours.account == theirs.account
    for one, two in zip(ours.frames, theirs.frames, strict=True):
        assert (one.atoms.pbc == two.atoms.pbc).all()
        np.testing.assert_allclose(one.atoms.positions, two.atoms.positions, atol=1e-7)
        np.testing.assert_allclose(one.energy, two.energy)
        np.testing.assert_allclose(one.forces, two.forces, atol=1e-7)
        assert (one.stress is None) == (two.stress is None)
        if one.stress is not None:
            np.testing.assert_allclose(one.stress, two.stress)
    return len(ours.frames)


def test_a_database_holds_what_the_file_holds(run, materials, tmp_path):
    for name in ("all.xyz", "all.db"):
        code, out, _ = run(materials, "--format", "mptrj", "--out", tmp_path / name)
        assert code == 0, out
    count = same_frames(tmp_path / "all.xyz", tmp_path / "all.db")
    split = ("--format", "mptrj", "--split", "8:1:1")
    assert run(materials, *split, "--out", tmp_path / "xyz")[0] == 0
    assert run(materials, *split, "--out", tmp_path / "db", "--database")[0] == 0
    assert count == sum(
        same_frames(tmp_path / "xyz" / f"{n}.xyz", tmp_path / "db" / f"{n}.db") for n in SPLITS
    )
    code, _, err = run(materials, "--format", "mptrj", "--out", tmp_path / "b", "--database")
    assert code == 2
    assert "end the name of --out in .db" in err


def test_no_database_is_left_of_a_conversion_that_fails(run, tmp_path):
    bad = write_mptrj(tmp_path / "bad.json", {"mp-1": [known(1, "NiO")], "mp-2": [known(2, "NiO")]})
    bad.write_text(bad.read_text().replace('"force"', '"farce"', 1))
    code, _, _ = run(bad, "--format", "mptrj", "--out", tmp_path / "all.db")
    assert code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["bad.json"]
