"""MPtrj: units, signs and moments, and one sentence for each damaged frame."""

import gzip
import io
import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from published import KBAR, assert_same, known, mptrj_frame, write_mptrj

from e3sparse.datasets import MPtrj
from e3sparse.datasets.mptrj import _WithoutNaN
from e3sparse.errors import ConfigError, DataError


@given(
    seed=st.integers(0, 2**32 - 1),
    symbols=st.sampled_from(["NiO", "Ni4O4", "FeNiCs", "H2O"]),
    moments=st.sampled_from([None, "collinear"]),
)
def test_a_frame_comes_back(tmp_path_factory, seed, symbols, moments):
    frame = known(seed, symbols, moments=moments)
    path = write_mptrj(tmp_path_factory.mktemp("mptrj") / "m.json", {"mp-1": [frame]})
    (entry,) = MPtrj().entries(path)
    entry.check()
    atoms = entry.to_atoms()
    assert_same(atoms, frame)
    assert atoms.info["mp_id"] == "mp-1"
    assert atoms.info["frame_id"] == "mp-1-0-0"
    assert atoms.info["corrected_total_energy"] == pytest.approx(frame.energy - 1.5)


def test_the_file_has_the_labels_too(tmp_path, converted):
    materials = {
        "mp-1": [known(0, moments="collinear"), known(1)],
        "mp-2": [known(2, "Ni3O", moments="collinear")],
    }
    frames = converted("mptrj", write_mptrj(tmp_path / "m.json", materials))
    for atoms, frame in zip(frames, [*materials["mp-1"], *materials["mp-2"]], strict=True):
        assert_same(atoms, frame)


@pytest.mark.parametrize("wrong", [lambda s: -s, lambda s: s / KBAR * 0.1, lambda s: s[::-1, ::-1]])
def test_a_stress_of_another_sign_unit_or_order_is_noticed(tmp_path, wrong):
    frame = known(0)
    right = frame.stress
    frame.stress = wrong(right)
    (entry,) = MPtrj().entries(write_mptrj(tmp_path / "m.json", {"mp-1": [frame]}))
    frame.stress = right
    with pytest.raises(AssertionError):
        assert_same(entry.to_atoms(), frame)


def test_under_pressure_vasp_is_positive_and_we_are_negative(tmp_path):
    frame = mptrj_frame(known(0))
    frame["stress"] = (np.eye(3) * 160.21766208).tolist()  # kbar, which is 0.1 eV/Å³
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"mp-1": {"a": frame}}))
    (entry,) = MPtrj().entries(path)
    np.testing.assert_allclose(entry.stress, -0.1 * np.eye(3), rtol=1e-6)


def drop(key):
    return lambda frame: frame.pop(key)


def put(key, value):
    return lambda frame: frame.update({key: value})


def rename_nickel(frame):
    frame["structure"]["sites"][0]["species"][0]["element"] = "Nj"


def disorder(frame):
    frame["structure"]["sites"][0]["species"].append({"element": "Co", "occu": 0.5})


