"""Step time, peak memory and inference of each method, as ratios to full fine-tuning.

    .venv/bin/python benchmarks/costs.py run 7net-0
    .venv-mace/bin/python benchmarks/costs.py run mace-off23-medium
    .venv-nequip/bin/python benchmarks/costs.py run nequip-oam-l
    .venv/bin/python benchmarks/costs.py table     # benchmarks/results/costs_<model>.md

All cases take turns on one batch in one process, so that a slow moment of the machine hits them
alike; a ratio is formed in each round and its median and quartiles are reported. The delta's own
share is what a method takes of a step by itself: ΔW, its gradient, its schedule. Every step is one
of the middle of a training of at most 400, where a budget chooses its entries at each; in a longer
one it chooses no more often, and its share is smaller by as much. Memory is measured in a process
for each case: the growth of the peak resident set over the steps (of the allocator's peak on CUDA),
with large blocks taken from the system one by one: glibc's reuse of them makes the same case differ
by a factor of two from run to run. CUDA's allocator counts what is in use, so there one process
does. After the rounds each delta is merged, which has to leave the
energies as they were, and the merged models take turns with the one that was not patched, at
energies and forces of the same batch. Every case is a row of benchmarks/results/costs.csv; `run`
replaces those of its model and device. MACE and NequIP have random weights in their published
architectures.
"""

import json
import os
import platform
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated

import memory
import numpy as np
import pandas as pd
import torch
import typer
from cost_cases import FULL, SETUPS
from methods import commit
from rich.progress import track

from e3sparse.frames.batches import FrameDataset, loader
from e3sparse.training.losses import Loss
from e3sparse.training.module import FineTuning
from e3sparse.training.optimizers import make_optimizer, set_averaged

RESULTS = Path(__file__).resolve().parent / "results"
CSV = RESULTS / "costs.csv"
HALFWAY = 0.5
"""Progress at each step: a budget keeps all entries as long as it warms up."""
COMPARED = ("mace-off23-small", "mace-off23-medium", "mace-mp-0b3-medium")
"""Those that have a table together."""

app = typer.Typer(no_args_is_help=True)


class Stepper:
    """One optimizer step on a fixed batch, of an adapter or of all that requires a gradient."""

    def __init__(self, potential, adapter, frames):
        self.potential, self.adapter = potential, adapter
        self.module = FineTuning(
            self.potential, self.adapter, loss=Loss(), optimizer="schedule_free", lr=1e-3
        )
        self.module.train()
        if self.adapter is not None:
            groups = self.adapter.param_groups(1e-3)
        else:
            groups = [{"params": self.module.trained_parameters(), "lr": 1e-3}]
        self.trainable = sum(p.numel() for g in groups for p in g["params"])
        self.optimizer, _ = make_optimizer("schedule_free", groups, 1000)
        set_averaged(self.optimizer, False)
        dataset = FrameDataset(frames, self.potential, {})
        self.batch = next(iter(loader(dataset, self.potential, len(frames)))).to(
            self.potential.device
        )

    def step(self):
        """Take the step that training takes."""
        predicted = self.potential.forward(self.batch.inputs)
        loss = self.module.loss(predicted, self.batch)
        self.optimizer.zero_grad()
        self.module.backward(loss)
        self.optimizer.step()
        self.follow()

    def follow(self):
        """Do what the method does after each optimizer step."""
        if self.adapter is not None:
            self.adapter.step(HALFWAY, optimizer=self.optimizer)

    def delta_seconds(self):
        """Seconds that the method itself takes in a step: ΔW, its gradient, its schedule."""
        start = time.perf_counter()
        values = [delta() for delta in self.adapter.deltas().values()]
        torch.autograd.backward(values, [torch.ones_like(v) for v in values])
        self.optimizer.zero_grad()
        self.follow()
        return time.perf_counter() - start

    def infer(self):
        """Evaluate energies and forces; returns the energies."""
        return self.potential.forward(self.batch.inputs).energy.detach()

    def merge(self):
        """Merge; returns how far the energies are off by it, relatively."""
        self.potential.module.eval()
        self.potential.accelerate = False  # a merged file is evaluated by the framework itself
        if self.adapter is None:
            return None
        patched = self.infer()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the schedule has only begun
            self.adapter.merge()
        return float(((self.infer() - patched) / patched).abs().max())


