"""Pretrain the small NequIP that our NequIP benchmarks fine-tune, with nequip-train.

    .venv-nequip/bin/python benchmarks/pretrain_nequip.py

Data: 300 training, 20 validation and 100 test frames of each of six rMD17 molecules (PBE/def2-SVP,
CC0), from ../shared/data or the folder E3SPARSE_DATA; ethanol is not among them. Settings in
pretrain_nequip.yaml; the per-type energies are those of the isolated atoms of the BOTNet data, at
the same level of theory. Writes benchmarks/models/nequip_rmd17.nequip.zip and the metrics of each
epoch beside it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import ase.io

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("E3SPARSE_DATA", HERE.parents[1] / "shared" / "data"))
WORK, MODELS = HERE.parent / "runs" / "pretrain_nequip", HERE / "models"
NAME = "nequip_rmd17"
MOLECULES = ("aspirin", "azobenzene", "malonaldehyde", "naphthalene", "paracetamol", "toluene")
TRAIN, VALID, TEST = 300, 20, 100


def main():
    WORK.mkdir(parents=True, exist_ok=True)
    splits = {"train": [], "val": [], "test": []}
    for molecule in MOLECULES:
        folder = DATA / f"rmd17_{molecule}"
        frames = ase.io.read(folder / "train.xyz", index=f":{TRAIN + VALID}")
        splits["train"] += frames[:TRAIN]
        splits["val"] += frames[TRAIN:]
        splits["test"] += ase.io.read(folder / "test.xyz", index=f":{TEST}")
    for name, frames in splits.items():
        ase.io.write(WORK / f"{name}.xyz", frames)
    files = [f"{name}={WORK / name}.xyz" for name in splits]
    nequip = Path(sys.executable).parent
    command = [nequip / "nequip-train", "-cp", HERE, "-cn", "pretrain_nequip", *files]
    subprocess.run([*command, f"hydra.run.dir={WORK}"], check=True)
    package = MODELS / f"{NAME}.nequip.zip"
    subprocess.run([nequip / "nequip-package", "build", WORK / "best.ckpt", package], check=True)
    shutil.copyfile(WORK / "log" / "metrics.csv", MODELS / f"{NAME}.csv")


if __name__ == "__main__":
    main()
