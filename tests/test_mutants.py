"""The table of mutants fits the code as it is."""

import shutil

import pytest
from mutants import MUTANTS, ROOT, apply


def test_there_are_enough_and_each_has_a_name():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_changes_one_place(mutant, tmp_path):
    changed = tmp_path / mutant.file
    changed.parent.mkdir(parents=True)
    shutil.copy(ROOT / mutant.file, changed)
    apply(mutant, tmp_path)
    assert changed.read_text() != (ROOT / mutant.file).read_text()
    compile(changed.read_text(), mutant.file, "exec")
    for file in mutant.tests.split():
        assert (ROOT / file).is_file()
