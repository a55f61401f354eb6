"""Dynamics at constant energy with fine-tuned models: does the energy drift, does anything break?

    .venv-mace/bin/python benchmarks/nve.py run mace-ethanol
    .venv/bin/python benchmarks/nve.py table     # benchmarks/results/nve_<task>.md

Fine-tuned as by benchmarks/methods.py, seed 0, at the learning rate that it chose. `run` resumes
where it stopped; every trajectory is a row of benchmarks/results/nve.csv.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated

import ase.io
import numpy as np
import pandas as pd
import torch
import typer
from ase import units
from ase.data import covalent_radii
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet
from methods import commit, finetuned, rate_of
from tasks import FULL, HERE, LOW_RANK, TASKS, settings

from e3sparse.frames.evaluation import MEV
from e3sparse.potentials.backends import load_potential
from e3sparse.potentials.calculator import PotentialCalculator

CSV = HERE / "results" / "nve.csv"
BASE = ("zero-shot", "")
METHODS = (BASE, FULL, LOW_RANK, ("budget", settings(target_sparsity=0.97)))
STEP_FS, TEMPERATURE_K, EVERY = 0.5, 300.0, 20

app = typer.Typer(no_args_is_help=True)


@app.command()
def run(
    task: Annotated[str, typer.Argument(help=f"One of {', '.join(TASKS)}.")],
    picoseconds: Annotated[float, typer.Option(help="Length of each trajectory.")] = 10.0,
):
    """Run the trajectories of a task that are missing, from its first test frame."""
    os.chdir(HERE.parent)  # models are named from the project's root
    torch.set_num_threads(1)
    for method, chosen in METHODS:
        rows = read_rows()
        if (
            len(rows)
            and (rows[["task", "method", "settings"]] == (task, method, chosen)).all(1).any()
        ):
            continue
        with tempfile.TemporaryDirectory() as folder:
            model = tuned(TASKS[task], method, chosen, Path(folder))
            atoms = ase.io.read(Path(folder) / "test.xyz", index=0)
            found = trajectory(atoms, load_potential(str(model)), picoseconds)
        row = {"task": task, "method": method, "settings": chosen, "commit": commit(), **found}
        pd.concat([rows, pd.DataFrame([row])]).to_csv(CSV, index=False)


def tuned(task, method, chosen, folder):
    """Write a task's frames and fine-tune its model with seed 0; returns what to load."""
    if (method, chosen) == BASE:
        task.prepare(folder)
        return task.model
    return tuned_by(task, method, chosen, 0, folder)


def tuned_by(task, method, chosen, seed, folder):
    """Write a task's frames and fine-tune its model; returns the file of the merged model."""
    lr, said = rate_of(task, method, chosen), json.loads(chosen or "{}")
    splits = task.prepare(folder)
    return next(finetuned(task, method, said, lr, seed, splits, folder).out.glob("model.*"))


def read_rows():
    """Return the trajectories so far; methods without settings have an empty string there."""
    return pd.read_csv(CSV).fillna({"settings": ""}) if CSV.exists() else pd.DataFrame()


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


@app.command()
def table():
    """Write the table of each task that was run."""
    for task, mine in read_rows().groupby("task"):
        path = HERE / "results" / f"nve_{task}.md"
        path.write_text("\n".join(lines(task, mine)) + "\n")
        print(path.read_text())


def lines(task, rows):
    """Return the lines of a task's table."""
    first = rows.iloc[0]
    columns = ["method", "settings", "mean T (K)", "drift (meV/atom/ps)", "failed at (ps)"]
    written = [
        f"# Constant energy: {task}",
        "",
        f"`python benchmarks/nve.py run {task}`: from the first test frame, "
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


if __name__ == "__main__":
    app()
