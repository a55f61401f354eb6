"""What a fine-tuned model has forgotten of what it was not trained on, and what replay saves.

    .venv-mace/bin/python benchmarks/forgetting.py run mace-ethanol --jobs 2
    .venv/bin/python benchmarks/forgetting.py run 7net-ethanol --jobs 2
    .venv-mace/bin/python benchmarks/forgetting.py nve mace-ethanol
    .venv/bin/python benchmarks/forgetting.py table     # benchmarks/results/forgetting_<task>.md
    .venv/bin/python benchmarks/forgetting.py figures   # benchmarks/results/forgetting.png

Fine-tuned as by benchmarks/methods.py, at the learning rates that it chose; a budget with replay at
half of that, because at the whole it diverged. Drift: mean absolute difference of forces from the
base model's on sets of which no frame was trained on; of energies per atom, less their mean over
the set, because the zero of energy is free. Where labels of the base model's own level of theory
exist the table gives the force error instead. Replay: `--replay auto`, small structures of all
elements labelled by the base model; its weight, if any. `run` and `nve` resume where they stopped;
every run is a row of benchmarks/results/forgetting.csv or forgetting_nve.csv.
"""

import json
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import ase.io
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import methods
import numpy as np
import pandas as pd
import torch
import typer
from ase import units
from ase.data import covalent_radii
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet
from methods import CPU, DATA, HERE, SEEDS, commit, finetuned, rate_of, settings, spread

from e3sparse.backends import load_potential
from e3sparse.calculator import PotentialCalculator
from e3sparse.training.evaluation import MEV, predict
from e3sparse.training.frames import LabelKeys, read_split

CSV, NVE = HERE / "results" / "forgetting.csv", HERE / "results" / "forgetting_nve.csv"
FRAMES = 40
"""Of each held-out set, at most, evenly spaced."""
STEP_FS, TEMPERATURE_K, EVERY = 0.5, 300.0, 20


@dataclass(frozen=True)
class Held:
    """A set that is not trained on; `same_level`: the base model learnt this level of theory."""

    name: str
    file: str
    same_level: bool


MOLECULES = [
    Held(m, f"rmd17_{m}/test.xyz", True)
    for m in ("aspirin", "toluene", "azobenzene", "naphthalene")
]
CRYSTALS = [
    Held("Cu", "snap_Cu/train.xyz", False),
    Held("Si", "mlearn_Si/test.xyz", False),
    Held("NbMoTaW", "snap_NbMoTaW/train.xyz", False),
    Held("water", "water_revpbe0d3_fewshot/train.xyz", False),
]
HELD = {"mace-ethanol": MOLECULES, "7net-ethanol": CRYSTALS}
BUDGET = settings(target_sparsity=0.97)
# Method, settings, and the weight of replay: 0 for none.
RUNS = [
    ("full", "", 0.0),
    ("low_rank", settings(rank=16), 0.0),
    ("budget", settings(target_sparsity=0.85), 0.0),
    ("budget", BUDGET, 0.0),
    ("budget", settings(target_sparsity=0.995), 0.0),
    ("budget", BUDGET, 0.1),
    ("full", "", 0.1),
    ("low_rank", settings(rank=16), 0.1),
    ("budget", BUDGET, 0.3),
]
NVE_RUNS = [("full", "", 0.0), ("low_rank", settings(rank=16), 0.0), ("budget", BUDGET, 0.0)]

app = typer.Typer(no_args_is_help=True)


def tuned(task, method, chosen, replay, lr, seed, folder):
    """Fine-tune into a folder; returns the result of `finetune`."""
    more = {"replay": "auto", "replay_weight": replay} if replay else {}
    said = json.loads(chosen or "{}")
    return finetuned(task, method, said, lr, seed, task.prepare(folder), folder, **more)


