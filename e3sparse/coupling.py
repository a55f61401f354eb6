"""Clebsch–Gordan coefficients in the precision that a model is used in."""

import re

import torch
from torch import nn

_BUFFER = re.compile(r"_w3j_(\d+)_(\d+)_(\d+)")


@torch.no_grad()
def recompute_wigner_3j(module: nn.Module) -> None:
    """Fill e3nn's `_w3j_…` buffers with the coefficients in their own precision.

    A model that was saved in float32 keeps coefficients of 7 digits when it is converted to
    float64, and its equivariance is as bad: 2e-9 in forces for SevenNet-0, against 1e-13.
    """
    from e3nn import o3

    for path, buffer in module.named_buffers():
        degrees = _BUFFER.fullmatch(path.rpartition(".")[2])
        if degrees is None:
            continue
        exact = o3.wigner_3j(*map(int, degrees.groups()), dtype=torch.float64).to(buffer)
        # Of another sign convention they are right as they are.
        if torch.allclose(buffer, exact, rtol=0.0, atol=1e-5):
            buffer.copy_(exact)
