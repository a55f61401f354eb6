"""An adapter on disk: `adapter_config.json` and `adapter_model.safetensors`.

For each patched layer the tensors are `<layer>.indices` (int32, into the flat weight) and
`<layer>.values`, or `<layer>.values` alone where most entries changed. Nothing in the folder is
executed.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from e3sparse.adapter.config import (
    CONFIG_NAME,
    FORMAT_VERSION,
    AdapterConfig,
    LayerEntry,
    read_config,
)
from e3sparse.adapter.fingerprint import clebsch_gordan_probe, e3nn_version, fingerprint
from e3sparse.adapter.handle import Adapter
from e3sparse.adapter.patching import adapters, install, unwrapped
from e3sparse.adapter.statistics import statistics
from e3sparse.adapter.targets import Selection, candidates
from e3sparse.deltas import Delta, make_method
from e3sparse.deltas.dense import DenseDelta
from e3sparse.deltas.fixed_mask import FixedMaskDelta
from e3sparse.errors import AdapterFileError, ConfigError
from e3sparse.files import replacing
from e3sparse.layers.layouts import Layout, Species
from e3sparse.layers.merging import base_parameter
from e3sparse.version import __version__

TENSORS_NAME = "adapter_model.safetensors"
_STATISTICS = "statistics/"  # before the name of a buffer


def save(
    adapter: Adapter,
    directory: Path,
    *,
    base_model: str | None = None,
    framework: Mapping[str, str] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Path:
    """Write an adapter folder.

    Parameters
    ----------
    adapter
        Attached, merged or taken out.
    directory
        Made if it does not exist; its two files are replaced if it does.
    base_model
        Name or path of the base model, for the reader's information.
    framework
        Name and version of the framework.
    metrics
        Anything JSON can hold.
    """
    values = adapter.values()
    for path, value in values.items():
        if not torch.isfinite(value).all():
            raise AdapterFileError(
                f"The values of layer '{path}' are not all finite numbers: the training diverged."
            )
    counts = adapter.sparsity()
    config = AdapterConfig(
        format_version=FORMAT_VERSION,
        e3sparse_version=__version__,
        e3nn_version=e3nn_version(),
        framework=dict(framework or {}),
        base_model=base_model,
        base_fingerprint=adapter.base_fingerprint,
        clebsch_gordan=clebsch_gordan_probe(),
        method=adapter.method.name,
        settings=adapter.method.model_dump(),
        targets=adapter.targets,
        species=list(adapter.species.numbers),
        energy_references=dict(adapter.energy_references),
        metrics=dict(metrics or {}),
        sparsity={
            "layerwise": counts.layerwise,
            "total": counts.total,
            "updated": counts.updated,
        },
        layers={path: LayerEntry.of(layout) for path, layout in adapter.layouts.items()},
    )
    tensors: dict[str, Tensor] = {}
    for path, value in values.items():
        tensors |= {f"{path}.{part}": t for part, t in _encode(value).items()}
    for buffer, value in adapter.statistics().items():
        tensors[_STATISTICS + buffer] = value.cpu().contiguous()
    text = config.model_dump_json(indent=1) + "\n"
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    with (
        replacing(directory / TENSORS_NAME) as tensors_file,
        replacing(directory / CONFIG_NAME) as config_file,
    ):
        tensors_file.write_bytes(data)
        config_file.write_text(text)
    return directory


def load(
    model: nn.Module,
    directory: str | Path,
    *,
    name: str = "default",
    trainable: bool = False,
    species: Species | None = None,
    fold_into: Mapping[str, str] | None = None,
) -> Adapter:
    """Put a saved adapter on its base model.

    Parameters
    ----------
    model
        The base model that the adapter was trained on, with or without other adapters.
    directory
        An adapter folder.
    name
        Name to give it on this model.
    trainable
        Whether the entries that the adapter changed can be trained on.
    species, fold_into
        As for `e3sparse.patch`.

    Raises
    ------
    AdapterFileError
        If the folder is not an adapter, is damaged, or belongs to another model; nothing has
        been changed then.
    """
    directory, model = Path(directory), unwrapped(model)
    config = read_config(directory)
    tensors = _read_tensors(directory / TENSORS_NAME)
    layouts = _matching_layouts(model, config, species)
    deltas: dict[str, Delta] = {}
    for path, layout in layouts.items():
        delta = _decode(path, layout, tensors)
        reference = _reference(model, path, layout)
        if not torch.isfinite(delta().detach().to(reference.dtype)).all():
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
        moving_statistics=trainable and bool(own_statistics),
        statistics=own_statistics or None,
    )
    adapter.energy_references.update(config.energy_references)
    return adapter


def _encode(value: Tensor) -> dict[str, Tensor]:
    flat = value.detach().cpu().reshape(-1)
    indices = torch.nonzero(flat).reshape(-1)
    if 2 * indices.numel() > flat.numel():
        return {"values": flat.contiguous()}
    return {"indices": indices.to(torch.int32), "values": flat[indices].contiguous()}


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise AdapterFileError(f"{path.parent} has no {path.name}.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterFileError(
            f"{path} cannot be read as safetensors ({error}): it is cut off or damaged. "
            "Copy it again."
        ) from None


def _matching_layouts(
    model: nn.Module, config: AdapterConfig, species: Species | None
) -> dict[str, Layout]:
    found = candidates(model, species).layers
    for path, entry in config.layers.items():
        if path not in found:
            raise AdapterFileError(
                f"The adapter changes layer '{path}', which this model does not have: it was "
                f"made for another model{_called(config)}."
            )
        here = LayerEntry.of(found[path])
        if here != entry:
            raise AdapterFileError(
                f"Layer '{path}' is laid out differently: {_difference(here, entry)}. The "
                f"adapter was made for another model{_called(config)}."
            )
    probe = clebsch_gordan_probe()
    there = config.clebsch_gordan
    if (probe and there) and (
        len(probe) != len(there)
        or any(abs(a - b) > 1e-6 for a, b in zip(probe, there, strict=True))
    ):
        raise AdapterFileError(
            f"The adapter was made with e3nn {config.e3nn_version}, whose Clebsch-Gordan "
            f"coefficients differ in sign or order from e3nn {e3nn_version()} here: path weights "
            "do not mean the same. Use an e3nn of the adapter's line."
        )
    present = next(iter(adapters(model).values()), None)
    here_print = present.base_fingerprint if present is not None else fingerprint(model)
    if here_print != config.base_fingerprint:
        raise AdapterFileError(
            "The layers fit, but the weights of this model are not those that the adapter was "
            f"trained on{_called(config)} (fingerprint {here_print[:12]} here, "
            f"{config.base_fingerprint[:12]} in the adapter). Load it onto its own base model."
        )
    return {path: found[path] for path in config.layers}


def _take_statistics(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the running statistics out of `tensors`, checked against the model's."""
    names = [name for name in tensors if name.startswith(_STATISTICS)]
    taken = {name.removeprefix(_STATISTICS): tensors.pop(name) for name in names}
    here = statistics(model)
    for name, value in taken.items():
        if name not in here or here[name].shape != value.shape:
            raise AdapterFileError(
                f"The adapter brings running statistics '{name}' {tuple(value.shape)}, and this "
                "model has none of that name and shape: it was made for another model."
            )
    return taken


