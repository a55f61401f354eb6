"""Accuracy against sparsity on real data: every method, same steps, same batches, three seeds.

    .venv/bin/python benchmarks/methods.py run 7net-ethanol --jobs 2
    .venv-mace/bin/python benchmarks/methods.py run mace-ethanol --jobs 2
    .venv/bin/python benchmarks/methods.py table     # writes benchmarks/results/methods_<task>.md
    .venv/bin/python benchmarks/methods.py run 7net-ethanol --profile gpu     # methods_gpu.csv

`run` resumes where it stopped. Data: ../shared/data or the folder E3SPARSE_DATA; 200 training, 50
validation and 200 test frames (950, 50 and 1,000 with the profile gpu, which has the batch of 64
and the 500 epochs of the paper). Each method takes the learning rate of its own grid that is best
on validation with seed 0, or the next best where another seed fails at it. The published soft
threshold cannot be asked for a sparsity: its λ_τ is bisected with seed 0 until the sparsity is near
the level (at most as far off as LEVELS says, or as near as a few tries came), and its learning rate
is chosen at the lowest level. Every run, those of the grid and the bisection too, is a row of
benchmarks/results/methods.csv, without errors where it diverged; its memory is the peak resident
set of the process (the allocator's peak on CUDA), blank for runs of before it was counted.
"""

import json
import os
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import repeat
from math import isfinite
from multiprocessing import get_context
from pathlib import Path
from threading import Lock
from typing import Annotated

import memory
import pandas as pd
import torch
import typer
from tasks import CPU, HERE, PROFILES, SEEDS, TASKS, settings

from e3sparse.errors import DivergedError
from e3sparse.training.config import make_config
from e3sparse.training.run import finetune

FAILED = 2.0  # times the validation error of seed 0
SOFT_LRS, SOFT_RANGE, SOFT_TRIES = (1e-2, 4e-2), (0.1, 20.0), 4


HEADER = (
    "method", "settings", "lr", "layer-wise sparsity (%)", "updated", "E MAE (meV/atom)",
    "F MAE (meV/Å)",
)  # fmt: skip

COLUMNS = [
    *("dataset", "model", "method", "settings", "lr", "seed", "steps", "batch_size", "seconds"),
    *("memory_mib", "device", "commit", "layerwise_sparsity", "updated"),
    *(
        f"{kind}{split}_{column}"
        for split in ("valid", "test")
        for column in ("energy_mae", "forces_mae")
        for kind in ("", "zero_shot_")
    ),
]

app = typer.Typer(no_args_is_help=True)


