"""What the benchmarks fine-tune on what, how long, and which learning rates a method may have."""

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import ase.io
import numpy as np

HERE = Path(__file__).resolve().parent
MODELS = HERE / "models"
DATA = Path(os.environ.get("E3SPARSE_DATA", HERE.parents[1] / "shared" / "data"))
SEEDS = (0, 1, 2)
LEVELS = {0.85: 0.01, 0.97: 0.005, 0.995: 0.002}  # sparsity, and how near is near


@dataclass(frozen=True)
class Profile:
    """Where and how long every method is trained, on how many frames, and where its rows go."""

    device: str
    frames: tuple[int, int, int]
    batch: int
    steps: int
    valid_every: int
    csv: Path


CPU = Profile("cpu", (200, 50, 200), 5, 400, 2, HERE / "results" / "methods.csv")
PROFILES = {
    "cpu": CPU,
    # 500 epochs of 15 steps: the paper's settings.
    "gpu": Profile("cuda", (950, 50, 1000), 64, 7500, 10, HERE / "results" / "methods_gpu.csv"),
}


def settings(**values):
    """Return the settings of a method as they stand in the CSV."""
    return json.dumps(values) if values else ""


def label(method, chosen):
    """Return what a legend calls a method with its settings."""
    said = [f"{key} {value}" for key, value in json.loads(chosen or "{}").items()]
    return ", ".join([method, *said]).replace("_", " ")


FULL = ("full", "")
LOW_RANK = ("low_rank", settings(rank=16))
MACE_LORA = [("mace_lora", settings(rank=r)) for r in (4, 16)]


def budget(rates, levels=LEVELS, **more):
    """Return the grid of the budget method, with other settings where there are any."""
    return {("budget", settings(target_sparsity=s, **more)): rates for s in levels}


SCRATCH = {("scratch", ""): (3e-3, 1e-2)}


def others(readout):
    """Return the grid of what chooses no entries while it trains: the readout, fixed masks."""
    masks = [{}, {"score": "fisher"}]
    return {
        ("dense", settings(targets=readout)): (1e-2, 3e-2),
        **{("fixed_mask", settings(target_sparsity=0.97, **mask)): (4e-2, 8e-2) for mask in masks},
    }