def _called(config: AdapterConfig) -> str:
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


def _reference(model: nn.Module, path: str, layout: Layout) -> Tensor:
    for parameter in layout.parameters:
        return base_parameter(model, f"{path}.{parameter}")
    return next(iter(model.parameters()))


def read_values(directory: str | Path) -> dict[str, Tensor]:
    """Read ΔW of each layer, in the weight's shape, without a model.

    Raises
    ------
    AdapterFileError
        If the folder is not an adapter or is damaged.
    """
    config = read_config(directory)
    tensors = _read_tensors(Path(directory) / TENSORS_NAME)
    found = {}
    for path, entry in config.layers.items():
        indices, values = _checked_entries(path, prod(entry.shape), tensors)
        if prod(entry.shape) > 2**31:
            raise AdapterFileError(f"Layer '{path}' cannot have the shape {entry.shape}.")
        flat = values if indices is None else values.new_zeros(prod(entry.shape))
        if indices is not None:
            flat[indices] = values
        found[path] = flat.reshape(entry.shape)
    return found


def _decode(path: str, layout: Layout, tensors: dict[str, Tensor]) -> Delta:
    indices, values = _checked_entries(path, layout.numel, tensors)
    if indices is None:
        if values.all():
            return DenseDelta(layout, values.reshape(layout.shape))
        # Zeros that were saved among the values stay zeros in a training that goes on.
        indices = torch.nonzero(values).reshape(-1)
        values = values[indices]
    return FixedMaskDelta(layout, indices, values)


_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _checked_entries(
    path: str, numel: int, tensors: dict[str, Tensor]
) -> tuple[Tensor | None, Tensor]:
    """Take the indices (None if dense) and values of a layer out of `tensors`."""
    values = tensors.pop(f"{path}.values", None)
    indices = tensors.pop(f"{path}.indices", None)
    if values is None:
        raise AdapterFileError(f"{TENSORS_NAME} lacks the values of layer '{path}'.")
    if values.dtype not in _REAL or values.ndim != 1:
        raise AdapterFileError(f"The values of layer '{path}' are not a list of real numbers.")
    if not torch.isfinite(values).all():
        raise AdapterFileError(f"The values of layer '{path}' are not all finite numbers.")
    if indices is None:
        if values.numel() != numel:
            raise AdapterFileError(
                f"Layer '{path}' has {numel} weights, and the adapter brings {values.numel()} "
                "values without indices: wrong shape."
            )
        return None, values
    if indices.dtype not in (torch.int32, torch.int64) or indices.shape != values.shape:
        raise AdapterFileError(
            f"The indices of layer '{path}' do not go with its values: {tuple(indices.shape)} "
            f"{indices.dtype} and {tuple(values.shape)}."
        )
    indices = indices.long()
    if indices.numel() and (indices.min() < 0 or indices.max() >= numel):
        raise AdapterFileError(
            f"Layer '{path}' has {numel} weights, and the adapter has an index out of range "
            f"(from {int(indices.min())} to {int(indices.max())})."
        )
    if indices.unique().numel() != indices.numel():
        raise AdapterFileError(f"The indices of layer '{path}' hold duplicates.")
    return indices, values
