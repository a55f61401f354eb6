"""Changes for the tests of `e3sparse.analysis`, made on the network of `networks.py`."""

import torch
from networks import network, patch, random_adapter

from e3sparse.analysis import change_of


def random_change(targets="all", method="budget", seed=2, name=None, trained_on=(1, 6, 8), **kw):
    """Return a change with large random deltas."""
    adapter = random_adapter(network(), targets, method, seed=seed, **kw)
    return change_of(adapter, name=name or f"{method}-{seed}", trained_on=trained_on)


def change_with(edit, targets="all", trained_on=(1, 6, 8), name="edited"):
    """Return a change whose ΔW is zero but for what `edit` writes into it, by layer."""
    adapter = patch(network(), targets, "dense")
    deltas = {path: delta.v.data for path, delta in adapter.deltas().items()}
    with torch.no_grad():
        edit(deltas)
    return change_of(adapter, name=name, trained_on=trained_on)
