"""What fine-tuning changed, on real data: the runs, and their `e3sparse report`.

    .venv/bin/python benchmarks/what_changed.py run alloy
    .venv-mace/bin/python benchmarks/what_changed.py run ethanol
    .venv/bin/python benchmarks/what_changed.py page alloy       # benchmarks/results/what_changed_*
    .venv-mace/bin/python benchmarks/what_changed.py page ethanol

`run` skips what is finished; runs go to runs/what_changed/. Data: ../shared/data or the folder
E3SPARSE_DATA. The null model is the run `null`: the budget method on the same frames with their
labels dealt out anew among frames of the same composition (`e3sparse.analysis.null_model`).
"""

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import ase.io
import torch
import typer

from e3sparse.analysis.null_model import shuffle_labels
from e3sparse.training.config import make_config
from e3sparse.training.run import RESULTS, finetune

HERE = Path(__file__).resolve().parent
RUNS, PAGES = HERE.parent / "runs" / "what_changed", HERE / "results"
DATA = Path(os.environ.get("E3SPARSE_DATA", HERE.parents[1] / "shared" / "data"))
SPARSITY = 0.97


def equiatomic(frames, counts):
    """Deal the first frames of each composition A_n B_n into splits of so many each."""
    seen = defaultdict(int)
    splits = [[] for _ in counts]
    for atoms in frames:
        formula = atoms.symbols.formula.count()
        if len(set(formula.values())) != 1 or len(formula) != 2:
            continue
        place = seen[atoms.get_chemical_formula()]
        seen[atoms.get_chemical_formula()] += 1
        for split, count in zip(splits, counts, strict=True):
            if place < count:
                split.append(atoms)
                break
            place -= count
    return splits


def alloy():
    """Return 16-atom cells of the six equiatomic binaries of Nb, Mo, Ta and W; test: 8 atoms."""
    train, valid = equiatomic(ase.io.read(DATA / "snap_NbMoTaW/train.xyz", index=":"), (20, 4))
    (test,) = equiatomic(ase.io.read(DATA / "snap_NbMoTaW/test.xyz", index=":"), (12,))
    return {"train": train, "valid": valid, "test": test}


def ethanol():
    """Return 200, 50 and 100 frames of rMD17 ethanol."""
    frames = ase.io.read(DATA / "rmd17_ethanol/train.xyz", index=":250")
    test = ase.io.read(DATA / "rmd17_ethanol/test.xyz", index=":100")
    return {"train": frames[:200], "valid": frames[200:], "test": test}


@dataclass(frozen=True)
class Task:
    """A base model, real frames, and what `e3sparse finetune` is asked for, by run name."""

    model: str
    frames: Any
    common: dict
    runs: dict


def runs(targets, rates, decay):
    """Return the settings of all runs of a task."""
    budget = {
        "method": "budget", "lr": rates["budget"], "targets": targets,
        "method_settings": {"target_sparsity": SPARSITY},
    }  # fmt: skip
    soft = {"tau_weight_decay": decay}
    return {
        "budget-0": budget,
        "budget-1": budget | {"seed": 1},
        "soft": {"method": "soft_threshold", "lr": rates["soft"], "targets": targets,
                 "method_settings": soft},
        "low-rank": {"method": "low_rank", "lr": rates["low_rank"], "targets": targets},
        "full": {"method": "full", "lr": rates["full"]},
        "null": budget | {"train": "shuffled"},
    }  # fmt: skip


TASKS = {
    "alloy": Task(
        "7net-0", alloy, {"max_steps": 160, "batch_size": 2},
        runs("linear", {"budget": 4e-2, "soft": 4e-2, "low_rank": 1e-2, "full": 3e-3}, 2.1),
    ),
    "ethanol": Task(
        "benchmarks/models/mace_rmd17.model", ethanol,
        {"max_steps": 400, "batch_size": 5, "valid_every": 2},
        runs("all", {"budget": 8e-2, "soft": 4e-2, "low_rank": 3e-2, "full": 1e-2}, 4.5),
    ),
}  # fmt: skip

app = typer.Typer(no_args_is_help=True)
app.callback()(lambda: None)
TaskName = Annotated[str, typer.Argument(help=f"One of: {', '.join(TASKS)}.")]


@app.command()
def run(task: TaskName) -> None:
    """Make the runs of a task that are not finished."""
    torch.set_num_threads(1)
    chosen, folder = TASKS[task], RUNS / task
    files = write_frames(chosen, folder)
    for name, settings in chosen.runs.items():
        out = folder / name
        if (out / RESULTS).is_file():
            continue
        split = {"train": files[settings.get("train", "train")]}
        split |= {key: files[key] for key in ("valid", "test")}
        values = {"model": chosen.model, "device": "cpu", "out": out, "seed": 0}
        finetune(make_config(values | chosen.common | settings | split), overwrite=True)


def write_frames(task, folder):
    """Write the splits and the shuffled training frames; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = task.frames()
    frames["shuffled"] = shuffle_labels(frames["train"])
    files = {name: folder / f"{name}.xyz" for name in frames}
    for name, split in frames.items():
        ase.io.write(files[name], split)
    return files


if __name__ == "__main__":
    app()
