"""Full fine-tuning, LoRA, the published method and ours: one table and one figure.

    .venv/bin/python benchmarks/comparison.py   # benchmarks/results/comparison.md, comparison.png

Ethanol of rMD17, 200 training frames, 400 steps of 5 frames, mean ± standard deviation over three
seeds. Errors and zeros are those of benchmarks/methods.py, each method at its best learning rate on
validation; the soft threshold is the run nearest to 97 % zeros. Step time and memory are those of
benchmarks/costs.py on a CPU, as ratios to full fine-tuning by the framework itself; for MACE on the
architecture of MACE-OFF23-medium with random weights. Drift is that of benchmarks/forgetting.py:
the mean change of the forces on systems that were not trained on (copper, silicon, Nb-Mo-Ta-W and
water for SevenNet-0; four other molecules for the small MACE). The row "a quarter of the rate" is
from benchmarks/forgetting.py throughout. A dash: not measured.
"""

from dataclasses import dataclass

import forgetting
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import NullFormatter
from methods import best_group, read_rows, spread
from tasks import FULL, HERE, LEVELS, LOW_RANK, TASKS, settings

RESULTS = HERE / "results"
TABLE, FIGURE = RESULTS / "comparison.md", RESULTS / "comparison.png"
LEVEL = 0.97
BUDGET = ("budget", settings(target_sparsity=LEVEL))
OURS = "**e3sparse, 97 % zeros**"
ZERO_SHOT = ("zero_shot_test_energy_mae", "zero_shot_test_forces_mae")
ERRORS = ("test_energy_mae", "test_forces_mae")
HEADER = (
    *("model", "method", "E MAE (meV/atom)", "F MAE (meV/Å)", "zeros in ΔW (%)"),
    *("step time / full", "memory / full", "drift of forces elsewhere (meV/Å)"),
)


@dataclass(frozen=True)
class Row:
    """A method: what it is called, and where it is found in methods.csv and in costs.csv."""

    name: str
    method: str
    settings: str | None  # None: chosen by `nearest`
    cost: str | None = None


@dataclass(frozen=True)
class Compared:
    """A model, its task, and the model whose cost was measured."""

    name: str
    task: str
    cost_model: str
    rows: tuple[Row, ...]


FULL_ROW = Row("full fine-tuning", *FULL, "full")
SOFT_ROW = Row("published soft threshold", "soft_threshold", None, "linear, soft_threshold")
OUR_ROW = Row(OURS, *BUDGET, "linear, budget")
COMPARED = (
    Compared(
        "SevenNet-0",
        "7net-ethanol",
        "7net-0",
        (
            FULL_ROW,
            Row("ELoRA, rank 16", *LOW_RANK, "linear, low_rank"),
            SOFT_ROW,
            OUR_ROW,
        ),
    ),
    Compared(
        "small MACE",
        "mace-ethanol",
        "mace-off23-medium",
        (
            FULL_ROW,
            Row("MACE's LoRA, rank 16", "mace_lora", settings(rank=16), "MACE's lora, rank 16"),
            Row("ELoRA, rank 16", *LOW_RANK),
            SOFT_ROW,
            OUR_ROW,
        ),
    ),
)


def rows_of(task):
    """Return the runs of a task in methods.csv."""
    rows, chosen = read_rows(), TASKS[task]
    return rows[(rows["dataset"] == chosen.dataset) & (rows["model"] == chosen.model)]


def best(rows, method, chosen):
    """Return the runs of a method at its best rate."""
    return best_group(rows[(rows["method"] == method) & (rows["settings"] == chosen)])


def nearest(rows, level):
    """Return the settings of the soft threshold, on the default targets, nearest to a sparsity."""
    mine = rows[(rows["method"] == "soft_threshold") & ~rows["settings"].str.contains("targets")]
    found = {s: best_group(same) for s, same in mine.groupby("settings")}
    found = {s: group for s, group in found.items() if group is not None}
    return min(found, key=lambda s: abs(found[s]["layerwise_sparsity"].mean() - level))


def costs(model):
    """Return time and memory over those of full fine-tuning, of each case of a model."""
    rows = pd.read_csv(RESULTS / "costs.csv")
    return rows[(rows["model"] == model) & (rows["device"] == "cpu")].set_index("case")


def lines():
    """Return the lines of the table and what is said before it."""
    written = [
        "# Compared",
        "",
        (__doc__ or "").split("\n\n", 1)[1].rstrip(),
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * len(HEADER),
    ]
    for compared in COMPARED:
        written += [f"| {' | '.join(cells)} |" for cells in cells_of(compared)]
    return written


