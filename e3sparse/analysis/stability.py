"""Do two fine-tunings change the same entries, and the same channels?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from e3sparse.analysis.change import Change
from e3sparse.analysis.ranks import rank_correlation
from e3sparse.analysis.tables import group_table
from e3sparse.layers.layouts import Layout

TOTAL = "all layers"


def support_overlap(a: Change, b: Change, *, common: bool = False) -> pd.DataFrame:
    """Compare which entries two changes touch.

    Parameters
    ----------
    a, b
        The changes.
    common
        Whether layers that only one of them could change are left out; they count as unchanged
        in the other if not.

    Returns
    -------
    DataFrame
        Indexed by layer, the last row all layers together; `entries`, `updated_a`, `updated_b`,
        `shared`, `jaccard` (shared over touched by either; NaN if neither touches any), and what
        random supports would give: `chance` with the number of entries fixed in the layer (in
        the last row, in the model), `chance_in_blocks` with it fixed in every path block and, for
        layers with a species axis, element. What exceeds the second is agreement on entries, not
        only on blocks.
    """
    rows = {}
    layouts = {**a.layouts, **b.layouts}
    if common:
        layouts = {path: layouts[path] for path in a.layouts if path in b.layouts}
    for path, layout in layouts.items():
        counts = _counts(layout, a.deltas.get(path), b.deltas.get(path))
        rows[path] = counts.sum().astype(float)
        # With the sizes fixed, the shared number is hypergeometric, of this mean.
        rows[path]["expected"] = (
            counts["updated_a"] * counts["updated_b"] / counts["entries"]
        ).sum()
    integers = ["entries", "updated_a", "updated_b", "shared"]
    table = pd.DataFrame(rows, index=[*integers, "expected"]).T
    table.loc[TOTAL] = table.sum()
    both = table["updated_a"] + table["updated_b"]
    by_chance = table["updated_a"] * table["updated_b"] / table["entries"]
    table["jaccard"] = table["shared"] / (both - table["shared"])
    table["chance"] = by_chance / (both - by_chance)
    table["chance_in_blocks"] = table["expected"] / (both - table["expected"])
    return table.drop(columns="expected").astype(dict.fromkeys(integers, int))


def _counts(layout: Layout, one: Tensor | None, two: Tensor | None) -> pd.DataFrame:
    """Count entries, those of either change and shared ones in each block and element."""
    masks = [
        torch.zeros(layout.shape, dtype=torch.bool) if delta is None else delta != 0
        for delta in (one, two)
    ]
    parts = []
    for (block, first), (_, second) in zip(*(layout.views(mask) for mask in masks), strict=True):
        axis = None if block.species_axis is None else len(layout.lead) + block.species_axis
        first, second = (
            (m.reshape(1, -1) if axis is None else m.movedim(axis, 0).flatten(1))
            for m in (first, second)
        )
        sums = {
            "entries": torch.full((len(first),), first.shape[1]),
            "updated_a": first.sum(1),
            "updated_b": second.sum(1),
            "shared": (first & second).sum(1),
        }
        parts.append(pd.DataFrame({name: s.numpy() for name, s in sums.items()}))
    return pd.concat(parts)


def agreement(changes: Sequence[Change], measure: str = "one_minus_r2") -> pd.DataFrame:
    """Compare every pair of changes, over all layers that both could touch.

    Returns
    -------
    DataFrame
        One row a pair: `a`, `b`, `jaccard`, `chance` and `chance_in_blocks` of the supports, NaN
        where one of them changes nearly every entry, which has no support to speak of; and `rho`
        (`rho_low` to `rho_high`), the rank correlation of the measure over the groups (layer, l of
        the output, element) that at least one of them changes.
    """
    rows = []
    for i, a in enumerate(changes):
        for b in changes[i + 1 :]:
            supports: dict[Any, Any] = support_overlap(a, b, common=True).loc[TOTAL].to_dict()
            dense = max(supports["updated_a"], supports["updated_b"]) > supports["entries"] / 2
            row: dict[str, object] = {"a": a.name, "b": b.name}
            for column in ("jaccard", "chance", "chance_in_blocks"):
                row[column] = np.nan if dense else supports[column]
            keys = ["layer", "l_out", "element"]
            pair = group_table(a).merge(group_table(b), on=keys, suffixes=("_a", "_b"))
            pair = pair[(pair["updated_a"] > 0) | (pair["updated_b"] > 0)]
            found = rank_correlation(pair[f"{measure}_a"], pair[f"{measure}_b"])
            row |= {"rho": found.rho, "rho_low": found.low, "rho_high": found.high}
            rows.append(row | {"groups": found.groups})
    return pd.DataFrame(rows)
