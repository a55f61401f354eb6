"""Pretrain the small MACE that our MACE benchmarks fine-tune, with MACE's own training.

    .venv-mace/bin/python benchmarks/pretrain_mace.py

Data: six rMD17 molecules (PBE/def2-SVP, CC0), 900 training and 50 validation frames of each, from
../shared/data or the folder E3SPARSE_DATA. Ethanol is not among them: it is a molecule that the
model has not seen. Energies of the isolated atoms: the BOTNet data's, of the same level of theory.
Writes benchmarks/models/mace_rmd17.model and the log of its training, which ends with the errors
on 100 test frames of each molecule. About an hour on one core; run again, it goes on from the last
checkpoint.
"""

import os
import shutil
from pathlib import Path

import ase.io
from mace.cli import run_train
from mace.tools import build_default_arg_parser

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("E3SPARSE_DATA", HERE.parents[1] / "shared" / "data"))
WORK, MODELS = HERE.parent / "runs" / "pretrain_mace", HERE / "models"
NAME = "mace_rmd17"
MOLECULES = ("aspirin", "azobenzene", "malonaldehyde", "naphthalene", "paracetamol", "toluene")
TRAIN, VALID, TEST = 900, 50, 100
EPOCHS, BATCH, LR, DECAY = 20, 12, 0.01, 0.8

ARCHITECTURE = {
    "model": "ScaleShiftMACE", "hidden_irreps": "56x0e + 56x1o", "r_max": 4.5, "max_ell": 2,
    "correlation": 3, "num_interactions": 2, "num_radial_basis": 8, "radial_MLP": "[64, 64, 64]",
    "MLP_irreps": "16x0e",
}  # fmt: skip
TRAINING = {
    "E0s": "IsolatedAtom", "energy_key": "REF_energy", "forces_key": "REF_forces",
    "loss": "weighted", "energy_weight": 1.0, "forces_weight": 100.0, "lr": LR,
    "scheduler": "ExponentialLR", "lr_scheduler_gamma": DECAY, "ema_decay": 0.995,
    "batch_size": BATCH, "valid_batch_size": 50, "max_num_epochs": EPOCHS, "eval_interval": 1,
    "default_dtype": "float32", "device": "cpu", "seed": 0, "error_table": "PerAtomMAE",
}  # fmt: skip


def prepare() -> dict[str, Path]:
    """Write the splits; returns their paths."""
    train = ase.io.read(DATA / "ethanol_botnet" / "isolated_atoms.xyz", index=":")
    for atom in train:
        atom.info["config_type"] = "IsolatedAtom"
    valid, test = [], []
    for molecule in MOLECULES:
        folder = DATA / f"rmd17_{molecule}"
        frames = ase.io.read(folder / "train.xyz", index=f":{TRAIN + VALID}")
        train += frames[:TRAIN]
        valid += frames[TRAIN:]
        test += ase.io.read(folder / "test.xyz", index=f":{TEST}")
    paths = {}
    for name, frames in (("train", train), ("valid", valid), ("test", test)):
        paths[name] = WORK / f"{name}.xyz"
        ase.io.write(paths[name], frames)
    return paths


def main() -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    MODELS.mkdir(exist_ok=True)
    files = {f"{name}_file": path for name, path in prepare().items()}
    flags = {"name": NAME, "work_dir": WORK, **files, **ARCHITECTURE, **TRAINING}
    listed = [str(part) for key, value in flags.items() for part in (f"--{key}", value)]
    os.chdir(WORK)  # MACE writes the model beside the work directory otherwise
    switches = ["--amsgrad", "--ema", "--restart_latest", "--save_cpu"]
    run_train.run(build_default_arg_parser().parse_args([*listed, *switches]))
    shutil.copyfile(WORK / f"{NAME}.model", MODELS / f"{NAME}.model")
    shutil.copyfile(WORK / "logs" / f"{NAME}_run-0.log", MODELS / f"{NAME}.log")


if __name__ == "__main__":
    main()
