"""What every test needs before e3nn is imported, and quiet about what we cannot change."""

import secrets
from importlib.util import find_spec

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("device_runs", "hostile_models", "potentials", "replayed")

# e3nn 0.4.4 loads a file of constants with `weights_only`, which refuses the slices in it.
torch.serialization.add_safe_globals([slice])

# The gate draws the same cases every time; `--hypothesis-profile nightly` draws others each night.
# What fails is printed with the decorator that makes it fail again.
for profile, same in {"gate": True, "nightly": False}.items():
    settings.register_profile(
        profile,
        derandomize=same,
        print_blob=True,
        deadline=None,
        max_examples=20,
        # The checks of the symmetry suite draw with hypothesis, inside a test or outside.
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.nested_given],
    )
settings.load_profile("gate")


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


@pytest.fixture
def seed():
    """Of the searches of the symmetry suite: 0 in the gate, another one every night."""
    drawn = 0 if settings.default.derandomize else secrets.randbelow(2**32)
    print(f"seed={drawn}")  # with what a failure prints
    return drawn


@pytest.fixture
def few_shrinks(monkeypatch):
    """Of a case that fails, where a test does not read it: most of the time is spent on it."""
    monkeypatch.setattr("e3sparse.symmetry.search._SHRINKS", 5)


@pytest.fixture(autouse=True)
def _same_random_numbers_in_every_test():
    torch.manual_seed(0)
