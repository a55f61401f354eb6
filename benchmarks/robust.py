"""Is a fine-tuned model still sane where it was not trained? `e3sparse evaluate --robust` of each.

    .venv/bin/python benchmarks/robust.py run 7net-ethanol
    .venv/bin/python benchmarks/robust.py table     # benchmarks/results/robust_<task>.md

Fine-tuned as by benchmarks/methods.py, at the learning rate that it chose. The base model is looked
at too; a look is *lost* if something held for the base and does no longer. Structures given: test
frames of the task. `run` resumes where it stopped; every model is a row of
benchmarks/results/robust.csv.
"""

import os
import tempfile
from pathlib import Path
from typing import Annotated

import ase.io
import pandas as pd
import torch
import typer
from methods import commit, spread
from nve import BASE, tuned_by
from tasks import FULL, HERE, LOW_RANK, SEEDS, TASKS, settings

from e3sparse.potentials.backends import load_potential
from e3sparse.robustness import LOOKS, PotentialModel, look_at, subjects_of

CSV = HERE / "results" / "robust.csv"
METHODS = (FULL, LOW_RANK, ("budget", settings(target_sparsity=0.97)))
STEPS = 1000
NUMBERS = {
    "random structures: RMS from the base's forces (eV/Å)": "rms_from_base_ev_a",
    "structures given: RMSE of forces (eV/Å)": "rmse_ev_a",
    "drift of the energy (meV/atom/ps)": "drift_mev_per_atom_ps",
}

app = typer.Typer(no_args_is_help=True)


@app.command()
def run(
    task: Annotated[str, typer.Argument(help=f"One of {', '.join(TASKS)}.")],
    seeds: Annotated[int, typer.Option(help="How many of the three.")] = len(SEEDS),
):
    """Fine-tune and look at whatever is missing of a task, a seed at a time."""
    os.chdir(HERE.parent)  # models are named from the project's root
    torch.set_num_threads(1)
    for seed in SEEDS[:seeds]:
        for method, chosen in METHODS:
            if (task, method, chosen, seed) in keys_of(read_rows()):
                continue
            row = one_run(TASKS[task], method, chosen, seed)
            pd.concat([read_rows(), pd.DataFrame([row])]).to_csv(CSV, index=False)


def one_run(task, method, chosen, seed):
    """Fine-tune once and look; returns a row of the CSV."""
    with tempfile.TemporaryDirectory() as name:
        model = tuned_by(task, method, chosen, seed, Path(name))
        given = ase.io.read(Path(name) / "test.xyz", index=":")
        base, after = load_potential(task.model), load_potential(str(model))
        known = base.species.numbers
        subjects = subjects_of(known=known, given=given, seed=seed)
        both = PotentialModel(after), PotentialModel(base)
        outcome = look_at(*both, subjects, steps=STEPS, seed=seed)
    row = {
        "task": task.name, "method": method, "settings": chosen, "seed": seed, "steps": STEPS,
        "commit": commit(), "ok": outcome.ok,
    }  # fmt: skip
    for verdict in outcome.verdicts:
        row[f"{verdict.look}: verdict"] = verdict.word
        row[f"{verdict.look}: lost"] = ", ".join(verdict.lost)
        for side in ("model", "base"):
            found = getattr(verdict, side)
            if found is not None:
                row[f"{verdict.look}: {side}"] = found.said
                row |= {f"{verdict.look}: {side} {k}": v for k, v in found.figures.items()}
    return row


def read_rows():
    """Return the models so far; methods without settings have an empty string there."""
    if not CSV.exists():
        return pd.DataFrame()
    return pd.read_csv(CSV, dtype={"settings": str}).fillna({"settings": ""})


def keys_of(rows):
    """Return the models that a table holds."""
    columns = ["task", "method", "settings", "seed"]
    return set() if rows.empty else set(rows[columns].itertuples(index=False, name=None))


@app.command()
def table():
    """Write the table of each task that was run."""
    rows = read_rows()
    for task in dict.fromkeys(rows.get("task", ())):
        path = HERE / "results" / f"robust_{task}.md"
        path.write_text("\n".join(lines(task, rows[rows["task"] == task])) + "\n")
        print(path.read_text())


def lines(task, rows):
    """Return the lines of a task's table: how many seeds lose each look, and a few numbers."""
    columns = ["method", "settings", "seeds", *LOOKS, *NUMBERS]
    written = [
        f"# Looked at where it was not trained: {task}",
        "",
        (__doc__ or "").split("\n\n", 1)[1].rstrip(),
        "",
        f"{TASKS[task].about}. {rows['steps'].iloc[0]} steps of dynamics at rising temperature, a "
        "third at constant energy. What is lost, and in how many of the seeds; `base`: where the "
        "base fails as well and no worse. Numbers: mean ± standard deviation over the seeds.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    first = rows.iloc[0]
    cells = [BASE[0], "", "", *[str(first[f"{look}: base"]) for look in LOOKS]]
    cells += ["0", *[f"{first[column_of(name, 'base')]:.3f}" for name in list(NUMBERS)[1:]]]
    written.append("| " + " | ".join(cells) + " |")
    for (method, chosen), group in rows.groupby(["method", "settings"], sort=False):
        cells = [method, chosen.strip("{}"), str(len(group))]
        cells += [verdict_of(group, look) for look in LOOKS]
        cells += [number_of(group[column_of(name, "model")]) for name in NUMBERS]
        written.append("| " + " | ".join(cells) + " |")
    return written


def verdict_of(group, look):
    """Return what of a look is lost in how many seeds, or its verdict."""
    words = group[f"{look}: verdict"]
    lost = int((words == "lost").sum())
    if lost:
        where = sorted({w for cell in group[f"{look}: lost"].dropna() for w in cell.split(", ")})
        return f"**lost in {lost}**: {', '.join(where)}"
    return "holds" if (words == "holds").all() else "base"


def column_of(name, side):
    """Return the column of a number of the table."""
    look = "constant energy" if name.startswith("drift") else name.partition(":")[0]
    return f"{look}: {side} {NUMBERS[name]}"


def number_of(values):
    """Return mean and standard deviation, or the one value."""
    return f"{values.iloc[0]:.3f}" if len(values) == 1 else spread(values, 3)


if __name__ == "__main__":
    app()
