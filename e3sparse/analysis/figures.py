"""Figures of what changed. Darker is more, also in grey; white with a 0 is exactly unchanged."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from ase.data import chemical_symbols
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullFormatter

from e3sparse.analysis.cells import EVERY, LETTERS, OTHER, numbered_layers
from e3sparse.analysis.change import Change
from e3sparse.analysis.heatmap import LABELS, Scale, heatmap, least, panels_of, title
from e3sparse.analysis.periodic_table import place
from e3sparse.analysis.tables import element_table, layer_table, summed
from e3sparse.files import replacing

if TYPE_CHECKING:
    # Which imports the training, and with it Lightning.
    from e3sparse.analysis.causality import Ablation

MOST_COLUMNS = 20
SUFFIXES = ("png", "svg")
_MARKERS = "os^Dv<>P*X"
_STYLES = ("-", "--", ":", "-.")


def species_heatmap(changes: Sequence[Change], measure: str = "one_minus_r2") -> Figure | None:
    """Draw Fig. 2 of the paper: layers and s, p, d, f channels against elements.

    Of many elements those in the training frames have a column each, and the others one together.
    None if no layer of any change has a species axis.
    """
    columns = _columns(changes)
    tables = []
    for change in changes:
        cells = change.cells[~change.cells["element"].isin([EVERY, OTHER])]
        named = cells.assign(column=cells["element"].map(columns), row=_row(cells))
        tables.append(summed(named, ["depth", "row", "column"]))
    if all(table.empty for table in tables):
        return None
    trained = {chemical_symbols[z] for c in changes for z in c.trained_on or ()}
    order = list(dict.fromkeys(columns.values()))
    figure = heatmap(changes, tables, order, measure, bold=trained)
    figure.supxlabel(
        "element (in bold: in the training frames)" if trained else "element", fontsize=9
    )
    return figure


def channel_heatmap(changes: Sequence[Change], measure: str = "one_minus_r2") -> Figure:
    """Draw layers against the s, p, d, f channels that they write, all elements together."""
    tables = []
    for change in changes:
        cells = change.cells.dropna(subset=["l_out"])
        letters = cells["l_out"].map(lambda degree: LETTERS[int(degree)])
        named = cells.assign(column=letters, row=_short(cells["layer"]))
        tables.append(summed(named, ["depth", "row", "column"]))
    present = {str(column) for table in tables for column in table["column"]}
    order = [letter for letter in LETTERS if letter in present]
    figure = heatmap(changes, tables, order, measure, bold=set())
    figure.supxlabel("l of the output: s, p, d, f = 0, 1, 2, 3", fontsize=9)
    return figure


def periodic_map(changes: Sequence[Change], measure: str = "one_minus_r2") -> Figure | None:
    """Draw the change of each element, over all layers with a species axis, where it stands.

    None if no layer of any change has a species axis.
    """
    tables = [element_table(change).set_index("element")[measure] for change in changes]
    if all(table.empty for table in tables):
        return None
    values = np.concatenate([table.to_numpy(dtype=float) for table in tables])
    scale = Scale.of(list(values))
    across = min(2, len(changes))
    down = ceil(len(changes) / across)
    figure = Figure(figsize=(6.2 * across + 1.1, 3.9 * down + 0.3), layout="constrained")
    panels = panels_of(figure, down, across, len(changes))
    for axes, change, table in zip(panels, changes, tables, strict=True):
        axes.set_title(title(change), fontsize=9)
        axes.set(xlim=(-0.1, 18.1), ylim=(10.1, -0.1), aspect="equal")
        axes.axis("off")
        for number in range(1, 119):
            _element(axes, number, table, scale, change)
    scale.bar(figure, panels, LABELS[measure], least(values))
    figure.supxlabel(
        "white: exactly unchanged; grey letters: not in the model; thick frame: in the training "
        "frames",
        fontsize=9,
    )
    return figure


def sparsity_by_depth(changes: Sequence[Change]) -> Figure:
    """Draw the share of exact zeros in each layer against its depth."""
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.subplots()
    deepest = max(int(change.cells["depth"].max()) for change in changes)
    for number, change in enumerate(changes):
        table = layer_table(change)
        # Beside each other where depths are equal.
        x = table["depth"] + 0.7 * ((number + 0.5) / len(changes) - 0.5)
        color = f"C{number}"
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(x, table["share"], marker, ms=4, alpha=0.55, color=color, mew=0)
        by_depth = table.groupby("depth")[["updated", "entries"]].sum()
        axes.plot(
            by_depth.index + 0.7 * ((number + 0.5) / len(changes) - 0.5),
            by_depth["updated"] / by_depth["entries"],
            _STYLES[number % len(_STYLES)],
            marker=marker,
            ms=7,
            mfc="white",
            color=color,
            label=title(change).replace("\n", " "),
        )
    axes.set_yscale("symlog", linthresh=1e-4)
    ticks = [1.0, 0.1, 0.01, 0.001, 0.0001, 0.0]
    axes.set_yticks(ticks, ["0", "90", "99", "99.9", "99.99", "100"])
    axes.minorticks_off()
    axes.set(ylim=(1.5, -3e-5), ylabel="exact zeros in ΔW (%)")
    layers = [path for change in changes for path in change.layouts]
    numbered = max(numbered_layers(layers).values(), default=0)
    names = ["input", *map(str, range(1, numbered + 1)), "output"][: deepest + 1]
    axes.set_xticks(range(deepest + 1), names)
    axes.set_xlabel("depth: number of the interaction layer (large: all its layers together)")
    axes.grid(axis="y", color="0.9")
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncol=2, frameon=False)
    return figure


def ablation(found: "Ablation", name: str, top: int = 15) -> Figure:
    """Draw what the groups carry of the gain, and whether the size of their change predicts it."""
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    best = found.table.sort_values("carried", ascending=False).head(top)[::-1]
    shares = 100 * best[["carried_low", "carried", "carried_high"]].to_numpy(dtype=float)
    y = np.arange(len(best))
    axes[0].barh(y, shares[:, 1], color="0.75")
    axes[0].errorbar(
        shares[:, 1],
        y,
        xerr=np.abs(shares[:, [0, 2]] - shares[:, [1]]).T,
        fmt="none",
        ecolor="black",
        lw=1,
        capsize=2,
    )
    axes[0].set_yticks(y, _row(best), fontsize=7)
    axes[0].axvline(0, color="black", lw=0.8)
    axes[0].set(
        xlabel="share of the gain in force MAE\nthat is lost without the group (%)",
        title=f"{name}: {found.before:.0f} → {found.after:.0f} meV/Å",
    )
    for panel, measure in zip(axes[1:], ("one_minus_r2", "updated"), strict=True):
        degrees = found.table["l_out"].fillna(-1).astype(int)
        for degree in sorted(degrees.unique()):
            part = found.table[degrees == degree]
            letter = LETTERS[degree] if degree >= 0 else "?"
            marker = _MARKERS[degree % len(_MARKERS)]
            x, share = part[measure].astype(float), 100 * part["carried"]
            panel.plot(x, share, marker, ms=5, alpha=0.7, label=letter)
        panel.set(
            xscale="log",
            xlabel=LABELS[measure],
            ylabel="share of the gain (%)",
            title=f"rank correlation\n{found.correlations[measure]}",
        )
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.axhline(0, color="black", lw=0.8)
        panel.legend(title="output", fontsize=7, title_fontsize=7)
    for panel in axes:
        panel.title.set_fontsize(9)
    return figure


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `name.png` and `name.svg`."""
    for suffix in SUFFIXES:
        with replacing(folder / f"{name}.{suffix}") as temporary:
            figure.savefig(temporary, dpi=150, format=suffix)


