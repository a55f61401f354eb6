"""From 300 K to 600 K and over a barrier: acetylacetone, with the errors that its field reports.

    .venv-mace/bin/python benchmarks/extrapolation.py run --jobs 2
    .venv-mace/bin/python benchmarks/extrapolation.py table     # results/extrapolation.md
    .venv-mace/bin/python benchmarks/extrapolation.py figures   # results/dihedral.png

The models of the task mace-acac of benchmarks/methods.py, trained on frames at 300 K at the
learning rates that it chose. Root mean square errors: of the energy of the molecule (meV) and of
force components (meV/Å), on all test frames of the data set; along the scan of the O=C–C=C dihedral
of the energy only, less its mean over the scan. `run` resumes where it stopped; every run is a row
of benchmarks/results/extrapolation.csv, its scan is in extrapolation_dihedral.csv.
"""

import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import ase.io
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import typer
from methods import commit, finetuned, rate_of, spread
from tasks import DATA, HERE, SEEDS, TASKS, label, settings

from e3sparse.frames.evaluation import MEV, errors, predict
from e3sparse.frames.reading import Frame, LabelKeys, read_frames
from e3sparse.frames.references import fit_references
from e3sparse.potentials.backends import load_potential

RESULTS = HERE / "results"
CSV, SCAN = RESULTS / "extrapolation.csv", RESULTS / "extrapolation_dihedral.csv"
TASK = TASKS["mace-acac"]
FILES = {"300 K": "test.xyz", "600 K": "test_600K.xyz"}
DIHEDRAL = (3, 2, 1, 0)
METHODS = [
    ("full", ""),
    ("low_rank", settings(rank=16)),
    ("soft_threshold", settings(tau_weight_decay=0.3187)),
    ("soft_threshold", settings(tau_weight_decay=4.5068)),
    ("budget", settings(target_sparsity=0.85)),
    ("budget", settings(target_sparsity=0.97)),
]
DASHES = (":", "-", "--", "-.", (0, (1, 2)), (0, (5, 1, 1, 1)), (0, (8, 2)))  # for grey prints

app = typer.Typer(no_args_is_help=True)


