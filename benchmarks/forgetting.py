"""What a fine-tuned model has forgotten of what it was not trained on, and what replay saves.

    .venv-mace/bin/python benchmarks/forgetting.py run mace-ethanol --jobs 2
    .venv/bin/python benchmarks/forgetting.py run 7net-ethanol --jobs 2
    .venv/bin/python benchmarks/forgetting.py table     # benchmarks/results/forgetting_<task>.md
    .venv/bin/python benchmarks/forgetting.py figures   # benchmarks/results/forgetting.png

Fine-tuned as by benchmarks/methods.py, at the learning rates that it chose, or slower, as the table
says; with replay at that rate, a half or a quarter of it, whichever is best on validation with seed
0, and `budget` at a quarter in any case. Drift: mean absolute difference of forces from the base
model's on sets of which no frame was trained on; of energies per atom, less their mean over the
set, because the zero of energy is free.
Where labels of the base model's own level of theory exist the table gives the force error instead.
Replay: `--replay auto`, small structures of all elements labelled by the base model; its weight, if
any. Fisher: `--fisher auto`, weight and price, where the settings say so. `run` resumes where it
stopped; every run is a row of benchmarks/results/forgetting.csv.
"""

import json
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import typer
from methods import commit, finetuned, rate_of, spread
from tasks import CPU, DATA, HERE, SEEDS, TASKS, settings

from e3sparse.errors import DivergedError
from e3sparse.frames.evaluation import MEV, predict
from e3sparse.frames.reading import LabelKeys, read_split
from e3sparse.potentials.backends import load_potential

CSV = HERE / "results" / "forgetting.csv"


@dataclass(frozen=True)
class Held:
    """A set that is not trained on; `same_level`: the base model learnt this level of theory.

    `frames` are taken of it at most, evenly spaced.
    """

    name: str
    file: str
    same_level: bool
    frames: int = 40


MOLECULES = [
    Held(m, f"rmd17_{m}/test.xyz", True)
    for m in ("aspirin", "toluene", "azobenzene", "naphthalene")
]
CRYSTALS = [
    Held("Cu", "snap_Cu/train.xyz", False, 10),
    Held("Si", "mlearn_Si/test.xyz", False, 10),
    Held("NbMoTaW", "snap_NbMoTaW/train.xyz", False),
    Held("water", "water_revpbe0d3_fewshot/train.xyz", False, 6),
]
HELD = {"mace-ethanol": MOLECULES, "7net-ethanol": CRYSTALS}


OF_THE_RUN = ("fisher", "fisher_weight", "fisher_price", "replay_energy_weight")
"""Settings of a run that are none of its method."""


def held_back(weight, price):
    """Return the settings of a budget that is held back by the base model's Fisher information."""
    return settings(target_sparsity=0.97, fisher="auto", fisher_weight=weight, fisher_price=price)


@dataclass(frozen=True)
class Run:
    """A method, its settings, the weight of replay, and how much slower than alone it learns.

    Where there are several rates the best on validation is taken.
    """

    method: str
    settings: str = ""
    replay: float = 0.0
    slower: tuple[float, ...] = (1.0,)

    @property
    def key(self):
        return self.method, self.settings, self.replay

    def rates(self, task):
        """Return the learning rates to try; none if benchmarks/methods.py has not chosen one."""
        others = ("weight_decay", *OF_THE_RUN)
        alone = {k: v for k, v in json.loads(self.settings or "{}").items() if k not in others}
        lr = rate_of(TASKS[task], self.method, settings(**alone))
        return [] if lr is None else [lr / times for times in self.slower]


BUDGET, LOW_RANK = settings(target_sparsity=0.97), settings(rank=16)
SLOWER = (1.0, 2.0, 4.0)
RUNS = [
    Run("full"),
    Run("low_rank", LOW_RANK),
    Run("budget", settings(target_sparsity=0.85)),
    Run("budget", BUDGET),
    Run("budget", settings(target_sparsity=0.995)),
    # What a lower rate and a pull towards the base model save.
    Run("budget", BUDGET, slower=(4.0,)),
    Run("budget", BUDGET, slower=(8.0,)),
    Run("budget", settings(target_sparsity=0.97, weight_decay=0.01), slower=(2.0,)),
    Run("budget", settings(target_sparsity=0.97, weight_decay=0.1), slower=(2.0,)),
    Run("full", replay=0.1, slower=SLOWER),
    Run("low_rank", LOW_RANK, replay=0.1, slower=SLOWER),
    Run("budget", BUDGET, replay=0.1, slower=SLOWER),
    Run("budget", BUDGET, replay=0.1, slower=(4.0,)),
    Run("budget", BUDGET, replay=0.3, slower=SLOWER),
    Run("budget", settings(target_sparsity=0.97, largest_lr=0.07), replay=0.1),
    Run("budget", held_back(0.0, 1.0)),
    Run("budget", held_back(0.1, 0.0)),
    Run("budget", held_back(0.1, 1.0)),
]

