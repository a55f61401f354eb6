"""A NequIP or Allegro adapter is refused on a model that would answer otherwise, on no other."""

import pytest
import torch
from e3sparse_nequip.backend import NequIPPotential
from nequip_models import MODELS, SHIFTS, built
from potentials import random_deltas

from e3sparse.errors import AdapterFileError

TARGETS = {"nequip": "linear", "allegro": "mlp"}


@pytest.fixture(scope="module", params=MODELS)
def framework(request):
    return request.param


@pytest.fixture(scope="module")
def folder(framework, tmp_path_factory):
    """An adapter of float64."""
    adapter = random_deltas(built(framework), TARGETS[framework])
    return adapter.save_pretrained(tmp_path_factory.mktemp("identity"))


CHANGES = {
    "shifts": ({"per_type_energy_shifts": SHIFTS | {"O": 7.0}}, r"energy_scale_shift\.shifts"),
    "scale": ({"per_type_energy_scales": 3.0}, r"scale_shift\.scales' is 3 here and 2"),
    "cutoff": ({"r_max": 3.5}, "(r_max|cutoff)' is 3.5 here and 4|rmax_recip"),
}


@pytest.mark.parametrize(("change", "says"), CHANGES.values(), ids=CHANGES)
def test_another_model(change, says, framework, folder):
    other = built(framework, **change)
    before = {name: value.clone() for name, value in other.module.state_dict().items()}
    with pytest.raises(AdapterFileError, match=says):
        other.load_adapter(folder)
    after = other.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_same_model(dtype, framework, folder):
    potential = NequIPPotential("again", built(framework).module, dtype=dtype)
    assert potential.load_adapter(folder).sparsity().updated > 0
