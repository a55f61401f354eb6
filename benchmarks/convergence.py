"""Force error on validation while each method trains (Figure II of the paper).

    .venv-mace/bin/python benchmarks/convergence.py run mace-ethanol --jobs 2
    .venv-mace/bin/python benchmarks/convergence.py figures   # benchmarks/results/convergence.png

Trained as by benchmarks/methods.py, at the learning rates that it chose, and validated after every
epoch. `run` resumes where it stopped; each validation is a row of
benchmarks/results/convergence.csv.
"""

import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import torch
import typer
from matplotlib.ticker import LogFormatter
from methods import commit, finetuned, rate_of
from tasks import HERE, SEEDS, TASKS, label, settings

CSV = HERE / "results" / "convergence.csv"
METHODS = [
    ("scratch", ""),
    ("full", ""),
    ("low_rank", settings(rank=16)),
    ("soft_threshold", settings(tau_weight_decay=0.3187)),
    ("budget", settings(target_sparsity=0.85)),
    ("budget", settings(target_sparsity=0.97)),
]
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (8, 2)))  # also told apart in grey

app = typer.Typer(no_args_is_help=True)


def one_run(name, method, chosen, lr, seed):
    """Fine-tune once; returns a row for each validation."""
    torch.set_num_threads(1)
    task = TASKS[name]
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        splits, said = task.prepare(folder), json.loads(chosen or "{}")
        out = finetuned(task, method, said, lr, seed, splits, folder, valid_every=1).out
        metrics = pd.read_csv(out / "metrics.csv")
    seen = metrics.dropna(subset=["valid/forces_mae"])
    return pd.DataFrame(
        {
            "task": name, "method": method, "settings": chosen, "lr": lr, "seed": seed,
            "step": seen["step"] + 1, "valid_forces_mae": seen["valid/forces_mae"],
            "sparsity": seen.get("sparsity"), "commit": commit(),
        }
    )  # fmt: skip


def read_rows():
    """Return the validations so far."""
    return pd.read_csv(CSV).fillna({"settings": ""}) if CSV.exists() else pd.DataFrame()


@app.command()
def run(
    task: Annotated[str, typer.Argument(help=f"One of {', '.join(TASKS)}.")],
    jobs: Annotated[int, typer.Option(help="Processes, of one thread each.")] = 1,
):
    """Run whatever is missing of a task."""
    os.chdir(HERE.parent)  # models are named from the project's root
    rows = read_rows()
    keys = ["task", "method", "settings", "seed"]
    done = set() if rows.empty else set(rows[keys].itertuples(index=False, name=None))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = []
        for method, chosen in METHODS:
            lr = rate_of(TASKS[task], method, chosen)
            for seed in SEEDS:
                if lr is not None and (task, method, chosen, seed) not in done:
                    futures.append(pool.submit(one_run, task, method, chosen, lr, seed))
        for future in as_completed(futures):
            future.result().to_csv(CSV, mode="a", header=not CSV.exists(), index=False)


@app.command()
def figures():
    """Draw the force error of each method against steps, the mean and range over seeds."""
    rows = read_rows()
    tasks = list(rows["task"].unique())
    fig, panels = plt.subplots(
        1, len(tasks), figsize=(6 * len(tasks), 4.2), layout="constrained", squeeze=False
    )
    for axes, task in zip(panels[0], tasks, strict=True):
        mine = rows[rows["task"] == task]
        for number, (method, chosen) in enumerate(METHODS):
            same = mine[(mine["method"] == method) & (mine["settings"] == chosen)]
            if same.empty:
                continue
            by_step = same.groupby("step")["valid_forces_mae"].agg(["mean", "min", "max"])
            axes.plot(
                by_step.index,
                by_step["mean"],
                color=f"C{number}",
                ls=DASHES[number],
                label=label(method, chosen),
            )
            axes.fill_between(
                by_step.index, by_step["min"], by_step["max"], color=f"C{number}", alpha=0.2, lw=0
            )
        axes.set(yscale="log", xlabel="step", ylabel="force MAE on validation (meV/Å)", title=task)
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axes.legend(fontsize=7)
    fig.savefig(CSV.with_name("convergence.png"), dpi=150)


if __name__ == "__main__":
    app()
