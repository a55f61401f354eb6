"""Spin-aware layers on MACE."""

import pytest
from mace_models import load
from magnetic_potentials import *  # noqa: F403


@pytest.fixture(scope="module")
def load_tiny(tiny_file):
    return lambda dtype: load(tiny_file, dtype)
