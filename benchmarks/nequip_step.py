"""Step time and peak memory on the architecture of NequIP-OAM-L, as ratios to full fine-tuning.

    .venv-nequip/bin/python benchmarks/nequip_step.py --write

Random weights in the published architecture (9,605,777 parameters), float32, on cells of rock salt.
Rounds, ratios and memory as in overhead.py. The last column is what a method takes of a step by
itself: ΔW, its gradient, its schedule. After the rounds each case is merged, which has to leave the
energies as they were. With --write the table goes to benchmarks/results/nequip_step.md.
"""

import json
import platform
import sys
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from ase.data import chemical_symbols
from e3sparse_nequip import NequIPPotential
from e3sparse_nequip.options import nequip_state
from nequip.model.nequip_models import PresetNequIPGNNModel
from overhead import (
    Stepper,
    cost_table,
    in_turns,
    make_frames,
    markdown,
    measure_memory,
    memory_elsewhere,
)

PARAMETERS = 9_605_777
TYPES = [chemical_symbols[z] for z in (*range(1, 84), *range(89, 95))]
CASES = {
    "full": None,
    "linear, budget": ("linear", "budget"),
    "linear, soft threshold": ("linear", "soft_threshold"),
    "fctp, budget": ("fctp", "budget"),
    "all, budget": ("all", "budget"),
    "all, soft threshold": ("all", "soft_threshold"),
}
RESULT = Path(__file__).parent / "results" / "nequip_step.md"


def oam_l():
    """Return NequIP-OAM-L with random weights."""
    with nequip_state():
        module = PresetNequIPGNNModel(
            preset="L",
            seed=0,
            model_dtype="float32",
            r_max=6.0,
            type_names=TYPES,
            type_embed_num_features=48,
            bessel_trainable=True,
            avg_num_neighbors=40.0,
            per_type_energy_scales=1.0,
            per_type_energy_shifts=0.0,
            per_type_energy_shifts_trainable=True,
        )
    assert sum(p.numel() for p in module.parameters()) == PARAMETERS
    return module


def make_stepper(case, frames, device):
    """Return the stepper of one case."""
    potential = NequIPPotential("NequIP-OAM-L", oam_l(), device=device)
    adapter = None
    if CASES[case] is not None:
        targets, method = CASES[case]
        adapter = potential.patch(targets, method, total_steps=1000)
    return Stepper(potential, adapter, frames)


def merge_error(stepper):
    """Merge; returns how far the energies are off by it, relatively."""
    stepper.potential.module.eval()
    patched = stepper.potential.forward(stepper.batch.inputs).energy.detach()
    stepper.adapter.merge()
    merged = stepper.potential.forward(stepper.batch.inputs).energy.detach()
    return float(((merged - patched) / patched).abs().max())


def main(
    rounds: int = 9,
    frames: int = 2,
    device: str = "cpu",
    threads: int = 1,
    write: bool = False,
    memory_of: Annotated[str | None, typer.Option(hidden=True)] = None,
):
    """Measure and print the table."""
    torch.set_num_threads(threads)
    batch = make_frames(frames, 1)
    if memory_of is not None:
        stepper = make_stepper(memory_of, batch, device)
        print(json.dumps(measure_memory(stepper, device)))
        return
    steppers = {case: make_stepper(case, batch, device) for case in CASES}
    seconds = in_turns(steppers, rounds, device)
    options = ["--frames", str(frames), "--device", device, "--threads", str(threads)]
    memory = {case: memory_elsewhere(__file__, case, options) for case in CASES}
    table = cost_table("trained", steppers, seconds, memory)
    own, off = {"full": ""}, {"full": ""}
    for case, stepper in steppers.items():
        if stepper.adapter is not None:
            mine = pd.Series([stepper.delta_seconds() for _ in range(10)]).median()
            own[case] = f"{mine:.3f} s, {mine / seconds[case].median():.1%}"
            off[case] = f"{merge_error(stepper):.0e}"
    table["delta's own share"] = table["trained"].map(own)
    table["energy off by merging"] = table["trained"].map(off)
    name = torch.cuda.get_device_name() if device != "cpu" else platform.processor() or "CPU"
    text = (
        f"`python {' '.join([Path(sys.argv[0]).as_posix(), *sys.argv[1:]])}`: NequIP-OAM-L's "
        f"architecture ({PARAMETERS:,} parameters, random weights), {frames} frames of "
        f"{len(batch[0].atoms)} atoms, {rounds} rounds, {device} ({name}, {threads} threads), "
        f"torch {torch.__version__}; median and quartiles of the ratio in each round.\n\n"
        + markdown(table)
    )
    print(text)
    if write:
        RESULT.write_text(f"# Cost of a step: NequIP-OAM-L\n\n{text}")


if __name__ == "__main__":
    typer.run(main)
