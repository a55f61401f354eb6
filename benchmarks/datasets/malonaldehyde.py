"""Generate e3sparse's demo data: malonaldehyde labelled with a range-separated hybrid.

Malonaldehyde (enol form, C3H4O2) shuttles a proton between its two oxygens. SevenNet-0, which was
trained on PBE, supplies the geometries by molecular dynamics; PySCF labels them. Trajectories and
labels are cached, so an interrupted run continues where it stopped. Nothing is downloaded. Needs
``sevenn``, ``pyscf`` and ``pyscf-dispersion``.
"""

import hashlib
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.optimize import BFGS
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, track

XC, BASIS, GRID_LEVEL, CONV_TOL = "wb97x-d3bj", "def2-svp", 3, 1e-9
LEVEL = f"{XC}/{BASIS}/grid{GRID_LEVEL}/{CONV_TOL:g}/density-fit/grid-response"
TEMPERATURE_K, TIMESTEP_FS, FRICTION_PER_FS = 600.0, 0.5, 0.01
EQUILIBRATION_FS, SPACING_FS = 1000.0, 60.0
TRAJECTORIES = {"train": 4, "valid": 1, "test": 2}
FD_STEP = 1e-3  # Å; larger steps are dominated by the third derivative of the O-H stretch
FD_TOLERANCE = 1e-3  # eV/Å

SYMBOLS = "CCCOOHHHH"
START = np.array(  # a planar enol, atom order: three C, two O, three H on C, the hydroxyl H
    [[0.00, 0.00, 0], [1.36, 0.00, 0], [2.10, 1.23, 0], [-0.68, 1.13, 0], [1.58, 2.34, 0],
     [-0.62, -0.90, 0], [1.89, -0.95, 0], [3.20, 1.15, 0], [0.00, 1.86, 0]]
)  # fmt: skip
# The upper bounds (Å) leave room for 600 K vibrations and for a shared proton.
BONDS = [(0, 1, 1.9), (1, 2, 1.9), (0, 3, 1.8), (2, 4, 1.8), (0, 5, 1.5), (1, 6, 1.5), (2, 7, 1.5)]
CLOSEST, HYDROXYL = 0.75, 1.45

OUT = Path(__file__).resolve().parents[2] / "e3sparse" / "sample_data" / "malonaldehyde"
CACHE = Path.home() / ".cache" / "e3sparse" / "malonaldehyde"
console = Console(soft_wrap=True)


def is_intact(atoms: Atoms) -> bool:
    """Tell whether the molecule still has malonaldehyde's bonds, whichever oxygen has the H."""
    d = atoms.get_all_distances()
    bonded = all(d[i, j] < limit for i, j, limit in BONDS) and min(d[3, 8], d[4, 8]) < HYDROXYL
    return bonded and bool(d[np.triu_indices(len(atoms), 1)].min() > CLOSEST)


def sample(start: Atoms, calc: Calculator, frames: int, seed: int, path: Path) -> list[Atoms]:
    """Run one Langevin trajectory and keep equally spaced intact frames.

    Parameters
    ----------
    start : Atoms
        Relaxed geometry.
    calc : Calculator
        The potential that drives the dynamics.
    frames : int
        Number of frames to keep.
    seed : int
        Seeds both the velocities and the thermostat.
    path : Path
        Cache file; read when it exists, written when the trajectory is complete.
    """
    if path.exists():
        return read(path, index=":")
    rng = np.random.default_rng(seed)
    atoms = start.copy()
    atoms.calc = calc
    MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE_K, rng=rng)
    Stationary(atoms)
    friction = FRICTION_PER_FS / units.fs
    dt = TIMESTEP_FS * units.fs
    dyn = Langevin(atoms, dt, temperature_K=TEMPERATURE_K, friction=friction, rng=rng)
    dyn.run(round(EQUILIBRATION_FS / TIMESTEP_FS))
    kept: list[Atoms] = []
    for _ in track(range(frames), f"Trajectory with seed {seed}", console=console):
        for _attempt in range(20):
            dyn.run(round(SPACING_FS / TIMESTEP_FS))
            if is_intact(atoms):
                break
        else:
            raise RuntimeError(f"The trajectory with seed {seed} broke apart.")
        # Labels are computed at the rounded positions, so file and label agree exactly.
        frame = Atoms(SYMBOLS, np.round(atoms.positions - atoms.get_center_of_mass(), 6))
        frame.info["time_fs"] = dyn.nsteps * TIMESTEP_FS
        kept.append(frame)
    write(path.with_suffix(".tmp"), kept, format="extxyz")
    path.with_suffix(".tmp").replace(path)
    return kept


