"""Spin-aware layers on SevenNet-0 and real magnetic sets: the columns of the paper's Table 2.

    .venv/bin/python benchmarks/magnetic.py run fe      # resumes where it stopped
    .venv/bin/python benchmarks/magnetic.py run nio
    .venv/bin/python benchmarks/magnetic.py table       # benchmarks/results/magnetic_<task>.md

Data: ../shared/data or the folder E3SPARSE_DATA. Every method has the same steps, batches and
spin-aware layers. Its learning rate is the best on validation (errors of energy, force and moment,
each over the smallest, summed) of those in METHODS, with seed 0.
Every run is a row of benchmarks/results/magnetic_<task>.csv; budget with seed 0 stays in
runs/magnetic, for benchmarks/exchange.py.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated

import ase.io
import numpy as np
import pandas as pd
import torch
import typer
from magnetic_tasks import TASKS
from methods import commit, spread
from tasks import HERE, SEEDS

from e3sparse.training.config import make_config
from e3sparse.training.run import finetune

RESULTS = HERE / "results"
MODEL = "7net-0"
METHODS = {
    "budget 97 %": ("budget", {"target_sparsity": 0.97}, (2e-2, 1e-2, 5e-3)),
    "full": ("full", {}, (3e-3, 1e-3)),
    "low rank": ("low_rank", {"rank": 16}, (1e-2, 3e-3)),
    "scratch": ("scratch", {}, (3e-3, 1e-2)),
    "soft threshold (L)": ("soft_threshold", {"tau_weight_decay": 0.2}, (4e-2, 2e-2)),
    "soft threshold (H)": ("soft_threshold", {"tau_weight_decay": 0.8}, (4e-2, 2e-2)),
}  # fmt: skip

SHOWN = "budget 97 %"
ERRORS = ("energy_mae", "forces_mae", "moments_mae", "sign_errors", "magnetic_forces_mae")

app = typer.Typer(no_args_is_help=True)


def one_run(task, label, lr, seed, keep=None):
    """Fine-tune once; returns a row of the CSV."""
    method, settings, _ = METHODS[label]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) if keep is None else keep
        files = {}
        for split, frames in task.splits().items():
            files[split] = folder / f"{split}.xyz"
            ase.io.write(files[split], frames)
        files.pop("pairs", None)
        config = make_config(
            {
                "model": MODEL,
                "magnetic": True,
                "method": method,
                "method_settings": settings,
                "lr": lr,
                "spin_lr": task.spin_lr,
                "seed": seed,
                "device": "cpu",
                "max_steps": task.steps,
                "batch_size": task.batch,
                "loss": task.loss,
                "out": folder / "run",
                **files,
            }
        )
        result = finetune(config, overwrite=True)
        sparsity = json.loads((folder / "run" / "results.json").read_text()).get("sparsity")
    row = {
        "task": task.name,
        "model": MODEL,
        "method": label,
        "settings": json.dumps(settings),
        "lr": lr,
        "seed": seed,
        "steps": task.steps,
        "batch_size": task.batch,
        "seconds": round(time.monotonic() - start),
        "device": "cpu",
        "commit": commit(),
    }
    if sparsity:
        kept = sparsity["parameters"] - sparsity["updated"]
        row["layerwise_sparsity"] = sparsity["layerwise"]
        # The spin-aware layers count as updated parameters, as in the paper.
        row["total_sparsity"] = kept / (sparsity["parameters"] + sparsity["fresh"])
    for split in ("valid", "test"):
        for column in ERRORS:
            if column not in result.table:
                continue
            row[f"{split}_{column}"] = result.table.loc[f"{split} after", column]
            if column in ("energy_mae", "forces_mae") and label != "scratch":
                row[f"zero_shot_{split}_{column}"] = result.table.loc[f"{split} before", column]
    return row


def read_rows(task):
    """Return the runs of a task so far."""
    path = RESULTS / f"magnetic_{task.name}.csv"
    rows = pd.read_csv(path) if path.exists() else pd.DataFrame()
    return rows.reindex(columns=COLUMNS)


def get(task, label, lr, seed):
    """Return the row of a run, which is made if it lacks."""
    rows = read_rows(task)
    same = rows[(rows["method"] == label) & (rows["lr"] == lr) & (rows["seed"] == seed)]
    if len(same):
        return same.iloc[0]
    keep = kept(task, lr) if label == SHOWN and seed == 0 else None
    row = pd.DataFrame([one_run(task, label, lr, seed, keep)])
    path = RESULTS / f"magnetic_{task.name}.csv"
    pd.concat([rows, row.reindex(columns=COLUMNS)]).to_csv(path, index=False)
    return row.iloc[0]


def kept(task, lr):
    """Return the folder of the run that exchange.py shows."""
    folder = HERE.parent / "runs" / "magnetic" / f"{task.name}_{lr:g}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


COLUMNS = [
    *("task", "model", "method", "settings", "lr", "seed", "steps", "batch_size", "seconds"),
    *("device", "commit", "layerwise_sparsity", "total_sparsity"),
    *(
        f"{kind}{split}_{column}"
        for split in ("valid", "test")
        for column in ERRORS
        for kind in (("", "zero_shot_") if column in ("energy_mae", "forces_mae") else ("",))
    ),
]


def best_rate(rows):
    """Return the learning rate with the smallest errors on validation."""
    columns = [f"valid_{c}" for c in ("energy_mae", "forces_mae", "moments_mae")]
    errors = pd.DataFrame([row[columns] for row in rows]).astype(float)
    summed = (errors / errors.min()).sum(axis=1, skipna=False)  # NaN where a training diverged
    return rows[int(np.nanargmin(summed))]["lr"]


@app.command()
def run(task: Annotated[str, typer.Argument(help=f"One of {', '.join(TASKS)}.")]):
    """Run whatever is missing of a task."""
    torch.set_num_threads(1)
    chosen = TASKS[task]
    for label, (_, _, rates) in METHODS.items():
        slower = 1.0 if label == "scratch" else chosen.slower
        tried = [rate / slower for rate in rates]
        lr = best_rate([get(chosen, label, rate, 0) for rate in tried])
        for seed in SEEDS[1:]:
            get(chosen, label, lr, seed)


@app.command()
def table():
    """Write means and standard deviations over the seeds of each task that was run."""
    for task in TASKS.values():
        mine = read_rows(task)
        if len(mine):
            path = RESULTS / f"magnetic_{task.name}.md"
            path.write_text("\n".join(lines(task, mine)) + "\n")
            print(path.read_text())


def lines(task, mine):
    """Return the lines of a task's table."""
    zero = mine[["zero_shot_test_energy_mae", "zero_shot_test_forces_mae"]].dropna().iloc[0]
    written = [
        f"# Spin-aware layers on SevenNet-0: {task.name}",
        "",
        (__doc__ or "").split("\n\n", 1)[1].rstrip(),
        "",
        task.about + ".",
        "",
        f"{task.steps} steps of batch {task.batch}; test set, mean ± standard deviation over "
        f"{len(SEEDS)} seeds. Zero-shot, with references fitted: {zero.iloc[0]:.2f} meV/atom, "
        f"{zero.iloc[1]:.1f} meV/Å. Moments: length of the difference vector; sign errors: "
        "share of atoms with a moment in the wrong half-space.",
        "",
        "| method | settings | lr | E (meV/atom) | F (meV/Å) | moment (μ_B) | sign errors (%) "
        "| -dE/dS (meV/rad) | sparsity (total, %) | sparsity (layer, %) |",
        "|" + "---|" * 10,
    ]
    for label in METHODS:
        same = mine[mine["method"] == label]
        tried = [row for _, row in same[same["seed"] == 0].iterrows()]
        if tried:
            lr = best_rate(tried)
            group = same[same["lr"] == lr]
            if len(group) == len(SEEDS):
                written.append(line(label, lr, group))
    return written


def line(label, lr, group):
    """Return the line of a method."""
    cells = [
        label,
        group["settings"].iloc[0].strip("{}"),
        f"{lr:g}",
        spread(group["test_energy_mae"], 2),
        spread(group["test_forces_mae"], 1),
        spread(group["test_moments_mae"], 3),
        spread(100 * group["test_sign_errors"], 1),
        spread(group["test_magnetic_forces_mae"], 1)
        if group["test_magnetic_forces_mae"].notna().all()
        else "",
    ]
    for column in ("total_sparsity", "layerwise_sparsity"):
        known = group[column].notna().all()
        cells.append(spread(100 * group[column], 2) if known else "")
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    app()
