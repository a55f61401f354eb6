"""`targets="species"` on MACE: what has none of the trained elements does not change."""

import pytest
import torch
from families import small
from mace_models import load
from potentials import assert_only_trained_elements_change

from e3sparse.adapter.targets import select


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("family", ["off23", "mp-0", "mh-1"])
def test_only_trained_elements_change(family, dtype, tmp_path):
    file = tmp_path / "base.model"
    model = small(family, dtype)
    torch.save(model, file)
    several = model.heads[0] if len(model.heads) > 1 else None
    assert_only_trained_elements_change(
        lambda: load(file, head=several), lambda saved: load(saved, head=several), tmp_path
    )


def test_what_is_of_one_element_is_the_embedding_the_connections_and_the_products(potential):
    layers = select(potential.module, "species", potential.species).layers
    assert {layout.kind for layout in layers.values()} == {"linear", "fctp", "products"}
    assert set(layers) == set(potential.species.axes)
