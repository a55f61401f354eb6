"""Writing an adapter folder: `adapter_config.json` and `adapter_model.safetensors`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from e3sparse.adapter.config import (
    ADAPTER_FOLDER,
    FORMAT_VERSION,
    SCALED_VERSION,
    AdapterConfig,
    LayerEntry,
)
from e3sparse.adapter.encoding import encode
from e3sparse.adapter.fingerprint import clebsch_gordan_probe, e3nn_version
from e3sparse.adapter.sparsity import Sparsity
from e3sparse.adapter.state import Record, State
from e3sparse.errors import AdapterFileError
from e3sparse.version import __version__

STATISTICS = "statistics/"
"""Before the name of a buffer, where an adapter has running statistics of its own."""


def save(
    directory: Path,
    state: State,
    record: Record,
    values: Mapping[str, Tensor],
    statistics: Mapping[str, Tensor],
    counts: Sparsity,
    *,
    base_model: str | None = None,
    framework: Mapping[str, str] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Path:
    """Write an adapter folder.

    Parameters
    ----------
    directory
        Made if it does not exist; its two files are replaced if it does.
    state, record
        What is known of the model and of the adapter.
    values
        ΔW of each layer, by module path, not multiplied by the adapter's scale.
    statistics
        The running statistics that belong to the adapter, by buffer name.
    counts
        For the record.
    base_model
        Name or path of the base model, for the reader's information.
    framework
        Name and version of the framework.
    metrics
        Anything JSON can hold.

    Raises
    ------
    AdapterFileError
        If a value is not a finite number.
    """
    for path, value in values.items():
        if not torch.isfinite(value).all():
            raise AdapterFileError(
                f"The values of layer '{path}' are not all finite numbers: the training diverged."
            )
    config = AdapterConfig(
        format_version=FORMAT_VERSION if record.scale == 1 else SCALED_VERSION,
        e3sparse_version=__version__,
        e3nn_version=e3nn_version(),
        framework=dict(framework or {}),
        base_model=base_model,
        base_fingerprint=state.fingerprint,
        # Statistics of its own are not the base model's affair: they move in its training.
        base=None if state.identity is None else state.identity.without(statistics),
        clebsch_gordan=clebsch_gordan_probe(),
        method=record.method.name,
        settings=record.method.model_dump(),
        targets=record.targets,
        scale=record.scale,
        species=list(state.species.numbers),
        energy_references=dict(record.energy_references),
        metrics=dict(metrics or {}),
        sparsity={
            "layerwise": counts.layerwise,
            "total": counts.total,
            "updated": counts.updated,
        },
        layers={path: LayerEntry.of(layout) for path, layout in record.layouts.items()},
    )
    tensors: dict[str, Tensor] = {}
    for path, value in values.items():
        tensors |= encode(path, value)
    for buffer, value in statistics.items():
        tensors[STATISTICS + buffer] = value.cpu().contiguous()
    return ADAPTER_FOLDER.write(directory, config, tensors)