@dataclass(frozen=True)
class Task:
    """What is fine-tuned on what, with which methods at which learning rates.

    `test` is a file of its own, or None where all three splits are drawn from `train`. `on_cpu` is
    what the profile of the CPU has otherwise for this task.
    """

    name: str
    model: str
    dataset: str
    about: str
    train: str = "train.xyz"
    test: str | None = "test.xyz"
    on_cpu: dict[str, object] = field(default_factory=dict)
    levels: dict[float, float] = field(default_factory=dict)
    grids: dict[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)

    def prepare(self, folder, profile=CPU):
        """Write the three splits; returns their paths."""
        few, some, most = self.at(profile).frames
        frames = ase.io.read(DATA / self.dataset / self.train, index=":")
        if self.test is None:
            # A set of one file gives as many of each as its length allows.
            few, some = min(few, len(frames) // 2), min(some, len(frames) // 5)
            frames = [frames[i] for i in np.random.default_rng(0).permutation(len(frames))]
            test = frames[few + some :][:most]
        else:
            test = ase.io.read(DATA / self.dataset / self.test, index=f":{most}")
        splits = {"train": frames[:few], "valid": frames[few : few + some], "test": test}
        for name, split in splits.items():
            ase.io.write(folder / f"{name}.xyz", split)
        return {name: folder / f"{name}.xyz" for name in splits}

    def at(self, profile):
        """Return a profile as this task has it."""
        return replace(profile, **self.on_cpu) if profile.device == "cpu" else profile


_SMALL_MACE = str((MODELS / "mace_rmd17.model").relative_to(HERE.parent))
_FEW = (1.5e-2, 3e-2, 6e-2)
_OF_FEW = {**budget(_FEW, (0.85, 0.97)), **budget((7.5e-3, *_FEW), (0.995,))}
_OF_MANY = budget((1e-2, 2e-2, 4e-2))
"""The budget's grids on models of few and of many entries."""
_MACE = {
    "levels": {s: LEVELS[s] for s in (0.85, 0.97)},
    "grids": {
        FULL: (3e-3, 1e-2, 3e-2),
        LOW_RANK: (1e-2, 3e-2, 1e-1),
        **dict.fromkeys(MACE_LORA, (3e-2, 1e-1, 3e-1, 1.0)),
        **_OF_FEW,
        **{("budget", settings(targets=t, target_sparsity=0.85)): _FEW for t in ("last", "all")},
        **SCRATCH,
        **others("*readouts*"),
    },
}
_SEVENNET = {
    "levels": LEVELS,
    "grids": {
        FULL: (1e-3, 3e-3, 1e-2, 2e-2),
        LOW_RANK: (3e-3, 1e-2, 3e-2, 6e-2, 1.2e-1),
        **_OF_MANY,
        **SCRATCH,
        **others("reduce_*"),
    },
}


def narrow(budgets, decays, *, full=(3e-3, 1e-2, 2e-2), slower=()):
    """Return fewer rates, around those that were best on ethanol, and the λ_τ found there.

    `budgets`: their grid. `slower`: what to multiply each method's lowest rate by as well, for
    batches of one frame.
    """
    grids = {
        FULL: full,
        LOW_RANK: (1e-2, 3e-2, 6e-2, 1.2e-1),
        **budgets,
        **{("soft_threshold", settings(tau_weight_decay=d)): (2e-2, 4e-2, 8e-2) for d in decays},
    }
    return {
        "levels": {},
        "grids": {m: (*(min(lrs) * s for s in slower), *lrs) for m, lrs in grids.items()},
    }


_MORE = narrow(_OF_FEW, (0.3187, 4.5068))
PARTS = ({"growth": 0}, {"growth": 0.5}, {"choices": 40}, {"memory": 1})
_NEQUIP = {
    "levels": {s: LEVELS[s] for s in (0.85, 0.97)},
    "grids": {
        FULL: (3e-3, 1e-2, 3e-2),
        LOW_RANK: (1e-2, 3e-2, 1e-1, 2e-1),
        **_OF_FEW,
        # What each part of the method brings.
        **{k: v for part in PARTS for k, v in budget(_FEW, (0.97,), **part).items()},
        **others("*readout*"),
    },
}
TASKS = {
    task.name: task
    for task in (
        Task(
            "7net-ethanol", "7net-0", "rmd17_ethanol", "SevenNet-0 on rMD17 ethanol", **_SEVENNET
        ),
        Task(
            "7net-malonaldehyde", "7net-0", "rmd17_malonaldehyde",
            "SevenNet-0 on rMD17 malonaldehyde", **narrow(_OF_MANY, (0.1889, 0.8485)),
        ),
        Task(
            "7net-carbon", "7net-0", "carbon_gap20_100",
            "SevenNet-0 on crystals of carbon of 4 atoms at -22 to 131 GPa (LDA), 50 training, 20 "
            "validation and 30 test frames", train="all.xyz", test=None,
            on_cpu={"batch": 1}, **narrow(_OF_MANY, (0.1889, 0.8485), slower=(0.25, 0.5)),
        ),
        Task(
            "mace-ethanol", _SMALL_MACE, "rmd17_ethanol",
            "The small MACE of benchmarks/pretrain_mace.py on rMD17 ethanol, a molecule that it "
            "has not seen, at its own level of theory (PBE/def2-SVP)", **_MACE,
        ),
        Task(
            "mace-3bpa", _SMALL_MACE, "3bpa",
            "The small MACE of benchmarks/pretrain_mace.py on 3BPA (300 K), a molecule "
            "that it has not seen, at another level of theory (ωB97X/6-31G(d))", test=None, **_MORE,
        ),
        Task(
            "mace-acac", _SMALL_MACE, "acac",
            "The small MACE of benchmarks/pretrain_mace.py on acetylacetone at 300 K, a molecule "
            "that it has not seen, at another level of theory (PBE+D3/def2-SVP)", **_MORE,
        ),
        Task(
            "mace-water", _SMALL_MACE, "water_revpbe0d3_fewshot",
            "The small MACE of benchmarks/pretrain_mace.py on boxes of 64 molecules of water at "
            "another level of theory (revPBE0-D3), 24 training, 6 validation and 40 test frames",
            on_cpu={"batch": 1, "steps": 120, "frames": (24, 6, 40)},
            **narrow(_OF_FEW, (), full=(3e-3, 1e-2, 2e-2, 4e-2)),
        ),
        Task(
            "nequip-ethanol", str((MODELS / "nequip_rmd17.nequip.zip").relative_to(HERE.parent)),
            "rmd17_ethanol", "The small NequIP of benchmarks/pretrain_nequip.py on rMD17 ethanol, "
            "a molecule that it has not seen", **_NEQUIP,
        ),
    )
}  # fmt: skip
