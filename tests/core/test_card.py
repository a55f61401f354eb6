"""The model card says what the adapter is, and leaves alone what somebody has written there."""

import re

import pytest
import yaml
from networks import network, random_adapter

from e3sparse.adapter.card import CARD_NAME
from e3sparse.adapter.config import read_config

pytestmark = pytest.mark.any_e3nn

METRICS = {
    "frames": {"train": 1200, "test": 60},
    "train after": {"energy_mae": 1.5, "forces_mae": 20.25, "forces_mae_H": 1.0, "forces_mae_O": 2},
    "test after": {"energy_mae": 1.75, "forces_mae": None, "stress_mae": 0.125},
}


@pytest.fixture
def saved(tmp_path):
    adapter = random_adapter(network(), "all", "budget")
    adapter.energy_references.update({8: 0.25, 1: -13.5})
    return adapter.save_pretrained(
        tmp_path, base_model="/home/me/7net|0", framework={"sevenn": "0.13.0"}, metrics=METRICS
    )


def read(folder):
    return (folder / CARD_NAME).read_text(encoding="utf-8")


def test_the_card_says_what_the_adapter_is(saved):
    text, config = read(saved), read_config(saved)
    head = yaml.safe_load(text.split("---\n")[1])
    assert head == {
        "library_name": "e3sparse",
        "license": "unknown",
        "tags": ["e3sparse", "interatomic-potential"],
    }
    for part in (
        "| base model | 7net\\|0 |",
        "sevenn 0.13.0",
        f"| updated entries | {config.sparsity['updated']:,.0f} in {len(config.layers)} layers |",
        "1: -13.5, 8: +0.25",
        "Frames: 1,200 train, 60 test.",
        "Elements: H, O.",
        "| | energy MAE (meV/atom) | force MAE (meV/Å) | stress MAE (meV/Å³) |",
        "| train after | 1.5 | 20.25 |  |",
        "| test after | 1.75 |  | 0.125 |",
        "e3sparse.load(model, FOLDER)",
    ):
        assert part in text
    assert "/home/me" not in text


def test_the_card_of_an_adapter_of_which_nothing_is_known(tmp_path):
    text = read(random_adapter(network(), "all", "low_rank").save_pretrained(tmp_path))
    assert "# A sparse delta on an e3nn model" in text
    assert "## Errors" not in text


def test_every_row_of_a_table_has_as_many_cells(saved):
    for table in re.findall(r"(?:^\|.*\n)+", read(saved), re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1


def test_an_edited_card_is_kept(saved):
    edited = read(saved).replace("license: unknown", "license: mit")
    (saved / CARD_NAME).write_text(edited, encoding="utf-8")
    random_adapter(network(), "linear", "dense").save_pretrained(saved)
    assert read(saved) == edited


def test_a_card_of_ours_is_written_anew(saved):
    random_adapter(network(), "linear", "dense").save_pretrained(saved, base_model="another")
    assert "# A sparse delta on another" in read(saved)


@pytest.mark.parametrize("content", [b"", b"mine", b"\xff\xfe", b"<!-- e3sparse wrote this: 0 -->"])
def test_what_is_no_card_is_kept(content, tmp_path):
    (tmp_path / CARD_NAME).write_bytes(content)
    random_adapter(network(), "all", "dense").save_pretrained(tmp_path)
    assert (tmp_path / CARD_NAME).read_bytes() == content
