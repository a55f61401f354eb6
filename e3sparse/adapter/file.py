"""Reading an adapter folder, with or without the model that it belongs to.

For each patched layer the tensors are `<layer>.indices` (int32, into the flat weight) and
`<layer>.values`, or `<layer>.values` alone where most entries changed. Nothing in the folder is
executed.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from e3sparse.adapter.belonging import matching_layouts
from e3sparse.adapter.config import ADAPTER_FOLDER, CONFIG_NAME, TENSORS_NAME
from e3sparse.adapter.encoding import checked_entries, decode
from e3sparse.adapter.handle import Adapter
from e3sparse.adapter.hub import local_folder
from e3sparse.adapter.patching import install, unwrapped
from e3sparse.adapter.saving import STATISTICS
from e3sparse.adapter.statistics import statistics
from e3sparse.adapter.targets import Selection
from e3sparse.deltas import Delta, make_method
from e3sparse.errors import AdapterFileError, ConfigError
from e3sparse.layers.layouts import Layout, Species
from e3sparse.layers.merging import base_parameter


def load(
    model: nn.Module,
    directory: str | Path,
    *,
    name: str = "default",
    trainable: bool = False,
    species: Species | None = None,
    fold_into: Mapping[str, str] | None = None,
    constants: Mapping[str, float] | None = None,
) -> Adapter:
    """Put a saved adapter on its base model.

    Parameters
    ----------
    model
        The base model that the adapter was trained on, with or without other adapters.
    directory
        An adapter folder, or `"hf://org/name"`; see `e3sparse.adapter.hub`.
    name
        Name to give it on this model.
    trainable
        Whether the entries that the adapter changed can be trained on.
    species, fold_into, constants
        As for `e3sparse.patch`.

    Raises
    ------
    AdapterFileError
        If the folder is not an adapter, is not as it was written, or belongs to another model (of
        other weights, buffers such as atomic energies, or numbers such as a cutoff); nothing has
        been changed then.
    """
    directory, model = local_folder(directory), unwrapped(model)
    config, tensors = ADAPTER_FOLDER.read(directory)
    layouts = matching_layouts(model, config, species, constants)
    deltas: dict[str, Delta] = {}
    for path, layout in layouts.items():
        delta = decode(path, layout, tensors)
        reference = _reference(model, path, layout)
        added = delta().detach().to(reference.dtype) * config.scale
        if not torch.isfinite(added).all():
            raise AdapterFileError(
                f"The values of layer '{path}' are too large for {reference.dtype}, the precision "
                "of this model."
            )
        deltas[path] = delta.to(dtype=reference.dtype, device=reference.device)
        deltas[path].requires_grad_(trainable)
    own_statistics = _take_statistics(model, tensors)
    if tensors:
        raise AdapterFileError(
            f"{TENSORS_NAME} holds '{next(iter(tensors))}', which is of no layer in "
            f"{CONFIG_NAME}: the folder is damaged."
        )
    try:
        method = make_method(config.method, **config.settings)
    except (ConfigError, TypeError) as error:
        raise AdapterFileError(f"{directory / CONFIG_NAME}: {error}") from None
    adapter = install(
        model,
        name,
        method,
        Selection(layouts, ()),
        deltas,
        targets=config.targets,
        progress=1.0,
        species=species,
        fold_into=fold_into,
        constants=constants,
        moving_statistics=trainable and bool(own_statistics),
        statistics=own_statistics or None,
    )
    adapter.scale = config.scale
    adapter.energy_references.update(config.energy_references)
    return adapter


def read_values(directory: str | Path) -> dict[str, Tensor]:
    """Read what an adapter adds to each layer, in the weight's shape, without a model.

    Raises
    ------
    AdapterFileError
        If the folder is not an adapter, or is not as it was written.
    """
    config, tensors = ADAPTER_FOLDER.read(local_folder(directory))
    found = {}
    for path, entry in config.layers.items():
        numel = prod(entry.shape)
        indices, values = checked_entries(path, numel, tensors)
        flat = values if indices is None else values.new_zeros(numel)
        if indices is not None:
            flat[indices] = values
        scaled = flat if config.scale == 1 else flat * config.scale
        found[path] = scaled.reshape(entry.shape)
    return found


def _take_statistics(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the running statistics out of `tensors`, checked against the model's."""
    names = [name for name in tensors if name.startswith(STATISTICS)]
    taken = {name.removeprefix(STATISTICS): tensors.pop(name) for name in names}
    here = statistics(model)
    for name, value in taken.items():
        if name not in here or here[name].shape != value.shape:
            raise AdapterFileError(
                f"The adapter brings running statistics '{name}' {tuple(value.shape)}, and this "
                "model has none of that name and shape: it was made for another model."
            )
        if not torch.isfinite(value).all():
            raise AdapterFileError(f"The running statistics '{name}' are not all finite numbers.")
    return taken


def _reference(model: nn.Module, path: str, layout: Layout) -> Tensor:
    for parameter in layout.parameters:
        return base_parameter(model, f"{path}.{parameter}")
    return next(iter(model.parameters()))
