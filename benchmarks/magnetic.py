"""Spin-aware layers on SevenNet-0 and real magnetic sets: the columns of the paper's Table 2.

    .venv/bin/python benchmarks/magnetic.py run fe      # resumes where it stopped
    .venv/bin/python benchmarks/magnetic.py run nio
    .venv/bin/python benchmarks/magnetic.py table       # benchmarks/results/magnetic_<task>.md
    .venv/bin/python benchmarks/magnetic.py figures     # benchmarks/results/exchange_<task>.png

Data: ../shared/data or the folder E3SPARSE_DATA. Every method has the same steps, batches and
spin-aware layers. Its learning rate is the best on validation (errors of energy, force and moment,
each over the smallest, summed) of those in METHODS, with seed 0.
Every run is a row of benchmarks/results/magnetic_<task>.csv; budget with seed 0 stays in
runs/magnetic.
"""

import json
import tempfile
import time
from dataclasses import dataclass
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
from methods import commit, spread
from tasks import DATA, HERE, SEEDS

from e3sparse.backends import load_potential
from e3sparse.magnetism import load
from e3sparse.symmetry import PotentialSubject
from e3sparse.training.config import make_config
from e3sparse.training.optimizers import FRESH_LR
from e3sparse.training.run import SPIN_LAYERS, finetune

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


@dataclass(frozen=True)
class Task:
    """A data set, and how long and with which weights it is trained on."""

    name: str
    about: str
    steps: int
    batch: int
    loss: dict[str, float]
    slower: float = 1.0  # learning rates of the base are divided by this, but from scratch
    spin_lr: float = FRESH_LR

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
    test = ase.io.read(folder / "test.xyz", index="::2")
    for atoms in train + test:
        # What -dE/dm is in units of the labels: PROVENANCE.md of the data, from pairs of frames.
        atoms.arrays["REF_magforces"] *= 1.33
    return {"train": train[:96:2], "valid": train[100::3], "test": test}


SPLITS = {"fe": iron, "nio": nickel_oxide}
TASKS = {
    task.name: task
    for task in (
        Task(
            "fe",
            "Fe, 2-atom cells (bcc to hcp, elastic; Nikolov et al. 2021), weights 1:1:1:1",
            150,
            8,
            {},
        ),
        Task(
            "nio",
            "NiO, 32 atoms, non-collinear (DeltaSpin), energies within 2 meV/atom: weights "
            "10³:1:0:1, and 100 for magnetic forces",
            120,
            1,
            {"energy": 1e3, "magnetic_forces": 100.0},
            slower=5.0,
            spin_lr=5e-3,
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
    """Return the folder of the run that the figures show."""
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
def figures():
    """Draw the learned exchange of each task."""
    torch.set_num_threads(1)
    for task in TASKS.values():
        rows = read_rows(task)
        mine = rows[rows["method"] == SHOWN]
        full = mine.groupby("lr").filter(lambda group: len(group) == len(SEEDS))
        if len(full):
            folder = kept(task, full["lr"].iloc[0]) / "run"
            DRAWERS[task.name](task, trained(folder), RESULTS / f"exchange_{task.name}.png")


def trained(folder):
    """Return the model of a run, in double precision, with magnetic forces."""
    backbone = load_potential(MODEL, dtype=torch.float64)
    backbone.load_adapter(folder / "adapter")
    potential = load(backbone, folder / SPIN_LAYERS)
    potential.magnetic_forces = True
    return PotentialSubject(potential)


def turned(atoms, index, degrees):
    """Return a structure with one spin turned away from where it is, about a normal to it."""
    spin = atoms.arrays["spin"][index]
    normal = np.cross(spin, [0.0, 0.0, 1.0] if abs(spin[2]) < 0.9 else [1.0, 0.0, 0.0])
    sideways = np.cross(normal / np.linalg.norm(normal), spin)
    changed = atoms.copy()
    angle = np.radians(degrees)
    changed.arrays["spin"][index] = np.cos(angle) * spin + np.sin(angle) * sideways
    return changed


ANGLES = np.linspace(0.0, 180.0, 37)


def energies_of_turning(subject, atoms, index):
    """Return energies (meV per atom) against `ANGLES` of one spin, from that at 0."""
    found = [subject(turned(atoms, index, angle)).energy for angle in ANGLES]
    return 1000 * (np.array(found) - found[0]) / len(atoms)


def draw_iron(task, subject, path):
    """Draw E(angle) for the held-out geometries, with DFT at both ends, and the differences."""
    frames = task.splits()["pairs"]
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    wanted, found = [], []
    for k, (parallel, opposite) in enumerate(zip(frames[::2], frames[1::2], strict=True)):
        dft = 1000 * (opposite.info["REF_energy"] - parallel.info["REF_energy"]) / len(parallel)
        curve = energies_of_turning(subject, parallel, 1)
        style = {"color": f"C{k}", "ls": ("-", "--", "-.", ":")[k % 4]}
        apart = parallel.get_distance(0, 1, mic=True)
        left.plot(ANGLES, curve, label=f"{apart:.2f} Å apart", **style)
        left.plot([0, 180], [0, dft], "o", color=f"C{k}", mec="k")
        wanted.append(dft)
        found.append(curve[-1])
    left.set(
        xlabel="angle between the two spins (degrees)",
        ylabel="E(angle) - E(0) (meV/atom)",
        title="Fe, 2 atoms, held-out geometries (lines: model;\n"
        "circles: DFT; no angle between is in the data)",
    )
    left.legend()
    low, high = min(wanted + found), max(wanted + found)
    right.plot([low, high], [low, high], color="0.6", lw=1)
    right.plot(wanted, found, "o", mec="k")
    off = np.abs(np.subtract(found, wanted)).mean()
    right.set(
        xlabel="E(AFM) - E(FM), DFT (meV/atom)",
        ylabel="E(AFM) - E(FM), model (meV/atom)",
        title=f"{len(wanted)} geometries: mean error {off:.0f} meV/atom",
    )
    fig.savefig(path, dpi=150)


def draw_nickel_oxide(task, subject, path):
    """Draw E(angle) of one Ni, and -dE/dS against the magnetic forces of DFT, up to a scale."""
    frames = task.splits()["test"]
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for atoms in frames[:3]:
        nickel = int(np.flatnonzero(atoms.numbers == 28)[0])
        left.plot(ANGLES, len(atoms) * energies_of_turning(subject, atoms, nickel))
    left.set(
        xlabel="angle of one Ni spin from where it is (degrees)",
        ylabel="E(angle) - E(0) (meV)",
        title="NiO, 32 atoms, three test frames",
    )
    wanted, found = [], []
    for atoms in frames:
        nickel = atoms.numbers == 28
        spin = atoms.arrays["spin"][nickel]
        for values, into in (
            (atoms.arrays["REF_magforces"], wanted),
            (subject(atoms).magnetic_forces, found),
        ):
            # Parallel to a spin of fixed length there is no derivative.
            across = values[nickel] - (values[nickel] * spin).sum(1, keepdims=True) * spin
            into.append(1000 * across.ravel())
    wanted, found = np.concatenate(wanted), np.concatenate(found)
    correlation = np.corrcoef(wanted, found)[0, 1]
    right.plot(wanted, found, ".", ms=3)
    right.set(
        xlabel="DFT magnetic force across the spin (meV/μ_B)",
        ylabel="-dE/dS across the spin, model (meV)",
        title=f"Ni, test frames: correlation {correlation:.3f}",
    )
    fig.savefig(path, dpi=150)


DRAWERS = {"fe": draw_iron, "nio": draw_nickel_oxide}


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