def label(key: str, positions: list[list[float]], responses: tuple[bool, ...]) -> dict[str, Any]:
    """Compute energy (eV) and forces (eV/Å) of one geometry, or neither if the SCF fails.

    Parameters
    ----------
    key : str
        Stored in the result, to find it again in the cache.
    positions : list
        Cartesian positions in Å.
    responses : tuple of bool
        One force calculation for each entry: with (True) or without the response of the grid.
    """
    from pyscf import dft, gto, lib
    from pyscf.data import nist

    lib.num_threads(1)
    began = time.perf_counter()
    mol = gto.M(atom=list(zip(SYMBOLS, positions, strict=True)), basis=BASIS, verbose=0)
    mf = dft.RKS(mol, xc=XC).density_fit()
    mf.conv_tol = CONV_TOL
    mf.grids.level = GRID_LEVEL
    mf.kernel()
    result: dict[str, Any] = {"key": key, "converged": bool(mf.converged)}
    if mf.converged:
        result["energy"] = float(mf.e_tot) * nist.HARTREE2EV
        gradients = mf.nuc_grad_method()
        for response in responses:
            gradients.grid_response = response
            forces = -gradients.kernel() * nist.HARTREE2EV / nist.BOHR
            result["forces" if response else "forces_fixed_grid"] = forces.tolist()
    result["seconds"] = time.perf_counter() - began
    return result


def label_key(positions: np.ndarray, responses: tuple[bool, ...]) -> str:
    """Name a label by everything that determines it."""
    text = json.dumps([LEVEL, SYMBOLS, positions.tolist(), responses, version("pyscf")])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def label_all(
    jobs: list[tuple[np.ndarray, tuple[bool, ...]]], path: Path, workers: int
) -> list[dict[str, Any]]:
    """Label geometries, taking from the cache what it holds and appending the rest to it."""
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:  # an interrupted append left half a line, which would spoil the next one
        path.with_suffix(".tmp").write_text(whole)
        path.with_suffix(".tmp").replace(path)
    done = {row["key"]: row for row in map(json.loads, whole.splitlines())}
    named = {label_key(*job): job for job in jobs}
    todo = {key: job for key, job in named.items() if key not in done}
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with (
        Progress(*columns, console=console) as progress,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        path.open("a") as cache,
    ):
        bar = progress.add_task("Labelling", total=len(named), completed=len(named) - len(todo))
        futures = [pool.submit(label, key, x.tolist(), r) for key, (x, r) in todo.items()]
        try:
            for future in as_completed(futures):
                row = future.result()
                done[row["key"]] = row
                cache.write(json.dumps(row) + "\n")
                cache.flush()
                progress.advance(bar)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [done[key] for key in named]


def check_forces(atoms: Atoms, path: Path, workers: int, seed: int) -> None:
    """Compare forces with central differences of the energy along one direction per atom.

    Prints the largest deviation with the grid response, which labels use, and without it.

    Raises
    ------
    RuntimeError
        If the deviation with the grid response exceeds `FD_TOLERANCE`.
    """
    rng = np.random.default_rng(seed)
    directions = np.zeros((len(atoms), len(atoms), 3))
    for i, vector in enumerate(rng.normal(size=(len(atoms), 3))):
        directions[i, i] = vector / np.linalg.norm(vector)
    shifted = [(atoms.positions + s * FD_STEP * d, ()) for d in directions for s in (1, -1)]
    rows = label_all([(atoms.positions, (True, False)), *shifted], path, workers)
    if not all(row["converged"] for row in rows):
        raise RuntimeError("An SCF of the finite-difference check did not converge.")
    energies = np.array([row["energy"] for row in rows[1:]]).reshape(-1, 2)
    slopes = -(energies[:, 0] - energies[:, 1]) / (2 * FD_STEP)
    moved, fixed = (
        float(np.abs(np.einsum("dij,ij->d", directions, rows[0][name]) - slopes).max())
        for name in ("forces", "forces_fixed_grid")
    )
    console.print(f"Finite differences: {moved:.1e} eV/Å off, {fixed:.1e} without grid response.")
    if moved > FD_TOLERANCE:
        raise RuntimeError(f"Forces and energies disagree by {moved:.1e} eV/Å.")


