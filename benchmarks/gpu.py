"""Full fine-tuning against the default delta on a CUDA device, the same steps for both.

    python benchmarks/gpu.py run --steps 500     # benchmarks/results/gpu_7net-ethanol.csv
    python benchmarks/gpu.py table               # benchmarks/results/gpu_7net-ethanol.md

SevenNet-0 on rMD17 ethanol: 950 training and 50 validation frames, batches of 64, as in the
profile `gpu` of methods.py, for as many steps as a short loan of a card allows; one seed. Of each
method the rate is shown that was best on validation. `seconds` is a whole run, from loading the
model to the written file, errors of 1,000 test frames before and after included.
"""

import subprocess
from dataclasses import replace
from typing import Annotated

import pandas as pd
import torch
import typer
from methods import one_run
from tasks import FULL, HERE, PROFILES, TASKS, settings

TASK = TASKS["7net-ethanol"]
CSV = HERE / "results" / "gpu_7net-ethanol.csv"
BUDGET = ("budget", settings(target_sparsity=0.97))
RATES = ((BUDGET, 2e-2), (FULL, 3e-3), (FULL, 1e-2), (BUDGET, 4e-2))

app = typer.Typer(no_args_is_help=True)


def driver():
    """Return the version of the card's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@app.command()
def run(steps: Annotated[int, typer.Option(help="Of each run.")] = 500):
    """Run what is missing of both methods; a row is written after each run."""
    profile = replace(PROFILES["gpu"], steps=steps)
    rows = pd.read_csv(CSV).to_dict("records") if CSV.exists() else []
    for (method, chosen), lr in RATES:
        if any((r["method"], r["lr"], r["steps"]) == (method, lr, steps) for r in rows):
            continue
        row = one_run(TASK, profile, method, chosen, lr, seed=0)
        rows.append(row | {"driver": driver(), "torch": torch.__version__})
        pd.DataFrame(rows).to_csv(CSV, index=False)


@app.command()
def table():
    """Write the table."""
    rows = pd.read_csv(CSV)
    best = rows.loc[rows.groupby("method")["valid_forces_mae"].idxmin()]
    first = rows.iloc[0]
    written = [
        "# SevenNet-0 on a GPU",
        "",
        f"`python benchmarks/gpu.py run --steps {first['steps']}`, then `table`: "
        f"{first['device']}, driver {first['driver']}, torch {first['torch']}.",
        "",
        (__doc__ or "").split("\n\n", 2)[2].strip(),
        "",
        "| method | settings | rate | updated | E (meV/atom) | F (meV/Å) | seconds | MiB |",
        "|---|---|---|---|---|---|---|---|",
        f"| zero-shot | | | | {first['zero_shot_test_energy_mae']:.2f} "
        f"| {first['zero_shot_test_forces_mae']:.1f} | | |",
    ]
    for _, row in best.iterrows():
        chosen = "" if pd.isna(row["settings"]) else row["settings"].strip("{}")
        updated = "all" if pd.isna(row["updated"]) else f"{row['updated']:,.0f}"
        written.append(
            f"| {row['method']} | {chosen} | {row['lr']:g} | {updated} "
            f"| {row['test_energy_mae']:.2f} | {row['test_forces_mae']:.1f} | {row['seconds']} "
            f"| {row['memory_mib']:,} |"
        )
    CSV.with_suffix(".md").write_text("\n".join(written) + "\n")
    print("\n".join(written))


if __name__ == "__main__":
    app()
