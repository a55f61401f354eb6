"""An adapter folder that tests may damage."""

import shutil

import pytest
import torch
from networks import network, random_adapter


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """An adapter with sparse layers and one dense layer; not to be written to."""
    folder = tmp_path_factory.mktemp("adapter")
    adapter = random_adapter(network(), "all", "budget", target_sparsity=0.7)
    dense = adapter.deltas()["embedding"]
    with torch.no_grad():
        dense.keep.fill_(True)
        dense.v.fill_(0.5)
    return adapter.save_pretrained(folder)


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(saved, tmp_path / "adapter")
