"""What is said of a file before anything is done with it: one row, whatever it holds."""

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms

from e3sparse.frames.label_keys import LabelKeys
from e3sparse.frames.on_disk import read_set
from e3sparse.training.config import FinetuneConfig
from e3sparse.training.energy_zero import source_of_references, unused_isolated
from e3sparse.training.files_table import read_row, table_of_files

pytestmark = pytest.mark.any_e3nn

STRESS = np.diag([0.01, 0.02, 0.03])


def frames():
    """Two crystals, two molecules with zero stress, a slab, a faulty frame and an atom alone."""
    made = [bulk("Cu", cubic=True), bulk("Cu", cubic=True), molecule("H2O"), molecule("CO2")]
    slab = bulk("Cu", cubic=True)
    slab.pbc = (True, True, False)
    far = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 9.0]])
    made += [slab, far]
    for n, atoms in enumerate(made):
        atoms.rattle(0.03, seed=n)
        atoms.arrays["REF_forces"] = np.random.default_rng(n).normal(size=(len(atoms), 3))
        atoms.info |= {"REF_energy": -1.2345 * n, "REF_stress": STRESS * (not 2 <= n < 4)}
    made[0].set_constraint(FixAtoms([0]))
    made[0].arrays["REF_forces"][0] = 0
    return [*made, Atoms("H", info={"REF_energy": -13.6})]


@pytest.fixture
def path(tmp_path):
    ase.io.write(tmp_path / "all.xyz", frames(), format="extxyz")
    return tmp_path / "all.xyz"


def row_of(path, in_memory=100, **more):
    reading = read_set(
        path,
        LabelKeys(),
        known=(1, 6, 8, 29),
        cutoff=5.0,
        skip_faulty=True,
        in_memory=in_memory,
    )
    return read_row(path, reading, **more)


@pytest.mark.parametrize("in_memory", [0, 100], ids=["disk", "memory"])
def test_a_row_says_what_is_used_and_what_is_not(path, in_memory):
    row = row_of(path, in_memory, references="fitted", used_for="train", left_out=["more"])
    assert row == [
        str(path),
        "5 of 7\ntrain\nisolated: H",
        "H C O Cu",
        "2 no cell\n1 slab\n2 crystal",
        "5 energy: REF_energy\n5 forces: REF_forces\n2 stress: REF_stress",
        "fitted",
        "1 frames: faulty\n3 stresses: no volume\n1 frames: zero forces of fixed atoms\nmore",
    ]
    table = table_of_files([row, row])
    assert table.row_count == 2
    assert len(table.columns) == len(row)


def test_a_whole_file_is_used(tmp_path):
    ase.io.write(tmp_path / "two.xyz", frames()[2:4], format="extxyz")
    path = tmp_path / "two.xyz"
    path.write_text(path.read_text().replace("REF_stress", "dft_virial"))
    row = row_of(path, references="kept")
    assert row[1] == "2"
    assert row[-1] == "'dft_virial': not asked for"


@pytest.mark.parametrize(
    ("split", "e0s", "how", "unused"),
    [
        ("train", "fit", "isolated atom: H\nfitted: Cu", []),
        ("test", "fit", "as for train", ["isolated atoms: those of train count"]),
        ("train", "keep", "the base model's", ["isolated atoms: --e0s keep"]),
    ],
)
def test_how_references_are_got(split, e0s, how, unused):
    config = FinetuneConfig(model="m", train="t.xyz", e0s=e0s)
    assert source_of_references(config, split, {1}, {1, 29}) == how
    assert unused_isolated(config, split, {1}) == unused
    assert unused_isolated(config, split, {}) == []
