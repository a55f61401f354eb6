"""Errors of a potential on labelled frames."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from ase.data import chemical_symbols

from e3sparse.backends import Potential
from e3sparse.spins import MAGNETIC
from e3sparse.training.data import FrameDataset, loader
from e3sparse.training.frames import Array, Frame
from e3sparse.training.references import reference_energy

MEV = 1000.0


@dataclass(frozen=True)
class Predictions:
    """Energies (eV), forces (eV/Å), stresses (eV/Å³) and magnetic moments (μ_B) for some frames."""

    energy: Array  # (frames,)
    forces: list[Array]  # (atoms, 3) each
    stress: list[Array | None]  # (3, 3) each
    moments: list[Array | None]  # (atoms, 3) each
    magnetic_forces: list[Array | None]  # (atoms, 3) each, eV per radian


def predict(potential: Potential, frames: Sequence[Frame], batch_size: int = 16) -> Predictions:
    """Evaluate a potential on frames, labels unused."""
    potential.module.eval()
    energies: list[Array] = []
    forces: list[Array] = []
    stresses: list[Array | None] = []
    moments: list[Array | None] = []
    turning: list[Array | None] = []
    for batch in loader(FrameDataset(frames, potential, {}), potential, batch_size):
        out = potential.forward(batch.inputs.to(potential.device))
        energies.append(out.energy.detach().cpu().double().numpy())
        splits = np.cumsum(batch.atoms.numpy())[:-1]
        forces += np.split(out.forces.detach().cpu().double().numpy(), splits)
        if out.stress is None:
            stresses += [None] * len(batch.atoms)
        else:
            stresses += list(out.stress.detach().cpu().double().numpy())
        for found, into in ((out.moments, moments), (out.magnetic_forces, turning)):
            if found is None:
                into += [None] * len(batch.atoms)
            else:
                into += np.split(found.detach().cpu().double().numpy(), splits)
    return Predictions(np.concatenate(energies), forces, stresses, moments, turning)


def errors(
    frames: Sequence[Frame], predicted: Predictions, references: dict[int, float] | None = None
) -> dict[str, float]:
    """Return mean absolute and root mean square errors.

    Parameters
    ----------
    frames, predicted
        Labels and what the potential says.
    references
        Per-element shifts in eV that are added to the predicted energies.

    Returns
    -------
    dict
        `energy_*` in meV/atom, `forces_*` in meV/Å, `stress_*` in meV/Å³ (where there are
        labels), `forces_mae_<symbol>` per element, and of magnetic models what `moment_errors`
        returns and `magnetic_forces_*` in meV per radian.
    """
    offsets = np.array([reference_energy(f, references or {}) for f in frames])
    labels = np.array([frame.energy for frame in frames])
    atoms = np.array([len(frame.atoms) for frame in frames])
    out = _mae_rmse("energy", (predicted.energy + offsets - labels) / atoms)
    off = np.concatenate([p - f.forces for f, p in zip(frames, predicted.forces, strict=True)])
    out |= _mae_rmse("forces", off)
    numbers = np.concatenate([frame.atoms.numbers for frame in frames])
    for z in np.unique(numbers):
        out[f"forces_mae_{chemical_symbols[z]}"] = float(np.abs(off[numbers == z]).mean() * MEV)
    stress = [
        p - f.stress
        for f, p in zip(frames, predicted.stress, strict=True)
        if f.stress is not None and p is not None
    ]
    if stress:
        out |= _mae_rmse("stress", np.stack(stress))
    pairs = [
        (p, f.moments)
        for f, p in zip(frames, predicted.moments, strict=True)
        if f.moments is not None and p is not None
    ]
    if len(pairs) == len(frames):
        found, wanted = (np.concatenate(side) for side in zip(*pairs, strict=True))
        out |= moment_errors(numbers, found, wanted)
    turning = [
        p - f.magnetic_forces
        for f, p in zip(frames, predicted.magnetic_forces, strict=True)
        if f.magnetic_forces is not None and p is not None
    ]
    of_spins = [off[np.isfinite(off)] for off in turning]
    if any(len(off) for off in of_spins):
        out |= _mae_rmse("magnetic_forces", np.concatenate(of_spins))
    return out


def moment_errors(numbers: Array, found: Array, wanted: Array) -> dict[str, float]:
    """Return errors of magnetic moments.

    Parameters
    ----------
    numbers
        (N,) atomic numbers.
    found, wanted
        (N, 3) in μ_B.

    Returns
    -------
    dict
        `moments_mae`, the mean length of the difference vector in μ_B, all in all and per element;
        `magnitude_mae`, of the lengths; `sign_errors`, the share of atoms of more than 0.1 μ_B
        whose moment points into the wrong half-space.
    """
    off = np.linalg.norm(found - wanted, axis=1)
    length = np.linalg.norm(wanted, axis=1)
    out = {
        "moments_mae": float(off.mean()),
        "magnitude_mae": float(np.abs(np.linalg.norm(found, axis=1) - length).mean()),
    }
    magnetic = length > MAGNETIC
    if magnetic.any():
        along = (found * wanted).sum(axis=1)[magnetic]
        out["sign_errors"] = float((along < 0).mean())
    for z in np.unique(numbers):
        out[f"moments_mae_{chemical_symbols[z]}"] = float(off[numbers == z].mean())
    return out


def _mae_rmse(name: str, off: Array) -> dict[str, float]:
    return {
        f"{name}_mae": float(np.abs(off).mean() * MEV),
        f"{name}_rmse": float(np.sqrt(np.square(off).mean()) * MEV),
    }


def setback(rows: dict[str, dict[str, float]], lr: float) -> str | None:
    """Return a sentence if training at rate `lr` has made forces of validation frames worse."""
    before, after = (rows[f"valid {when}"]["forces_mae"] for when in ("before", "after"))
    if after <= before:
        return None
    return (
        f"On the validation frames forces are off by {after:.4g} meV/Å, and were by {before:.4g} "
        f"before. If they matter here, give a lower --lr than {lr:g}; metrics.csv shows where it "
        "began."
    )


def error_table(rows: dict[str, dict[str, float]]) -> pd.DataFrame:
    """Return one row per name, with the columns that any of them has."""
    return pd.DataFrame.from_dict(rows, orient="index")
