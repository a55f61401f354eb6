"""Generate a small magnetic DFT set: Fe, Ni, Mn, NiO and MnO in several magnetic orders.

In the manner of the paper's TM-O-Spin (Appendix C), at a size that one core can afford. That set
was computed with ACBN0, which GPAW does not have; this one is collinear spin-polarised PBE, with
fixed U on the d shell of the oxides. GPAW labels every frame by itself, so an interrupted run
continues where it stopped. Nothing is downloaded. Needs ``gpaw`` with its PAW data sets, ``ase``,
``typer`` and ``rich``; see the README beside this file.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from ase import Atoms
from ase.io import read, write
from ase.stress import voigt_6_to_full_3x3_stress
from ase.units import GPa
from rich.console import Console

METAL_CUTOFF_EV, OXIDE_CUTOFF_EV = 500.0, 600.0  # of the plane waves; oxygen needs more
SMEARING_EV = 0.1  # width of Fermi-Dirac occupations
XC, CONVERGENCE, MAX_STEPS = "PBE", {"energy": 1e-6, "density": 1e-5}, 150  # eV and e per electron
HUBBARD_U = {"Mn": 3.9, "Ni": 6.2}  # eV, in oxides only: Materials Project's, as MPtrj has them
VOLUMES, RATTLE = 0.06, 0.06  # largest relative change of volume; σ of displacements in Å
MAGNETIC = 0.1  # μ_B: below it an atom has no spin
TIGHTER_CUTOFF, TIGHTER_GRID = 4 / 3, 1.25  # factors of the check, the latter along each axis
FD_STRAIN, FD_STEP = 1e-2, 1e-2  # relative; Å; below, the jumps in the number of plane waves show


class Lattice(NamedTuple):
    """A cell and its sites where the conventional cell has edge 1, and the grid of k-points.

    The grid is that of the lattice and not of a frame's volume, so that no energy jumps where a
    denser one would set in.
    """

    cell: np.ndarray
    sites: list[list[float]]
    kpoints: tuple[int, int, int]


LATTICES = {
    "bcc": Lattice(np.eye(3), [[0, 0, 0], [0.5, 0.5, 0.5]], (7, 7, 7)),
    # Layers along [001], so that neighbouring ones can have opposite spins.
    "fcc": Lattice(np.diag([0.5**0.5, 0.5**0.5, 1.0]), [[0, 0, 0], [0.5, 0.5, 0.5]], (7, 7, 5)),
    # Layers along [111], which is type II of the rock-salt antiferromagnets. The shortest vectors
    # of that lattice: in the usual rhombohedral ones GPAW takes three times as long.
    "rocksalt": Lattice(
        np.array([[1, 0.5, 0.5], [-0.5, 0.5, 0], [-0.5, 0, 0.5]]),
        [[0, 0, 0], [0.5, 0.5, 0.5], [0.75, 0.25, 0.25], [0.25, 0.75, 0.75]],
        (3, 5, 5),
    ),
}


class Material(NamedTuple):
    """A crystal: its lattice, edge in Å, and its metal's moments (μ_B) that orders start from."""

    symbols: str
    lattice: str
    edge: float
    orders: dict[str, list[float]]


MATERIALS = {
    "Fe": Material("Fe2", "bcc", 2.83, {"FM": [2.4, 2.4], "AFM": [1.8, -1.8], "NM": [0, 0]}),
    "NiO": Material("Ni2O2", "rocksalt", 4.18, {"AFM-II": [1.8, -1.8], "FM": [1.8, 1.8]}),
    "Ni": Material("Ni2", "fcc", 3.52, {"FM": [0.8, 0.8], "AFM": [0.8, -0.8]}),
    "MnO": Material("Mn2O2", "rocksalt", 4.44, {"AFM-II": [4.6, -4.6], "FM": [4.6, 4.6]}),
    "Mn": Material("Mn2", "fcc", 3.60, {"AFM": [2.2, -2.2], "FM": [2.0, 2.0]}),
}

HERE = Path(__file__).resolve().parent
CACHE = Path.home() / ".cache" / "e3sparse" / "magnetic_crystals"
console = Console(soft_wrap=True)


def sampled(name: str, order: str, rng: np.random.Generator) -> Atoms:
    """Draw one frame: a volume, displacements, and the order that its SCF starts from."""
    material = MATERIALS[name]
    lattice = LATTICES[material.lattice]
    volume = 1 + rng.uniform(-VOLUMES, VOLUMES)
    atoms = Atoms(
        material.symbols,
        scaled_positions=lattice.sites,
        cell=material.edge * volume ** (1 / 3) * lattice.cell,
        pbc=True,
    )
    # Rounded as the file is, so that file and label agree exactly.
    atoms.cell[:] = np.round(atoms.cell[:], 6)
    atoms.positions[:] = np.round(atoms.positions + rng.normal(0, RATTLE, (len(atoms), 3)), 6)
    metal = atoms.numbers != 8
    start = np.zeros(len(atoms))
    start[metal] = material.orders[order]
    atoms.set_initial_magnetic_moments(start)
    atoms.info.update(config_type=f"{name}_{order}", relative_volume=round(volume, 4))
    return atoms


