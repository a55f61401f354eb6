"""Spin-aware layers on SevenNet-0 and real magnetic sets: the columns of the paper's Table 2.

    .venv/bin/python benchmarks/magnetic.py run fe      # resumes where it stopped
    .venv/bin/python benchmarks/magnetic.py run nio
    .venv/bin/python benchmarks/magnetic.py table       # benchmarks/results/magnetic.md
    .venv/bin/python benchmarks/magnetic.py figures     # trains once more; exchange_<task>.png

Data: ../shared/data or the folder E3SPARSE_DATA. Every method has the same steps, batches and
spin-aware layers; its learning rate is the best on validation (sum of the four errors, each over
that of the other rates) of the two of RATES, with seed 0. Every run is a row of
benchmarks/results/magnetic.csv.
"""

import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import ase.io
import numpy as np
import pandas as pd
import torch
import typer

from e3sparse.training.config import make_config
from e3sparse.training.run import finetune

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
CSV = RESULTS / "magnetic.csv"
DATA = Path(os.environ.get("E3SPARSE_DATA", HERE.parents[1] / "shared" / "data"))
MODEL = "7net-0"
SEEDS = (0, 1, 2)
METHODS = {
    "scratch": ("scratch", {}, (3e-3, 1e-2)),
    "full": ("full", {}, (1e-3, 3e-3)),
    "low rank": ("low_rank", {"rank": 16}, (3e-3, 1e-2)),
    "soft threshold (L)": ("soft_threshold", {"tau_weight_decay": 0.2}, (2e-2, 4e-2)),
    "soft threshold (H)": ("soft_threshold", {"tau_weight_decay": 0.8}, (2e-2, 4e-2)),
    "budget 97 %": ("budget", {"target_sparsity": 0.97}, (1e-2, 4e-2)),
}


@dataclass(frozen=True)
class Task:
    """A data set, and how long and with which weights it is trained on."""

    name: str
    about: str
    steps: int
    batch: int
    loss: dict[str, float]

    def splits(self):
        """Return the frames of each split by name."""
        return SPLITS[self.name]()


def iron():
    """Split the 2-atom cells; pairs of a FM and an AFM frame of one geometry are held out."""
    frames = ase.io.read(DATA / "fe_spin_nikolov2021_2atom" / "all.xyz", index=":")
    alignment = [float(a.arrays["spin"][0] @ a.arrays["spin"][1]) for a in frames]
    groups = {}
    for index, atoms in enumerate(frames):
        key = tuple(np.round(np.concatenate([atoms.cell.array, atoms.positions]).ravel(), 3))
        groups.setdefault(key, []).append(index)
    pairs = []
    for group in groups.values():
        parallel = [i for i in group if alignment[i] > 0.999]
        opposite = [i for i in group if alignment[i] < -0.999]
        if parallel and opposite:
            pairs += [parallel[0], opposite[0]]
    held = {i for group in groups.values() if set(group) & set(pairs) for i in group}
    rest = [i for i in range(len(frames)) if i not in held]
    order = np.random.default_rng(0).permutation(rest)
    rare = [i for i in order if alignment[i] < 0.99]
    common = [i for i in order if alignment[i] >= 0.99]
    few = len(rare) // 5
    return {
        "train": [frames[i] for i in rare[2 * few :] + common[: 300 - len(rare) + 2 * few]],
        "valid": [frames[i] for i in rare[:few] + common[400 : 450 - few]],
        "test": [frames[i] for i in rare[few : 2 * few] + common[500 : 700 - few]],
        "pairs": [frames[i] for i in pairs],
    }


def nickel_oxide():
    """Split the DeltaSpin set as its source does, thinned out."""
    folder = DATA / "nio_deltaspin"
    train = ase.io.read(folder / "train.xyz", index=":")
    return {
        "train": train[:100:2],
        "valid": train[100::4],
        "test": ase.io.read(folder / "test.xyz", index="::2"),
    }


