"""ΔW as the tensors of an adapter file: `<layer>.indices` and `<layer>.values`, or values alone."""

import torch
from torch import Tensor

from e3sparse.adapter.config import TENSORS_NAME
from e3sparse.deltas import Delta
from e3sparse.deltas.dense import DenseDelta
from e3sparse.deltas.fixed_mask import FixedMaskDelta
from e3sparse.errors import AdapterFileError
from e3sparse.layers.layouts import Layout

_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def encode(path: str, value: Tensor) -> dict[str, Tensor]:
    """Return the tensors of a layer: int32 indices into the flat weight, unless most changed."""
    # -0 is made 0, as it will be read, so that an adapter that is saved again has the same digest.
    flat = value.detach().cpu().reshape(-1) + 0.0
    indices = torch.nonzero(flat).reshape(-1)
    if 2 * indices.numel() > flat.numel():
        return {f"{path}.values": flat.contiguous()}
    return {
        f"{path}.indices": indices.to(torch.int32),
        f"{path}.values": flat[indices].contiguous(),
    }


def decode(path: str, layout: Layout, tensors: dict[str, Tensor]) -> Delta:
    """Take a layer out of `tensors`, as a delta whose nonzero entries alone can be trained.

    Raises
    ------
    AdapterFileError
        If its tensors are missing, or do not fit the layer or each other.
    """
    indices, values = checked_entries(path, layout.numel, tensors)
    if indices is None:
        if values.all():
            return DenseDelta(layout, values.reshape(layout.shape))
        # Zeros that were saved among the values stay zeros in a training that goes on.
        indices = torch.nonzero(values).reshape(-1)
        values = values[indices]
    return FixedMaskDelta(layout, indices, values)


def checked_entries(
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