def frames(rounds: int, seed: int) -> Iterator[Atoms]:
    """Yield in each round one frame of every material in every order, the first order first."""
    rng = np.random.default_rng(seed)
    most = max(len(material.orders) for material in MATERIALS.values())
    for _ in range(rounds):
        for turn in range(most):
            for name, material in MATERIALS.items():
                if turn < len(material.orders):
                    yield sampled(name, list(material.orders)[turn], rng)


def settings(atoms: Atoms, *, tighter: bool = False) -> dict[str, Any]:
    """Return what GPAW is told, as JSON has it; `tighter` is for the check of convergence."""
    name, _ = atoms.info["config_type"].split("_")
    grid = LATTICES[MATERIALS[name].lattice].kpoints
    mode: dict[str, Any] = {"name": "pw", "ecut": METAL_CUTOFF_EV}
    if "O" in atoms.symbols:
        # Stress is to be the derivative of energies that all have one cutoff. GPAW estimates
        # Pulay's share at 12 GPa in NiO at 500 eV, nearly all of it oxygen's, and at 2 GPa at
        # 600 eV. Of the metals it is about 1 GPa (measured for Fe) and stays in.
        mode = {"name": "pw", "ecut": OXIDE_CUTOFF_EV, "dedecut": "estimate"}
    if tighter:
        mode["ecut"] = round(TIGHTER_CUTOFF * mode["ecut"])
        grid = tuple(round(TIGHTER_GRID * k) for k in grid)
    return {
        "mode": mode,
        "xc": XC,
        "kpts": {"size": grid, "gamma": True},
        "occupations": {"name": "fermi-dirac", "width": SMEARING_EV},
        "setups": {el: f":d,{u}" for el, u in HUBBARD_U.items() if name == f"{el}O"},
        "convergence": CONVERGENCE,
        "maxiter": MAX_STEPS,
    }


def label_key(atoms: Atoms, *, tighter: bool = False) -> str:
    """Name a label by everything that determines it."""
    text = json.dumps([settings(atoms, tighter=tighter), str(atoms.symbols), atoms.cell.tolist(),
                       atoms.positions.tolist(), atoms.get_initial_magnetic_moments().tolist(),
                       version("gpaw")])  # fmt: skip
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def label(atoms: Atoms, folder: Path, *, tighter: bool = False) -> Atoms | None:
    """Compute the labels of one frame, or take them from the folder; None if the SCF fails.

    The energy is the free energy of the smeared electrons, because forces and stress are its
    derivatives; the energy extrapolated to zero smearing stands beside it.
    """
    from gpaw import GPAW, KohnShamConvergenceError

    key = label_key(atoms, tighter=tighter)
    done, failed = folder / f"{key}.xyz", folder / f"{key}.failed"
    if failed.exists():
        return None
    if done.exists():
        frame = read(done)
        frame.info["REF_stress"] = np.asarray(frame.info["REF_stress"])
        return frame
    began = time.perf_counter()
    atoms.calc = GPAW(**settings(atoms, tighter=tighter), txt=str(folder / f"{key}.log"))
    try:
        free = atoms.get_potential_energy(force_consistent=True)
        forces, stress = atoms.get_forces(), voigt_6_to_full_3x3_stress(atoms.get_stress())
    except KohnShamConvergenceError:
        failed.touch()
        return None
    moments = atoms.calc.get_magnetic_moments()
    frame = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)
    frame.info = {
        "REF_energy": round(free, 6),
        "REF_stress": np.round(stress, 8),
        **atoms.info,
        "energy_sigma0": round(atoms.get_potential_energy(), 6),
        "seconds": round(time.perf_counter() - began),
    }
    frame.arrays["REF_forces"] = np.round(forces, 6)
    frame.arrays["REF_magmom"] = np.round(moments, 4)
    spins = np.where(np.abs(moments) > MAGNETIC, np.sign(moments), 0.0)
    frame.arrays["spin"] = np.column_stack([np.zeros((len(frame), 2)), spins])
    save([frame], done)
    return frame


def save(labelled: list[Atoms], path: Path) -> None:
    """Write frames so that an interruption leaves the file whole."""
    write(path.with_suffix(".tmp"), labelled, format="extxyz")
    path.with_suffix(".tmp").replace(path)