SPLITS = {"fe": iron, "nio": nickel_oxide}
TASKS = {
    task.name: task
    for task in (
        Task(
            "fe",
            "Fe, 2-atom cells (bcc to hcp, elastic; Nikolov et al. 2021), weights 1:1:1:1",
            200,
            8,
            {},
        ),
        Task(
            "nio",
            "NiO, 32 atoms, non-collinear (DeltaSpin), energies within 2 meV/atom: weights "
            "100:1:0:1",
            120,
            1,
            {"energy": 100.0},
        ),
    )
}

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
        for column in ("energy_mae", "forces_mae", "moments_mae", "sign_errors"):
            row[f"{split}_{column}"] = result.table.loc[f"{split} after", column]
            if column in ("energy_mae", "forces_mae"):
                row[f"zero_shot_{split}_{column}"] = result.table.loc[f"{split} before", column]
    return row


def commit():
    """Return the commit that is checked out."""
    command = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def read_rows():
    """Return the runs so far."""
    return pd.read_csv(CSV) if CSV.exists() else pd.DataFrame(columns=["task", "method", "lr"])


def get(task, label, lr, seed):
    """Return the row of a run, which is made if it lacks."""
    rows = read_rows()
    if len(rows):
        same = rows[(rows["task"] == task.name) & (rows["method"] == label)]
        same = same[(same["lr"] == lr) & (same["seed"] == seed)]
        if len(same):
            return same.iloc[0]
    row = pd.DataFrame([one_run(task, label, lr, seed)])
    row = row.reindex(columns=COLUMNS)
    row.to_csv(CSV, mode="a", header=not CSV.exists(), index=False)
    return row.iloc[0]


COLUMNS = [
    *("task", "model", "method", "settings", "lr", "seed", "steps", "batch_size", "seconds"),
    *("device", "commit", "layerwise_sparsity", "total_sparsity"),
    *(
        f"{kind}{split}_{column}"
        for split in ("valid", "test")
        for column in ("energy_mae", "forces_mae", "moments_mae", "sign_errors")
        for kind in (("", "zero_shot_") if column in ("energy_mae", "forces_mae") else ("",))
    ),
]


def best_rate(rows):
    """Return the learning rate with the smallest errors on validation."""
    columns = [f"valid_{c}" for c in ("energy_mae", "forces_mae", "moments_mae")]
    errors = pd.DataFrame([row[columns] for row in rows]).astype(float)
    return rows[int((errors / errors.min()).sum(axis=1).to_numpy().argmin())]["lr"]


@app.command()
def run(task: Annotated[str, typer.Argument(help=f"One of {', '.join(TASKS)}.")]):
    """Run whatever is missing of a task."""
    torch.set_num_threads(1)
    chosen = TASKS[task]
    for label, (_, _, rates) in METHODS.items():
        lr = best_rate([get(chosen, label, rate, 0) for rate in rates])
        for seed in SEEDS[1:]:
            get(chosen, label, lr, seed)


@app.command()
def table():
    """Write means and standard deviations over the seeds."""
    path = CSV.with_suffix(".md")
    path.write_text("\n".join(lines(read_rows())) + "\n")
    print(path.read_text())


def lines(rows):
    """Return the lines of the tables, one table a task."""
    written = ["# Spin-aware layers on real magnetic sets", "", __doc__.split("\n\n", 1)[1].strip()]
    for task in TASKS.values():
        mine = rows[rows["task"] == task.name]
        if not len(mine):
            continue
        zero = mine[["zero_shot_test_energy_mae", "zero_shot_test_forces_mae"]].iloc[0]
        written += [
            "",
            f"## {task.about}",
            "",
            f"{task.steps} steps of batch {task.batch}; test set, mean ± standard deviation over "
            f"{len(SEEDS)} seeds. Zero-shot, with references fitted: {zero.iloc[0]:.2f} meV/atom, "
            f"{zero.iloc[1]:.1f} meV/Å. Moments: length of the difference vector; sign errors: "
            "share of atoms with a moment in the wrong half-space.",
            "",
            "| method | settings | lr | E (meV/atom) | F (meV/Å) | moment (μ_B) | sign errors (%) "
            "| sparsity (total, %) | sparsity (layer, %) |",
            "|" + "---|" * 9,
        ]
        for label in METHODS:
            groups = mine[mine["method"] == label].groupby("lr")
            for lr, group in groups:
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
    ]
    for column in ("total_sparsity", "layerwise_sparsity"):
        known = group[column].notna().all()
        cells.append(spread(100 * group[column], 2) if known else "")
    return "| " + " | ".join(cells) + " |"


def spread(values, digits):
    """Return `mean ± standard deviation`."""
    return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"


if __name__ == "__main__":
    app()
