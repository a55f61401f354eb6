"""SevenNet evaluated by other libraries, with the weights of the e3nn model that is trained."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import sevenn._keys as KEY
from sevenn.checkpoint import _convert_e3nn_and_cueq
from sevenn.model_build import build_E3_equivariant_model
from sevenn.nn import cue_helper, oeq_helper
from torch import nn

from e3sparse.errors import ConfigError
from e3sparse.potentials.converted import Converted, need, without_adapters


class Library(NamedTuple):
    """What SevenNet can evaluate its convolutions by.

    Attributes
    ----------
    name, package
        As people call it, and as it is imported.
    config
        What SevenNet's config says then.
    usable
        Whether SevenNet can use it here: all of them want a GPU.
    """

    name: str
    package: str
    config: dict[str, Any]
    usable: Callable[[], bool]


LIBRARIES = {
    "cueq": Library(
        "cuEquivariance",
        "cuequivariance_torch",
        {KEY.CUEQUIVARIANCE_CONFIG: {"use": True}},
        lambda: cue_helper.is_cue_available(),
    ),
    "oeq": Library(
        "OpenEquivariance",
        "openequivariance",
        {KEY.USE_OEQ: True},
        lambda: oeq_helper.is_oeq_available(),
    ),
}


def convert(model: nn.Module, config: dict[str, Any], library: str) -> Converted:
    """Return the form of a SevenNet model with e3nn layers that a library evaluates.

    Parameters
    ----------
    config
        Of its checkpoint.
    library
        One of `LIBRARIES`.

    Raises
    ------
    ConfigError
        If the library is not installed, there is no GPU, or SevenNet cannot convert the model.
    """
    wanted = LIBRARIES[library]
    need(wanted.name, wanted.package)
    if not wanted.usable():
        raise ConfigError(f"SevenNet uses {wanted.name} on a GPU only, and there is none.")
    if library == "cueq" and not cue_helper.is_cue_cuda_available_model(config):
        raise ConfigError("SevenNet cannot convert a model with biases to cuEquivariance.")
    bare = without_adapters(model)
    weight = next(bare.parameters())
    try:
        form: Any = build_E3_equivariant_model(copy.deepcopy(config) | wanted.config)
        weights = _convert_e3nn_and_cueq(
            bare.state_dict(), form.state_dict(), config, from_cueq=False
        )
    except Exception as error:  # SevenNet's conversion asserts
        raise ConfigError(
            f"SevenNet cannot convert this model to {wanted.name} ({error})."
        ) from error
    form.load_state_dict(weights, strict=False)
    form.set_is_batch_data(True)
    return Converted(model, form.to(device=weight.device, dtype=weight.dtype))
