"""Tables and figures of what fine-tunings changed; needs pandas.

>>> from e3sparse.analysis import block_table, read_change
>>> table = block_table(read_change("run/"))  # doctest: +SKIP

Figures are in `e3sparse.analysis.figures`, the page in `e3sparse.analysis.report`, the causal
check in `e3sparse.analysis.causality`.
"""

from e3sparse.analysis.change import Change
from e3sparse.analysis.null_model import shuffle_labels
from e3sparse.analysis.ranks import RankCorrelation, rank_correlation
from e3sparse.analysis.reading import change_of, read_change, read_changes
from e3sparse.analysis.stability import agreement, support_overlap
from e3sparse.analysis.tables import (
    absent_table,
    block_table,
    channel_table,
    element_table,
    energy_table,
    group_table,
    layer_table,
    species_table,
    total,
)

__all__ = [
    "Change",
    "RankCorrelation",
    "absent_table",
    "agreement",
    "block_table",
    "change_of",
    "channel_table",
    "element_table",
    "energy_table",
    "group_table",
    "layer_table",
    "rank_correlation",
    "read_change",
    "read_changes",
    "shuffle_labels",
    "species_table",
    "support_overlap",
    "total",
]
