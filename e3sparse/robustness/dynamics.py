"""Molecular dynamics: when do atoms meet as the temperature rises, and is energy conserved?"""

import numpy as np
from ase import Atoms, units
from ase.data import covalent_radii
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray

from e3sparse.robustness.findings import Finding
from e3sparse.robustness.models import Model, ModelCalculator

TEMPERATURES_K = (300.0, 600.0, 1000.0, 1500.0, 2000.0)
CONTACT = 0.6
"""Two atoms nearer than this times the sum of their covalent radii have met."""
MOST_FORCE_EV_A = 1e3
DRIFT_MEV = 5.0
"""Per atom and ps, besides twice the standard error. It would heat by 19 K per ps; what conserves
has less than 0.01 in long runs (benchmarks/nve.py)."""
VIBRATION_PS = 0.01
"""The period of the fastest vibrations, rounded up: of C–H, 0.011; of O–H, 0.009."""
FRICTION_PER_FS = 0.01
NVE_SHARE, NVE_K = 3, 300.0
"""How many times fewer steps the run at constant energy has."""


def timestep(atoms: Atoms) -> float:
    """Return a time step in fs that is safe for the lightest atom."""
    return 0.5 if (atoms.numbers == 1).any() else 1.0


def contact(atoms: Atoms) -> str | None:
    """Return which atoms have met, or None."""
    radii = CONTACT * covalent_radii[atoms.numbers]
    i, j, d = neighbor_list("ijd", atoms, list(radii))
    if not len(d):
        return None
    n = int(np.argmin(d / (radii[i] + radii[j])))
    pair = "–".join(sorted(atoms.symbols[k] for k in (i[n], j[n])))
    return f"{pair} at {d[n]:.2f} Å"


def broken(atoms: Atoms) -> str | None:
    """Return what is unphysical of a structure in motion, or None."""
    most = float(np.abs(atoms.get_forces()).max())
    if not most < MOST_FORCE_EV_A:
        return f"a force of {most:.3g} eV/Å"
    return contact(atoms)


def rising_temperature(model: Model, start: Atoms, steps: int, seed: int) -> Finding:
    """Heat a structure step by step until something unphysical happens.

    Parameters
    ----------
    model, start
        What is run, and from where.
    steps
        In all, the same share at each of `TEMPERATURES_K`.
    seed
        Of velocities and noise.
    """
    atoms = _prepared(model, start, TEMPERATURES_K[0], seed)
    rng = np.random.default_rng(seed + 1)
    step = timestep(atoms)
    friction = FRICTION_PER_FS / units.fs
    dynamics = Langevin(
        atoms,
        step * units.fs,
        temperature_K=TEMPERATURES_K[0],
        friction=friction,
        fixcm=False,
        rng=rng,
    )
    each = max(1, steps // len(TEMPERATURES_K))
    for temperature in TEMPERATURES_K:
        dynamics.set_temperature(temperature_K=temperature)
        for _ in range(each):
            what = broken(atoms)
            if what is not None:
                time = dynamics.nsteps * step / 1000
                return Finding(
                    f"{what} at {temperature:.0f} K, {time:.2f} ps",
                    {"first contact": -temperature},
                    figures={"first_contact_K": temperature, "first_contact_ps": time},
                )
            dynamics.run(1)
    length = dynamics.nsteps * step / 1000
    return Finding(f"nothing up to {TEMPERATURES_K[-1]:.0f} K in {length:.2g} ps")


def constant_energy(model: Model, start: Atoms, steps: int, seed: int) -> Finding:
    """Run a structure without a thermostat; the drift is the slope of the total energy."""
    atoms = _prepared(model, start, NVE_K, seed)
    step = timestep(atoms)
    dynamics = VelocityVerlet(atoms, step * units.fs)
    energies = []
    for _ in range(max(10, steps // NVE_SHARE)):
        what = broken(atoms)
        if what is not None:
            return Finding(
                f"{what} after {dynamics.nsteps * step / 1000:.2f} ps", {"drift": float("inf")}
            )
        energies.append(atoms.get_total_energy() / len(atoms) * 1000)
        dynamics.run(1)
    times = np.arange(len(energies)) * step / 1000
    slope, error = drift(times, np.array(energies))
    return Finding(
        f"{slope:+.2f} ± {error:.2f} meV per atom and ps in {times[-1]:.2g} ps",
        {} if abs(slope) <= DRIFT_MEV + 2 * error else {"drift": abs(slope)},
        DRIFT_MEV + 2 * error,
        {"drift_mev_per_atom_ps": slope, "error_mev_per_atom_ps": error},
    )


def drift(times: NDArray[np.float64], energies: NDArray[np.float64]) -> tuple[float, float]:
    """Return the slope of energies (steps,) over times (steps,) in ps, and its standard error.

    Verlet's energy swings with the vibrations, so that only what is `VIBRATION_PS` apart counts as
    independent.
    """
    slope, start = np.polyfit(times, energies, 1)
    length = times[-1] - times[0]
    independent = max(1.0, length / VIBRATION_PS)
    # Of a slope through n points evenly spread over a length: σ √12 / (length √n).
    scatter = float(np.std(energies - start - slope * times))
    return float(slope), float(scatter * np.sqrt(12 / independent) / length)


def _prepared(model: Model, start: Atoms, temperature: float, seed: int) -> Atoms:
    atoms = Atoms(start.numbers, start.positions, cell=start.cell, pbc=start.pbc)
    atoms.calc = ModelCalculator(model)
    rng = np.random.default_rng(seed)
    spread = np.sqrt(atoms.get_masses() * units.kB * temperature)  # (N,)
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * spread[:, None])
    Stationary(atoms)
    return atoms
