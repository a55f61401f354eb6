"""The devices that a test runs on: the CPU everywhere, CUDA where there is one."""

import pytest
import torch

CUDA = pytest.param(
    "cuda",
    marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
)
on_each_device = pytest.mark.parametrize("device", ["cpu", CUDA])