def main(
    workers: Annotated[int, typer.Option(min=1, help="Labelling processes, one thread each.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for the three XYZ files.")] = OUT,
    seed: Annotated[int, typer.Option(help="Seed of the trajectories.")] = 0,
    frames: Annotated[
        tuple[int, int, int], typer.Option(help="Frames in train, valid and test.")
    ] = (120, 30, 60),
    cache: Annotated[Path, typer.Option(help="Folder for resumable work.")] = CACHE,
) -> None:
    """Sample malonaldehyde with SevenNet-0 and label it with PySCF."""
    if min(frames) < 1:
        raise typer.BadParameter("Every split needs at least one frame.")
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the labelling processes
    import torch
    from sevenn.calculator import SevenNetCalculator

    torch.set_num_threads(1)
    cache.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    calc = SevenNetCalculator("7net-0", device="cpu")
    start = Atoms(SYMBOLS, START, calculator=calc)
    if not BFGS(start, logfile=None).run(fmax=0.02, steps=300):
        raise RuntimeError("The starting geometry did not relax.")

    sampling = json.dumps([TEMPERATURE_K, TIMESTEP_FS, FRICTION_PER_FS, EQUILIBRATION_FS,
                           SPACING_FS, START.tolist(), version("sevenn")])  # fmt: skip
    name = hashlib.sha256(sampling.encode()).hexdigest()[:8]
    seeds = iter(np.random.SeedSequence(seed).generate_state(sum(TRAJECTORIES.values())))
    splits: dict[str, list[Atoms]] = {split: [] for split in TRAJECTORIES}
    for (split, trajectories), total in zip(TRAJECTORIES.items(), frames, strict=True):
        for part in np.array_split(range(total), min(trajectories, total)):
            own = int(next(seeds))
            path = cache / f"{name}-{own}-{len(part)}.xyz"
            for atoms in sample(start, calc, len(part), own, path):
                atoms.info.update(config_type="malonaldehyde_md600K", trajectory_seed=own)
                splits[split].append(atoms)

    labels = cache / "labels.jsonl"
    everything = [atoms for group in splits.values() for atoms in group]
    check_forces(everything[0], labels, workers, seed)
    rows = label_all([(atoms.positions, (True,)) for atoms in everything], labels, workers)
    for atoms, row in zip(everything, rows, strict=True):
        if row["converged"]:
            atoms.info["REF_energy"] = round(row["energy"], 6)
            atoms.arrays["REF_forces"] = np.round(row["forces"], 6)
    console.print(f"{len(rows)} labels took {sum(row['seconds'] for row in rows):.0f} s in all.")
    for split, group in splits.items():
        labelled = [atoms for atoms in group if "REF_energy" in atoms.info]
        if len(labelled) < len(group):
            console.print(f"{split}: {len(group) - len(labelled)} frames without SCF left out.")
        partial = out / f"{split}.tmp"
        write(partial, labelled, format="extxyz")
        partial.replace(out / f"{split}.xyz")
        reference = np.array([atoms.arrays["REF_forces"] for atoms in labelled])
        errors = [calc.get_forces(atoms) - atoms.arrays["REF_forces"] for atoms in labelled]
        console.print(
            f"{split}: {len(labelled)} frames, mean |F| component {np.abs(reference).mean():.3f} "
            f"eV/Å, SevenNet-0 force MAE {1000 * np.abs(errors).mean():.1f} meV/Å"
        )


if __name__ == "__main__":
    typer.run(main)
