"""The magnetic sets that the benchmarks train on, and for how long."""

from dataclasses import dataclass

import ase.io
import numpy as np
from tasks import DATA

from e3sparse.training.config import FRESH_LR


@dataclass(frozen=True)
class Task:
    """A data set, and how long and with which weights it is trained on."""

    name: str
    about: str
    steps: int
    batch: int
    loss: dict[str, float]
    slower: float = 1.0  # learning rates of the base are divided by this, but from scratch
    spin_lr: float = FRESH_LR

    def splits(self):
        """Return the frames of each split by name."""
        return SPLITS[self.name]()


def iron():
    """Split the 2-atom cells; pairs of a FM and an AFM frame of one geometry are held out."""
    frames = ase.io.read(DATA / "fe_spin_nikolov2021_2atom" / "all.xyz", index=":")
    alignment = [float(a.arrays["spin"][0] @ a.arrays["spin"][1]) for a in frames]
    groups = {}
    for index, atoms in enumerate(frames):
        key = tuple(np.round(np.concatenate([atoms.cell.array, atoms.positions]).ravel(), 3))
        groups.setdefault(key, []).append(index)
    pairs = []
    for group in groups.values():
        parallel = [i for i in group if alignment[i] > 0.999]
        opposite = [i for i in group if alignment[i] < -0.999]
        if parallel and opposite:
            pairs += [parallel[0], opposite[0]]
    held = {i for group in groups.values() if set(group) & set(pairs) for i in group}
    rest = [i for i in range(len(frames)) if i not in held]
    order = np.random.default_rng(0).permutation(rest)
    rare = [i for i in order if alignment[i] < 0.99]
    common = [i for i in order if alignment[i] >= 0.99]
    few = len(rare) // 5
    return {
        "train": [frames[i] for i in rare[2 * few :] + common[: 300 - len(rare) + 2 * few]],
        "valid": [frames[i] for i in rare[:few] + common[400 : 450 - few]],
        "test": [frames[i] for i in rare[few : 2 * few] + common[500 : 700 - few]],
        "pairs": [frames[i] for i in pairs],
    }


def nickel_oxide():
    """Split the DeltaSpin set as its source does, thinned out."""
    folder = DATA / "nio_deltaspin"
    train = ase.io.read(folder / "train.xyz", index=":")
    test = ase.io.read(folder / "test.xyz", index="::2")
    for atoms in train + test:
        # What -dE/dm is in units of the labels: PROVENANCE.md of the data, from pairs of frames.
        atoms.arrays["REF_magforces"] *= 1.33
    return {"train": train[:96:2], "valid": train[100::3], "test": test}


SPLITS = {"fe": iron, "nio": nickel_oxide}
TASKS = {
    task.name: task
    for task in (
        Task(
            "fe",
            "Fe, 2-atom cells (bcc to hcp, elastic; Nikolov et al. 2021), weights 1:1:1:1",
            150,
            8,
            {},
        ),
        Task(
            "nio",
            "NiO, 32 atoms, non-collinear (DeltaSpin), energies within 2 meV/atom: weights "
            "10³:1:0:1, and 100 for magnetic forces",
            120,
            1,
            {"energy": 1e3, "magnetic_forces": 100.0},
            slower=5.0,
            spin_lr=5e-3,
        ),
    )
}