def one_run(task, profile, method, chosen, lr, seed):
    """Fine-tune once; returns a row of the CSV."""
    torch.set_num_threads(1)
    start = time.monotonic()
    profile = task.at(profile)
    memory.restart(profile.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        splits = task.prepare(folder, profile)
        run = RUNNERS.get(method, with_e3sparse)
        said = json.loads(chosen or "{}")
        try:
            errors, sparsity = run(task, profile, method, said, lr, seed, splits, folder)
        except DivergedError:
            errors, sparsity = None, None
    row = {
        "dataset": task.dataset, "model": task.model, "method": method, "settings": chosen,
        "lr": lr, "seed": seed, "steps": profile.steps, "batch_size": profile.batch,
        "seconds": round(time.monotonic() - start),
        "memory_mib": round(memory.peak(profile.device) / 2**20),
        "device": device_name(profile.device), "commit": commit(),
        "layerwise_sparsity": sparsity.layerwise if sparsity else None,
        "updated": sparsity.updated if sparsity else None,
    }  # fmt: skip
    for split in ("valid", "test"):
        for column in ("energy_mae", "forces_mae"):
            if errors is None:
                row[f"{split}_{column}"] = float("nan")
                continue
            row[f"{split}_{column}"] = errors.loc[f"{split} after", column]
            if method != "scratch":
                row[f"zero_shot_{split}_{column}"] = errors.loc[f"{split} before", column]
    return row


def with_e3sparse(task, profile, method, chosen, lr, seed, splits, folder):
    """Run `e3sparse finetune`; returns its error table and sparsity."""
    result = finetuned(task, method, chosen, lr, seed, splits, folder, profile=profile)
    return result.table, result.adapter.sparsity() if result.adapter is not None else None


def finetuned(task, method, chosen, lr, seed, splits, folder, *, profile=CPU, **more):
    """Fine-tune into folder/run, with other settings of a run where there are any."""
    said, profile = dict(chosen), task.at(profile)
    config = make_config(
        {
            "model": task.model, "method": method, "lr": lr, "seed": seed,
            "device": profile.device, "targets": said.pop("targets", "linear"),
            "method_settings": said, "out": folder / "run", "max_steps": profile.steps,
            "batch_size": profile.batch, "valid_every": profile.valid_every,
            **splits, **more,
        }
    )  # fmt: skip
    return finetune(config)


def with_mace_lora(task, profile, method, chosen, lr, seed, splits, folder):
    """Run MACE's own LoRA; imported here because only MACE's environment has it."""
    from mace_lora import finetune_with_lora

    return finetune_with_lora(
        task.model, splits, folder, rank=chosen["rank"], lr=lr, seed=seed, steps=profile.steps,
        batch=profile.batch, device=profile.device,
    )  # fmt: skip


RUNNERS = {"mace_lora": with_mace_lora}
"""What runs a method that is not ours."""


def device_name(device):
    """Return what the machine calls its accelerator, or "cpu"."""
    return device if device == "cpu" else torch.cuda.get_device_name()


def commit():
    """Return the commit that is checked out."""
    command = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


class Runs:
    """The rows so far, and a pool that adds those of a task to them."""

    def __init__(self, task, jobs, profile=CPU):
        self.task, self.profile = task, profile
        self.rows = read_rows(profile).to_dict("records") if profile.csv.exists() else []
        self.lock = Lock()
        # A process for each run, so that its peak of memory is its own.
        self.pool = ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), max_tasks_per_child=1
        )

    def get(self, wanted):
        """Return the rows of (method, settings, lr, seed) tuples, running those that lack."""
        todo = [key for key in dict.fromkeys(wanted) if self.find(key) is None]
        for future in [self.pool.submit(one_run, self.task, self.profile, *key) for key in todo]:
            row = future.result()
            with self.lock:
                self.rows.append(row)
                # One line at a time, so that tasks can run side by side.
                csv = self.profile.csv
                line = pd.DataFrame([row]).reindex(columns=COLUMNS)
                line.to_csv(csv, mode="a", header=not csv.exists(), index=False)
        return [self.find(key) for key in wanted]

    def mine(self):
        """Return the rows of this task."""
        task = {"dataset": self.task.dataset, "model": self.task.model}
        return [r for r in self.rows if task.items() <= r.items()]

    def find(self, key):
        wanted = dict(zip(("method", "settings", "lr", "seed"), key, strict=True))
        return next((r for r in self.mine() if wanted.items() <= r.items()), None)


def read_rows(profile=CPU):
    """Return the CSV, each run once; methods without settings have an empty string there."""
    rows = pd.read_csv(profile.csv).fillna({"settings": ""})
    # Two bisections that wanted the same run at once have both made it.
    return rows.drop_duplicates(["dataset", "model", "method", "settings", "lr", "seed"])


def rate_of(task, method, chosen):
    """Return the learning rate that `run` chose for a method; None if it did not run it."""
    rows = read_rows()
    mine = rows[
        (rows["dataset"] == task.dataset) & (rows["model"] == task.model)
        & (rows["method"] == method) & (rows["settings"] == chosen)
    ]  # fmt: skip
    best = best_group(mine)
    return None if best is None else float(best["lr"].iloc[0])


def best_group(rows):
    """Return the runs of a method at its best rate, of those that have all seeds."""
    finished = rows[rows["valid_forces_mae"].notna()]
    whole = [group for _, group in finished.groupby("lr") if len(group) == len(SEEDS)]
    return min(whole, key=lambda g: g["valid_forces_mae"].mean(), default=None)


def by_method(rows):
    """Return the runs of each method and its settings, the best on validation first."""
    finished = [row for row in rows if isfinite(row["valid_forces_mae"])]
    found = {}
    for row in sorted(finished, key=lambda r: r["valid_forces_mae"]):
        found.setdefault((row["method"], row["settings"]), []).append(row)
    return found.values()


def repeat_best(runs, tried):
    """Run all seeds at the best learning rate at which none of them fails."""
    for row in tried:
        again = runs.get([(row["method"], row["settings"], row["lr"], seed) for seed in SEEDS])
        if all(r["valid_forces_mae"] < FAILED * row["valid_forces_mae"] for r in again):
            return


def soft(weight_decay):
    """Return the settings of the soft threshold for a λ_τ."""
    return settings(tau_weight_decay=round(weight_decay, 4))


