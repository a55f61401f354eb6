"""Sums over W and ΔW from which every table is made: one pass over the weights.

A cell is one path block of one layer and, where the layer has a species axis, one element.
"""

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from ase.data import chemical_symbols
from torch import Tensor

from e3sparse.layers.layouts import Block, Layout

EVERY = ""
"""Element of the cells of a layer without a species axis: its weights serve all elements."""
OTHER = "other"
"""Element of rows behind the elements, such as SevenNet's modalities."""
SUMS = ("entries", "updated", "delta2", "effect2", "weight1", "weight2")
"""Columns that add up; `smallest` and `largest` do not."""
LETTERS = "spdfghiklm"

_IRREPS = re.compile(r"(\d+)x(\d+)([eo])")


def count_cells(
    layouts: Mapping[str, Layout],
    weights: Mapping[str, Tensor],
    deltas: Mapping[str, Tensor],
    numbers: tuple[int, ...] = (),
) -> pd.DataFrame:
    """Sum over W and ΔW in every cell.

    Parameters
    ----------
    layouts, weights, deltas
        By module path; tensors of the layout's shape.
    numbers
        Atomic numbers in the order of the species axis.

    Returns
    -------
    DataFrame
        One row a cell: `layer, kind, depth, block`, the irreps of the path and their degrees
        `l_in, l_in2, l_out` (NA where there are several), `element`; the number of `entries` and
        of those `updated` (ΔW ≠ 0); Σ ΔW² as `delta2`, the same times the squared path weight as
        `effect2`, Σ W as `weight1`, Σ W² as `weight2`; the `smallest` and `largest` |ΔW| > 0.
    """
    depths = layer_depths(list(layouts))
    parts = []
    for path, layout in layouts.items():
        blocks = zip(layout.views(deltas[path]), layout.views(weights[path]), strict=True)
        for number, ((block, delta), (_, weight)) in enumerate(blocks):
            cells = _sums(_by_species(layout, block, delta), _by_species(layout, block, weight))
            cells["effect2"] = cells["delta2"] * block.path_weight**2
            cells["element"] = _elements(len(cells), block, numbers)
            about: dict[str, Any] = {
                "layer": path,
                "kind": layout.kind,
                "depth": depths[path],
                "block": number,
                "irreps_in": block.irreps_in,
                "irreps_in2": block.irreps_in2 or "",
                "irreps_out": block.irreps_out,
                "l_in": degree(block.irreps_in),
                "l_in2": degree(block.irreps_in2),
                "l_out": degree(block.irreps_out),
            }
            parts.append(cells.assign(**about))
    table = pd.concat(parts, ignore_index=True)
    degrees = ["l_in", "l_in2", "l_out"]
    return table.astype(dict.fromkeys(degrees, "Int64"))


def _by_species(layout: Layout, block: Block, view: Tensor) -> Tensor:
    """Return a block as (species, entries) in float64; one row where there is no species axis."""
    if block.species_axis is None:
        return view.reshape(1, -1).double()
    rows = view.movedim(len(layout.lead) + block.species_axis, 0)
    return rows.reshape(rows.shape[0], -1).double()


@torch.no_grad()
def _sums(delta: Tensor, weight: Tensor) -> pd.DataFrame:
    size = delta.abs()
    changed = delta != 0
    columns = {
        "entries": torch.full((len(delta),), delta.shape[1]),
        "updated": changed.sum(1),
        "delta2": delta.square().sum(1),
        "weight1": weight.sum(1),
        "weight2": weight.square().sum(1),
        "smallest": size.masked_fill(~changed, torch.inf).amin(1),
        "largest": size.amax(1),
    }
    return pd.DataFrame({name: column.numpy() for name, column in columns.items()})


def _elements(count: int, block: Block, numbers: tuple[int, ...]) -> list[str]:
    if block.species_axis is None:
        return [EVERY]
    known = [chemical_symbols[z] if z else OTHER for z in numbers]
    return known + [OTHER] * (count - len(known))


def degree(irreps: str | None) -> int | None:
    """Return l of a single irrep with its multiplicity, such as `"64x1e"`; else None."""
    found = _IRREPS.fullmatch(irreps or "")
    return int(found[2]) if found else None


def layer_depths(paths: list[str]) -> dict[str, int]:
    """Read the depth of each layer off its name.

    Models number their interactions (`interactions.0`, `layer1_convnet`, `2_self_connection`):
    that number plus one is the depth. Layers without one have depth 0 in front of the first
    numbered layer, and the largest depth plus one behind it.
    """
    numbered = numbered_layers(paths)
    first = next((i for i, path in enumerate(paths) if path in numbered), len(paths))
    last = max(numbered.values(), default=0) + 1
    return {p: numbered.get(p, 0 if i < first else last) for i, p in enumerate(paths)}


def numbered_layers(paths: list[str]) -> dict[str, int]:
    """Return the depth of those layers whose names have a number."""
    shared = _common_parents(paths)
    numbered = {}
    for path in paths:
        # Deeper in a path, numbers count the layers of a small network inside a block.
        found = re.search(r"\d+", ".".join(path.split(".")[shared : shared + 2]))
        if found:
            numbered[path] = int(found[0]) + 1
    return numbered


def _common_parents(paths: list[str]) -> int:
    split = [path.split(".")[:-1] for path in paths]
    shared = 0
    while all(len(s) > shared for s in split) and len({s[shared] for s in split}) == 1:
        shared += 1
    return shared if len(paths) > 1 else 0
