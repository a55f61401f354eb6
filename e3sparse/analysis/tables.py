"""Tables of one change: by path block, element, layer and channel.

Three measures of the size of ΔW stand in them. `relative` is ‖ΔW‖/‖W‖. `one_minus_r2`, that of
Fig. 2 of the paper, is 1 − R² = ‖ΔW‖²/Σ(W − mean W)², with R² the coefficient of determination of
W by W + ΔW; both are NaN where the denominator is 0. `effect` is ‖ΔW‖ times e3nn's path weight,
which makes paths of different fan-in comparable.
"""

import numpy as np
import pandas as pd
import torch
from ase.data import chemical_symbols

from e3sparse.analysis.cells import EVERY, OTHER, SUMS
from e3sparse.analysis.change import Change
from e3sparse.layers.groups import channels

MEASURES = ("one_minus_r2", "relative", "effect", "updated")
_BLOCK = ["layer", "kind", "depth", "block", "irreps_in", "irreps_in2", "irreps_out"]
_DEGREES = ["l_in", "l_in2", "l_out"]
# A constant W has no variance but for rounding.
_CONSTANT = 1e-12


def block_table(change: Change) -> pd.DataFrame:
    """Return entries, updated entries and sizes of ΔW of each layer and path block."""
    return summed(change.cells, [*_BLOCK, *_DEGREES])


def species_table(change: Change) -> pd.DataFrame:
    """Return the same for each path block and element, of the layers with a species axis."""
    cells = change.cells
    return summed(cells[cells["element"] != EVERY], [*_BLOCK, *_DEGREES, "element"])


def group_table(change: Change) -> pd.DataFrame:
    """Return the same by layer, l of the output and element: the cells of Fig. 2.

    `element` is `""` for layers without a species axis.
    """
    return summed(change.cells, ["layer", "kind", "depth", "l_out", "element"])


def element_table(change: Change) -> pd.DataFrame:
    """Return the same by element, over all layers with a species axis."""
    cells = change.cells
    table = summed(cells[~cells["element"].isin([EVERY, OTHER])], ["element"])
    known = set(change.trained_on or ())
    trained = [chemical_symbols.index(str(e)) in known for e in table["element"]]
    table.insert(1, "trained_on", trained if change.trained_on is not None else None)
    return table


def layer_table(change: Change) -> pd.DataFrame:
    """Return the same by layer, with the threshold that its entries had to pass.

    `threshold` is δ = sigmoid(τ) of the soft threshold where the run folder still has its
    checkpoint, and else the smallest |ΔW| > 0 that the layer holds; `threshold_is` says which.
    """
    table = summed(change.cells, ["layer", "kind", "depth"])
    table.insert(5, "sparsity", 1 - table["updated"] / table["entries"])
    smallest = change.cells.groupby("layer", sort=False)["smallest"].min()
    found = [change.thresholds.get(layer, smallest[layer]) for layer in table["layer"]]
    table["threshold"] = np.where(np.isfinite(found), found, np.nan)
    table["threshold_is"] = [
        "δ = sigmoid(τ)"
        if layer in change.thresholds
        else "smallest |ΔW| > 0"
        if np.isfinite(value)
        else "nothing changed"
        for layer, value in zip(table["layer"], found, strict=True)
    ]
    return table


def total(change: Change) -> pd.Series:
    """Return the sums and sizes over all layers."""
    return summed(change.cells.assign(all="all"), ["all"]).drop(columns="all").iloc[0]


def absent_table(change: Change) -> pd.DataFrame:
    """Count what changed of elements that are in no training frame, and of those that are.

    Returns
    -------
    DataFrame
        Two rows, `"absent"` and `"trained on"`; columns `elements`, `entries`, `updated`,
        `relative` and `largest` (|ΔW|). Empty if nobody recorded the training's elements.
    """
    if change.trained_on is None:
        return pd.DataFrame()
    cells = change.cells
    cells = cells[~cells["element"].isin([EVERY, OTHER])]
    absent = {chemical_symbols[z] for z in change.absent or ()}
    rows = {}
    for name, part in (
        ("absent", cells[cells["element"].isin(absent)]),
        ("trained on", cells[~cells["element"].isin(absent)]),
    ):
        weight, delta = part["weight2"].sum(), part["delta2"].sum()
        rows[name] = {
            "elements": part["element"].nunique(),
            "entries": int(part["entries"].sum()),
            "updated": int(part["updated"].sum()),
            "relative": float(np.sqrt(delta / weight)) if weight else np.nan,
            "largest": float(part["largest"].max()) if len(part) else 0.0,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def energy_table(change: Change) -> pd.DataFrame:
    """Return the shift of the energy reference of each element, in eV/atom."""
    shifts = change.energy_references or {}
    rows = [(chemical_symbols[z], z, shift) for z, shift in sorted(shifts.items())]
    return pd.DataFrame(rows, columns=["element", "atomic_number", "shift (eV/atom)"])


def channel_table(change: Change, top: int = 20) -> pd.DataFrame:
    """Return the output channels that changed most, by `effect`.

    A channel is one copy of the output irrep of a path block: the weights that lead into it, of
    one element where the layer has a species axis.
    """
    numbers = [chemical_symbols[z] if z else OTHER for z in change.numbers]
    rows: list[dict[str, object]] = []
    for path, layout in change.layouts.items():
        pairs = zip(
            layout.views(change.deltas[path]), layout.views(change.weights[path]), strict=True
        )
        for (block, delta), (_, weight) in pairs:
            by_channel = channels(layout, block, delta).double()  # (species, channels, entries)
            size = by_channel.square().sum(2).sqrt()
            base = channels(layout, block, weight).double().square().sum(2).sqrt()
            count = min(top, int(torch.count_nonzero(size)))
            for place in torch.topk(size.flatten(), count).indices.tolist():
                species, channel = divmod(place, size.shape[1])
                changed = by_channel[species, channel]
                axis = block.species_axis is not None
                norm, of = float(size[species, channel]), float(base[species, channel])
                rows.append(
                    {
                        "layer": path,
                        "irreps_in": block.irreps_in,
                        "irreps_in2": block.irreps_in2 or "",
                        "irreps_out": block.irreps_out,
                        "channel": channel,
                        "element": _name(numbers, species) if axis else EVERY,
                        "entries": changed.numel(),
                        "updated": int(torch.count_nonzero(changed)),
                        "relative": norm / of if of else np.nan,
                        "effect": norm * abs(block.path_weight),
                    }
                )
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    return table.sort_values("effect", ascending=False).head(top).reset_index(drop=True)


def _name(names: list[str], index: int) -> str:
    return names[index] if index < len(names) else OTHER


def summed(cells: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Add cells up and derive the sizes of ΔW from the sums."""
    groups = cells.groupby(by, sort=False, dropna=False)
    table = groups[list(SUMS)].sum().join(groups["largest"].max()).reset_index()
    variance = table["weight2"] - table["weight1"] ** 2 / table["entries"]
    variance = variance.where(variance > _CONSTANT * table["weight2"])
    table["share"] = table["updated"] / table["entries"]
    table["relative"] = np.sqrt(table["delta2"] / table["weight2"].where(table["weight2"] > 0))
    table["one_minus_r2"] = table["delta2"] / variance
    table["effect"] = np.sqrt(table["effect2"])
    return table.drop(columns=["delta2", "effect2", "weight1", "weight2"])
