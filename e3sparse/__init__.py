"""Sparse additive deltas for equivariant models: patch, train, merge or share.

>>> adapter = e3sparse.patch(model, targets="linear", target_sparsity=0.97, total_steps=1000)
"""

from e3sparse.adapter import Adapter
from e3sparse.adapter_file import load
from e3sparse.deltas import Budget, Dense, FixedMask, LowRank, Method, SoftThreshold
from e3sparse.errors import E3SparseError
from e3sparse.injection import cached
from e3sparse.patching import adapters, get_adapter, merge, patch
from e3sparse.paths import Block, LayerKind, Layout, Species, register_kind

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "Block",
    "Budget",
    "Dense",
    "E3SparseError",
    "FixedMask",
    "LayerKind",
    "Layout",
    "LowRank",
    "Method",
    "SoftThreshold",
    "Species",
    "adapters",
    "cached",
    "get_adapter",
    "load",
    "merge",
    "patch",
    "register_kind",
]