app = typer.Typer(no_args_is_help=True)


def one_run(name, method, chosen, replay, lr, seed):
    """Fine-tune once and look at every held-out set; returns a row of the CSV."""
    torch.set_num_threads(1)
    task = TASKS[name]
    start = time.monotonic()
    row = {
        "task": name, "method": method, "settings": chosen, "replay": replay, "lr": lr,
        "seed": seed, "steps": CPU.steps, "batch_size": CPU.batch, "device": "cpu",
        "commit": commit(),
    }  # fmt: skip
    more = {"replay": "auto", "replay_weight": replay} if replay else {}
    said = json.loads(chosen or "{}")
    more |= {name: said.pop(name) for name in OF_THE_RUN if name in said}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        try:
            splits = task.prepare(folder)
            result = finetuned(task, method, said, lr, seed, splits, folder, **more)
        except DivergedError:
            return row | {"seconds": round(time.monotonic() - start)}
        row["valid_forces_mae"] = result.table.loc["valid after", "forces_mae"]
        row["seconds"] = round(time.monotonic() - start)
        for column in ("energy_mae", "forces_mae"):
            row[f"test_{column}"] = result.table.loc["test after", column]
            row[f"zero_shot_test_{column}"] = result.table.loc["test before", column]
        after = load_potential(str(next((result.out).glob("model.*"))))
        for held in HELD[name]:
            row |= drift(held, task.model, after)
    return row