def describe(frame: Atoms) -> str:
    """Return the figures of a frame on one line."""
    moments = " ".join(f"{m:+.2f}" for m in frame.arrays["REF_magmom"])
    return (
        f"{frame.info['REF_energy'] / len(frame):.4f} eV/atom, moments {moments} μ_B, largest "
        f"|F| {np.linalg.norm(frame.arrays['REF_forces'], axis=1).max():.2f} eV/Å, pressure "
        f"{-np.trace(frame.info['REF_stress']) / 3 / GPa:.1f} GPa, "
        f"{frame.info['seconds']} s"
    )


def check_convergence(atoms: Atoms, folder: Path) -> None:
    """Print how far a frame's labels move with a higher cutoff and a denser grid."""
    here, there = label(atoms, folder), label(atoms, folder, tighter=True)
    if here is None or there is None:
        raise RuntimeError("An SCF of the check of convergence did not converge.")
    energy = (there.info["REF_energy"] - here.info["REF_energy"]) / len(atoms)
    forces = there.arrays["REF_forces"] - here.arrays["REF_forces"]
    stress = (there.info["REF_stress"] - here.info["REF_stress"]) / GPa
    moments = there.arrays["REF_magmom"] - here.arrays["REF_magmom"]
    console.print(
        f"{here.info['config_type']}, tighter: {1000 * energy:+.1f} meV/atom, forces by up to "
        f"{1000 * np.abs(forces).max():.1f} meV/Å, stress by up to {np.abs(stress).max():.2f} GPa "
        f"(pressure {-np.trace(stress) / 3:+.2f}), moments by up to {np.abs(moments).max():.3f} μ_B"
    )


def check_derivatives(atoms: Atoms, folder: Path) -> None:
    """Compare one force and one component of stress with central differences of the energy.

    The cutoff is held while the cell is strained, so the number of plane waves changes: a
    difference in stress is an error of the estimate of Pulay's share.
    """
    here = label(atoms, folder)
    energies = []
    for sign in (1, -1):
        moved, strained = atoms.copy(), atoms.copy()
        moved.positions[0, 0] += sign * FD_STEP
        strain = np.diag([1, 1, 1 + sign * FD_STRAIN])
        strained.set_cell(atoms.cell[:] @ strain, scale_atoms=True)
        energies.append([label(moved, folder), label(strained, folder)])
    if here is None or any(None in pair for pair in energies):
        raise RuntimeError("An SCF of the check of derivatives did not converge.")
    up, down = np.array([[frame.info["REF_energy"] for frame in pair] for pair in energies])
    force, slope = (up - down) / (2 * FD_STEP), (up - down) / (2 * FD_STRAIN * atoms.get_volume())
    console.print(
        f"{here.info['config_type']}: F_x of atom 0 is {here.arrays['REF_forces'][0, 0]:.4f}, "
        f"by differences {-force[0]:.4f} eV/Å; σ_zz is {here.info['REF_stress'][2, 2] / GPa:.2f}, "
        f"by differences {slope[1] / GPa:.2f} GPa"
    )


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Frames of each material and order.")] = 1,
    minutes: Annotated[
        float, typer.Option(help="No frame is begun later; with 0 the file holds what is done.")
    ] = 1e9,
    out: Annotated[Path, typer.Option(help="The XYZ file.")] = HERE / "magnetic_crystals.xyz",
    seed: Annotated[int, typer.Option(help="Seed of volumes and displacements.")] = 0,
    cache: Annotated[Path, typer.Option(help="Folder for resumable work and logs.")] = CACHE,
    check: Annotated[
        str | None, typer.Option(help="Check derivatives and convergence of, e.g., NiO_AFM-II.")
    ] = None,
) -> None:
    """Draw frames and label them with GPAW; what is done already is not done again."""
    began = time.monotonic()
    cache.mkdir(parents=True, exist_ok=True)
    drawn = list(frames(rounds, seed))
    if check is not None:
        names = {atoms.info["config_type"]: atoms for atoms in reversed(drawn)}
        if check not in names:
            raise typer.BadParameter(f"There is no '{check}' among {', '.join(names)}.")
        check_derivatives(names[check], cache)
        check_convergence(names[check], cache)
        return
    labelled: list[Atoms] = []
    for number, atoms in enumerate(drawn, start=1):
        name = f"{number} of {len(drawn)}, {atoms.info['config_type']}"
        done = (cache / f"{label_key(atoms)}.xyz").exists()
        if not done and time.monotonic() - began > 60 * minutes:
            console.print(f"{name}: not begun, the {minutes:g} minutes are over.")
            continue
        frame = label(atoms, cache)
        if frame is None:
            console.print(f"{name}: left out, no SCF within {MAX_STEPS} steps.")
            continue
        console.print(f"{name}: {describe(frame)}")
        labelled.append(frame)
        save(labelled, out)
    console.print(f"{len(labelled)} of {len(drawn)} frames are in {out}.")


if __name__ == "__main__":
    typer.run(main)