def one_run(method, chosen, lr, seed):
    """Fine-tune once and look at every test set; returns a row, and the energies of the scan."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        splits, said = TASK.prepare(folder), json.loads(chosen or "{}")
        out = finetuned(TASK, method, said, lr, seed, splits, folder).out
        potential = load_potential(str(next(out.glob("model.*"))))
        return looked_at(potential, {}, method, chosen, lr, seed)


def untuned():
    """Look at the base model, with references fitted to the training frames."""
    potential = load_potential(TASK.model)
    with tempfile.TemporaryDirectory() as there:
        train = read(potential, TASK.prepare(Path(there))["train"])
    references = fit_references(train, predict(potential, train).energy)
    return looked_at(potential, references, "zero-shot", "", 0.0, 0)


def read(potential, path):
    """Return the labelled frames of a file."""
    return read_frames(path, LabelKeys(), known=potential.species.numbers, cutoff=potential.cutoff)


def looked_at(potential, references, method, chosen, lr, seed):
    """Return a row of errors, and the energies of the scan."""
    run = {"method": method, "settings": chosen, "lr": lr, "seed": seed}
    row = dict(run)
    for name, file in FILES.items():
        frames = read(potential, DATA / TASK.dataset / file)
        found = errors(frames, predict(potential, frames), references)
        row[f"{name} E"] = found["energy_rmse"] * len(frames[0].atoms)
        row[f"{name} F"] = found["forces_rmse"]
    scan = ase.io.read(DATA / TASK.dataset / "test_dihedral.xyz", index=":")
    labels = np.array([atoms.info["REF_energy"] for atoms in scan])
    # The scan has no forces, of which a frame is otherwise made.
    frames = [Frame(a, e, np.zeros((len(a), 3)), None) for a, e in zip(scan, labels, strict=True)]
    off = predict(potential, frames).energy - labels
    off -= off.mean()
    row["dihedral E"] = MEV * float(np.sqrt(np.mean(off**2)))
    row["commit"] = commit()
    angles = [atoms.get_dihedral(*DIHEDRAL) for atoms in scan]
    curve = pd.DataFrame({"angle": angles, "dft": labels - labels[0], "off": off})
    return row, curve.assign(**run)


def read_rows():
    """Return the runs so far; methods without settings have an empty string there."""
    if not CSV.exists():
        return pd.DataFrame()
    rows = pd.read_csv(CSV).fillna({"settings": ""})
    return rows.drop_duplicates(["method", "settings", "seed"])


@app.command()
def run(jobs: Annotated[int, typer.Option(help="Processes, of one thread each.")] = 1):
    """Run whatever is missing."""
    os.chdir(HERE.parent)  # models are named from the project's root
    rows = read_rows()
    keys = ["method", "settings", "seed"]
    done = set() if rows.empty else set(rows[keys].itertuples(index=False, name=None))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [] if ("zero-shot", "", 0) in done else [pool.submit(untuned)]
        for method, chosen in METHODS:
            lr = rate_of(TASK, method, chosen)
            for seed in SEEDS:
                if lr is not None and (method, chosen, seed) not in done:
                    futures.append(pool.submit(one_run, method, chosen, lr, seed))
        for future in as_completed(futures):
            row, curve = future.result()
            for path, found in ((SCAN, curve), (CSV, pd.DataFrame([row]))):
                found.to_csv(path, mode="a", header=not path.exists(), index=False)


@app.command()
def table():
    """Write means and standard deviations over the seeds."""
    columns = [*(f"{name} {x}" for name in FILES for x in "EF"), "dihedral E"]
    heads = [f"{c} ({'meV/Å' if c.endswith('F') else 'meV'})" for c in columns]
    lines = [
        "# Extrapolation",
        "",
        (__doc__ or "").split("\n\n", 1)[1].rstrip(),
        "",
        f"RMSE, mean ± standard deviation over {len(SEEDS)} seeds.",
        "",
        "| method | settings | " + " | ".join(heads) + " |",
        "|" + "---|" * (2 + len(heads)),
    ]
    rows = read_rows()
    for method, chosen in [("zero-shot", ""), *METHODS]:
        mine = rows[(rows["method"] == method) & (rows["settings"] == chosen)]
        if len(mine) not in (1, len(SEEDS)):
            continue
        shown = [spread(mine[c], 0) if len(mine) > 1 else f"{mine[c].iloc[0]:.0f}" for c in columns]
        lines.append("| " + " | ".join([method, chosen.strip("{}"), *shown]) + " |")
    (RESULTS / "extrapolation.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


@app.command()
def figures():
    """Draw the energy along the dihedral, each method's mean over seeds."""
    scans = pd.read_csv(SCAN).fillna({"settings": ""})
    fig, axes = plt.subplots(figsize=(6, 4.2), layout="constrained")
    first = scans.groupby("angle", sort=True)["dft"].first()
    axes.plot(first.index, first, "k", lw=3, alpha=0.6, label="DFT")
    for number, (method, chosen) in enumerate([("zero-shot", ""), *METHODS]):
        mine = scans[(scans["method"] == method) & (scans["settings"] == chosen)]
        if mine.empty:
            continue
        off = mine.groupby("angle", sort=True)["off"].mean()
        axes.plot(
            off.index,
            first + off,
            color=f"C{number}",
            ls=DASHES[number],
            label=label(method, chosen),
        )
    axes.set(
        xlabel="O=C–C=C dihedral (degrees)",
        ylabel="energy (eV), less its mean error",
        title="acetylacetone",
    )
    axes.legend(fontsize=7)
    fig.savefig(RESULTS / "dihedral.png", dpi=150)


if __name__ == "__main__":
    app()
