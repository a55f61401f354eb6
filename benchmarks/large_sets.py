"""Memory and time of fine-tuning on a set that is larger than memory.

Makes a database of small molecules and fine-tunes on it for a few steps:
`python benchmarks/large_sets.py MODEL --frames 1000000 --steps 200 --workers 2`.
MODEL may be `tiny`: a small SevenNet that is made here, for what the set alone costs.
With `--set FOLDER` the database stays there, and a later run takes it as it is.
"""

import argparse
import itertools
import json
import tempfile
import threading
import time
from pathlib import Path

import ase.db
import numpy as np
import torch
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from e3sparse.training.config import make_config
from e3sparse.training.module import FineTuning
from e3sparse.training.run import finetune

RESULTS = Path(__file__).parent / "results" / "large_sets.json"
MOLECULES = ("H2O", "CH4", "NH3")
BATCH = 32


def write_set(path: Path, frames: int) -> None:
    """Write molecules whose atoms are moved at random, with random small forces as labels."""
    random = np.random.default_rng(0)
    templates = [molecule(name) for name in MOLECULES]
    with ase.db.connect(str(path), serial=True) as database:
        for number in range(frames):
            atoms = templates[number % len(templates)].copy()
            atoms.positions += random.normal(scale=0.05, size=atoms.positions.shape)
            forces = random.normal(size=atoms.positions.shape)
            energy = -4.0 * len(atoms) + 0.1 * random.normal()
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
            database.write(atoms)


def tiny_model(path: Path) -> Path:
    """Write a SevenNet with random weights that takes no time."""
    import sevenn
    import sevenn._keys as key
    from sevenn import _const
    from sevenn.model_build import build_E3_equivariant_model
    from sevenn.nn.node_embedding import get_type_mapper_from_specie

    species = ["H", "C", "N", "O"]
    config = dict(_const.DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG) | {
        "version": sevenn.__version__, key.MODEL_TYPE: "E3_equivariant_model", key.CUTOFF: 4.0,
        key.CHEMICAL_SPECIES: species, key.NUM_SPECIES: len(species),
        key.TYPE_MAP: get_type_mapper_from_specie(species), key.NODE_FEATURE_MULTIPLICITY: 4,
        key.LMAX: 1, key.NUM_CONVOLUTION: 2, key.CONVOLUTION_WEIGHT_NN_HIDDEN_NEURONS: [8],
        key.SHIFT: [-1.0] * len(species), key.SCALE: [1.0] * len(species),
        key.CONV_DENOMINATOR: [4.0, 4.0],
    }  # fmt: skip
    torch.manual_seed(0)
    model = build_E3_equivariant_model(config)
    torch.save({"config": config, "model_state_dict": model.state_dict()}, path)
    return path


def in_use() -> int:
    """Return the bytes that this process and its children hold, what they share counted once."""
    me = Path("/proc/self/task")
    children = [pid for task in me.iterdir() for pid in (task / "children").read_text().split()]
    total = 0
    for pid in ("self", *children):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended since
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def table() -> None:
    """Write a table of all runs."""
    lines = [
        "# Sets larger than memory",
        "",
        "| model | frames | file (MB) | workers | memory, largest (MB) | checked in (s) | "
        "frames a second in training |",
        "|" + "---|" * 7,
    ]
    for run in sorted(json.loads(RESULTS.read_text()), key=lambda run: run["frames"]):
        cells = [
            run["model"], f"{run['frames']:,}", f"{run['file_bytes'] / 1e6:,.0f}", run["workers"],
            f"{run['peak_bytes'] / 1e6:,.0f}", f"{run['seconds_to_first_step']:,.0f}",
            f"{run['frames_per_second']:.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--set", type=Path, help="Folder of the set, which is made if missing.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    peak, stop, steps = 0, threading.Event(), []

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.5):
            peak = max(peak, in_use())

    original = FineTuning.training_step

    def timed(self, batch, index):
        steps.append(time.perf_counter())
        return original(self, batch, index)

    FineTuning.training_step = timed
    with tempfile.TemporaryDirectory() as folder:
        place = asked.set or Path(folder)
        train, valid = place / "train.db", place / "valid.db"
        for path, count in ((train, asked.frames), (valid, 200)):
            if not path.exists():
                write_set(path, count)
            if (there := ase.db.connect(str(path)).count()) != count:
                raise SystemExit(f"{path} holds {there} frames, not {count}: remove it.")
        size = train.stat().st_size
        model = tiny_model(place / "tiny.pth") if asked.model == "tiny" else asked.model
        settings = make_config(
            {
                "model": str(model), "train": train, "valid": valid, "out": Path(folder) / "run",
                "keys": {"energy": "energy", "forces": "forces"}, "device": "cpu",
                "in_memory": 0, "workers": asked.workers, "max_steps": asked.steps,
                "batch_size": BATCH, "check_units": False, "skip_faulty": True,
                "allow_worse": True,
            }
        )  # fmt: skip
        threading.Thread(target=watch, daemon=True).start()
        begun = time.perf_counter()
        finetune(settings)
        stop.set()
    gaps = [later - earlier for earlier, later in itertools.pairwise(steps)]
    found = {
        "command": f"python benchmarks/large_sets.py {asked.model} --frames {asked.frames} "
        f"--steps {asked.steps} --workers {asked.workers}",
        "model": asked.model,
        "frames": asked.frames,
        "steps": asked.steps,
        "file_bytes": size,
        "workers": asked.workers,
        "peak_bytes": peak,
        "seconds_to_first_step": round(steps[0] - begun, 1),
        "frames_per_second": round(BATCH / float(np.median(gaps)), 1),
    }
    others = json.loads(asked.out.read_text()) if asked.out.exists() else []
    runs = [run for run in others if run["command"] != found["command"]] + [found]
    asked.out.write_text(json.dumps(runs, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
