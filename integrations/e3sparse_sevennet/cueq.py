"""SevenNet evaluated by cuEquivariance, with the weights of the e3nn model that is trained."""

import copy
from typing import Any

import sevenn._keys as KEY
from sevenn.checkpoint import _convert_e3nn_and_cueq
from sevenn.model_build import build_E3_equivariant_model
from sevenn.nn import cue_helper
from torch import nn

from e3sparse.errors import ConfigError
from e3sparse.potentials.converted import Converted, need, without_adapters


def cuequivariance(model: nn.Module, config: dict[str, Any]) -> Converted:
    """Return the cuEquivariance form of a SevenNet model with e3nn layers.

    Parameters
    ----------
    config
        Of its checkpoint.

    Raises
    ------
    ConfigError
        If cuEquivariance is not installed, there is no GPU, which SevenNet asks for, or SevenNet
        cannot convert the model.
    """
    need("cuEquivariance", "cuequivariance_torch")
    if not cue_helper.is_cue_available():
        raise ConfigError("SevenNet uses cuEquivariance on a GPU only, and there is none.")
    if not cue_helper.is_cue_cuda_available_model(config):
        raise ConfigError("SevenNet cannot convert a model with biases to cuEquivariance.")
    bare = without_adapters(model)
    weight = next(bare.parameters())
    wanted = copy.deepcopy(config) | {KEY.CUEQUIVARIANCE_CONFIG: {"use": True}}
    try:
        form: Any = build_E3_equivariant_model(wanted)
        weights = _convert_e3nn_and_cueq(
            bare.state_dict(), form.state_dict(), config, from_cueq=False
        )
    except Exception as error:  # SevenNet's conversion asserts
        raise ConfigError(
            f"SevenNet cannot convert this model to cuEquivariance ({error})."
        ) from error
    form.load_state_dict(weights, strict=False)
    form.set_is_batch_data(True)
    return Converted(model, form.to(device=weight.device, dtype=weight.dtype))
