"""The zero of energy of a run: references that are fitted, taken from isolated atoms, or kept."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from ase.data import chemical_symbols

from e3sparse.errors import DataError
from e3sparse.frames.evaluation import MEV, Predictions, errors, predict
from e3sparse.frames.reading import Array, Frame
from e3sparse.frames.references import fit_references, offsets_left, reference_energy
from e3sparse.potentials.backends import Potential
from e3sparse.training.config import FinetuneConfig

_CONTRADICTION, _TIMES = 5.0, 5.0
"""Isolated atoms are refused if energies are off by that many eV/atom with them, and by that many
times less without."""


_DIGITS = 1.0
"""In meV/atom: what the precision of a model may do to its energies without a word."""


def _fits_references(config: FinetuneConfig) -> bool:
    return config.e0s == "fit" or config.method == "scratch"


def choose_references(
    config: FinetuneConfig,
    potential: Potential,
    frames: Sequence[Frame],
    predicted: Predictions,
    isolated: dict[int, Frame],
) -> dict[int, float]:
    """Return the energy shift of each element that the settings ask for, in eV.

    Parameters
    ----------
    frames, isolated
        Of the training file.
    predicted
        What the base model says of `frames`.

    Raises
    ------
    DataError
        If references are to be kept that cannot be the labels', or an isolated atom is none that
        the base model can evaluate, or has another zero of energy than the other frames.
    """
    if _fits_references(config):
        known = _shifts_of_isolated(config, potential, isolated)
        if config.method != "scratch":  # random weights say nothing of energies
            _check_isolated(frames, predicted, isolated, known)
        return fit_references(frames, predicted.energy, known)
    off = errors(frames, predicted).get("energy_mae", 0.0)
    if off > 1000.0:
        raise DataError(
            f"With --e0s keep the base model's energies are off by {off / 1000:.1f} eV/atom on "
            f"{config.train}: the labels have another zero of energy. Use --e0s fit."
        )
    return {}


def _check_isolated(
    frames: Sequence[Frame],
    predicted: Predictions,
    isolated: dict[int, Frame],
    shifts: dict[int, float],
) -> None:
    """Refuse an isolated atom that contradicts all other frames."""

    def off(known: dict[int, float]) -> float:
        return errors(frames, predicted, fit_references(frames, predicted.energy, known)).get(
            "energy_mae", 0.0
        )

    with_all = off(shifts)
    if not with_all > MEV * _CONTRADICTION:
        return
    without = {z: off({k: v for k, v in shifts.items() if k != z}) for z in shifts}
    worst = min(without, key=lambda z: without[z])
    rest = {k: v for k, v in shifts.items() if k != worst}
    if off({}) > with_all / _TIMES:
        return  # the base model is that far off whatever the zero of energy is
    fitted = fit_references(frames, predicted.energy, rest)[worst]
    atom = isolated[worst]
    raise DataError(
        f"{atom.where}, an isolated {chemical_symbols[worst]} atom, has an energy of "
        f"{atom.energy:.6g} eV, but the other frames ask for "
        f"{atom.energy - shifts[worst] + fitted:.6g} eV: with its own the base model is off by "
        f"{with_all / MEV:.3g} eV/atom, without by {without[worst] / MEV:.3g}. It has another zero "
        "of energy. Give its energy by the same method as that of the other frames, or remove it: "
        "the shift is then fitted on them."
    )


def _shifts_of_isolated(
    config: FinetuneConfig, potential: Potential, isolated: dict[int, Frame]
) -> dict[int, float]:
    if not isolated:
        return {}
    predicted = predict(potential, list(isolated.values())).energy
    shifts = {}
    for (number, frame), energy in zip(isolated.items(), predicted, strict=True):
        if not np.isfinite(energy):
            raise DataError(
                f"The base model gives an isolated {chemical_symbols[number]} atom an energy of "
                f"{energy}, so the one in {config.train} cannot be its reference. Remove that "
                "frame: the shift is then fitted on the others."
            )
        shifts[number] = frame.energy - float(energy)
    return shifts


def shifts_after(
    config: FinetuneConfig,
    frames: Sequence[Frame],
    predicted: Predictions,
    references: Mapping[int, float],
    isolated: Mapping[int, Frame],
) -> dict[int, float]:
    """Return what training has left to add to the references of each element, in eV.

    Energies are an offset and a shape, and a training that follows forces moves the offset about.
    Nothing is added for elements that have an isolated atom, whose label is their reference.

    Parameters
    ----------
    frames, predicted, isolated
        Of the training file; predicted by the trained model.
    references
        With which it was trained.
    """
    if not (config.refit_e0s and _fits_references(config)):
        return {}
    labels = np.array([f.energy - reference_energy(f, references) for f in frames])
    return offsets_left(frames, labels - predicted.energy, isolated)


def said_of_shifts_after(shifts: Mapping[int, float], before: float, after: float) -> str:
    """Return the sentence that says what has been added after training, and what it is worth.

    Parameters
    ----------
    before, after
        Energy MAE on the training frames in meV/atom without and with the shifts.
    """
    parts = [f"{chemical_symbols[z]} {MEV * shift:+.3g}" for z, shift in sorted(shifts.items())]
    return (
        f"References fitted once more after training, in meV/atom: {', '.join(parts)}. Energies "
        f"are off by {after:.3g} meV/atom on train, and were by {before:.3g} without."
    )


def said_of_digits(
    potential: Potential, frames: Sequence[Frame], predicted: Array, references: Mapping[int, float]
) -> str | None:
    """Return a sentence if a model with its references has not the digits for such energies.

    Parameters
    ----------
    potential
        With its references.
    frames, predicted
        What it said without them, in eV.
    """
    wanted = predicted + [reference_energy(frame, references) for frame in frames]
    off = np.abs(predict(potential, frames).energy - wanted) / [len(f.atoms) for f in frames]
    if not off.max() * MEV > _DIGITS:
        return None
    return (
        f"Energies of the written model are off by up to {off.max() * MEV:.3g} meV/atom more than "
        f"the table says: energies of {np.abs(wanted).max():.3g} eV have more digits than "
        f"{str(potential.dtype).removeprefix('torch.')} holds. --dtype float64 keeps them; or "
        "subtract the energies of free atoms from the labels."
    )


def said_of_references(references: dict[int, float], isolated: dict[int, Frame]) -> str:
    """Return the sentence that says what is added to the base model's energies, and why."""
    parts = [
        f"{chemical_symbols[z]} {shift:+.4g} ({'isolated atom' if z in isolated else 'fitted'})"
        for z, shift in sorted(references.items())
    ]
    return f"Energy shifts in eV/atom: {', '.join(parts)}" if parts else "Energy shifts: none"


