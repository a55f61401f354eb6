"""Two atoms alone, from 0.5 Å to the cutoff: holes, and the wall that keeps atoms apart."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from e3sparse.robustness.findings import Finding, some
from e3sparse.robustness.models import Model
from e3sparse.robustness.subjects import Pair, pair_name

CLOSE = 0.8
"""Below this share of the bond there is to be no minimum, and a force that pushes apart."""
START, START_OF_SHORT = 0.5, 0.6
"""Shortest distance in Å; for short bonds (H–H) in units of the bond."""
POINTS = 120
DEPTH_EV = 0.02
"""A minimum less deep than this is none: rounding of float32 and of a flat curve."""
_PUSH_EV_A = 1e-3
_DEEPER_EV, _FARTHER_A = 0.5, 0.1
"""A hole deeper than the base's, or a wall that ends farther out, by more than this is a loss."""
_FAR_A = 6.0
"""Where the curves of a model that names no cutoff end."""


@dataclass(frozen=True)
class Curve:
    """A dimer of one pair of elements.

    Attributes
    ----------
    bond
        In Å; see `Subjects.bonds`.
    distances, energies, pushes
        (points,) in Å; in eV, 0 at the largest distance; and the force in eV/Å that drives the
        atoms apart.
    """

    bond: float
    distances: NDArray[np.float64]
    energies: NDArray[np.float64]
    pushes: NDArray[np.float64]


def dimer_curves(model: Model, bonds: Mapping[Pair, float]) -> dict[Pair, Curve]:
    """Evaluate all dimers."""
    curves = {}
    for pair, bond in bonds.items():
        distances = np.linspace(
            min(START, START_OF_SHORT * bond), model.cutoff or _FAR_A, POINTS, endpoint=False
        )
        found = model.evaluate([Atoms(pair, positions=[[0, 0, 0], [0, 0, d]]) for d in distances])
        energies = np.array([f.energy for f in found])
        pushes = np.array([(f.forces[1, 2] - f.forces[0, 2]) / 2 for f in found])
        curves[pair] = Curve(bond, distances, energies - energies[-1], pushes)
    return curves


def hole(curve: Curve) -> tuple[float, float] | None:
    """Return where the deepest minimum below `CLOSE` times the bond is (Å) and how deep (eV)."""
    e = curve.energies
    end = int(np.searchsorted(curve.distances, curve.bond))
    found = []
    for n in range(1, int(np.searchsorted(curve.distances, CLOSE * curve.bond))):
        if e[n] <= e[n - 1] and e[n] <= e[n + 1]:
            depth = min(e[:n].max(), e[n + 1 : end + 1].max()) - e[n]
            found.append((float(curve.distances[n]), float(depth)))
    deepest = max(found, key=lambda at: at[1], default=None)
    return deepest if deepest is not None and deepest[1] > DEPTH_EV else None


def softest(curve: Curve) -> float | None:
    """Return the largest distance below `CLOSE` times the bond without a push; None if none."""
    inside = curve.distances < CLOSE * curve.bond
    # What is not a number does not push either.
    weak = curve.distances[inside & ~(curve.pushes > _PUSH_EV_A)]
    return float(weak.max()) if len(weak) else None


def holes(curves: Mapping[Pair, Curve]) -> Finding:
    """Look for minima where no atoms should be."""
    found = {pair_name(pair): at for pair, curve in curves.items() if (at := hole(curve))}
    said = [f"{name} at {r:.2f} Å, {depth:.2g} eV deep" for name, (r, depth) in found.items()]
    return Finding(
        some(said) or f"none in {len(curves)} pairs",
        {name: depth for name, (_, depth) in found.items()},
        _DEEPER_EV,
        {"pairs": len(curves), "holes": len(found)},
    )


def walls(curves: Mapping[Pair, Curve]) -> Finding:
    """Look whether atoms that are too close are pushed apart, at every distance."""
    found = {pair_name(pair): r for pair, c in curves.items() if (r := softest(c)) is not None}
    return Finding(
        some([f"{name} not at {r:.2f} Å" for name, r in found.items()])
        or f"all {len(curves)} pairs",
        found,
        _FARTHER_A,
        {"pairs": len(curves), "soft": len(found)},
    )