@lru_cache
def by_base(held, model):
    """Return the frames of a held-out set, and what the base model says of them."""
    base = load_potential(model)
    frames, _ = read_split(
        DATA / held.file, LabelKeys(), known=base.species.numbers, cutoff=base.cutoff
    )
    frames = frames[:: -(-len(frames) // held.frames)]
    return frames, predict(base, frames, 4)


def drift(held, model, after):
    """Return how far a model has moved from the base on a held-out set, and from DFT."""
    frames, was = by_base(held, model)
    now = predict(after, frames, 4)
    atoms = np.array([len(f.atoms) for f in frames])
    energies = (now.energy - was.energy) / atoms
    found = {
        f"{held.name}_forces_drift": apart(now.forces, was.forces),
        f"{held.name}_energy_drift": float(np.abs(energies - energies.mean()).mean() * MEV),
    }
    if held.same_level:
        labels = [f.forces for f in frames]
        found[f"{held.name}_forces_before"] = apart(was.forces, labels)
        found[f"{held.name}_forces_after"] = apart(now.forces, labels)
    return found


def apart(these, those):
    """Return the mean absolute difference of two lists of forces, in meV/Å."""
    return float(np.abs(np.concatenate(these) - np.concatenate(those)).mean() * MEV)


def keys_of(rows):
    """Return the runs that a table holds."""
    columns = ["task", "method", "settings", "replay", "lr", "seed"]
    return set() if rows.empty else set(rows[columns].itertuples(index=False, name=None))


def read_rows():
    """Return the runs so far; methods without settings have an empty string there."""
    return pd.read_csv(CSV).fillna({"settings": ""}) if CSV.exists() else pd.DataFrame()


@app.command()
def run(
    task: Annotated[str, typer.Argument(help=f"One of {', '.join(HELD)}.")],
    jobs: Annotated[int, typer.Option(help="Processes, of one thread each.")] = 1,
):
    """Run whatever is missing of a task."""
    os.chdir(HERE.parent)  # models are named from the project's root
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        do(pool, task, [(r.key, lr, 0) for r in RUNS for lr in r.rates(task)])
        again = [(r.key, best_rate(task, r)) for r in RUNS]
        wanted = [(key, lr, seed) for key, lr in again for seed in SEEDS if lr is not None]
        do(pool, task, wanted)


def do(pool, task, wanted):
    """Do those runs that are missing, each (method, settings, replay), rate and seed."""
    done = keys_of(read_rows())
    missing = [(task, *key, lr, seed) for key, lr, seed in wanted]
    futures = [pool.submit(one_run, *run) for run in missing if run not in done]
    for future in as_completed(futures):
        append(future.result())


def best_rate(task, run):
    """Return the rate of a run that is best on validation with seed 0, if one did not diverge."""
    rates = run.rates(task)
    if len(rates) < 2:
        return rates[0] if rates else None
    rows = read_rows()
    mine = rows[(rows["task"] == task) & (rows["seed"] == 0) & rows["lr"].isin(rates)]
    for column, value in zip(("method", "settings", "replay"), run.key, strict=True):
        mine = mine[mine[column] == value]
    best = mine.dropna(subset="valid_forces_mae").nsmallest(1, "valid_forces_mae")
    return None if best.empty else float(best["lr"].iloc[0])


def append(row):
    """Add a row; sets of another task have columns of their own."""
    pd.concat([read_rows(), pd.DataFrame([row])]).to_csv(CSV, index=False)


def complete(rows, task):
    """Return the groups of a task that have all seeds, in the order of `RUNS`, fast ones first."""
    columns = ["method", "settings", "replay", "lr"]
    finished = rows[(rows["task"] == task) & rows["test_forces_mae"].notna()]
    groups = {key: group for key, group in finished.groupby(columns) if len(group) == len(SEEDS)}
    order = list(dict.fromkeys(run.key for run in RUNS))
    for key in sorted(groups, key=lambda key: (order.index(key[:3]), -key[3])):
        yield key, groups[key]


@app.command()
def table():
    """Write means and standard deviations over the seeds of each task that was run."""
    rows = read_rows()
    for task in HELD:
        if (rows["task"] == task).any():
            path = HERE / "results" / f"forgetting_{task}.md"
            path.write_text("\n".join(lines(task, rows)) + "\n")
            print(path.read_text())


def lines(task, rows):
    """Return the lines of a task's table."""
    held = HELD[task]
    heads = ["method", "settings", "lr", "replay", "F MAE, trained on (meV/Å)"]
    heads += [f"{h.name}: {'F MAE' if h.same_level else 'drift of F'} (meV/Å)" for h in held]
    heads += ["mean drift of F (meV/Å)"]
    first = rows[rows["task"] == task].iloc[0]
    counts = ", ".join(f"{h.name} {h.frames}" for h in held)
    written = [
        f"# Forgetting: {task}",
        "",
        (__doc__ or "").split("\n\n", 1)[1].rstrip(),
        "",
        f"{TASKS[task].about}. {CPU.steps} steps of batch {CPU.batch}; mean ± standard "
        f"deviation over {len(SEEDS)} seeds. Frames of each held-out set, at most: {counts}.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
    ]
    before = [f"{first[f'{h.name}_forces_before']:.1f}" if h.same_level else "0" for h in held]
    cells = ["zero-shot", "", "", "", f"{first['zero_shot_test_forces_mae']:.1f}"]
    written.append("| " + " | ".join([*cells, *before, "0"]) + " |")
    for (method, chosen, replay, lr), group in complete(rows, task):
        cells = [
            method,
            chosen.strip("{}"),
            f"{lr:g}",
            f"{replay:g}" if replay else "",
            spread(group["test_forces_mae"], 1),
            *[spread(group[column_of(h)], 1) for h in held],
            spread(drift_of(group, held), 1),
        ]
        written.append("| " + " | ".join(cells) + " |")
    return written


def column_of(held):
    """Return what the table shows of a held-out set."""
    return f"{held.name}_forces_{'after' if held.same_level else 'drift'}"


def drift_of(group, held):
    """Return the drift of forces of each run, averaged over the sets that were held out."""
    return group[[f"{h.name}_forces_drift" for h in held]].mean(axis=1)


@app.command()
def figures():
    """Draw the error on what was trained on against the drift on what was not."""
    rows = read_rows()
    tasks = [task for task in HELD if (rows["task"] == task).any()]
    fig, panels = plt.subplots(
        1, len(tasks), figsize=(7.6 * len(tasks), 4.6), layout="constrained", squeeze=False
    )
    for axes, task in zip(panels[0], tasks, strict=True):
        for number, ((method, chosen, replay, lr), group) in enumerate(complete(rows, task)):
            moved = drift_of(group, HELD[task])
            said = json.loads(chosen or "{}")
            sparsity, decay = said.get("target_sparsity"), said.get("weight_decay")
            label = method.replace("_", " ") + (f" {100 * sparsity:g} %" if sparsity else "")
            label += f", lr {lr:g}" + (f", decay {decay:g}" if decay else "")
            axes.errorbar(
                group["test_forces_mae"].mean(),
                moved.mean(),
                xerr=group["test_forces_mae"].std(),
                yerr=moved.std(),
                marker="osDv^<>PX*hd8p"[number % 14],
                mfc="white" if replay else None,
                ls="none",
                capsize=2,
                label=label + (f" + replay × {replay:g}" if replay else ""),
            )
        axes.set(
            xlabel="force MAE on what was trained on (meV/Å)",
            ylabel="drift of forces on what was not (meV/Å)",
            title=f"{task}; held out: {', '.join(h.name for h in HELD[task])}",
            ylim=(0, None),
        )
        axes.title.set_fontsize(9)
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    fig.savefig(HERE / "results" / "forgetting.png", dpi=150)


if __name__ == "__main__":
    app()
