"""Clebsch–Gordan coefficients in the precision that a model is used in."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_BUFFER = re.compile(r"_w3j_(\d+)_(\d+)_(\d+)")


@torch.no_grad()
def recompute_wigner_3j(module: nn.Module) -> dict[str, Tensor]:
    """Fill e3nn's `_w3j_…` buffers of float64 that hold 7 digits with all digits.

    A model that was saved in float32 keeps coefficients of 7 digits when it is converted to
    float64, and its equivariance is as bad: 2e-9 in forces for SevenNet-0, against 1e-13. In
    float32 they are left as the framework made them, or a model that is read and written again
    would say something else than before.

    Returns
    -------
    dict
        What was overwritten, by the name of the buffer; see `as_read`.
    """
    from e3nn import o3

    overwritten = {}
    for path, buffer in module.named_buffers():
        degrees = _BUFFER.fullmatch(path.rpartition(".")[2])
        if degrees is None or not seven_digits(buffer):
            continue
        exact = o3.wigner_3j(*map(int, degrees.groups()), dtype=torch.float64).to(buffer)
        # Of another sign convention they are right as they are.
        if torch.allclose(buffer, exact, rtol=0.0, atol=1e-5):
            overwritten[path] = buffer.clone()
            buffer.copy_(exact)
    return overwritten


def seven_digits(buffer: Tensor) -> bool:
    """Whether float64 holds numbers that were float32 once."""
    return buffer.dtype == torch.float64 and torch.equal(buffer, buffer.float().double())


@contextmanager
def as_read(module: nn.Module, overwritten: Mapping[str, Tensor]) -> Iterator[None]:
    """Put constants back as they were read, while the model is written.

    Its framework then finds the constants of the base model in the file, and says what it says
    of the base model wherever no weight has changed.
    """
    buffers = dict(module.named_buffers())
    exact = {name: buffers[name].clone() for name in overwritten if name in buffers}
    try:
        with torch.no_grad():
            for name in exact:
                buffers[name].copy_(overwritten[name])
        yield
    finally:
        with torch.no_grad():
            for name, values in exact.items():
                buffers[name].copy_(values)
