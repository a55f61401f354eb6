"""Files that were compiled hold no layers any more, and say so."""

import zipfile

import pytest
import torch

from e3sparse.errors import ConfigError
from e3sparse.potentials.backends import compiled_by, load_potential

pytestmark = pytest.mark.any_e3nn


@pytest.fixture
def compiled(tmp_path):
    """A file of each compiler, as `mace_create_lammps_model` and `nequip-compile` leave them."""
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "script.pt")
    with zipfile.ZipFile(tmp_path / "inductor.pt2", "w") as archive:
        archive.writestr("inductor/data/aotinductor/model/wrapper.so", b"code")
    return {"TorchScript": tmp_path / "script.pt", "AOTInductor": tmp_path / "inductor.pt2"}


def test_it_says_by_what_and_what_to_give(compiled):
    for compiler, path in compiled.items():
        assert compiled_by(path) == compiler
        with pytest.raises(ConfigError, match=rf"compiled by {compiler}, .* that it was made from"):
            load_potential(str(path))


def test_the_control_is_an_ordinary_file(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "plain.pt")
    (tmp_path / "words").write_text("no archive")
    for path in ("plain.pt", "words", "missing"):
        assert compiled_by(tmp_path / path) is None
