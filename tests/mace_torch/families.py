"""Small models of the kinds of MACE's foundation models, with random weights.

The blocks of mp-0 are those of its published log; the others combine what mace-torch 0.3.16 builds
for such models, and their options (of mh-1 above all) have not been compared with published
commands. Most are small; some have as many channels as elements on purpose: a species axis cannot
be told from its length.
"""

import functools

import numpy as np
import torch
from e3nn import o3
from mace.modules import blocks
from mace_models import NUMBERS, tiny

_NONLINEAR = {
    "interaction_cls_first": blocks.RealAgnosticResidualNonLinearInteractionBlock,
    "interaction_cls": blocks.RealAgnosticResidualNonLinearInteractionBlock,
    "readout_cls": blocks.NonLinearBiasReadoutBlock,
    "hidden_irreps": o3.Irreps("6x0e+6x1o"),
    "edge_irreps": o3.Irreps("3x0e+3x1o"),
    "apply_cutoff": False,
    "use_reduced_cg": True,
}
_DENSITY = {
    "interaction_cls_first": blocks.RealAgnosticDensityInteractionBlock,
    "interaction_cls": blocks.RealAgnosticDensityResidualInteractionBlock,
    "distance_transform": "Agnesi",
    "pair_repulsion": True,
}
_CHARGE_AND_SPIN = {
    "total_charge": {
        "type": "categorical",
        "per": "graph",
        "num_classes": 11,
        "offset": 5,
        "emb_dim": 3,
    },
    "total_spin": {"type": "categorical", "per": "graph", "num_classes": 6, "emb_dim": 3},
}
_EIGHTY_NINE = (*range(1, 84), *range(89, 95))

FAMILIES = {
    "mp-0": {
        "interaction_cls_first": blocks.RealAgnosticResidualInteractionBlock,
        "interaction_cls": blocks.RealAgnosticResidualInteractionBlock,
    },
    "mp-0b": {
        "interaction_cls_first": blocks.RealAgnosticResidualInteractionBlock,
        "interaction_cls": blocks.RealAgnosticResidualInteractionBlock,
        "distance_transform": "Agnesi",
        "pair_repulsion": True,
    },
    "mp-0b3": _DENSITY,  # MPA-0, OMAT-0 and MATPES have the same blocks
    "off23": {},
    "off24": {"hidden_irreps": o3.Irreps("6x0e+6x1o"), "num_interactions": 2},
    "mh-0": {**_NONLINEAR, "heads": ("omat", "omol", "matpes")},
    "mh-1": {
        **_NONLINEAR,
        "heads": ("omat", "omol"),
        "use_edge_irreps_first": True,
        "use_agnostic_product": True,
        "keep_last_layer_irreps": True,
        "atomic_numbers": _EIGHTY_NINE,
    },
    "omol": {
        **_NONLINEAR,
        "embedding_specs": _CHARGE_AND_SPIN,
        "use_embedding_readout": True,
        "use_last_readout_only": True,
    },
}


@functools.cache
def small(family, dtype=torch.float64):
    """Return a model of a family."""
    changes = dict(FAMILIES[family])
    numbers = changes.setdefault("atomic_numbers", NUMBERS)
    heads = len(changes.get("heads", ("Default",)))
    energies = np.tile(-np.arange(1.0, len(numbers) + 1), (heads, 1))
    made = tiny.__wrapped__(dtype, **changes, atomic_energies=energies)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            # MACE starts them so near 0 that elements would be told apart by nothing.
            if name.endswith(("source_embedding.weight", "target_embedding.weight")):
                parameter.mul_(1000.0)
            if name.endswith((".alpha",)):
                parameter.fill_(1.0)
    return made
