"""How many trainings go astray: a delta that is known, learnt at high rates and high sparsities.

    .venv-mace/bin/python benchmarks/explosions.py run        # resumes where it stopped
    .venv-mace/bin/python benchmarks/explosions.py table      # benchmarks/results/explosions.md

The labels are those of the small MACE of benchmarks/models with 1 % of its entries moved by as much
as they are large, other ones for each seed, on 60 training, 20 validation and 40 test frames of
ethanol, whose atoms are displaced at random; the base is the model itself. 400 steps of batch 5,
every layer (`all`), float32. Needs no data and no other model. "Without" is a run that does not
go back, "bound" one in which the rate grows to 1 at most. Each run is a row of
benchmarks/results/explosions.csv. "Exploded" is a model that was written and whose forces are worse
than the base's on the test frames; "refused", a run that ended with an error and wrote none.
"""

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Annotated

import ase.io
import numpy as np
import pandas as pd
import torch
import typer
from ase.build import molecule
from methods import commit
from tasks import HERE, settings

from e3sparse.errors import DivergedError
from e3sparse.potentials.backends import load_potential
from e3sparse.potentials.calculator import PotentialCalculator
from e3sparse.training.config import make_config
from e3sparse.training.run import finetune
from e3sparse.training.run_records import read_results

CSV = HERE / "results" / "explosions.csv"
MODEL = HERE / "models" / "mace_rmd17.model"
SPLITS = {"train": 60, "valid": 20, "test": 40}
MOVED, DISPLACEMENT = 0.01, 0.07  # share of the entries; Å
SEEDS = range(8)
CASES = [
    *(("budget", settings(target_sparsity=s), 3e-2) for s in (0.994, 0.85)),
    *(("low_rank", settings(rank=16), lr) for lr in (1e-2, 3e-2)),
]
"""Method, its settings and its rate."""
VARIANTS = {
    "recovery": {},
    "recovery and bound": {},
    "without": {"recover": False, "allow_worse": True},
}
"""Settings of a run by the name under which its rows stand."""
BOUND = {"largest_lr": 1.0}
"""What `budget` has in a run with a bound."""


app = typer.Typer(no_args_is_help=True)


def problem(seed, folder):
    """Write the labelled splits of a seed; returns their paths."""
    potential = load_potential(str(MODEL), device="cpu", dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    adapter = potential.patch("all", "dense")
    with torch.no_grad():
        for path, delta in adapter.deltas().items():
            weight = dict(potential.module.named_modules())[path].weight
            (values,) = delta.parameters()
            shape = values.shape
            size = weight.detach().square().mean().sqrt()
            moved = torch.rand(shape, generator=generator, dtype=torch.float64) < MOVED
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
            values.copy_(moved * drawn * size)
    rng = np.random.default_rng(seed)
    calculator = PotentialCalculator(potential)
    paths = {}
    for name, count in SPLITS.items():
        frames = []
        for _ in range(count):
            atoms = molecule("CH3CH2OH")
            atoms.positions += rng.normal(scale=DISPLACEMENT, size=atoms.positions.shape)
            atoms.calc = calculator
            forces, energy = atoms.get_forces(), atoms.get_potential_energy()
            atoms.calc = None
            atoms.info["REF_energy"], atoms.arrays["REF_forces"] = energy, forces
            frames.append(atoms)
        paths[name] = folder / f"{name}.xyz"
        ase.io.write(paths[name], frames)
    return paths


def one_run(variant, method, chosen, lr, seed):
    """Fine-tune once; returns a row of the CSV."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        more = {"targets": "all", "max_steps": 400, "batch_size": 5, "valid_every": 2}
        said = json.loads(chosen or "{}")
        if "bound" in variant and method == "budget":
            said |= BOUND
        config = make_config(
            {
                "model": str(MODEL), "device": "cpu", "method": method, "lr": lr, "seed": seed,
                "method_settings": said, "out": folder / "run",
                **problem(seed, folder), **more, **VARIANTS[variant],
            }
        )  # fmt: skip
        try:
            result = finetune(config)
            errors, setbacks = result.table["forces_mae"], read_results(result.out)["setbacks"]
            before, after, why = errors["test before"], errors["test after"], ""
        except DivergedError as error:
            before, after, setbacks, why = np.nan, np.nan, (), str(error)
    return {
        "variant": variant, "method": method, "settings": chosen, "lr": lr, "seed": seed,
        "before_forces_mae": before, "after_forces_mae": after, "error": why,
        "setbacks": len(setbacks), "seconds": round(time.monotonic() - start), "commit": commit(),
    }  # fmt: skip


def read_rows():
    """Return the runs so far."""
    if not CSV.exists():
        return pd.DataFrame(columns=["variant", "method", "settings", "lr", "seed"])
    return pd.read_csv(CSV, dtype={"settings": str, "error": str}).fillna(
        {"settings": "", "error": ""}
    )


@app.command()
def run(
    variants: Annotated[list[str] | None, typer.Argument(help="Those to run; else all.")] = None,
    seeds: Annotated[int, typer.Option(help="The first so many seeds.")] = len(SEEDS),
):
    """Run whatever is missing."""
    os.chdir(HERE.parent)
    torch.set_num_threads(1)
    keys = ["variant", "method", "settings", "lr", "seed"]
    for case in CASES:
        for variant in variants or VARIANTS:
            for seed in SEEDS[:seeds]:
                done = set(read_rows()[keys].itertuples(index=False, name=None))
                if (variant, *case, seed) not in done:
                    row = pd.DataFrame([one_run(variant, *case, seed)])
                    row.to_csv(CSV, mode="a", header=not CSV.exists(), index=False)


@app.command()
def table():
    """Write how many runs exploded, were refused or went back, by case and variant."""
    lines = [
        "# Trainings that go astray",
        "",
        (__doc__ or "").split("\n\n", 1)[1].strip(),
        "",
        "| method | settings | lr | variant | runs | exploded | refused | went back | "
        "F MAE, median (meV/Å) | largest | base |",
        "|" + "---|" * 11,
    ]
    for (method, chosen, lr, variant), same in read_rows().groupby(
        ["method", "settings", "lr", "variant"]
    ):
        base, after = same["before_forces_mae"], same["after_forces_mae"]
        cells = [
            method, chosen.strip("{}"), f"{lr:g}", variant, len(same), int((after > base).sum()),
            int((same["error"] != "").sum()), int((same["setbacks"] > 0).sum()),
            f"{after.median():.1f}", f"{after.max():.3g}", f"{base.median():.1f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    CSV.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    app()
