"""Read SevenNet checkpoints as tensors and plain data, which run nothing."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import sevenn.checkpoint
import torch

_array: Any = np.empty(0).__reduce__()[0]
_scalar: Any = np.float64(0).__reduce__()[0]
# Statistics of the training set are arrays, pickled by versions of numpy with other module names.
_ARRAYS: list[Any] = [
    np.ndarray,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"},
    *((_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


@contextmanager
def plain_data_first() -> Iterator[None]:
    """Let sevenn read files inside this block with `weights_only=True` where that suffices.

    `sevenn.checkpoint` asks torch for `weights_only=False`. Files with other content, such as the
    state of an optimizer, have passed `e3sparse.potentials.trust` or are trusted.
    """
    module: Any = sevenn.checkpoint
    theirs = module.torch_load
    module.torch_load = _load
    try:
        yield
    finally:
        module.torch_load = theirs


def _load(path: Any, **options: Any) -> Any:
    try:
        with torch.serialization.safe_globals(_ARRAYS):
            return torch.load(path, **options | {"weights_only": True})
    except pickle.UnpicklingError:
        return torch.load(path, **options)
