"""Small models of the kinds of MACE's foundation models, with random weights.

The options of mp-0, mp-0b, mp-0b3, mh-1 and omol are those of the published training commands
(github.com/ACEsuit/mace-foundations), with fewer channels, classes and radial functions. `--model
MACE` sets the first interaction of mp-0b. Of mh-0 no command is published; it and embedded combine
other options that mace-torch 0.3.16 has for such models. Most are small; some have as many channels
as elements on purpose: a species axis cannot be told from its length.
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
}
_DENSITY = {
    "interaction_cls_first": blocks.RealAgnosticDensityInteractionBlock,
    "interaction_cls": blocks.RealAgnosticDensityResidualInteractionBlock,
    "distance_transform": "Agnesi",
    "pair_repulsion": True,
}


def _charge_and_spin(charges, spins):
    """Embedded classes of total charges, from -charges to charges, and of multiplicities."""
    common = {"type": "categorical", "per": "graph", "in_dim": 1, "emb_dim": 3}
    return {
        "total_spin": common | {"num_classes": spins, "offset": 0},
        "total_charge": common | {"num_classes": 2 * charges + 1, "offset": charges},
    }


_EIGHTY_NINE = (*range(1, 84), *range(89, 95))

FAMILIES = {
    "mp-0": {
        "interaction_cls_first": blocks.RealAgnosticResidualInteractionBlock,
        "interaction_cls": blocks.RealAgnosticResidualInteractionBlock,
    },
    "mp-0b": {"distance_transform": "Agnesi", "pair_repulsion": True},
    "mp-0b3": _DENSITY,  # MPA-0, OMAT-0 and MATPES have the same blocks
    "off23": {},
    "off24": {"hidden_irreps": o3.Irreps("6x0e+6x1o"), "num_interactions": 2},
    "mh-0": {
        **_NONLINEAR,
        "use_reduced_cg": True,
        "heads": ("omat", "omol", "matpes"),
    },
    "mh-1": {
        **_NONLINEAR,
        "heads": ("omat", "omol"),
        "use_edge_irreps_first": True,
        "use_agnostic_product": True,
        "pair_repulsion": True,
        "distance_transform": "Agnesi",
        "atomic_numbers": _EIGHTY_NINE,
    },
    "omol": {
        **_NONLINEAR,
        "hidden_irreps": o3.Irreps("3x0e+3x1o+3x2e"),
        "edge_irreps": o3.Irreps("2x0e+2x1o+2x2e"),
        "num_interactions": 3,
        "correlation": 2,
        "embedding_specs": _charge_and_spin(100, 101),
    },
    "embedded": {
        **_NONLINEAR,
        "keep_last_layer_irreps": True,
        "embedding_specs": _charge_and_spin(5, 6),
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
