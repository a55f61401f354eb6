"""The energy of turning one spin, of the models that magnetic.py has trained, against DFT.

    .venv/bin/python benchmarks/exchange.py     # benchmarks/results/exchange_<task>.png

Of the runs of benchmarks/magnetic.py that it keeps in runs/magnetic: iron in geometries that were
held out, and NiO on test frames.
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from magnetic import MODEL, RESULTS, SHOWN, kept, read_rows
from magnetic_tasks import TASKS
from tasks import SEEDS

from e3sparse.magnetism import load
from e3sparse.potentials.backends import load_potential
from e3sparse.symmetry import PotentialSubject
from e3sparse.training.run_records import SPINS

ANGLES = np.linspace(0.0, 180.0, 37)


def trained(folder):
    """Return the model of a run, in double precision, with magnetic forces."""
    backbone = load_potential(MODEL, dtype=torch.float64)
    backbone.load_adapter(folder / "adapter")
    potential = load(backbone, folder / SPINS)
    potential.magnetic_forces = True
    return PotentialSubject(potential)


def turned(atoms, index, degrees):
    """Return a structure with one spin turned away from where it is, about a normal to it."""
    spin = atoms.arrays["spin"][index]
    normal = np.cross(spin, [0.0, 0.0, 1.0] if abs(spin[2]) < 0.9 else [1.0, 0.0, 0.0])
    sideways = np.cross(normal / np.linalg.norm(normal), spin)
    changed = atoms.copy()
    angle = np.radians(degrees)
    changed.arrays["spin"][index] = np.cos(angle) * spin + np.sin(angle) * sideways
    return changed


def energies_of_turning(subject, atoms, index):
    """Return energies (meV per atom) against `ANGLES` of one spin, from that at 0."""
    found = [subject(turned(atoms, index, angle)).energy for angle in ANGLES]
    return 1000 * (np.array(found) - found[0]) / len(atoms)


def draw_iron(task, subject, path):
    """Draw E(angle) for the held-out geometries, with DFT at both ends, and the differences."""
    frames = task.splits()["pairs"]
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    wanted, found = [], []
    for k, (parallel, opposite) in enumerate(zip(frames[::2], frames[1::2], strict=True)):
        dft = 1000 * (opposite.info["REF_energy"] - parallel.info["REF_energy"]) / len(parallel)
        curve = energies_of_turning(subject, parallel, 1)
        style = {"color": f"C{k}", "ls": ("-", "--", "-.", ":")[k % 4]}
        apart = parallel.get_distance(0, 1, mic=True)
        left.plot(ANGLES, curve, label=f"{apart:.2f} Å apart", **style)
        left.plot([0, 180], [0, dft], "o", color=f"C{k}", mec="k")
        wanted.append(dft)
        found.append(curve[-1])
    left.set(
        xlabel="angle between the two spins (degrees)",
        ylabel="E(angle) - E(0) (meV/atom)",
        title="Fe, 2 atoms, held-out geometries (lines: model;\n"
        "circles: DFT; no angle between is in the data)",
    )
    left.legend()
    low, high = min(wanted + found), max(wanted + found)
    right.plot([low, high], [low, high], color="0.6", lw=1)
    right.plot(wanted, found, "o", mec="k")
    off = np.abs(np.subtract(found, wanted)).mean()
    right.set(
        xlabel="E(AFM) - E(FM), DFT (meV/atom)",
        ylabel="E(AFM) - E(FM), model (meV/atom)",
        title=f"{len(wanted)} geometries: mean error {off:.0f} meV/atom",
    )
    fig.savefig(path, dpi=150)


def draw_nickel_oxide(task, subject, path):
    """Draw E(angle) of one Ni, and -dE/dS against the magnetic forces of DFT, up to a scale."""
    frames = task.splits()["test"]
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for atoms in frames[:3]:
        nickel = int(np.flatnonzero(atoms.numbers == 28)[0])
        left.plot(ANGLES, len(atoms) * energies_of_turning(subject, atoms, nickel))
    left.set(
        xlabel="angle of one Ni spin from where it is (degrees)",
        ylabel="E(angle) - E(0) (meV)",
        title="NiO, 32 atoms, three test frames",
    )
    wanted, found = [], []
    for atoms in frames:
        nickel = atoms.numbers == 28
        spin = atoms.arrays["spin"][nickel]
        for values, into in (
            (atoms.arrays["REF_magforces"], wanted),
            (subject(atoms).magnetic_forces, found),
        ):
            # Parallel to a spin of fixed length there is no derivative.
            across = values[nickel] - (values[nickel] * spin).sum(1, keepdims=True) * spin
            into.append(1000 * across.ravel())
    wanted, found = np.concatenate(wanted), np.concatenate(found)
    correlation = np.corrcoef(wanted, found)[0, 1]
    right.plot(wanted, found, ".", ms=3)
    right.set(
        xlabel="DFT magnetic force across the spin (meV/μ_B)",
        ylabel="-dE/dS across the spin, model (meV)",
        title=f"Ni, test frames: correlation {correlation:.3f}",
    )
    fig.savefig(path, dpi=150)


DRAWERS = {"fe": draw_iron, "nio": draw_nickel_oxide}


def main():
    """Draw the learned exchange of each task that has all seeds."""
    torch.set_num_threads(1)
    for task in TASKS.values():
        rows = read_rows(task)
        mine = rows[rows["method"] == SHOWN]
        full = mine.groupby("lr").filter(lambda group: len(group) == len(SEEDS))
        if len(full):
            folder = kept(task, full["lr"].iloc[0]) / "run"
            DRAWERS[task.name](task, trained(folder), RESULTS / f"exchange_{task.name}.png")


if __name__ == "__main__":
    main()
