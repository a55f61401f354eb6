"""Accuracy against sparsity on real data: every method, same steps, same batches, three seeds.

    python benchmarks/methods.py run --jobs 2      # fine-tunes SevenNet-0; resumes where it stopped
    python benchmarks/methods.py table             # writes benchmarks/results/methods.md

Data: rMD17 ethanol (PBE/def2-SVP), 200 training, 50 validation and 200 test frames, from
../shared/data or the folder E3SPARSE_DATA. Each method takes the learning rate of its own grid that
is best on validation with seed 0. The published soft threshold cannot be asked for a sparsity: its
λ_τ is bisected with seed 0 until the sparsity is near the level (at most as far off as LEVELS says,
or as near as a few tries came), and its learning rate is chosen at the lowest level. Every run, the
grid's and the bisection's too, is a row of benchmarks/results/methods.csv.
"""

import json
import os
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from threading import Lock
from typing import Annotated

import ase.io
import pandas as pd
import torch
import typer

from e3sparse.training.config import make_config
from e3sparse.training.run import finetune

HERE = Path(__file__).resolve().parent
CSV, TABLE = HERE / "results" / "methods.csv", HERE / "results" / "methods.md"
DATA = Path(os.environ.get("E3SPARSE_DATA", HERE.parents[1] / "shared" / "data"))
SEEDS = (0, 1, 2)
LEVELS = {0.85: 0.01, 0.97: 0.005, 0.995: 0.002}  # sparsity, and how near is near
STEPS, BATCH = 400, 5
GRIDS = {
    ("full", ""): (1e-3, 3e-3, 1e-2),
    ("low_rank", '{"rank": 16}'): (3e-3, 1e-2, 3e-2),
    **{("budget", json.dumps({"target_sparsity": s})): (4e-2, 8e-2) for s in LEVELS},
}
SOFT_LRS, SOFT_RANGE, SOFT_TRIES = (1e-2, 4e-2), (0.1, 20.0), 4

HEADER = (
    "method", "settings", "lr", "layer-wise sparsity (%)", "updated", "E MAE (meV/atom)",
    "F MAE (meV/Å)",
)  # fmt: skip

app = typer.Typer(no_args_is_help=True)


def prepare(folder):
    """Write the three splits; returns their paths."""
    train = ase.io.read(DATA / "rmd17_ethanol" / "train.xyz", index=":250")
    test = ase.io.read(DATA / "rmd17_ethanol" / "test.xyz", index=":200")
    splits = {"train": train[:200], "valid": train[200:], "test": test}
    for name, frames in splits.items():
        ase.io.write(folder / f"{name}.xyz", frames)
    return {name: folder / f"{name}.xyz" for name in splits}


def one_run(method, settings, lr, seed):
    """Fine-tune once; returns a row of the CSV."""
    torch.set_num_threads(1)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = make_config(
            {
                "model": "7net-0", "method": method, "lr": lr, "seed": seed, "device": "cpu",
                "method_settings": json.loads(settings or "{}"), "out": folder / "run",
                "max_steps": STEPS, "batch_size": BATCH, "valid_every": 2, **prepare(folder),
            }
        )  # fmt: skip
        result = finetune(config)
        sparsity = result.adapter.sparsity() if result.adapter is not None else None
    row = {
        "dataset": "rmd17_ethanol", "model": "7net-0", "method": method, "settings": settings,
        "lr": lr, "seed": seed, "steps": STEPS, "batch_size": BATCH,
        "seconds": round(time.monotonic() - start), "device": "cpu", "commit": commit(),
        "layerwise_sparsity": sparsity.layerwise if sparsity else None,
        "updated": sparsity.updated if sparsity else None,
    }  # fmt: skip
    for split in ("valid", "test"):
        for column in ("energy_mae", "forces_mae"):
            row[f"{split}_{column}"] = result.table.loc[f"{split} after", column]
            row[f"zero_shot_{split}_{column}"] = result.table.loc[f"{split} before", column]
    return row


def commit():
    """Return the commit that is checked out."""
    command = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


class Runs:
    """The rows so far, and a pool that adds to them."""

    def __init__(self, jobs):
        self.rows = read_rows().to_dict("records") if CSV.exists() else []
        self.lock = Lock()
        self.pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))

    def get(self, wanted):
        """Return the rows of (method, settings, lr, seed) tuples, running those that lack."""
        todo = [key for key in dict.fromkeys(wanted) if self.find(key) is None]
        for future in [self.pool.submit(one_run, *key) for key in todo]:
            row = future.result()
            with self.lock:
                self.rows.append(row)
                CSV.parent.mkdir(exist_ok=True)
                pd.DataFrame(self.rows).to_csv(CSV, index=False)
        return [self.find(key) for key in wanted]

    def find(self, key):
        names = ("method", "settings", "lr", "seed")
        wanted = dict(zip(names, key, strict=True))
        return next((r for r in self.rows if wanted.items() <= r.items()), None)


