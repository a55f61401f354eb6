"""The life of a delta on a model: patch, switch, merge, restore, save, load. Knows no framework.

Imports `layers` and `deltas`, not ASE.
"""

from e3sparse.adapter.handle import Adapter

__all__ = ["Adapter"]