def source_of_references(
    config: FinetuneConfig, split: str, isolated: Collection[int], elements: Collection[int]
) -> str:
    """Return how the zeros of energy of a file are got, by element.

    Parameters
    ----------
    isolated, elements
        Atomic numbers of the isolated atoms of the file, and of its frames.
    """
    if not _fits_references(config):
        return "the base model's"
    if split != "train":
        return "as for train"
    symbols = {
        "isolated atom": [chemical_symbols[z] for z in sorted(isolated)],
        "fitted": [chemical_symbols[z] for z in sorted(set(elements) - set(isolated))],
    }
    return "\n".join(f"{how}: {' '.join(of)}" for how, of in symbols.items() if of)


def unused_isolated(config: FinetuneConfig, split: str, isolated: Collection[int]) -> list[str]:
    """Return what is said of isolated atoms that set no reference."""
    if not isolated or (split == "train" and _fits_references(config)):
        return []
    why = "those of train count" if _fits_references(config) else "--e0s keep"
    return [f"isolated atoms: {why}"]


def fate_of_isolated(config: FinetuneConfig, split: str, isolated: dict[int, Frame]) -> str:
    """Return the sentence that says what becomes of the isolated atoms of a file."""
    if split != "train":
        fate = "left out"
    elif _fits_references(config):
        fate = "their labels set the energy references"
    else:
        fate = "not used (--e0s keep)"
    symbols = ", ".join(chemical_symbols[z] for z in sorted(isolated))
    return f"Isolated atoms in {getattr(config, split)} ({symbols}): {fate}"
