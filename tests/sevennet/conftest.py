"""A tiny SevenNet checkpoint and labelled frames, made on the spot."""

import sys

import pytest
import sevenn
import sevenn._keys as KEY
import torch
from sample_frames import splits
from sevenn import _const
from sevenn.model_build import build_E3_equivariant_model
from sevenn.nn.node_embedding import get_type_mapper_from_specie
from support import load

from e3sparse.cli import main

SPECIES = ("H", "C", "N", "O", "Na", "Cl")


@pytest.fixture(autouse=True)
def _one_thread():
    """Scatter adds in an arbitrary order on several threads, which bitwise tests would see."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A model of two layers with FCTP self-connections, O(3) features and random weights."""
    config = dict(_const.DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG)
    config |= {
        "version": sevenn.__version__,
        KEY.MODEL_TYPE: "E3_equivariant_model",
        KEY.CUTOFF: 4.0,
        KEY.CHEMICAL_SPECIES: list(SPECIES),
        KEY.NUM_SPECIES: len(SPECIES),
        KEY.TYPE_MAP: get_type_mapper_from_specie(list(SPECIES)),
        KEY.NODE_FEATURE_MULTIPLICITY: 4,
        KEY.LMAX: 1,
        KEY.NUM_CONVOLUTION: 2,
        KEY.CONVOLUTION_WEIGHT_NN_HIDDEN_NEURONS: [8],
        KEY.SHIFT: [-1.0] * len(SPECIES),
        KEY.SCALE: [1.0] * len(SPECIES),
        KEY.CONV_DENOMINATOR: [4.0, 4.0],
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_E3_equivariant_model(config)
    path = tmp_path_factory.mktemp("models") / "tiny.pth"
    torch.save({"config": config, "model_state_dict": model.state_dict()}, path)
    return path


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def tiny(request, tiny_checkpoint):
    """The tiny model, loaded by the backend."""
    return load(tiny_checkpoint, request.param)


@pytest.fixture(scope="session")
def data_files(tmp_path_factory):
    """Paths of a train, a valid and a test file."""
    return splits(tmp_path_factory.mktemp("data"))


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process; returns exit code, output and error output."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["e3sparse", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        return exit_.value.code, printed.out, " ".join(printed.err.split())

    return call
