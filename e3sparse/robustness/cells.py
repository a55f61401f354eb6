"""Structures compressed and stretched: second minima of the energy, and the sign of pressure."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from e3sparse.robustness.findings import Finding, some
from e3sparse.robustness.models import Model

RATIOS = np.linspace(0.7, 1.3, 25)
"""Volumes over the volume given. A molecule has none; its distances grow by the cube root."""
DEPTH_EV = 2e-3
"""Per atom. What parts two minima by less is rounding."""
_NOISE_EV_A3 = 2e-3
"""0.3 GPa: pressures below are not compared by their sign."""


@dataclass(frozen=True)
class Compression:
    """A structure at volumes of `RATIOS` times its own.

    Attributes
    ----------
    energies
        (ratios,) in eV per atom.
    pressures
        (ratios,) in eV/Å³ of the model's stress; None for what is not a crystal.
    volume
        In Å³ per atom at the ratio 1; None for what is not a crystal.
    """

    energies: NDArray[np.float64]
    pressures: NDArray[np.float64] | None
    volume: float | None


def compressions(model: Model, cells: Mapping[str, Atoms]) -> dict[str, Compression]:
    """Evaluate all structures at all volumes."""
    found = {}
    for name, atoms in cells.items():
        scaled = model.evaluate([_scaled(atoms, ratio) for ratio in RATIOS])
        stresses = [one.stress for one in scaled if one.stress is not None]
        crystal = atoms.pbc.all() and len(stresses) == len(RATIOS)
        found[name] = Compression(
            np.array([one.energy for one in scaled]) / len(atoms),
            -np.array([np.trace(stress) / 3 for stress in stresses]) if crystal else None,
            atoms.get_volume() / len(atoms) if crystal else None,
        )
    return found


def _scaled(atoms: Atoms, ratio: float) -> Atoms:
    by = ratio ** (1 / 3)
    scaled = Atoms(atoms.numbers, atoms.positions * by, pbc=atoms.pbc)
    scaled.set_cell(atoms.cell.array * by)
    return scaled


def minima(energies: NDArray[np.float64]) -> list[int]:
    """Return the minima of a curve, its ends among them, that barriers of `DEPTH_EV` part."""
    kept: list[int] = []
    padded = np.concatenate([[np.inf], energies, [np.inf]])
    for n in range(len(energies)):
        if not (padded[n + 1] <= padded[n] and padded[n + 1] < padded[n + 2]):
            continue
        if kept:
            barrier = energies[kept[-1] : n + 1].max()
            if barrier - max(energies[n], energies[kept[-1]]) < DEPTH_EV:
                kept[-1] = min(kept[-1], n, key=lambda k: energies[k])
                continue
        kept.append(n)
    return kept


def second_minima(curves: Mapping[str, Compression]) -> Finding:
    """Look for structures with more than one best volume between 0.7 and 1.3."""
    found = {}
    for name, curve in curves.items():
        at = minima(curve.energies)
        if len(at) > 1 or not np.isfinite(curve.energies).all():
            found[name] = ", ".join(f"{RATIOS[n]:.2f}" for n in at) or "no number"
    said = [f"{name} (V/V₀ {volumes})" for name, volumes in found.items()]
    return Finding(
        some(said) or f"none in {len(curves)} structures",
        dict.fromkeys(found, 0.0),
        figures={"structures": len(curves), "second_minima": len(found)},
    )


def pressures(curves: Mapping[str, Compression]) -> Finding:
    """Look whether compression costs energy, and whether the stress has the sign of −dE/dV."""
    found = {}
    for name, curve in curves.items():
        if not curve.energies[0] > curve.energies[1]:
            found[name] = "attracts at V/V₀ 0.70"
        elif curve.pressures is not None and curve.volume is not None:
            slope = -np.gradient(curve.energies, RATIOS * curve.volume)[1:-1]
            wrong = (np.abs(slope) > _NOISE_EV_A3) & ~(slope * curve.pressures[1:-1] > 0)
            if wrong.any():
                at = RATIOS[1:-1][wrong][0]
                found[name] = f"stress of the wrong sign at V/V₀ {at:.2f}"
    return Finding(
        some([f"{name} {what}" for name, what in found.items()])
        or f"as they should be in {len(curves)} structures",
        dict.fromkeys(found, 0.0),
        figures={"structures": len(curves), "wrong_pressures": len(found)},
    )
