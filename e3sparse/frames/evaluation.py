"""Errors of a potential on labelled frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from ase.data import chemical_symbols

from e3sparse.frames.batches import FrameDataset, loader
from e3sparse.frames.reading import Array, Frame
from e3sparse.frames.references import reference_energy
from e3sparse.potentials.backends import Potential
from e3sparse.potentials.spins import MAGNETIC

MEV = 1000.0
PERIODICITY = ("no cell", "wire", "slab", "crystal")
"""What a frame is by its number of periodic directions."""
_LABELS = {
    "energy": "meV/atom",
    "forces": "meV/Å",
    "stress": "meV/Å³",
    "moments": "μ_B",
    "magnetic_forces": "meV per radian",
}
_WORSE, _LEAST = 1.02, 1e-3
"""A label got worse if its error grew by more than this factor, and to more than this."""


@dataclass(frozen=True)
class Predictions:
    """Energies (eV), forces (eV/Å), stresses (eV/Å³) and magnetic moments (μ_B) for some frames."""

    energy: Array  # (frames,)
    forces: list[Array]  # (atoms, 3) each
    stress: list[Array | None]  # (3, 3) each
    moments: list[Array | None]  # (atoms, 3) each
    magnetic_forces: list[Array | None]  # (atoms, 3) each, eV per radian

    def shifted(self, frames: Sequence[Frame], references: Mapping[int, float]) -> "Predictions":
        """Return those of the same model with other energy references: these added, in eV."""
        offsets = np.array([reference_energy(frame, references) for frame in frames])
        return replace(self, energy=self.energy + offsets)

    def of(self, numbers: Sequence[int]) -> "Predictions":
        """Return those for some of the frames."""

        def some(values: list[Any]) -> list[Any]:
            return [values[n] for n in numbers]

        return Predictions(
            self.energy[list(numbers)],
            some(self.forces),
            some(self.stress),
            some(self.moments),
            some(self.magnetic_forces),
        )


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
        `energy_*` in meV/atom, `forces_*` in meV/Å, `stress_*` in meV/Å³ (each where there are
        labels), `forces_mae_<symbol>` per element, and of magnetic models what `moment_errors`
        returns and `magnetic_forces_*` in meV per radian.
    """
    offsets = np.array([reference_energy(f, references or {}) for f in frames])
    labels = np.array([frame.energy for frame in frames])
    atoms = np.array([len(frame.atoms) for frame in frames])
    known = ~np.isnan(labels)
    out: dict[str, float] = {}
    if known.any():
        out |= _mae_rmse("energy", ((predicted.energy + offsets - labels) / atoms)[known])
    off = np.concatenate([p - f.forces for f, p in zip(frames, predicted.forces, strict=True)])
    numbers = np.concatenate([frame.atoms.numbers for frame in frames])
    labelled = ~np.isnan(np.concatenate([f.forces for f in frames])).any(axis=1)
    if labelled.any():
        out |= _mae_rmse("forces", off[labelled])
    for z in np.unique(numbers[labelled]):
        of_element = off[labelled & (numbers == z)]
        out[f"forces_mae_{chemical_symbols[z]}"] = float(np.abs(of_element).mean() * MEV)
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


def kind_of(frame: Frame) -> str:
    """Return what a frame is by its number of periodic directions."""
    return PERIODICITY[int(frame.atoms.pbc.sum())]


def by_kind(
    frames: Sequence[Frame], before: Predictions, after: Predictions, references: dict[int, float]
) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    """Return `errors` before and after, of each kind of frame where there are several."""
    kinds = [kind_of(frame) for frame in frames]
    if len(set(kinds)) == 1:
        return {}
    found = {}
    for kind in sorted(set(kinds)):
        part = [n for n, of in enumerate(kinds) if of == kind]
        some = [frames[n] for n in part]
        found[kind] = (
            errors(some, before.of(part), references),
            errors(some, after.of(part), references),
        )
    return found


def setback(
    rows: dict[str, dict[str, float]],
    lr: float,
    kinds: Mapping[str, tuple[dict[str, float], dict[str, float]]] = MappingProxyType({}),
) -> str | None:
    """Return a sentence if training at rate `lr` has made labels of validation frames worse.

    Parameters
    ----------
    rows
        Errors, `"valid before"` and `"valid after"` among them.
    kinds
        The same by kind of frame: see `by_kind`.
    """
    said = _worse(rows["valid before"], rows["valid after"], "On the validation frames")
    for kind, (before, after) in kinds.items():
        said += _worse(before, after, f"On those of kind '{kind}'")
    if not said:
        return None
    return " ".join(said) + (
        f" If they matter here, give a lower --lr than {lr:g}; metrics.csv shows where it began."
    )


def _worse(before: dict[str, float], after: dict[str, float], where: str) -> list[str]:
    said = []
    for name, unit in _LABELS.items():
        was, now = before.get(f"{name}_mae"), after.get(f"{name}_mae")
        if was is None or now is None:
            continue
        slack = 1.0 if name == "forces" else _WORSE
        if not now <= was * slack and not now <= _LEAST:
            label = name.replace("_", " ")
            verb = "are" if label.endswith("s") and label != "stress" else "is"
            were = "were" if verb == "are" else "was"
            said.append(
                f"{where} {label} {verb} off by {now:.4g} {unit}, and {were} by {was:.4g} before."
            )
    return said


def error_table(rows: dict[str, dict[str, float]]) -> pd.DataFrame:
    """Return one row per name, with the columns that any of them has."""
    return pd.DataFrame.from_dict(rows, orient="index")
