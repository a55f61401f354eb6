"""Panels of coloured cells with one scale. Darker is more; white with a 0 is exactly unchanged."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log10

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from e3sparse.analysis.change import Change

LABELS = {
    "one_minus_r2": "1 − R² between W and W + ΔW (no unit)",
    "relative": "‖ΔW‖ / ‖W‖ (no unit)",
    "effect": "‖ΔW‖ × path weight (no unit)",
    "updated": "updated entries",
}
"""Axis labels of the measures in `e3sparse.analysis.tables`."""

_MAP = colormaps["viridis_r"]
_DECADES = 4
_CELL = 0.4, 0.19  # inches


@dataclass(frozen=True)
class Scale:
    """One colour scale for all panels of a figure: logarithmic, at most four decades."""

    norm: LogNorm

    @classmethod
    def of(cls, values: Sequence[float]) -> "Scale":
        positive = [v for v in values if np.isfinite(v) and v > 0]
        high = max(positive, default=1.0)
        low = max(min(positive, default=0.1), high / 10**_DECADES)
        return cls(LogNorm(min(low, high / 1.01), high, clip=True))

    def color(self, value: float) -> tuple[float, float, float, float]:
        """Return the colour of a value above 0."""
        r, g, b, a = _MAP(self.norm(value))
        return r, g, b, a

    def ink(self, value: float) -> str:
        """Return a text colour that can be read on it."""
        r, g, b, _ = self.color(value)
        return "black" if 0.3 * r + 0.59 * g + 0.11 * b > 0.5 else "white"

    def bar(self, figure: Figure, axes: Sequence[Axes], label: str, lowest: float) -> None:
        """Draw the colour bar; an arrow says that lower values share a colour."""
        extend = "min" if 0 < lowest < float(self.norm.vmin or 0) * 0.999 else "neither"
        # The label needs three inches.
        short = figure.get_size_inches()[1] < 3.6
        bar = figure.colorbar(
            ScalarMappable(self.norm, _MAP),
            ax=list(axes),
            extend=extend,
            location="bottom" if short else "right",
            aspect=40 if short else 30,
        )
        bar.set_label(label, fontsize=9)
        bar.ax.tick_params(labelsize=8)


def heatmap(
    changes: Sequence[Change],
    tables: Sequence[pd.DataFrame],
    columns: list[str],
    measure: str,
    bold: set[str],
) -> Figure:
    """Draw one panel a change, of common rows, columns and colour scale."""
    everything = pd.concat(tables).sort_values("depth", kind="stable")
    rows = list(dict.fromkeys(everything["row"]))
    scale = Scale.of(list(everything[measure]))
    # The titles need their width too.
    wide, high = max(len(columns) * _CELL[0], 1.75), len(rows) * _CELL[1]
    labels = max(len(row) for row in rows) * 0.065
    across = max(1, min(len(changes), int((13 - labels) // (wide + 0.2))))
    down = ceil(len(changes) / across)
    height = down * (high + 0.75) + 0.5
    # A colour bar lies under what is too low for one that stands.
    size = labels + across * (wide + 0.2) + 1.2, height + (0.8 if height < 2.8 else 0)
    figure = Figure(figsize=size, layout="constrained")
    panels = panels_of(figure, down, across, len(changes))
    for number, (axes, change, table) in enumerate(zip(panels, changes, tables, strict=True)):
        values = table.pivot_table(index="row", columns="column", values=measure, dropna=False)
        axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
        axes.set_facecolor("0.93")
        for y, row in enumerate(rows):
            for x, column in enumerate(columns):
                if row in values.index and column in values.columns:
                    _cell(axes, x, y, float(values.loc[row, column]), scale)
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns, fontsize=8)
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows if number % across == 0 else [])
        axes.tick_params(axis="y", labelsize=7)
        axes.tick_params(length=0)
        for label, column in zip(axes.get_xticklabels(), columns, strict=True):
            if column in bold:
                label.set_fontweight("bold")
        axes.set_title(title(change), fontsize=8)
    scale.bar(figure, panels, LABELS[measure], least(everything[measure]))
    return figure


def _cell(axes: Axes, x: int, y: int, value: float, scale: Scale) -> None:
    if np.isnan(value):
        return
    color = scale.color(value) if value > 0 else "white"
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=color, edgecolor="0.8", lw=0.4))
    ink = scale.ink(value) if value > 0 else "0.5"
    axes.text(x + 0.5, y + 0.54, _brief(value), ha="center", va="center", fontsize=5.5, color=ink)


def _brief(value: float) -> str:
    """Return a value in at most five characters."""
    if value == 0:
        return "0"
    if value >= 0.01:
        return f"{value:.2f}" if value < 10 else f"{value:.0f}"
    exponent = int(np.floor(log10(value)))
    digit = round(value / 10.0**exponent)
    return f"{digit}e{exponent}" if digit < 10 else f"1e{exponent + 1}"


def panels_of(figure: Figure, down: int, across: int, count: int) -> list[Axes]:
    """Return the first `count` panels of a grid; the others are taken away."""
    grid = list(figure.subplots(down, across, squeeze=False).ravel())
    for unused in grid[count:]:
        unused.remove()
    return grid[:count]


def least(values: object) -> float:
    """Return the least value above 0; 0 if there is none."""
    array = np.asarray(values, dtype=float)
    return float(array[array > 0].min()) if (array > 0).any() else 0.0


def title(change: Change) -> str:
    """Return what stands over the panel of a change."""
    updated, entries = (int(change.cells[c].sum()) for c in ("updated", "entries"))
    return f"{change.name} ({change.method})\n{updated:,} of {entries:,} entries"
