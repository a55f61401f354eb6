"""Sparse additive deltas for equivariant models: patch, train, merge or share.

>>> adapter = e3sparse.patch(model, targets="linear", target_sparsity=0.97, total_steps=1000)

The packages, each of which imports those before it only:
`layers` → `deltas` → `adapter` → `potentials` → `frames`, `magnetism`, `symmetry`, `datasets` →
`training` → `analysis` → `cli`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from e3sparse import moved
from e3sparse.version import __version__

if TYPE_CHECKING:
    from e3sparse.adapter.file import load
    from e3sparse.adapter.handle import Adapter
    from e3sparse.adapter.patching import adapters, get_adapter, merge, patch
    from e3sparse.deltas import Budget, Dense, FixedMask, LowRank, Method, SoftThreshold
    from e3sparse.errors import E3SparseError
    from e3sparse.layers.injection import cached
    from e3sparse.layers.kinds import LayerKind, register_kind
    from e3sparse.layers.layouts import Block, Layout, Species

_HOMES = {
    "e3sparse.adapter.file": ("load",),
    "e3sparse.adapter.handle": ("Adapter",),
    "e3sparse.adapter.patching": ("adapters", "get_adapter", "merge", "patch"),
    "e3sparse.deltas": ("Budget", "Dense", "FixedMask", "LowRank", "Method", "SoftThreshold"),
    "e3sparse.errors": ("E3SparseError",),
    "e3sparse.layers.injection": ("cached",),
    "e3sparse.layers.kinds": ("LayerKind", "register_kind"),
    "e3sparse.layers.layouts": ("Block", "Layout", "Species"),
}

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
    "__version__",
    "adapters",
    "cached",
    "get_adapter",
    "load",
    "merge",
    "patch",
    "register_kind",
]

moved.keep_old_names()


def __getattr__(name: str) -> Any:
    # torch is imported with the first of them, so that a help page need not wait for it.
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'e3sparse' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