def one_run(name, method, chosen, replay, lr, seed):
    """Fine-tune once and look at every held-out set; returns a row of the CSV."""
    torch.set_num_threads(1)
    task = methods.TASKS[name]
    start = time.monotonic()
    row = {
        "task": name, "method": method, "settings": chosen, "replay": replay, "lr": lr,
        "seed": seed, "steps": CPU.steps, "batch_size": CPU.batch, "device": "cpu",
        "commit": commit(),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        result = tuned(task, method, chosen, replay, lr, seed, Path(folder))
        row["seconds"] = round(time.monotonic() - start)
        for column in ("energy_mae", "forces_mae"):
            row[f"test_{column}"] = result.table.loc["test after", column]
            row[f"zero_shot_test_{column}"] = result.table.loc["test before", column]
        base = load_potential(task.model)
        after = load_potential(str(next((result.out).glob("model.*"))))
        for held in HELD[name]:
            row |= drift(held, base, after)
    return row


def drift(held, base, after):
    """Return how far a model has moved from the base on a held-out set, and from DFT."""
    frames, _ = read_split(
        DATA / held.file, LabelKeys(), known=base.species.numbers, cutoff=base.cutoff
    )
    frames = frames[:: -(-len(frames) // FRAMES)]
    was, now = predict(base, frames, 4), predict(after, frames, 4)
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
    columns = ["task", "method", "settings", "replay", "seed"]
    return set() if rows.empty else set(rows[columns].itertuples(index=False, name=None))


def read_rows(path=CSV):
    """Return the runs so far; methods without settings have an empty string there."""
    return pd.read_csv(path).fillna({"settings": ""}) if path.exists() else pd.DataFrame()


@app.command()
def run(
    task: Annotated[str, typer.Argument(help=f"One of {', '.join(HELD)}.")],
    jobs: Annotated[int, typer.Option(help="Processes, of one thread each.")] = 1,
):
    """Run whatever is missing of a task."""
    os.chdir(HERE.parent)  # models are named from the project's root
    done = keys_of(read_rows())
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = []
        for method, chosen, replay in RUNS:
            lr = rate_of(methods.TASKS[task], method, chosen)
            if lr is not None and method == "budget" and replay:
                lr /= 2
            for seed in SEEDS:
                if lr is not None and (task, method, chosen, replay, seed) not in done:
                    futures.append(pool.submit(one_run, task, method, chosen, replay, lr, seed))
        for future in as_completed(futures):
            append(future.result(), CSV)


def append(row, path):
    """Add a row; sets of another task have columns of their own."""
    pd.concat([read_rows(path), pd.DataFrame([row])]).to_csv(path, index=False)


@app.command()
def nve(
    task: Annotated[str, typer.Argument(help=f"One of {', '.join(HELD)}.")],
    picoseconds: Annotated[float, typer.Option(help="Length of each trajectory.")] = 10.0,
):
    """Run constant-energy dynamics from a test frame, with the base and with tuned models."""
    os.chdir(HERE.parent)
    torch.set_num_threads(1)
    chosen_task = methods.TASKS[task]
    done = keys_of(read_rows(NVE))
    for method, chosen, replay in [("zero-shot", "", 0.0), *NVE_RUNS]:
        if (task, method, chosen, replay, 0) in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            if method == "zero-shot":
                paths = chosen_task.prepare(Path(folder))
                potential = load_potential(chosen_task.model)
            else:
                lr = rate_of(chosen_task, method, chosen)
                out = tuned(chosen_task, method, chosen, replay, lr, 0, Path(folder)).out
                paths = {"test": Path(folder) / "test.xyz"}
                potential = load_potential(str(next(out.glob("model.*"))))
            atoms = ase.io.read(paths["test"], index=0)
            row = {
                "task": task, "method": method, "settings": chosen, "replay": replay, "seed": 0,
                "commit": commit(), **trajectory(atoms, potential, picoseconds),
            }  # fmt: skip
        append(row, NVE)


def trajectory(atoms, potential, picoseconds):
    """Return the drift of the total energy, and when two atoms first met or parted."""
    atoms.calc = PotentialCalculator(potential)
    rng = np.random.default_rng(0)
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * TEMPERATURE_K, rng=rng)
    Stationary(atoms)
    radii = covalent_radii[atoms.numbers]
    sums = radii[:, None] + radii[None, :]
    pairs = np.triu_indices(len(atoms), 1)
    bonded = atoms.get_all_distances(mic=True)[pairs] < 1.2 * sums[pairs]
    dynamics = VelocityVerlet(atoms, timestep=STEP_FS * units.fs)
    times, energies, temperatures, failed = [], [], [], None
    while failed is None and dynamics.nsteps * STEP_FS < 1000 * picoseconds:
        times.append(dynamics.nsteps * STEP_FS / 1000)
        energies.append(atoms.get_total_energy() / len(atoms) * MEV)
        temperatures.append(atoms.get_temperature())
        distances = atoms.get_all_distances(mic=True)[pairs] / sums[pairs]
        # Not what is not a number either.
        if not (distances.min() >= 0.6 and distances[bonded].max() <= 2.0):
            failed = times[-1]
        dynamics.run(EVERY)
    slope = np.polyfit(times, energies, 1)[0] if len(times) > 2 else float("nan")
    return {
        "picoseconds": picoseconds,
        "step_fs": STEP_FS,
        "mean_K": float(np.mean(temperatures)),
        "drift_mev_per_atom_ps": float(slope),
        "fluctuation_mev_per_atom": float(np.std(energies)),
        "failed_at_ps": failed,
    }


def complete(rows, task):
    """Return the groups of a task that have all seeds, in the order of `RUNS`."""
    mine = rows[rows["task"] == task]
    for key in RUNS:
        group = mine[
            (mine["method"] == key[0]) & (mine["settings"] == key[1]) & (mine["replay"] == key[2])
        ]
        if len(group) == len(SEEDS):
            yield key, group


@app.command()
def table():
    """Write means and standard deviations over the seeds of each task that was run."""
    rows = read_rows()
    for task in HELD:
        if (rows["task"] == task).any():
            path = HERE / "results" / f"forgetting_{task}.md"
            path.write_text("\n".join(lines(task, rows)) + "\n")
            print(path.read_text())
    dynamics = read_rows(NVE)
    for task, mine in dynamics.groupby("task") if len(dynamics) else ():
        path = HERE / "results" / f"nve_{task}.md"
        path.write_text("\n".join(dynamics_lines(task, mine)) + "\n")


def lines(task, rows):
    """Return the lines of a task's table."""
    held = HELD[task]
    heads = ["method", "settings", "replay", "F MAE, trained on (meV/Å)"]
    heads += [f"{h.name}: {'F MAE' if h.same_level else 'drift of F'} (meV/Å)" for h in held]
    first = rows[rows["task"] == task].iloc[0]
    written = [
        f"# Forgetting: {task}",
        "",
        (__doc__ or "").split("\n\n", 1)[1].rstrip(),
        "",
        f"{methods.TASKS[task].about}. {CPU.steps} steps of batch {CPU.batch}; mean ± standard "
        f"deviation over {len(SEEDS)} seeds; at most {FRAMES} frames of each held-out set.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
    ]
    before = [f"{first[f'{h.name}_forces_before']:.1f}" if h.same_level else "0" for h in held]
    cells = ["zero-shot", "", "", f"{first['zero_shot_test_forces_mae']:.1f}"]
    written.append("| " + " | ".join([*cells, *before]) + " |")
    for (method, chosen, replay), group in complete(rows, task):
        cells = [
            method,
            chosen.strip("{}"),
            f"{replay:g}" if replay else "",
            spread(group["test_forces_mae"], 1),
            *[spread(group[column_of(h)], 1) for h in held],
        ]
        written.append("| " + " | ".join(cells) + " |")
    return written


def column_of(held):
    """Return what the table shows of a held-out set."""
    return f"{held.name}_forces_{'after' if held.same_level else 'drift'}"


def dynamics_lines(task, rows):
    """Return the lines of the table of constant-energy dynamics."""
    first = rows.iloc[0]
    columns = ["method", "settings", "mean T (K)", "drift (meV/atom/ps)", "failed at (ps)"]
    written = [
        f"# Constant energy: {task}",
        "",
        f"`python benchmarks/forgetting.py nve {task}`: from the first test frame, "
        f"{first['picoseconds']:g} ps in steps of {first['step_fs']:g} fs, velocities of "
        f"{2 * TEMPERATURE_K:g} K, seed 0. Failed: two atoms closer than 0.6 times the sum of "
        "their covalent radii, or a bond longer than twice that.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    for _, row in rows.iterrows():
        failed = "never" if pd.isna(row["failed_at_ps"]) else f"{row['failed_at_ps']:.2f}"
        drifted = f"{row['drift_mev_per_atom_ps']:+.4f}"
        chosen = row["settings"].strip("{}")
        cells = [row["method"], chosen, f"{row['mean_K']:.0f}", drifted, failed]
        written.append("| " + " | ".join(cells) + " |")
    return written


@app.command()
def figures():
    """Draw the error on what was trained on against the drift on what was not."""
    rows = read_rows()
    tasks = [task for task in HELD if (rows["task"] == task).any()]
    fig, panels = plt.subplots(
        1, len(tasks), figsize=(5.2 * len(tasks), 4.6), layout="constrained", squeeze=False
    )
    for axes, task in zip(panels[0], tasks, strict=True):
        columns = [f"{h.name}_forces_drift" for h in HELD[task]]
        for number, ((method, chosen, replay), group) in enumerate(complete(rows, task)):
            moved = group[columns].mean(axis=1)
            sparsity = json.loads(chosen or "{}").get("target_sparsity")
            label = method.replace("_", " ") + (f" {100 * sparsity:g} %" if sparsity else "")
            axes.errorbar(
                group["test_forces_mae"].mean(),
                moved.mean(),
                xerr=group["test_forces_mae"].std(),
                yerr=moved.std(),
                marker="osDv^<>PX"[number % 9],
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
        axes.legend(fontsize=7)
    fig.savefig(HERE / "results" / "forgetting.png", dpi=150)


if __name__ == "__main__":
    app()
