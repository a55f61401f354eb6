"""Whether an adapter belongs to a model: its layers, its Clebsch-Gordan convention, its base."""

from collections.abc import Mapping

from torch import nn

from e3sparse.adapter.config import AdapterConfig, LayerEntry
from e3sparse.adapter.fingerprint import clebsch_gordan_probe, e3nn_version, fingerprint
from e3sparse.adapter.identity import BaseIdentity
from e3sparse.adapter.state import state_of
from e3sparse.adapter.targets import candidates
from e3sparse.errors import AdapterFileError
from e3sparse.layers.layouts import Layout, Species


def matching_layouts(
    model: nn.Module,
    config: AdapterConfig,
    species: Species | None,
    constants: Mapping[str, float] | None,
) -> dict[str, Layout]:
    """Return the layers of the model that an adapter changes, by module path.

    Raises
    ------
    AdapterFileError
        If the adapter was made for another model, with what differs.
    """
    found = candidates(model, species).layers
    for path, entry in config.layers.items():
        if path not in found:
            raise AdapterFileError(
                f"The adapter changes layer '{path}', which this model does not have: it was "
                f"made for another model{called(config)}."
            )
        here = LayerEntry.of(found[path])
        if here != entry:
            raise AdapterFileError(
                f"Layer '{path}' is laid out differently: {_difference(here, entry)}. The "
                f"adapter was made for another model{called(config)}."
            )
    check_clebsch_gordan(config.clebsch_gordan, config.e3nn_version, "The adapter")
    _check_base(model, config, constants)
    return {path: found[path] for path in config.layers}


def check_clebsch_gordan(there: list[float], version: str, what: str) -> None:
    """Raise if path weights do not mean here what they meant where a file was written."""
    here = clebsch_gordan_probe()
    if (here and there) and (
        len(here) != len(there) or any(abs(a - b) > 1e-6 for a, b in zip(here, there, strict=True))
    ):
        raise AdapterFileError(
            f"{what} was made with e3nn {version}, whose Clebsch-Gordan coefficients differ in "
            f"sign or order from e3nn {e3nn_version()} here: path weights do not mean the same. "
            "Use an e3nn of its line."
        )


def _check_base(
    model: nn.Module, config: AdapterConfig, constants: Mapping[str, float] | None
) -> None:
    state = state_of(model)
    here = state.identity if state is not None else BaseIdentity.of(model, constants)
    differences = []
    # Files of format version 1, and models that an older e3sparse has pickled, know less.
    if here is not None and config.base is not None:
        differences = here.differences(config.base, (name for name, _ in model.named_buffers()))
    here_print = state.fingerprint if state is not None else fingerprint(model)
    more = f" and {len(differences) - 2} more" if len(differences) > 2 else ""
    named = ", ".join(differences[:2]) + more
    if here_print != config.base_fingerprint:
        raise AdapterFileError(
            "The layers fit, but the weights of this model are not those that the adapter was "
            f"trained on{called(config)}{': ' * bool(named)}{named} (fingerprint "
            f"{here_print[:12]} here, {config.base_fingerprint[:12]} in the adapter). Load it onto "
            "its own base model."
        )
    if differences:
        raise AdapterFileError(
            "The weights fit, but this model is not the one that the adapter was trained on"
            f"{called(config)}: {named}. Load it onto its own base model."
        )


def called(config: AdapterConfig) -> str:
    """Return the name of the base model as a phrase, if the adapter says one."""
    return f" ('{config.base_model}')" if config.base_model else ""


def _difference(here: LayerEntry, there: LayerEntry) -> str:
    for field in LayerEntry.model_fields:
        ours, theirs = getattr(here, field), getattr(there, field)
        if field != "blocks" and ours != theirs:
            return f"its {field} is {ours} here and {theirs} in the adapter"
    for ours, theirs in zip(here.blocks, there.blocks, strict=False):
        if ours != theirs:
            return f"a block is ({ours}) here and ({theirs}) in the adapter"
    return f"it has {len(here.blocks)} blocks here and {len(there.blocks)} in the adapter"
