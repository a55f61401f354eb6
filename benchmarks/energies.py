"""What references that are fitted once more after training are worth, from one training each.

    .venv-mace/bin/python benchmarks/energies.py run mace-acac --seeds 3   # resumes
    .venv-mace/bin/python benchmarks/energies.py table      # writes energies.md

Trained as by benchmarks/methods.py, with the rates that are named here. The energies of the test
frames are taken twice: of the model that was written, and less what the last fit has added to its
references. Each run is a row of benchmarks/results/energies.csv.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from methods import commit, finetuned
from tasks import HERE, TASKS, settings

from e3sparse.errors import DivergedError
from e3sparse.frames.evaluation import errors, predict
from e3sparse.frames.reading import LabelKeys, read_frames
from e3sparse.potentials.backends import load_potential
from e3sparse.training.run_records import read_results

CSV = HERE / "results" / "energies.csv"
KEYS = ["task", "method", "settings", "lr", "seed"]
CASES = [
    ("budget", settings(target_sparsity=0.97), 6e-2),
    ("full", "", 1e-2),
    *(("budget", settings(target_sparsity=0.995, **b), 3e-2) for b in ({}, {"largest_lr": 1.0})),
]
"""Method, its settings and its rate; at the last the rate grows far."""

app = typer.Typer(no_args_is_help=True)


def one_run(name, method, chosen, lr, seed):
    """Fine-tune once; returns a row of the CSV."""
    row = {"task": name, "method": method, "settings": chosen, "lr": lr, "seed": seed}
    row["commit"] = commit()
    task = TASKS[name]
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        splits = task.prepare(folder)
        try:
            result = finetuned(task, method, json.loads(chosen or "{}"), lr, seed, splits, folder)
        except DivergedError as error:
            return row | {"error": str(error)}
        found = read_results(result.out)
        potential = load_potential(str(next(result.out.glob("model.*"))), device="cpu")
        numbers = potential.species.numbers
        frames = read_frames(splits["test"], LabelKeys(), known=numbers, cutoff=potential.cutoff)
        shifts = dict(zip(*_shifts(found["e0s_shifted_after"]), strict=True))
        less = {z: -shift for z, shift in shifts.items()}
        without = errors(frames, predict(potential, frames), less)["energy_mae"]
    after = result.table.loc["test after"]
    return row | {
        "setbacks": len(found["setbacks"]), "shifts": json.dumps(found["e0s_shifted_after"]),
        "test_energy_mae_without": without, "test_energy_mae": after["energy_mae"],
        "test_forces_mae": after["forces_mae"],
        "valid_forces_mae": result.table.loc["valid after", "forces_mae"], "error": "",
    }  # fmt: skip


def _shifts(by_symbol):
    from ase.data import atomic_numbers

    return [atomic_numbers[symbol] for symbol in by_symbol], list(by_symbol.values())


def read_rows():
    """Return the runs so far."""
    if not CSV.exists():
        return pd.DataFrame(columns=KEYS)
    return pd.read_csv(CSV, dtype={"settings": str, "error": str}).fillna(
        {"settings": "", "error": ""}
    )


@app.command()
def run(
    task: Annotated[str, typer.Argument(help=f"One of {', '.join(TASKS)}.")],
    seeds: Annotated[int, typer.Option(help="How many.")] = 1,
):
    """Run whatever is missing of a task."""
    os.chdir(HERE.parent)  # models are named from the project's root
    torch.set_num_threads(1)
    for seed in range(seeds):
        for case in CASES:
            done = set(read_rows()[KEYS].itertuples(index=False, name=None))
            if (task, *case, seed) not in done:
                row = one_run(task, *case, seed)
                columns = [
                    *KEYS, "commit", "setbacks", "shifts", "test_energy_mae_without",
                    "test_energy_mae", "test_forces_mae", "valid_forces_mae", "error",
                ]  # fmt: skip
                line = pd.DataFrame([row]).reindex(columns=columns)
                line.to_csv(CSV, mode="a", header=not CSV.exists(), index=False)


@app.command()
def table():
    """Write a table of means over seeds."""
    rows = read_rows()
    lines = [
        "# Energies with references fitted once more after training",
        "",
        "`benchmarks/energies.py`; test frames, mean over seeds; E in meV/atom, F in meV/Å.",
        "",
        "| task | method | settings | lr | seeds | refused | setbacks | E without | E | F |",
        "|" + "---|" * 10,
    ]
    for (task, method, chosen, lr), same in rows.groupby(KEYS[:4]):
        refused = int((same["error"] != "").sum())
        cells = [
            task, method, chosen.strip("{}"), f"{lr:g}", str(len(same)), str(refused),
            f"{same['setbacks'].sum():.0f}",
            *(f"{same[c].mean():.2f}" for c in ("test_energy_mae_without", "test_energy_mae")),
            f"{same['test_forces_mae'].mean():.1f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    CSV.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    app()
