"""A small MACE file and labelled frames, made on the spot."""

import sys
from pathlib import Path

import pytest
import torch
from mace_models import load, tiny
from sample_frames import splits

# Last, because a benchmark may have the name of somebody's package.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory):
    """A model file of float32, as most are."""
    path = tmp_path_factory.mktemp("models") / "tiny.model"
    torch.save(tiny(torch.float32), path)
    return path


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def potential(request, tiny_file):
    """The tiny model, loaded by the backend."""
    return load(tiny_file, request.param)


@pytest.fixture(scope="session")
def data_files(tmp_path_factory):
    """Paths of a train, a valid and a test file."""
    return splits(tmp_path_factory.mktemp("data"))
