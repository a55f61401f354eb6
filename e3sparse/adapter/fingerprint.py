"""What tells one base model, and one Clebsch-Gordan convention, from another."""

import hashlib
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import nn

from e3sparse.adapter.statistics import as_float32
from e3sparse.layers.injection import SUBMODULE


def fingerprint(model: nn.Module) -> str:
    """Return a hash of the names, shapes and values of all base parameters.

    Values are hashed as float32, so that a model that was cast to float64 is still the same
    model. Deltas do not count. For what decides the answer besides, see
    `e3sparse.adapter.identity.BaseIdentity`.
    """
    digest = hashlib.sha256()
    for name, parameter in base_parameters(model):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(as_float32(parameter))
    return digest.hexdigest()


def base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of a base model, by name, without those of deltas on it."""
    for name, parameter in model.named_parameters():
        if f".{SUBMODULE}." not in f".{name}":
            yield name, parameter


def clebsch_gordan_probe() -> list[float]:
    """Return one number for each of a few Clebsch-Gordan tensors, signs and order included.

    Two versions of e3nn agree on all of them if path weights mean the same in both.
    """
    o3 = sys.modules.get("e3nn.o3")
    if o3 is None:
        return []
    probe = []
    for triple in ((1, 1, 0), (1, 1, 1), (1, 1, 2), (1, 2, 2), (2, 2, 2), (2, 2, 3)):
        w3j = o3.wigner_3j(*triple, dtype=torch.float64).reshape(-1)
        ramp = torch.arange(1, w3j.numel() + 1, dtype=torch.float64)
        probe.append(round(float(w3j @ ramp.sqrt()), 8))
    return probe


def e3nn_version() -> str:
    """Return the version of the e3nn that is installed."""
    try:
        return version("e3nn")
    except PackageNotFoundError:
        return "unknown"
