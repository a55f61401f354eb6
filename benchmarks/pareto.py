"""Figures over the runs of benchmarks/methods.py, and what of our aims they reach.

.venv-mace/bin/python benchmarks/pareto.py sweep    # λ_τ for linear, fctp and all; resumes
.venv/bin/python benchmarks/pareto.py figures       # benchmarks/results/pareto.png, sweep.png
.venv/bin/python benchmarks/pareto.py reach         # benchmarks/results/reach.md
"""

import json
import os
from itertools import zip_longest
from typing import Annotated

import forgetting
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import typer
from matplotlib.ticker import LogFormatter, NullFormatter
from methods import Runs, best_group, read_rows
from tasks import HERE, LEVELS, PARTS, SEEDS, TASKS, label, settings

RESULTS = HERE / "results"
METRICS = {"energy_mae": "E", "forces_mae": "F"}
MARKERS = dict(
    zip(
        ("budget", "soft_threshold", "low_rank", "dense", "fixed_mask", "full", "scratch"),
        "osDv^*X",
        strict=True,
    )
)
SWEEP_TASK, SWEEP_LR = "mace-ethanol", 4e-2
DECAYS, TARGETS = (0.1, 0.3, 1.0, 3.0, 10.0), ("linear", "fctp", "all")
COLUMNS = 3  # of panels
AIM_97, AIM_RATIO, AIM_995 = 0.8, 0.95, 0.5
AIM_STEP = {"mace": 0.6, "7net": 0.9, "nequip": 0.9}

app = typer.Typer(no_args_is_help=True)


def groups(rows, task):
    """Return the runs of each method of a task at its best rate, those with all seeds."""
    mine = rows[(rows["dataset"] == task.dataset) & (rows["model"] == task.model)]
    found = {}
    for key, same in mine.groupby(["method", "settings"]):
        best = best_group(same)
        if best is not None:
            found[key] = best
    return found


def swept(targets, decay):
    """Return the settings of a point of the sweep as they stand in the CSV."""
    said = {} if targets == "linear" else {"targets": targets}
    return settings(**said, tau_weight_decay=decay)


@app.command()
def sweep(
    jobs: Annotated[int, typer.Option(help="Processes, of one thread each.")] = 1,
):
    """Train with the published soft threshold at each λ_τ and for each choice of targets."""
    os.chdir(HERE.parent)
    wanted = [("soft_threshold", swept(t, d), SWEEP_LR, 0) for t in TARGETS for d in DECAYS]
    Runs(TASKS[SWEEP_TASK], jobs).get(wanted)


