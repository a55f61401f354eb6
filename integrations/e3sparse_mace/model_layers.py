"""What the layers of a MACE model are, read from what they do and never from their names.

The same attribute is another layer from one architecture to the next: `skip_tp` runs over elements
in the older ones, and is a linear layer of features in `RealAgnosticResidualNonLinear…`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from e3nn import o3
from e3nn.nn import FullyConnectedNet
from mace.modules.radial import RadialMLP
from torch import Tensor, nn

from e3sparse.layers.kinds import kind_of
from e3sparse_mace.contractions import PRODUCTS


def species_candidates(model: Any) -> dict[str, int]:
    """Return the layers that may run over the elements, and the axis, by the length of it."""
    numbers = len(model.atomic_numbers)
    elements = o3.Irreps([(numbers, (0, 1))])
    found = {}
    for path, module in model.named_modules():
        kind = kind_of(module)
        if kind is PRODUCTS:
            axis = 0 if module.weights_max.shape[0] == numbers else None
        elif isinstance(module, o3.Linear):
            axis = 0 if module.irreps_in == elements else None
        elif isinstance(module, o3.FullyConnectedTensorProduct):
            axis = 1 if module.irreps_in2 == elements else None
        else:
            axis = None
        if axis is not None:
            found[path] = axis
    return found


@contextmanager
def fed_species(
    model: nn.Module, candidates: Mapping[str, int], node_attrs: Tensor
) -> Iterator[dict[str, int]]:
    """Yield those of the candidates that are given the one-hot species while the model runs.

    A layer of as many channels as there are elements has the same shape as one over elements.

    Parameters
    ----------
    node_attrs
        (N, elements) one-hot species of the structure that the model is run on, of more than
        one element if it has them.
    """
    fed: dict[str, int] = {}

    def look(path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            given = inputs[0] if isinstance(module, o3.Linear) else inputs[1]
            if given.shape == node_attrs.shape and torch.equal(given, node_attrs.to(given)):
                fed[path] = candidates[path]

        return hook

    handles = [
        model.get_submodule(path).register_forward_pre_hook(look(path)) for path in candidates
    ]
    try:
        yield fed
    finally:
        for handle in handles:
            handle.remove()


def radial_layers(model: Any) -> dict[str, str]:
    """Return each convolution, and the last layer of the network that makes its weights."""
    found = {}
    for number, block in enumerate(model.interactions):
        path, radial = f"interactions.{number}", block.conv_tp_weights
        if isinstance(radial, FullyConnectedNet):
            found[f"{path}.conv_tp"] = f"{path}.conv_tp_weights.layer{len(radial) - 1}"
        elif isinstance(radial, RadialMLP):
            found[f"{path}.conv_tp"] = f"{path}.conv_tp_weights.net.{len(radial.net) - 1}"
    return found


def target_aliases(model: Any, species: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Return what `all` and `last` stand for in this model.

    `all` is of the paper: the linear layers and the fully connected tensor products, of which
    there are none where the self-connections are linear. `last` is what acts on node features
    from the last interaction on: its linear layers, those of its product and the readouts.
    """
    kinds = {path: kind.name for path, module in model.named_modules() if (kind := kind_of(module))}
    everywhere = tuple(kind for kind in ("linear", "fctp") if kind in kinds.values())
    last = len(model.interactions) - 1
    parts = (f"interactions.{last}.", f"products.{last}.", "readouts.")
    late = tuple(
        path
        for path, kind in kinds.items()
        if kind == "linear" and path.startswith(parts) and path not in species
    )
    return {"all": everywhere, "last": late}
