"""What every test needs before e3nn is imported, and quiet about what we cannot change."""

from importlib.util import find_spec

import pytest
import torch
from hypothesis import HealthCheck, settings

# e3nn 0.4.4 loads a file of constants with `weights_only`, which refuses the slices in it.
torch.serialization.add_safe_globals([slice])

settings.register_profile(
    "e3sparse",
    deadline=None,
    max_examples=20,
    # The checks of the symmetry suite draw their cases with hypothesis, inside a test or outside.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.nested_given],
)
settings.load_profile("e3sparse")


def pytest_configure(config):
    for warning in (".*torch.jit.*is deprecated", "The TorchScript type system doesn't support"):
        config.addinivalue_line("filterwarnings", f"ignore:{warning}")


# No environment holds all frameworks.
collect_ignore = [
    folder
    for folder, package in {
        "sevennet": "sevenn",
        "mace_torch": "mace",
        "nequip_torch": "nequip",
    }.items()
    if find_spec(package) is None
]


@pytest.fixture(autouse=True)
def _same_random_numbers_in_every_test():
    torch.manual_seed(0)
