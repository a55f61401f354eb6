"""`targets="species"` on NequIP and Allegro: what has none of the trained elements is kept."""

import pytest
from nequip_models import MODELS
from potentials import assert_only_trained_elements_change

from e3sparse.potentials.backends import load_potential


@pytest.mark.parametrize("framework", list(MODELS))
def test_only_trained_elements_change(framework, base_of, tmp_path):
    _, package = base_of(framework)
    assert_only_trained_elements_change(
        lambda: load_potential(str(package)), lambda file: load_potential(str(file)), tmp_path
    )
