"""MACE evaluated by cuEquivariance, with the weights of the e3nn model that is trained."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from mace.cli.convert_e3nn_cueq import run as convert
from mace.cli.convert_e3nn_cueq import transfer_symmetric_contractions
from mace.tools.scripts_utils import extract_config_mace_model
from mace.tools.torch_tools import default_dtype
from torch import Tensor

from e3sparse.errors import ConfigError
from e3sparse.potentials.converted import Converted, need, without_adapters


def cuequivariance(model: Any) -> Converted:
    """Return the cuEquivariance form of a `mace.modules.MACE` with e3nn layers.

    Raises
    ------
    ConfigError
        If cuEquivariance is not installed, or MACE cannot convert the model.
    """
    need("cuEquivariance", "cuequivariance_torch")
    if type(model).__name__ != "PolarMACE" and model.products[-1].linear.irreps_out.lmax > 0:
        raise ConfigError(
            f"MACE cannot convert this {type(model).__name__} to cuEquivariance: its last layer "
            "hands on more than scalars, and the conversion takes it for one that does not."
        )
    bare = without_adapters(model)
    weight = next(bare.parameters())
    with default_dtype(weight.dtype):
        try:
            form = convert(bare, device=weight.device.type)
        except Exception as error:  # MACE's conversion has no error of its own
            raise ConfigError(
                f"MACE cannot convert this {type(bare).__name__} to cuEquivariance ({error})."
            ) from error
    form = form.to(device=weight.device, dtype=weight.dtype)
    return Converted(model, form, _contractions(bare, weight))


def _contractions(model: Any, like: Tensor) -> dict[str, Callable[[Mapping[str, Tensor]], Tensor]]:
    """Return how the weights of each converted symmetric contraction are made.

    MACE's own transfer tells: it is linear in the rows of the weights, so that the rows of the
    identity give its matrix.
    """
    config = extract_config_mace_model(model)
    own = dict(model.named_parameters())
    probe: dict[str, Tensor] = {}
    sources: dict[str, list[str]] = {}
    for number, _ in enumerate(model.products):
        prefix = f"products.{number}.symmetric_contractions."
        names = [name for name in own if name.startswith(prefix)]
        rows = [own[name].shape[1] for name in names]
        identity = torch.eye(sum(rows), dtype=torch.float64)[:, :, None]  # (A, A, 1)
        probe |= dict(zip(names, identity.split(rows, dim=1), strict=True))
        sources[f"{prefix}weight"] = names
    found: dict[str, Tensor] = {}
    # As `run` of mace/cli/convert_e3nn_cueq.py calls it.
    transfer_symmetric_contractions(
        probe,
        found,
        len(config["hidden_irreps"].slices()) - 1,
        model.products,
        config["correlation"],
        config["num_interactions"],
        config.get("use_reduced_cg", True),
        config.get("keep_last_layer_irreps", False),
    )
    return {name: _Rows(sources[name], matrix[:, :, 0].to(like)) for name, matrix in found.items()}


class _Rows:
    """The rows of several weights (Z, n, channels), times a matrix (A, B)."""

    def __init__(self, sources: list[str], matrix: Tensor) -> None:
        self.sources, self.matrix = sources, matrix

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        rows = torch.cat([weights[source] for source in self.sources], dim=1)  # (Z, A, channels)
        return torch.einsum("zau,ab->zbu", rows, self.matrix.to(rows))