def _element(axes: Axes, number: int, table: pd.Series, scale: Scale, change: Change) -> None:
    row, column = place(number)
    symbol = chemical_symbols[number]
    y = row - 0.4 if row > 7 else row
    known = symbol in table.index
    value = float(table[symbol]) if known else 0.0
    changed = known and value > 0
    trained = number in (change.trained_on or ())
    axes.add_patch(
        Rectangle(
            (column + 0.04, y + 0.04),
            0.92,
            0.92,
            facecolor=scale.color(value) if changed else "white",
            edgecolor="black" if trained else "0.6" if known else "0.9",
            lw=1.6 if trained else 0.5,
        )
    )
    ink = scale.ink(value) if changed else "black" if known else "0.75"
    weight = "bold" if trained else "normal"
    axes.text(
        column + 0.5, y + 0.52, symbol, ha="center", va="center", fontsize=7, color=ink,
        fontweight=weight,
    )  # fmt: skip


def _columns(changes: Sequence[Change]) -> dict[str, str]:
    """Return the column of each element, in order of atomic number."""
    numbers = sorted(z for z in changes[0].numbers if z)
    symbols = {z: chemical_symbols[z] for z in numbers}
    if len(numbers) <= MOST_COLUMNS:
        return {symbol: symbol for symbol in symbols.values()}
    own = {z for change in changes for z in change.trained_on or ()}
    if not own:
        own = {
            chemical_symbols.index(str(e))
            for change in changes
            for e in element_table(change).query("updated > 0")["element"]
        }
    own = set(sorted(own)[: MOST_COLUMNS - 1])
    others = f"{len(numbers) - len(own)}\nothers"
    first = {symbols[z]: symbols[z] for z in numbers if z in own}
    return first | {symbols[z]: others for z in numbers if z not in own}


def _row(table: pd.DataFrame) -> pd.Series:
    """Return the label of each row: layer, s p d f of its output, and element if there is one."""
    letters = table["l_out"].map(lambda degree: "" if pd.isna(degree) else LETTERS[int(degree)])
    labels = _short(table["layer"]) + "  " + letters
    if "carried" in table:
        labels = labels + "  " + table["element"]
    return labels.str.rstrip()


def _short(layers: pd.Series) -> pd.Series:
    """Leave out what all layers' names begin with, and what says nothing."""
    return layers.str.replace(r"^model\.func\.", "", regex=True).str.replace(
        r"(symmetric_)?contractions", "contr", regex=True
    )
