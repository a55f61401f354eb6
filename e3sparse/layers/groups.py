"""Weights that belong together: an output channel of a path, or a whole path, of one element."""

import re
from typing import Literal

import torch
from torch import Tensor

from e3sparse.layers.layouts import Block, Layout

Granularity = Literal["entry", "channel", "block"]
_IRREPS = re.compile(r"(\d+)x(\d+)[eo]")


def channels(layout: Layout, block: Block, view: Tensor) -> Tensor:
    """Return a block as (species, output channels, entries).

    The axis of output channels is the last that has the multiplicity of the output; all axes
    together where only their product has, as for `uvuv`; that in front of the blocks, where a
    block is a single weight a channel. A block without any is one channel.
    """
    mul = multiplicity(block.irreps_out)
    lead = len(layout.lead)
    species = None if block.species_axis is None else lead + block.species_axis
    view = view.unsqueeze(0) if species is None else view.movedim(species, 0)
    sizes = list(view.shape)
    own = range(1 + lead, view.ndim)
    axis = next((a for a in reversed(own) if sizes[a] == mul), None)
    if block.channel_axis is not None and species is None:
        axis = 1 + lead + block.channel_axis
    if axis is None and mul == torch.Size(sizes[1 + lead :]).numel() and not lead:
        return view.reshape(sizes[0], -1, 1)
    if axis is None:
        axis = next((a for a in range(1, 1 + lead) if sizes[a] == mul), None)
    if axis is None:
        return view.reshape(sizes[0], 1, -1)
    return view.movedim(axis, 1).reshape(sizes[0], sizes[axis], -1)


def multiplicity(irreps: str) -> int | None:
    """Return the multiplicity of a single irrep; None of anything else."""
    found = _IRREPS.fullmatch(irreps)
    return int(found[1]) if found else None


def groups_of(layout: Layout, granularity: Granularity) -> Tensor:
    """Return the number of the group of each entry, from 0, in the weight's shape.

    Parameters
    ----------
    granularity
        `"channel"`: the entries of one path that lead to one channel of its output. `"block"`: all
        of a path. Each apart for each element where there is an axis over species. `"entry"`: every
        entry for itself.
    """
    positions = torch.arange(layout.numel).reshape(layout.shape)
    if granularity == "entry":
        return positions
    groups = torch.full((layout.numel,), -1)
    count = 0
    for block, view in layout.views(positions):
        parts = channels(layout, block, view)  # (species, channels, entries)
        if granularity == "block":
            parts = parts.reshape(len(parts), 1, -1)
        for part in parts.flatten(0, 1):
            groups[part] = count
            count += 1
    return groups.reshape(layout.shape)
