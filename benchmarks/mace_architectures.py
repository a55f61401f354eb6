"""Published MACE architectures with random weights, for counts and timings where there is no hub.

Hyperparameters as in the papers and the model files: MACE-OFF23 (Kovács et al. 2023), MACE-MP-0b3
(Batatia et al. 2024).
"""

from typing import Any

import numpy as np
import torch
from e3nn import o3
from mace.modules import blocks
from mace.modules.models import ScaleShiftMACE
from mace.tools.torch_tools import default_dtype

_OFF23 = (1, 6, 7, 8, 9, 15, 16, 17, 35, 53)
_MP = (*range(1, 84), *range(89, 95))

_COMMON: dict[str, Any] = {
    "num_polynomial_cutoff": 5,
    "max_ell": 3,
    "num_interactions": 2,
    "MLP_irreps": o3.Irreps("16x0e"),
    "correlation": 3,
    "gate": torch.nn.functional.silu,
    "radial_type": "bessel",
    "radial_MLP": [64, 64, 64],
    "atomic_inter_scale": 1.0,
    "atomic_inter_shift": 0.0,
    "avg_num_neighbors": 20.0,
    "use_reduced_cg": False,
}
_AGNOSTIC = {
    "interaction_cls_first": blocks.RealAgnosticInteractionBlock,
    "interaction_cls": blocks.RealAgnosticResidualInteractionBlock,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "off23-small": {
        "hidden_irreps": o3.Irreps("96x0e"),
        "r_max": 4.5,
        "num_bessel": 8,
        "atomic_numbers": _OFF23,
        **_AGNOSTIC,
    },
    "off23-medium": {
        "hidden_irreps": o3.Irreps("128x0e+128x1o"),
        "r_max": 5.0,
        "num_bessel": 8,
        "atomic_numbers": _OFF23,
        **_AGNOSTIC,
    },
    "mp-0b3-medium": {
        "hidden_irreps": o3.Irreps("128x0e+128x1o"),
        "r_max": 6.0,
        "num_bessel": 10,
        "atomic_numbers": _MP,
        "interaction_cls_first": blocks.RealAgnosticDensityInteractionBlock,
        "interaction_cls": blocks.RealAgnosticDensityResidualInteractionBlock,
        "distance_transform": "Agnesi",
        "pair_repulsion": True,
    },
}


def random_model(
    architecture: str, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any
) -> ScaleShiftMACE:
    """Build a model with random weights.

    Parameters
    ----------
    architecture
        One of `ARCHITECTURES`.
    changes
        Arguments of `ScaleShiftMACE` that differ.
    """
    settings = {**_COMMON, **ARCHITECTURES[architecture], **changes}
    numbers = list(settings["atomic_numbers"])
    settings |= {
        "atomic_numbers": numbers,
        "num_elements": len(numbers),
        "atomic_energies": settings.get("atomic_energies", np.zeros(len(numbers))),
    }
    with torch.random.fork_rng(devices=[]), default_dtype(dtype):
        torch.manual_seed(seed)
        return ScaleShiftMACE(**settings)
