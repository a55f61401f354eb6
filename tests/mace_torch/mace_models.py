"""Small MACE models, made on the spot, and how the tests load them."""

import functools
import os
from pathlib import Path

import numpy as np
import torch
from e3nn import o3

SHARED = Path(os.environ.get("E3SPARSE_SHARED", Path(__file__).parents[3] / "shared"))
NUMBERS = (1, 6, 7, 8, 11, 17)
TARGETS = ("linear", "fctp", "tp", "mlp", "products", "all", "last", "everything")


def load(model, dtype=None, head=None):
    """Load a model on the CPU."""
    from e3sparse_mace import MACEBackend

    return MACEBackend().load(str(model), device="cpu", dtype=dtype, head=head)


@functools.cache
def tiny(dtype=torch.float64, **changes):
    """Return a model of a few thousand parameters with every kind of layer that MACE has."""
    from mace_architectures import random_model

    heads = changes.get("heads", ("Default",))
    settings = {
        "hidden_irreps": o3.Irreps("4x0e+4x1o"),
        "atomic_numbers": NUMBERS,
        "max_ell": 2,
        "correlation": 3,
        "radial_MLP": [8],
        "MLP_irreps": o3.Irreps("4x0e"),
        "r_max": 4.0,
        "num_bessel": 4,
        "avg_num_neighbors": 1.0,
        "atomic_inter_scale": [10.0] * len(heads),
        "atomic_inter_shift": [0.0] * len(heads),
        "atomic_energies": np.tile(-np.arange(1.0, len(NUMBERS) + 1), (len(heads), 1)),
    }
    settings |= {k: list(v) if type(v) is tuple else v for k, v in changes.items()}
    return random_model("off23-medium", dtype, **settings)
