"""MACE's own LoRA through MACE's own training, with the data, steps, loss and optimizer of ours."""

import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from e3sparse_mace.backend import MACEPotential
from mace import tools
from mace.cli import run_train

from e3sparse.frames.evaluation import error_table, errors, predict
from e3sparse.frames.reading import LabelKeys, read_frames
from e3sparse.frames.references import fit_references
from e3sparse.potentials.backends import load_potential


def finetune_with_lora(
    model: str, splits: Mapping[str, Path], folder: Path, *, rank: int, lr: float, seed: int,
    steps: int, batch: int, device: str = "cpu",
) -> tuple[pd.DataFrame, None]:  # fmt: skip
    """Fine-tune a MACE file with `mace_run_train --lora`; returns errors before and after."""
    potential = load_potential(model, backend="mace")
    assert isinstance(potential, MACEPotential)
    frames = {name: read(path, potential) for name, path in splits.items()}
    before = {name: predict(potential, split) for name, split in frames.items()}
    references = fit_references(frames["train"], before["train"].energy)
    shifts = dict.fromkeys(potential.species.numbers, 0.0) | references
    base = potential.module.atomic_energies_fn.atomic_energies.flatten().tolist()
    e0s = {z: e + shifts[z] for z, e in zip(potential.species.numbers, base, strict=True)}
    flags = {
        "name": "lora", "work_dir": folder, "foundation_model": Path(model).resolve(), "E0s": e0s,
        "train_file": splits["train"], "valid_file": splits["valid"], "lora": True,
        "lora_rank": rank, "multiheads_finetuning": False, "foundation_model_elements": True,
        "energy_key": "REF_energy", "forces_key": "REF_forces", "loss": "huber",
        "energy_weight": 1.0, "forces_weight": 1.0, "stress_weight": 0.0, "huber_delta": 0.01,
        "optimizer": "schedulefree", "lr": lr, "weight_decay": 0.0, "batch_size": batch,
        "max_num_epochs": steps * batch // len(frames["train"]), "eval_interval": 2, "seed": seed,
        "default_dtype": "float32", "device": device, "compute_stress": False,
    }  # fmt: skip
    listed = [str(part) for key, value in flags.items() for part in (f"--{key}", value)]
    here, dtype = Path.cwd(), torch.get_default_dtype()
    try:
        os.chdir(folder)
        run_train.run(tools.build_default_arg_parser().parse_args(listed))
    finally:
        os.chdir(here)
        torch.set_default_dtype(dtype)
    tuned = load_potential(str(folder / "lora.model"), backend="mace")
    rows = {}
    for name, split in frames.items():
        rows[f"{name} before"] = errors(split, before[name], references)
        rows[f"{name} after"] = errors(split, predict(tuned, split))
    return error_table(rows), None


def read(path: Path, potential: MACEPotential) -> list:
    """Return the frames of a file."""
    return read_frames(path, LabelKeys(), known=potential.species.numbers, cutoff=potential.cutoff)