def cells_of(compared):
    """Yield the cells of each row of a model."""
    rows, cost = rows_of(compared.task), costs(compared.cost_model)
    forgot = dict(forgetting.complete(forgetting.read_rows(), compared.task))
    held = forgetting.HELD[compared.task]
    before = rows[list(ZERO_SHOT)].dropna().iloc[0]
    yield [
        *(compared.name, "not fine-tuned", f"{before.iloc[0]:.2f}", f"{before.iloc[1]:.1f}"),
        *("", "", "", "0"),
    ]
    for row in compared.rows:
        chosen = nearest(rows, LEVEL) if row.settings is None else row.settings
        group = best(rows, row.method, chosen)
        drifted = forgot.get((row.method, chosen, 0.0, group["lr"].iloc[0]))
        yield cells(compared, row, group, cost, drifted, held)
    slower = forgot[(*BUDGET, 0.0, best(rows, *BUDGET)["lr"].iloc[0] / 4)]
    ours = next(row for row in compared.rows if row.name == OURS)
    slow_row = Row(f"{OURS}, a quarter of the rate", *BUDGET, ours.cost)
    # What a budget leaves is what was asked for, at any rate.
    counted = best(rows, *BUDGET)["layerwise_sparsity"].to_numpy()
    yield cells(compared, slow_row, slower.assign(layerwise_sparsity=counted), cost, slower, held)


def cells(compared, row, group, cost, drifted, held):
    """Return the cells of a method."""
    zeros = group["layerwise_sparsity"]
    measured = [f"{cost.loc[row.cost, c]:.2f}" for c in ("time", "memory")] if row.cost else "––"
    return [
        compared.name,
        row.name,
        spread(group[ERRORS[0]], 2),
        spread(group[ERRORS[1]], 1),
        f"{100 * zeros.mean():.1f}" if zeros.notna().all() else "",
        *measured,
        "–" if drifted is None else spread(forgetting.drift_of(drifted, held), 1),
    ]


def figure():
    """Draw the force error of SevenNet-0 on ethanol against the entries that were updated."""
    rows, grey = rows_of("7net-ethanol"), "0.35"
    fig, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    whole = costs("7net-0").loc["full", "trainable"]
    singles = {
        "full fine-tuning": (FULL, (0, 9), "right"),
        "ELoRA, rank 16": (LOW_RANK, (0, -15), "center"),
        "readouts only": (("dense", settings(targets="reduce_*")), (9, -3), "left"),
        "random mask": (("fixed_mask", settings(target_sparsity=LEVEL)), (0, -19), "center"),
        "Fisher mask": (
            ("fixed_mask", settings(target_sparsity=LEVEL, score="fisher")),
            (9, -1),
            "left",
        ),
    }
    for name, (key, offset, side) in singles.items():
        group = best(rows, *key)
        x = group["updated"].mean() if group["updated"].notna().all() else whole
        draw(axes, [x], [group], "o", grey)
        note(axes, name, x, mean(group), offset, side, grey)
    soft = [best(rows, "soft_threshold", nearest(rows, level)) for level in LEVELS]
    ours = [best(rows, "budget", settings(target_sparsity=level)) for level in LEVELS]
    for groups, marker, color, name, offset, side, below in (
        (soft, "s", "#b3541e", "published soft threshold", (10, 4), "left", (-9, -11)),
        (ours, "o", "#0b5fa5", "e3sparse", (-12, -4), "right", (9, -13)),
    ):
        x = [group["updated"].mean() for group in groups]
        draw(axes, x, groups, marker, color, joined=True)
        last = int(np.argmin(x))
        note(axes, name, x[last], mean(groups[last]), offset, side, color, weight="bold")
        for at, group in zip(x, groups, strict=True):
            share = f"{100 * group['layerwise_sparsity'].mean():.4g} %"
            towards = "right" if below[0] < 0 else "center"
            note(axes, share, at, mean(group), below, towards, color, size=7)
    before = rows["zero_shot_test_forces_mae"].dropna().iloc[0]
    axes.axhline(before, color="0.6", ls=":", lw=1)
    note(axes, "not fine-tuned", whole, before, (0, -12), "right", "0.45")
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(700, 1.3e6),
        ylim=(15, 330),
        xlabel=f"updated entries, of {whole:,} parameters (labels: zeros in ΔW)",
        ylabel="force MAE on test frames (meV/Å)",
        title="SevenNet-0 on ethanol, 200 training frames, three seeds",
    )
    axes.title.set_fontsize(10)
    axes.set_yticks([20, 50, 100, 200], ["20", "50", "100", "200"])
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    fig.savefig(FIGURE, dpi=150)


def mean(group):
    """Return the mean force error of some runs."""
    return group[ERRORS[1]].mean()


def draw(axes, x, groups, marker, color, *, joined=False):
    """Draw means and standard deviations."""
    axes.errorbar(
        x,
        [mean(group) for group in groups],
        yerr=[group[ERRORS[1]].std() for group in groups],
        fmt=marker,
        ls="-" if joined else "none",
        lw=1,
        ms=6,
        capsize=2,
        color=color,
    )


def note(axes, text, x, y, offset, side, color, *, size=9, weight="normal"):
    """Write beside a point."""
    axes.annotate(
        text,
        (x, y),
        xytext=offset,
        textcoords="offset points",
        ha=side,
        color=color,
        fontsize=size,
        fontweight=weight,
    )


def table():
    """Write the table."""
    TABLE.write_text("\n".join(lines()) + "\n")
    print(TABLE.read_text())


if __name__ == "__main__":
    table()
    figure()