def read_rows():
    """Return the CSV, each run once; methods without settings have an empty string there."""
    rows = pd.read_csv(CSV).fillna({"settings": ""})
    # Two bisections that wanted the same run at once have both made it.
    return rows.drop_duplicates(["method", "settings", "lr", "seed"])


def soft(weight_decay):
    """Return the settings of the soft threshold for a λ_τ."""
    return json.dumps({"tau_weight_decay": round(weight_decay, 4)})


def calibrate(runs, lr, level, tolerance):
    """Bisect λ_τ, on a logarithmic scale, for a sparsity; returns the nearest row (seed 0)."""
    low, high = SOFT_RANGE
    for _ in range(SOFT_TRIES):
        known = [
            r
            for r in runs.rows
            if r["method"] == "soft_threshold" and r["seed"] == 0 and r["lr"] == lr
        ]
        for row in known:
            decay = json.loads(row["settings"])["tau_weight_decay"]
            if row["layerwise_sparsity"] < level:
                low = max(low, decay)
            else:
                high = min(high, decay)
        if any(abs(r["layerwise_sparsity"] - level) < tolerance for r in known):
            break
        runs.get([("soft_threshold", soft((low * high) ** 0.5), lr, 0)])
    return min(known, key=lambda r: abs(r["layerwise_sparsity"] - level))


def repeat_soft(runs, lr, level, tolerance):
    """Calibrate the soft threshold for a level and run all seeds."""
    row = calibrate(runs, lr, level, tolerance)
    runs.get([("soft_threshold", row["settings"], lr, seed) for seed in SEEDS])


@app.command()
def run(jobs: Annotated[int, typer.Option(help="Processes, of one thread each.")] = 1):
    """Run whatever is missing."""
    runs = Runs(jobs)
    grid = runs.get([(m, s, lr, 0) for (m, s), lrs in GRIDS.items() for lr in lrs])
    rates = {}
    for row in sorted(grid, key=lambda r: -r["valid_forces_mae"]):
        rates[row["method"], row["settings"]] = row["lr"]
    runs.get([(m, s, lr, seed) for seed in SEEDS for (m, s), lr in rates.items()])
    with ThreadPoolExecutor() as threads:  # bisections do not wait for each other
        level, tolerance = next(iter(LEVELS.items()))
        same = (repeat(level), repeat(tolerance))
        tried = threads.map(calibrate, repeat(runs), SOFT_LRS, *same)
        lr = min(tried, key=lambda r: r["valid_forces_mae"])["lr"]
        list(threads.map(repeat_soft, repeat(runs), repeat(lr), LEVELS, LEVELS.values()))


@app.command()
def table():
    """Write the table of means and standard deviations over seeds."""
    rows = read_rows()
    lines = [
        "# Accuracy against sparsity",
        "",
        (__doc__ or "").split("\n\n", 1)[1].strip(),
        "",
        f"SevenNet-0, {STEPS} steps of batch {BATCH}; test set, mean ± standard deviation over "
        f"{len(SEEDS)} seeds.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * len(HEADER),
    ]
    zero_shot = rows[["zero_shot_test_energy_mae", "zero_shot_test_forces_mae"]].iloc[0]
    lines.append("| zero-shot | | | | | " + " | ".join(f"{v:.2f}" for v in zero_shot) + " |")
    complete = rows.groupby(["method", "settings", "lr"]).filter(lambda g: len(g) == len(SEEDS))
    groups = [group for _, group in complete.groupby(["method", "settings", "lr"])]
    for group in sorted(
        groups, key=lambda g: (g["method"].iloc[0], -g["updated"].fillna(0).mean())
    ):
        first = group.iloc[0]
        whole = first["method"] == "full"
        cells = [
            first["method"],
            first["settings"].strip("{}"),
            f"{first['lr']:g}",
            "" if whole else spread(100 * group["layerwise_sparsity"], 2),
            "" if whole else f"{group['updated'].mean():,.0f}",
            spread(group["test_energy_mae"], 2),
            spread(group["test_forces_mae"], 1),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    TABLE.write_text("\n".join(lines) + "\n")
    print(TABLE.read_text())


def spread(values, digits):
    """Return `mean ± standard deviation`."""
    return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"


if __name__ == "__main__":
    app()
