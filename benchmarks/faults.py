"""Attacks on the product from outside, by its public API and command line, and what came of them.

    .venv/bin/python benchmarks/faults.py run adapters spins runs sevennet kills disks
    .venv-mace/bin/python benchmarks/faults.py run mace
    .venv/bin/python benchmarks/faults.py table               # benchmarks/results/faults.md
    .venv/bin/python benchmarks/faults.py show adapters 17    # one try, in this process

Every try is drawn from the seed and its number, and has a limit of time; one that hangs or crashes
ends with the child process that it is made in. Where files are damaged the answer is compared with
that of the undamaged ones to the last digit. `run` resumes where it stopped: a row of
benchmarks/results/faults.csv holds the tries of one attack in one block of tries, and
faults_found.csv each try that ended otherwise than it should. Columns: right, the numbers of the
undamaged; named, one sentence for the user and exit code 2; foreign, a traceback, "Aborted.", exit
code 1 or a crash; silent, other numbers or a model that a refusal left changed; hang; lost, a file
or a training that was there and is gone; executed, a payload in a model file. The aim is 0 in the
last five.
"""

import importlib
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from faults_outcomes import GOOD, OUTCOMES, Kind, tried

HERE = Path(__file__).parent
CSV = HERE / "results" / "faults.csv"
FOUND = HERE / "results" / "faults_found.csv"
KINDS = {
    "adapters": ("faults_folders", "Adapters", "damaged adapter folders: load, read_values"),
    "spins": ("faults_folders", "Spins", "damaged spins/ folders: magnetism.load"),
    "runs": ("faults_folders", "Runs", "damaged run folders: compare, diff, report, --resume"),
    "sevennet": ("faults_models", "SevenNet", "SevenNet .pth: inspect, evaluate, merge"),
    "mace": ("faults_models", "Mace", "MACE .model: inspect, evaluate, merge"),
    "kills": ("faults_kills", "Kills", "killed finetune, then --resume"),
    "disks": ("faults_disks", "Disks", "full disks, then --resume"),
}
"""Name in the command: module, class, and what the table says."""

Seed = Annotated[int, typer.Option(help="Of all random numbers.")]
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


def make(name: str, place: Path, seed: int) -> Kind:
    """Prepare a kind of attack in an empty folder."""
    # e3nn 0.4.4, which MACE needs, loads a file of constants with slices in it.
    torch.serialization.add_safe_globals([slice])
    module, kind, _ = KINDS[name]
    made: Kind = getattr(importlib.import_module(module), kind)(place, seed)
    return made


def block(name: str, kind: Kind, numbers: list[int], seed: int) -> tuple[list[dict], list[dict]]:
    """Make the tries of a block; returns a row for each attack, and one for each fault."""
    counts: dict[str, Counter] = {}
    faults = []
    for number, found in zip(numbers, tried(kind, numbers), strict=True):
        attack = kind.attack(number)
        counts.setdefault(attack, Counter())[found.outcome] += 1
        if found.outcome not in GOOD:
            row = {"kind": name, "seed": seed, "number": number, "attack": attack}
            faults.append(row | {"outcome": found.outcome, "said": found.said})
    rows = [
        {"kind": name, "seed": seed, "first": numbers[0], "last": numbers[-1], "attack": attack}
        | {"tries": sum(count.values())}
        | {outcome: count[outcome] for outcome in OUTCOMES}
        for attack, count in counts.items()
    ]
    return rows, faults


def read(path: Path) -> pd.DataFrame:
    """Return the rows so far."""
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


def append(path: Path, rows: list[dict]) -> None:
    """Add rows to a file."""
    if rows:
        pd.concat([read(path), pd.DataFrame(rows)]).to_csv(path, index=False)


@app.command()
def run(
    kinds: Annotated[list[str], typer.Argument(help=f"Of {', '.join(KINDS)}.")],
    tries: Annotated[int | None, typer.Option(help="Of each kind; all if left out.")] = None,
    seed: Seed = 0,
    results: Annotated[Path, typer.Option(help="Folder of the two CSV files.")] = CSV.parent,
) -> None:
    """Make the tries that are missing."""
    csv, found = results / CSV.name, results / FOUND.name
    for name in kinds:
        done = read(csv)
        if not done.empty:
            done = done[(done["kind"] == name) & (done["seed"] == seed)]
        with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as place:
            kind = make(name, Path(place), seed)
            for first in range(0, tries or kind.tries, kind.block):
                if not done.empty and first in set(done["first"]):
                    continue
                numbers = list(range(first, min(first + kind.block, tries or kind.tries)))
                start = time.monotonic()
                rows, faults = block(name, kind, numbers, seed)
                append(csv, rows)
                append(found, faults)
                seconds = time.monotonic() - start
                print(
                    f"{name} {first}: {len(numbers)} tries, {len(faults)} faults, {seconds:.0f} s",
                    flush=True,
                )


@app.command()
def show(name: str, number: int, seed: Seed = 0) -> None:
    """Make one try again, and say what came of it."""
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as place:
        kind = make(name, Path(place), seed)
        print(kind.attack(number), kind.attempt(number))


@app.command()
def table(
    results: Annotated[Path, typer.Option(help="Folder of the CSV files.")] = CSV.parent,
) -> None:
    """Write the table, a line for each kind and each attack."""
    text = "\n".join(lines(read(results / CSV.name))) + "\n"
    (results / CSV.with_suffix(".md").name).write_text(text)
    print(text)


def lines(rows: pd.DataFrame) -> list[str]:
    """Return the lines of a table of kinds, and of one of attacks for each kind."""
    columns = ["tries", *OUTCOMES]
    head = ["", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]

    def line(what: object, group: pd.DataFrame) -> str:
        return f"| {what} | " + " | ".join(f"{group[c].sum():,}" for c in columns) + " |"

    made = {about: rows[rows["kind"] == name] for name, (_, _, about) in KINDS.items()}
    made = {about: mine for about, mine in made.items() if not mine.empty}
    written = ["# Attacks, and what came of them", "", (__doc__ or "").split("\n\n", 1)[1].rstrip()]
    written += [*head, *(line(about, mine) for about, mine in made.items())]
    for about, mine in made.items():
        groups = mine.groupby("attack", sort=False)
        written += ["", f"## {about}", *head, *(line(attack, group) for attack, group in groups)]
    return written


if __name__ == "__main__":
    app()