DAMAGE = {
    "no force": (drop("force"), "force is missing"),
    "no energy": (drop("uncorrected_total_energy"), "uncorrected_total_energy is missing"),
    "no structure": (drop("structure"), "structure is missing"),
    "energy NaN": (put("uncorrected_total_energy", float("nan")), "energy has to be a number"),
    "force infinite": (put("force", [[0, -np.inf, 0], [0, 0, 0]]), "force.0.1 has to be a"),
    "energy null": (put("uncorrected_total_energy", None), "energy has to be a number"),
    "force null": (put("force", [[0, 0, None], [0, 0, 0]]), "force.0.2 has to be a number"),
    "force of one atom": (put("force", [[0, 0, 0]]), r"forces have shape \(1, 3\), expected \(2, "),
    "moments of one atom": (put("magmom", [1.0]), r"moments have shape \(1,\)"),
    "stress of six": (put("stress", [1, 2, 3, 4, 5, 6]), "stress"),
    "stress not symmetric": (put("stress", np.arange(9).reshape(3, 3).tolist()), "not symmetric"),
    "unknown element": (rename_nickel, "'Nj' is not an element. Did you mean 'N"),
    "disordered": (disorder, "site 0 is disordered"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_frame_is_named_before_anything_is_written(tmp_path, converted, name):
    damage, says = DAMAGE[name]
    frames = {f"mp-7-0-{i}": mptrj_frame(known(i)) for i in range(3)}
    damage(frames["mp-7-0-1"])
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"mp-7": frames}))
    with pytest.raises(DataError, match=says) as error:
        converted("mptrj", path)
    assert "Frame mp-7-0-1 of mp-7" in str(error.value)
    assert str(path) in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]
    assert len(converted("mptrj", path, skip_faulty=True)) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text[: len(text) // 2], "is the download complete"),
        (lambda text: "", "is the download complete"),
        (lambda text: text.replace('"bandgap": 0.7', '"bandgap": nan'), "not JSON"),
        (lambda text: '{"mp-1": [1, 2]}', "holds no frames by name"),
        (lambda text: "{}", "the source holds none"),
    ],
    ids=["truncated", "empty", "nan", "other JSON", "no material"],
)
def test_a_damaged_file_is_refused(tmp_path, converted, change, says):
    path = write_mptrj(tmp_path / "m.json", {"mp-1": [known(0), known(1)]})
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=says):
        converted("mptrj", path, skip_faulty=True)
    assert not (tmp_path / "out.xyz").exists()


def test_nan_in_what_is_not_read_does_no_harm(tmp_path):
    path = write_mptrj(tmp_path / "m.json", {"mp-1": [known(0), known(1)]})
    path.write_text(path.read_text().replace('"bandgap": 0.7', '"bandgap": NaN'))
    assert "NaN" in path.read_text()
    assert len(list(MPtrj().entries(path))) == 2


# A text that holds NaN between blank and comma is changed too: MPtrj has no such names.
TEXT = st.text(alphabet='Na"\\é{}') | st.just("NaN")
VALUES = st.recursive(
    st.none() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)


@given(value=VALUES, size=st.integers(1, 40))
def test_only_nan_and_infinity_are_replaced(value, size):
    stream = _WithoutNaN(io.BytesIO(json.dumps(value, indent=size % 3 or None).encode()))
    read = b"".join(iter(lambda: stream.read(size), b""))

    def without(value):
        if isinstance(value, float) and not np.isfinite(value):
            return None
        if isinstance(value, list):
            return [without(item) for item in value]
        if isinstance(value, dict):
            return {key: without(item) for key, item in value.items()}
        return value

    strict = {"parse_constant": lambda name: pytest.fail(f"{name} is left")}
    assert json.loads(read, **strict) == without(value)


def test_the_file_may_be_gzipped(tmp_path, converted):
    materials = {"mp-1": [known(0, moments="collinear"), known(1)]}
    text = write_mptrj(tmp_path / "m.json", materials).read_bytes()
    packed = tmp_path / "m.json.gz"
    packed.write_bytes(gzip.compress(text))
    for atoms, frame in zip(converted("mptrj", packed), materials["mp-1"], strict=True):
        assert_same(atoms, frame)
    packed.write_bytes(gzip.compress(text)[:-200])
    with pytest.raises(DataError, match="is the download complete"):
        list(MPtrj().entries(packed))
    packed.write_bytes(b"\x1f\x8bno gzip at all")
    with pytest.raises(DataError, match="is the download complete"):
        list(MPtrj().entries(packed))


def test_only_one_material_is_held_at_a_time(tmp_path):
    """The position moves on with the materials: the file is not read to its end first."""
    path = write_mptrj(tmp_path / "m.json", {f"mp-{i}": [known(i, "Ni8O8")] for i in range(200)})
    positions = [entry.position for entry in MPtrj().entries(path)]
    assert positions[0] < MPtrj().length(path) / 3
    assert positions == sorted(positions)
    assert positions[-1] <= MPtrj().length(path)


def test_without_ijson_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    path = write_mptrj(tmp_path / "m.json", {"mp-1": [known(0)]})
    monkeypatch.setitem(sys.modules, "ijson", None)
    with pytest.raises(ConfigError, match=r"e3sparse\[datasets\]"):
        list(MPtrj().entries(path))