def timed(function, device):
    """Return the seconds a call takes, the device's work included."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(calls, rounds, device, about):
    """Return the seconds of each call (a column) in each round (a row)."""
    for call in calls.values():
        for _ in range(3):
            call()
    return pd.DataFrame(
        [
            {name: timed(call, device) for name, call in calls.items()}
            for _ in track(range(rounds), about)
        ]
    )


def measure_memory(stepper, device):
    """Return the growth of peak memory over three steps, in bytes."""
    before = memory.restart(device)
    for _ in range(3):
        stepper.step()
    return memory.peak(device) - before


def memory_elsewhere(case, arguments):
    """Return the bytes that `--memory-of` measures of a case in a process of its own."""
    command = [sys.executable, __file__, "run", *arguments, "--memory-of", case]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    printed = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    ).stdout
    return json.loads(printed.splitlines()[-1])


def quartiles(ratios, name):
    """Return the median and the quartiles as three columns."""
    low, middle, high = np.nanquantile(ratios, [0.25, 0.5, 0.75])
    return {f"{name}_low": low, name: middle, f"{name}_high": high}


@app.command()
def run(
    model: Annotated[str, typer.Argument(help=f"One of {', '.join(SETUPS)}.")],
    rounds: Annotated[int, typer.Option(help="How often each case takes its turn.")] = 9,
    device: str = "cpu",
    threads: int = 1,
    copies: Annotated[int, typer.Option(help="How often the batch is repeated.")] = 1,
    memory_of: Annotated[str | None, typer.Option(hidden=True)] = None,
):
    """Measure every case of a model."""
    torch.set_num_threads(threads)
    setup = SETUPS[model]
    cases = {name: case for name, case in setup.cases.items() if case.possible(device)}
    frames = setup.frames(copies)
    if memory_of is not None:
        stepper = Stepper(*setup.make(cases[memory_of], device), frames)
        print(json.dumps(measure_memory(stepper, device)))
        return
    arguments = [model, "--device", device, "--threads", str(threads), "--copies", str(copies)]
    peaks = {}
    if device == "cpu":
        peaks = {case: memory_elsewhere(case, arguments) for case in track(cases, "memory")}
    steppers = {c: Stepper(*setup.make(case, device), frames) for c, case in cases.items()}
    steps = in_turns({c: s.step for c, s in steppers.items()}, rounds, device, "steps")
    peaks = peaks or {c: measure_memory(s, device) for c, s in steppers.items()}
    own = {
        case: float(np.median([s.delta_seconds() for _ in range(10)])) / steps[case].median()
        for case, s in steppers.items()
        if s.adapter is not None
    }
    off = {case: s.merge() for case, s in steppers.items()}
    merged = {c: s.infer for c, s in steppers.items() if c == FULL or c in own}
    inference = in_turns(merged, rounds, device, "inference")
    rows = [
        {
            "model": model, "case": case, "targets": cases[case].targets,
            "method": cases[case].method, "trainable": stepper.trainable,
            "step_seconds": steps[case].median(), **quartiles(steps[case] / steps[FULL], "time"),
            "memory_mib": peaks[case] / 2**20, "memory": peaks[case] / peaks[FULL],
            "own_share": own.get(case), "merge_error": off[case],
            **(quartiles(inference[case] / inference[FULL], "inference") if case in own else {}),
            "rounds": rounds, "frames": len(frames), "atoms": sum(len(f.atoms) for f in frames),
            "device": device, "device_name": name_of(device), "threads": threads,
            "torch": torch.__version__, "commit": commit(),
        }
        for case, stepper in steppers.items()
    ]  # fmt: skip
    if CSV.exists():
        known = pd.read_csv(CSV)
        kept = known[(known["model"] != model) | (known["device"] != device)]
        rows = [*kept.to_dict("records"), *rows]
    pd.DataFrame(rows).to_csv(CSV, index=False)


def name_of(device):
    """Return what the machine calls a device."""
    return torch.cuda.get_device_name() if device != "cpu" else platform.processor() or "CPU"


@app.command()
def table():
    """Write a table for each model and device, and one of the MACE architectures together."""
    rows = pd.read_csv(CSV)
    for (model, device), mine in rows.groupby(["model", "device"], sort=False):
        suffix = "" if device == "cpu" else f"_{device}"
        write(RESULTS / f"costs_{model}{suffix}.md", lines(model, mine))
    together = rows[rows["model"].isin(COMPARED) & (rows["device"] == "cpu")]
    if set(together["model"]) == set(COMPARED):
        write(RESULTS / "costs_mace.md", compared(together))


def write(path, written):
    """Write a table and print it."""
    text = "\n".join(written) + "\n"
    path.write_text(text)
    print(text)


def lines(model, rows):
    """Return the lines of the table of a model on a device."""
    first = rows.iloc[0]
    device = "" if first["device"] == "cpu" else f" --device {first['device']}"
    if len(copies := SETUPS[model].frames(1)) < first["frames"]:
        device += f" --copies {first['frames'] // len(copies)}"
    return [
        f"# Cost of a step: {model}",
        "",
        f"`python benchmarks/costs.py run {model}{device}`, then `table`: {SETUPS[model].about}, "
        f"{first['frames']} frames, {first['atoms']} atoms together, {first['rounds']} rounds, "
        f"{first['device']} ({first['device_name']}, {first['threads']} threads), torch "
        f"{first['torch']}; median and quartiles of the ratio in each round.",
        "",
        (__doc__ or "").split("\n\n", 2)[2].strip(),
        "",
        *markdown(
            pd.DataFrame(
                {
                    "trained": rows["case"],
                    "trainable": rows["trainable"].map("{:,}".format),
                    "step (s)": rows["step_seconds"].map("{:.3f}".format),
                    "time / full": spreads(rows, "time"),
                    "memory (MiB)": rows["memory_mib"].map("{:.0f}".format),
                    "memory / full": rows["memory"].map("{:.2f}".format),
                    "delta's own share": blank(rows["own_share"], "{:.1%}"),
                    "merged inference / base": spreads(rows, "inference"),
                    "energy off by merging": blank(rows["merge_error"], "{:.0e}"),
                }
            )
        ),
    ]


def compared(rows):
    """Return the lines of the table of several models, side by side."""
    first = rows[rows["model"] == COMPARED[0]]
    columns = {"trained": first["case"].to_numpy()}
    for model in COMPARED:
        columns[model] = spreads(rows[rows["model"] == model], "time")
    for model in COMPARED:
        mine = rows[rows["model"] == model]
        columns[f"memory, {model}"] = [f"{m:.2f}" for m in mine["memory"]]
    heading = "# Cost of a step of MACE, as a ratio to full fine-tuning"
    return [heading, "", *markdown(pd.DataFrame(columns))]


def spreads(rows, name):
    """Return `median (lower quartile–upper quartile)` of each row, or nothing."""
    values = rows[[f"{name}_low", name, f"{name}_high"]].to_numpy()
    return ["" if np.isnan(m) else f"{m:.2f} ({a:.2f}–{b:.2f})" for a, m, b in values]


def blank(values, pattern):
    """Return numbers as text; what is not there is blank."""
    return ["" if pd.isna(v) else pattern.format(v) for v in values]


def markdown(frame):
    """Return the lines of a table of strings."""
    rows = ["| " + " | ".join(row) + " |" for row in frame.to_numpy()]
    return ["| " + " | ".join(frame.columns) + " |", "|" + "---|" * len(frame.columns), *rows]


if __name__ == "__main__":
    app()