@app.command()
def figures():
    """Draw force errors against the share of updated entries, and the sweep of λ_τ."""
    rows = read_rows()
    tasks = [task for task in TASKS.values() if groups(rows, task)]
    lines = -(-len(tasks) // COLUMNS)
    fig, panels = plt.subplots(
        lines, COLUMNS, figsize=(4.6 * COLUMNS, 4.6 * lines), layout="constrained", squeeze=False
    )
    for axes, task in zip_longest(panels.flat, tasks):
        if task is None:
            axes.set_axis_off()
        else:
            draw_pareto(axes, task, groups(rows, task))
    fig.savefig(RESULTS / "pareto.png", dpi=150)
    draw_sweep(rows)


def draw_pareto(axes, task, found):
    """Draw the methods of a task; those that update everything are lines."""
    zero_shot = pd.concat(found.values())["zero_shot_test_forces_mae"].dropna().iloc[0]
    axes.axhline(zero_shot, color="0.5", ls=":", label="zero-shot")
    styles = iter(("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1))))
    for (method, chosen), group in found.items():
        if not counted(group):
            error = group["test_forces_mae"].mean()
            axes.axhline(error, color="0.3", lw=1, ls=next(styles), label=label(method, chosen))
    tried = {setting for part in PARTS for setting in part}  # one by one: not drawn
    for number, (method, marker) in enumerate(MARKERS.items()):
        mine = [
            g
            for (name, chosen), g in found.items()
            if name == method and not tried & set(json.loads(chosen or "{}")) and counted(g)
        ]
        if mine:
            axes.errorbar(
                [g["updated"].mean() for g in mine],
                [g["test_forces_mae"].mean() for g in mine],
                yerr=[g["test_forces_mae"].std() for g in mine],
                fmt=marker,
                color=f"C{number}",
                capsize=2,
                label=method.replace("_", " "),
            )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="updated entries",
        ylabel="force MAE (meV/Å)",
        title=task.name,
    )
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.legend(fontsize=7)


def counted(group):
    """Whether the entries that a method has updated were counted: it does not update them all."""
    return group["updated"].notna().all()


def draw_sweep(rows):
    """Draw sparsity and force error against λ_τ (Figure 1 of the paper)."""
    task = TASKS[SWEEP_TASK]
    mine = rows[(rows["dataset"] == task.dataset) & (rows["model"] == task.model)]
    mine = mine[(mine["method"] == "soft_threshold") & (mine["lr"] == SWEEP_LR)]
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for targets, marker in zip(TARGETS, "osD", strict=True):
        points = []
        for decay in DECAYS:
            row = mine[(mine["settings"] == swept(targets, decay)) & (mine["seed"] == 0)]
            if len(row):
                first = row.iloc[0]
                points.append((decay, 100 * first["layerwise_sparsity"], first["test_forces_mae"]))
        if points:
            x, sparsity, error = zip(*points, strict=True)
            left.plot(x, sparsity, marker=marker, label=targets)
            right.plot(sparsity, error, marker=marker, label=targets)
    left.set(xscale="log", xlabel=r"$\lambda_\tau$", ylabel="layer-wise sparsity (%)")
    right.set(xlabel="layer-wise sparsity (%)", ylabel="force MAE (meV/Å)", yscale="log")
    right.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    left.set_title(f"soft threshold, {SWEEP_TASK}, seed 0", fontsize=10)
    left.legend(title="targets")
    fig.savefig(RESULTS / "sweep.png", dpi=150)


@app.command()
def reach():
    """Write which share of (task, metric) cells the budget method wins, and forgetting."""
    cells = compared(read_rows())
    lines = [
        "# What of our aims is reached",
        "",
        (__doc__ or "").split("\n\n", 1)[1].rstrip(),
        "",
        "Each cell is a task of benchmarks/methods.py and a metric on its test set, the mean over "
        f"{len(SEEDS)} seeds; every method at its best learning rate on validation. Below 1: the "
        "budget method is more accurate.",
        "",
        "| task | metric | sparsity (%) | error / full | error / low rank |",
        "|---|---|---|---|---|",
    ]
    for row in cells.itertuples():
        lines.append(
            f"| {row.task} | {row.metric} | {100 * row.level:g} | {row.full:.2f} | "
            f"{row.low_rank:.2f} |"
        )
    lines += ["", "| aim | found | reached |", "|---|---|---|", *aims(cells)]
    (RESULTS / "reach.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def compared(rows):
    """Return the errors of the budget method over those of full fine-tuning and of low rank."""
    cells = []
    for task in TASKS.values():
        found = groups(rows, task)
        for level in LEVELS:
            mine = found.get(("budget", settings(target_sparsity=level)))
            full = found.get(("full", ""))
            low_rank = found.get(("low_rank", settings(rank=16)))
            if mine is None or full is None or low_rank is None:
                continue
            for column, metric in METRICS.items():
                error = mine[f"test_{column}"].mean()
                cells.append(
                    {
                        "task": task.name,
                        "metric": metric,
                        "level": level,
                        "full": error / full[f"test_{column}"].mean(),
                        "low_rank": error / low_rank[f"test_{column}"].mean(),
                    }
                )
    return pd.DataFrame(cells)


def aims(cells):
    """Return the lines of the aims."""
    high, higher = cells[cells["level"] == 0.97], cells[cells["level"] == 0.995]
    both = ((high["full"] <= 1) & (high["low_rank"] <= 1)).mean()
    ratio, most = high["low_rank"].mean(), (higher["low_rank"] <= 1).mean()
    yield aim(
        f"97 %: as accurate as full and as low rank in {AIM_97:.0%} of cells",
        f"{both:.0%} of {len(high)} ({(high['full'] <= 1).mean():.0%} against full, "
        f"{(high['low_rank'] <= 1).mean():.0%} against low rank)",
        both >= AIM_97,
    )
    yield aim(
        f"97 %: mean ratio to low rank at most {AIM_RATIO}", f"{ratio:.2f}", ratio <= AIM_RATIO
    )
    if len(higher):
        yield aim(
            f"99.5 %: as accurate as low rank in {AIM_995:.0%} of cells",
            f"{most:.0%} of {len(higher)}",
            most >= AIM_995,
        )
    yield from forgetting_aims()
    yield from cost_aims()


def forgetting_aims():
    """Return a line for each task of benchmarks/forgetting.py: drift over full fine-tuning's."""
    rows = forgetting.read_rows()
    for task, held in forgetting.HELD.items() if len(rows) else ():
        found = list(forgetting.complete(rows, task))
        drifts = {key: forgetting.drift_of(group, held).mean() for key, group in found}
        full = next((value for key, value in drifts.items() if key[:3] == ("full", "", 0)), None)
        for (method, chosen, replay, lr), group in found:
            said = json.loads(chosen or "{}")
            if method != "budget" or said["target_sparsity"] != 0.97 or full is None:
                continue
            ratio = drifts[method, chosen, replay, lr] / full
            how = f"lr {lr:g}" + (f", replay × {replay:g}" if replay else "")
            how += f", weight decay {said['weight_decay']:g}" if "weight_decay" in said else ""
            error = group["test_forces_mae"].mean()
            yield aim(
                f"97 % ({how}, {error:.1f} meV/Å): drift on held-out chemistry at most half of "
                f"full's, {task}",
                f"{ratio:.2f}",
                ratio <= 0.5,
            )


def cost_aims():
    """Return a line for each model of benchmarks/costs.py, and one of merged models."""
    path = RESULTS / "costs.csv"
    if not path.exists():
        return
    rows = pd.read_csv(path)
    rows = rows[rows["targets"].notna()]
    default = rows[(rows["method"] == "budget") & (rows["targets"] == "linear")]
    # MACE's own evaluation is there for comparison.
    default = default[~default["case"].str.contains("not accelerated")]
    for row in default.itertuples():
        most = AIM_STEP[row.model.split("-")[0]]
        text = f"step of the default targets at most {most:.2f} of full's, {row.model}"
        yield aim(f"{text}, {row.device}", f"{row.time:.2f}", row.time <= most)
    middle = rows["inference"].median()
    yield aim(
        "inference of merged models as fast as of the base",
        f"{middle:.2f} ({rows['inference'].min():.2f} to {rows['inference'].max():.2f})",
        round(middle, 2) <= 1,
    )


def aim(text, found, reached):
    """Return a line of the table."""
    return f"| {text} | {found} | {'yes' if reached else 'no'} |"


if __name__ == "__main__":
    app()
