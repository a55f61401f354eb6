"""Step time and peak memory on MACE's published architectures, as ratios to full fine-tuning.

    python benchmarks/mace_step.py off23-medium --write

Random weights; four molecules of 9 to 12 atoms in a batch; MACE's own `--lora` beside ours. Rounds,
ratios and memory as in overhead.py. With --write the table goes to
benchmarks/results/mace_step_<architecture>.md.
"""

import json
import platform
import sys
from pathlib import Path
from typing import Annotated

import mace  # noqa: F401 -- before e3nn
import numpy as np
import torch
import typer
from ase.build import molecule
from e3sparse_mace.architectures import random_model
from e3sparse_mace.backend import MACEPotential
from mace.modules.lora import inject_LoRAs
from overhead import (
    Stepper,
    cost_table,
    in_turns,
    markdown,
    measure_memory,
    memory_elsewhere,
)

from e3sparse.training.frames import Frame

MOLECULES = ("CH3CH2OH", "C6H6", "CH3CONH2", "C5H5N")
# What is trained, and whether the backend's faster evaluation is on. MACE's own steps have it off.
CASES = {
    "full (MACE)": ("full", False),
    "lora, rank 4 (MACE)": ("lora 4", False),
    "lora, rank 16 (MACE)": ("lora 16", False),
    "linear, not accelerated": ("linear", False),
    "linear": ("linear", True),
    "all (linear + fctp)": ("all", True),
    "last": ("last", True),
    "products": ("products", True),
    "everything": ("everything", True),
    "full, accelerated": ("full", True),
}
RESULTS = Path(__file__).parent / "results"


def make_stepper(case, architecture, frames, device, dtype):
    """Return the stepper of one case."""
    trained, accelerate = CASES[case]
    module = random_model(architecture, dtype)
    if trained.startswith("lora"):
        inject_LoRAs(module, rank=int(trained.split()[1]), alpha=1)
    potential = MACEPotential(architecture, module, device=device, dtype=None, head=None)
    potential.accelerate = accelerate
    adapter = None
    if trained != "full" and not trained.startswith("lora"):
        adapter = potential.patch(trained, "budget", target_sparsity=0.97, total_steps=1000)
    return Stepper(potential, adapter, frames)


def make_frames(count):
    """Return rattled molecules with random labels: only their shapes matter here."""
    rng = np.random.default_rng(0)
    frames = []
    for k in range(count):
        atoms = molecule(MOLECULES[k % len(MOLECULES)])
        atoms.rattle(0.05, seed=k)
        frames.append(Frame(atoms, -3.0 * len(atoms), rng.normal(size=(len(atoms), 3)), None))
    return frames


def main(
    architecture: str,
    rounds: int = 15,
    frames: int = 4,
    device: str = "cpu",
    dtype: str = "float64",
    threads: int = 1,
    write: bool = False,
    memory_of: Annotated[str | None, typer.Option(hidden=True)] = None,
):
    """Measure and print the table."""
    torch.set_num_threads(threads)
    batch = make_frames(frames)
    precision = getattr(torch, dtype)
    if memory_of is not None:
        stepper = make_stepper(memory_of, architecture, batch, device, precision)
        print(json.dumps(measure_memory(stepper, device)))
        return
    steppers = {c: make_stepper(c, architecture, batch, device, precision) for c in CASES}
    seconds = in_turns(steppers, rounds, device)
    options = [architecture, "--frames", str(frames), "--device", device]
    options += ["--dtype", dtype, "--threads", str(threads)]
    memory = {case: memory_elsewhere(__file__, case, options) for case in CASES}
    table = cost_table("trained", steppers, seconds, memory)
    name = torch.cuda.get_device_name() if device != "cpu" else platform.processor() or "CPU"
    parameters = sum(p.numel() for p in steppers["full (MACE)"].potential.module.parameters())
    text = (
        f"`python {' '.join([Path(sys.argv[0]).as_posix(), *sys.argv[1:]])}`: {architecture} "
        f"({parameters:,} parameters, random weights), {frames} molecules, {rounds} rounds, "
        f"{dtype}, {device} ({name}, {threads} threads), torch {torch.__version__}; median and "
        "quartiles of the ratio in each round.\n\n" + markdown(table)
    )
    print(text)
    if write:
        path = RESULTS / f"mace_step_{architecture}.md"
        path.write_text(f"# Cost of a step: MACE {architecture}\n\n" + text)


if __name__ == "__main__":
    typer.run(main)
