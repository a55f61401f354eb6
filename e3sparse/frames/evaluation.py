"""Errors of a potential on labelled frames."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from ase.data import chemical_symbols

from e3sparse.frames.batches import FrameDataset, loader
from e3sparse.frames.reading import Array, Frame
from e3sparse.frames.references import reference_energy
from e3sparse.potentials.backends import Potential
from e3sparse.potentials.quantities import (
    QUANTITIES,
    Quantity,
    record_values,
    value_of,
    values_of,
)
from e3sparse.potentials.single_points import by_structure
from e3sparse.potentials.spins import MAGNETIC

MEV = 1000.0
PERIODICITY = ("no cell", "wire", "slab", "crystal")
"""What a frame is by its number of periodic directions."""
_WORSE, _LEAST = 1.02, 1e-3
"""A label got worse if its error grew by more than this factor, and to more than this."""


@dataclass(frozen=True)
class Predictions:
    """What a potential says of some frames; units as `e3sparse.potentials.quantities` has them.

    Attributes
    ----------
    energy
        (frames,) in eV.
    forces, stress, moments, magnetic_forces
        Of each frame, None where there is none.
    others
        Further quantities of each frame, by name.
    """

    energy: Array  # (frames,)
    forces: list[Array]  # (atoms, 3) each
    stress: list[Array | None]  # (3, 3) each
    moments: list[Array | None]  # (atoms, 3) each
    magnetic_forces: list[Array | None]  # (atoms, 3) each, eV per radian
    others: Mapping[str, list[Array | None]] = field(default_factory=dict)

    def shifted(self, frames: Sequence[Frame], references: Mapping[int, float]) -> "Predictions":
        """Return those of the same model with other energy references: these added, in eV."""
        offsets = np.array([reference_energy(frame, references) for frame in frames])
        return replace(self, energy=self.energy + offsets)

    def of(self, numbers: Sequence[int]) -> "Predictions":
        """Return those for some of the frames."""
        some = {name: [values[n] for n in numbers] for name, values in values_of(self).items()}
        return Predictions(**record_values(some | {"energy": self.energy[list(numbers)]}))


def predict(
    potential: Potential,
    frames: Sequence[Frame],
    batch_size: int = 16,
    *,
    done: Callable[[int], object] | None = None,
) -> Predictions:
    """Evaluate a potential on frames, labels unused.

    Parameters
    ----------
    potential, frames
        What is evaluated on what.
    batch_size
        Frames at a time.
    done
        Is told after each batch how many frames were in it.
    """
    potential.module.eval()
    found: list[dict[str, Array]] = []
    for batch in loader(FrameDataset(frames, potential, {}), potential, batch_size):
        out = potential.forward(batch.inputs.to(potential.device))
        found += by_structure(out, batch.atoms.tolist())
        if done is not None:
            done(len(batch.atoms))
    values: dict[str, Any] = {name: [of.get(name) for of in found] for name in QUANTITIES}
    return Predictions(**record_values(values | {"energy": np.array(values["energy"])}))


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
        Of each quantity that has labels `<name>_mae` and `<name>_rmse`, in the unit of its
        description: `energy_*` in meV/atom, `forces_*` in meV/Å, `stress_*` in meV/Å³,
        `magnetic_forces_*` in meV/rad; `forces_mae_<symbol>` per element; and of the
        moments of magnetic models what `moment_errors` returns.
    """
    return {n: value for n, (value, _) in counted_errors(frames, predicted, references).items()}


def counted_errors(
    frames: Sequence[Frame], predicted: Predictions, references: dict[int, float] | None = None
) -> dict[str, tuple[float, int]]:
    """Return `errors`, each with the number of values that it is the mean of."""
    offsets = np.array([reference_energy(f, references or {}) for f in frames])
    shifted = replace(predicted, energy=predicted.energy + offsets)
    out: dict[str, tuple[float, int]] = {}
    for quantity in QUANTITIES.values():
        values = value_of(shifted, quantity.name)
        if values is not None:
            out |= _errors_of(quantity, frames, values)
    return out


def joined_errors(parts: Iterable[Mapping[str, tuple[float, int]]]) -> dict[str, float]:
    """Return the errors of all frames together from the `counted_errors` of parts of them."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for part in parts:
        for name, (value, count) in part.items():
            power = 2 if name.endswith("_rmse") else 1
            sums[name] = sums.get(name, 0.0) + count * value**power
            counts[name] = counts.get(name, 0) + count
    means = {name: sums[name] / counts[name] for name in sums}
    return {n: mean**0.5 if n.endswith("_rmse") else mean for n, mean in means.items()}


def _errors_of(
    quantity: Quantity, frames: Sequence[Frame], values: Sequence[Array | None]
) -> dict[str, tuple[float, int]]:
    """Return the errors of one quantity, none where nothing is labelled."""
    labels = [value_of(frame, quantity.name) for frame in frames]
    both = [n for n in range(len(frames)) if values[n] is not None and labels[n] is not None]
    if not both:
        return {}
    rows = np.concatenate if quantity.per_atom else np.stack
    found = rows([np.asarray(values[n]) for n in both])
    wanted = rows([np.asarray(labels[n]) for n in both])
    numbers = np.concatenate([frames[n].atoms.numbers for n in both])
    if quantity.error == "moments":
        # A mean over half of the atoms would be taken for one over all of them.
        if len(both) < len(frames):
            return {}
        counts = {f"moments_mae_{chemical_symbols[z]}": int(n) for z, n in Counter(numbers).items()}
        counts["sign_errors"] = int((np.linalg.norm(wanted, axis=1) > MAGNETIC).sum())
        made = moment_errors(numbers, found, wanted)
        return {name: (value, counts.get(name, len(numbers))) for name, value in made.items()}
    off = found - wanted
    if quantity.error_per_atom:
        atoms = np.array([len(frames[n].atoms) for n in both])
        off = (off.T / atoms).T
    known = ~np.isnan(wanted).reshape(len(wanted), -1).any(axis=1)
    if not known.any():
        return {}
    out = _mae_rmse(quantity, off[known])
    for z in np.unique(numbers[known]) if quantity.by_element else ():
        of_element = off[known & (numbers == z)]
        mean = float(np.abs(of_element).mean() * quantity.error_scale)
        out[f"{quantity.name}_mae_{chemical_symbols[z]}"] = mean, of_element.size
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


def _mae_rmse(quantity: Quantity, off: Array) -> dict[str, tuple[float, int]]:
    mean, root = float(np.abs(off).mean()), float(np.sqrt(np.square(off).mean()))
    return {
        f"{quantity.name}_mae": (mean * quantity.error_scale, off.size),
        f"{quantity.name}_rmse": (root * quantity.error_scale, off.size),
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
    for name, quantity in QUANTITIES.items():
        was, now = before.get(f"{name}_mae"), after.get(f"{name}_mae")
        if was is None or now is None:
            continue
        slack = 1.0 if name == "forces" else _WORSE
        if not now <= was * slack and not now <= _LEAST:
            label, unit = quantity.title, quantity.unit_of_error
            verb = "are" if label.endswith("s") and label != "stress" else "is"
            were = "were" if verb == "are" else "was"
            said.append(
                f"{where} {label} {verb} off by {now:.4g} {unit}, and {were} by {was:.4g} before."
            )
    return said


def error_table(rows: dict[str, dict[str, float]]) -> pd.DataFrame:
    """Return one row per name, with the columns that any of them has."""
    return pd.DataFrame.from_dict(rows, orient="index")