def calibrate(runs, lr, level, tolerance):
    """Bisect λ_τ, on a logarithmic scale, for a sparsity; returns the nearest row (seed 0)."""
    low, high = SOFT_RANGE
    for _ in range(SOFT_TRIES):
        known = soft_rows(runs, lr)
        for row in known:
            decay = json.loads(row["settings"])["tau_weight_decay"]
            if row["layerwise_sparsity"] < level:
                low = max(low, decay)
            else:
                high = min(high, decay)
        if any(abs(r["layerwise_sparsity"] - level) < tolerance for r in known):
            break
        runs.get([("soft_threshold", soft((low * high) ** 0.5), lr, 0)])
    return min(soft_rows(runs, lr), key=lambda r: abs(r["layerwise_sparsity"] - level))


def soft_rows(runs, lr):
    """Return the runs of the soft threshold with seed 0 on the default targets."""
    wanted = {"method": "soft_threshold", "seed": 0, "lr": lr}
    mine = [r for r in runs.mine() if wanted.items() <= r.items()]
    return [r for r in mine if "targets" not in json.loads(r["settings"])]


def repeat_soft(runs, lr, level, tolerance):
    """Calibrate the soft threshold for a level and run all seeds."""
    row = calibrate(runs, lr, level, tolerance)
    runs.get([("soft_threshold", row["settings"], lr, seed) for seed in SEEDS])


@app.command()
def run(
    task: Annotated[str, typer.Argument(help=f"One of {', '.join(TASKS)}.")],
    jobs: Annotated[int, typer.Option(help="Processes, of one thread each.")] = 1,
    profile: Annotated[str, typer.Option(help=f"One of {', '.join(PROFILES)}.")] = "cpu",
):
    """Run whatever is missing of a task."""
    os.chdir(HERE.parent)  # models are named from the project's root
    if profile == "gpu" and not torch.cuda.is_available():
        raise typer.BadParameter("this machine has no CUDA device")
    runs = Runs(TASKS[task], jobs, PROFILES[profile])
    grids, levels = runs.task.grids, runs.task.levels
    grid = runs.get([(m, s, lr, 0) for (m, s), lrs in grids.items() for lr in lrs])
    with ThreadPoolExecutor() as threads:  # methods do not wait for each other
        list(threads.map(repeat_best, repeat(runs), by_method(grid)))
    if not levels:
        return
    with ThreadPoolExecutor() as threads:  # bisections do not wait for each other
        level, tolerance = next(iter(levels.items()))
        same = (repeat(level), repeat(tolerance))
        tried = threads.map(calibrate, repeat(runs), SOFT_LRS, *same)
        lr = min(tried, key=lambda r: r["valid_forces_mae"])["lr"]
        list(threads.map(repeat_soft, repeat(runs), repeat(lr), levels, levels.values()))


@app.command()
def table(
    profile: Annotated[str, typer.Option(help=f"One of {', '.join(PROFILES)}.")] = "cpu",
):
    """Write a table of means and standard deviations over seeds for each task that was run."""
    chosen = PROFILES[profile]
    rows = read_rows(chosen)
    for task in TASKS.values():
        mine = rows[(rows["dataset"] == task.dataset) & (rows["model"] == task.model)]
        if len(mine):
            path = chosen.csv.with_name(f"{chosen.csv.stem}_{task.name}.md")
            path.write_text("\n".join(lines(task, mine)) + "\n")
            print(path.read_text())


def lines(task, rows):
    """Return the lines of a task's table."""
    written = [
        f"# Accuracy against sparsity: {task.name}",
        "",
        (__doc__ or "").split("\n\n", 1)[1].strip(),
        "",
        f"{task.about}; {rows['steps'].iloc[0]} steps of batch {rows['batch_size'].iloc[0]}; test "
        f"set, mean ± standard deviation over {len(SEEDS)} seeds.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * len(HEADER),
    ]
    zero_shot = rows[["zero_shot_test_energy_mae", "zero_shot_test_forces_mae"]].dropna().iloc[0]
    written.append("| zero-shot | | | | | " + " | ".join(f"{v:.2f}" for v in zero_shot) + " |")
    groups = [best_group(same) for _, same in rows.groupby(["method", "settings"])]
    for group in sorted(
        (group for group in groups if group is not None),
        key=lambda g: (g["method"].iloc[0], -g["updated"].fillna(0).mean()),
    ):
        first = group.iloc[0]
        counted = group["updated"].notna().all()
        cells = [
            first["method"],
            first["settings"].strip("{}"),
            f"{first['lr']:g}",
            spread(100 * group["layerwise_sparsity"], 2) if counted else "",
            f"{group['updated'].mean():,.0f}" if counted else "",
            spread(group["test_energy_mae"], 2),
            spread(group["test_forces_mae"], 1),
        ]
        written.append("| " + " | ".join(cells) + " |")
    return written


def spread(values, digits):
    """Return `mean ± standard deviation`."""
    return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"


if __name__ == "__main__":
    app()
