"""Step time and peak memory of each method, as ratios to a full fine-tuning step.

    python benchmarks/overhead.py --write

All methods take turns on one batch in one process, so that a slow moment of the machine hits
them alike; a ratio is formed in each round and its median and quartiles are reported. Memory is
measured in a process for each method: the growth of the peak resident set over the steps (of the
allocator's peak on CUDA). With --write the table goes to benchmarks/results/overhead.md.
"""

import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from ase.build import bulk
from memory import peak, restart
from rich.progress import track

from e3sparse.backends import load_potential
from e3sparse.training.data import FrameDataset, loader
from e3sparse.training.frames import Frame
from e3sparse.training.losses import Loss
from e3sparse.training.module import FineTuning
from e3sparse.training.optimizers import make_optimizer, set_averaged

METHODS = ("full", "dense", "low_rank", "soft_threshold", "budget")
RESULT = Path(__file__).parent / "results" / "overhead.md"


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
        self.optimizer, _ = make_optimizer("schedule_free", groups, 1000)
        set_averaged(self.optimizer, False)
        dataset = FrameDataset(frames, self.potential, {})
        self.batch = next(iter(loader(dataset, self.potential, len(frames)))).to(
            self.potential.device
        )
        self.step_count = 0

    def step(self):
        """Take the step that training takes."""
        predicted = self.potential.forward(self.batch.inputs)
        loss = self.module.loss(predicted, self.batch)
        self.optimizer.zero_grad()
        self.module.backward(loss)
        self.optimizer.step()
        self.step_count += 1
        if self.adapter is not None:
            self.adapter.step()

    def delta_seconds(self):
        """Seconds that the method itself takes in a step: ΔW, its gradient, its schedule."""
        start = time.perf_counter()
        values = [delta() for delta in self.adapter.deltas().values()]
        torch.autograd.backward(values, [torch.ones_like(v) for v in values])
        self.optimizer.zero_grad()
        self.adapter.step()
        return time.perf_counter() - start


def make_stepper(method, frames, model, device):
    """Return the stepper of one method."""
    potential = load_potential(model, device=device)
    adapter = None
    if method != "full":
        adapter = potential.patch("linear", method, total_steps=1000)
    return Stepper(potential, adapter, frames)


def make_frames(count, repeat):
    """Return rattled rock salt with random labels: only their shapes matter here."""
    frames = []
    generator = torch.Generator().manual_seed(0)
    for seed in range(count):
        atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (repeat, repeat, repeat)
        atoms.rattle(0.1, seed=seed)
        forces = torch.randn(len(atoms), 3, generator=generator).double().numpy()
        frames.append(Frame(atoms, -3.0 * len(atoms), forces, None))
    return frames


def timed(function, device):
    """Return the seconds a call takes, the device's work included."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_memory(stepper, device):
    """Return the growth of peak memory over three steps, in bytes."""
    before = restart(device)
    for _ in range(3):
        stepper.step()
    return peak(device) - before


def memory_elsewhere(script, case, options):
    """Return what a script's `--memory-of` measures of one case in a process of its own."""
    command = [sys.executable, script, "--memory-of", case, *options]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def in_turns(steppers, rounds, device):
    """Return the seconds of each stepper (a column) in each round (a row)."""
    for stepper in steppers.values():
        for _ in range(3):
            stepper.step()
    return pd.DataFrame(
        [
            {name: timed(stepper.step, device) for name, stepper in steppers.items()}
            for _ in track(range(rounds), "rounds")
        ]
    )


def cost_table(heading, steppers, seconds, memory):
    """Return a row for each stepper: its step, and ratios to the first one."""
    base = next(iter(steppers))
    ratio = seconds.div(seconds[base], axis=0)
    rows = []
    for case, stepper in steppers.items():
        low, middle, high = ratio[case].quantile([0.25, 0.5, 0.75])
        adapter = stepper.adapter
        trained = stepper.module.trained_parameters() if adapter is None else adapter.parameters()
        rows.append(
            {
                heading: case,
                "trainable": f"{sum(p.numel() for p in trained):,}",
                "step (s)": f"{seconds[case].median():.3f}",
                "time / full": f"{middle:.2f} ({low:.2f}–{high:.2f})",
                "memory / full": f"{memory[case] / memory[base]:.2f}",
            }
        )
    return pd.DataFrame(rows)


def markdown(table):
    """Return a table of strings as Markdown."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(row) + " |" for row in table.to_numpy()]
    return "\n".join(lines) + "\n"


def main(
    model: str = "7net-0",
    rounds: int = 15,
    frames: int = 2,
    repeat: Annotated[int, typer.Option(help="Cells along each axis; 8 atoms a cell.")] = 2,
    device: str = "cpu",
    threads: int = 2,
    write: bool = False,
    memory_of: Annotated[str | None, typer.Option(hidden=True)] = None,
):
    """Measure and print the table."""
    torch.set_num_threads(threads)
    batch = make_frames(frames, repeat)
    if memory_of is not None:
        stepper = make_stepper(memory_of, batch, model, device)
        print(json.dumps(measure_memory(stepper, device)))
        return
    steppers = {method: make_stepper(method, batch, model, device) for method in METHODS}
    seconds = in_turns(steppers, rounds, device)
    ratio = seconds.div(seconds["full"], axis=0)
    own = {m: [s.delta_seconds() for _ in range(20)] for m, s in steppers.items() if m != "full"}
    options = ["--model", model, "--frames", str(frames), "--repeat", str(repeat)]
    options += ["--device", device, "--threads", str(threads)]
    memory = {method: memory_elsewhere(__file__, method, options) for method in METHODS}
    rows = []
    for method in METHODS:
        low, middle, high = ratio[method].quantile([0.25, 0.5, 0.75])
        share = pd.Series(own[method]).median() / seconds[method].median() if method in own else 0
        rows.append(
            {
                "method": method,
                "step (s)": f"{seconds[method].median():.3f}",
                "time / full": f"{middle:.2f} ({low:.2f}–{high:.2f})",
                "memory / full": f"{memory[method] / memory['full']:.2f}",
                "delta's own share of the step": f"{share:.2%}",
            }
        )
    table = pd.DataFrame(rows)
    name = torch.cuda.get_device_name() if device != "cpu" else platform.processor() or "CPU"
    text = (
        f"`python {' '.join([Path(sys.argv[0]).as_posix(), *sys.argv[1:]])}`: {model}, "
        f"{frames} frames of {len(batch[0].atoms)} atoms, {rounds} rounds, {device} ({name}, "
        f"{threads} threads), torch {torch.__version__}; median and quartiles of the ratio in "
        "each round.\n\n" + markdown(table)
    )
    print(text)
    if write:
        RESULT.write_text("# Cost of a step\n\n" + text)


if __name__ == "__main__":
    typer.run(main)
