"""Spin-aware layers on SevenNet."""

import pytest
from magnetic_potentials import *  # noqa: F403
from support import load


@pytest.fixture(scope="module")
def load_tiny(tiny_checkpoint):
    return lambda dtype: load(tiny_checkpoint, dtype)
