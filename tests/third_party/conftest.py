"""The backend of `shells.py` as pip would install it: a distribution with an entry point."""

import sys

import pytest
import torch
from sample_frames import splits
from shells import Shells, ShellsPotential

from e3sparse.cli import main


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Put the metadata of an installed distribution on the path."""
    folder = tmp_path / "site" / "shells-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: shells\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[e3sparse.backends]\nshells = shells:ShellsBackend\n")
    monkeypatch.syspath_prepend(folder.parent)


@pytest.fixture
def potential():
    """Random weights, float64."""
    return ShellsPotential("shells", Shells([1, 6, 8, 11, 17], 4.0, 6, 16).double())


@pytest.fixture
def model(potential, tmp_path):
    """A file of it."""
    path = tmp_path / "base.shells"
    potential.save(path)
    return path


@pytest.fixture
def files(tmp_path):
    """Paths of a train, a valid and a test file."""
    folder = tmp_path / "data"
    folder.mkdir()
    return splits(folder)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process; returns exit code, output and error output."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["e3sparse", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        return exit_.value.code, printed.out, printed.err

    return call


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
