"""NequIP and Allegro: layer kinds, training modules for `nequip-train`, and a backend.

NequIP imports this module whenever it is imported itself (entry point `nequip.extension`), so that
its layers are known to `e3sparse.patch`. What needs NequIP is therefore only imported on request.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from e3sparse_nequip import layers as layers

if TYPE_CHECKING:
    from e3sparse_nequip.backend import NequIPBackend, NequIPPotential
    from e3sparse_nequip.callbacks import SparsityMonitor
    from e3sparse_nequip.param_groups import SparseParamGroups
    from e3sparse_nequip.training import (
        SparseEMALightningModule,
        SparseLightningModule,
        SparseScheduleFreeLightningModule,
    )

__all__ = [
    "NequIPBackend",
    "NequIPPotential",
    "SparseEMALightningModule",
    "SparseLightningModule",
    "SparseParamGroups",
    "SparseScheduleFreeLightningModule",
    "SparsityMonitor",
]

_HOMES = {
    "backend": ("NequIPBackend", "NequIPPotential"),
    "callbacks": ("SparsityMonitor",),
    "param_groups": ("SparseParamGroups",),
    "training": (
        "SparseEMALightningModule",
        "SparseLightningModule",
        "SparseScheduleFreeLightningModule",
    ),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
