"""The zero of energy of a run: references that are fitted, taken from isolated atoms, or kept."""

from collections.abc import Sequence

import numpy as np
from ase.data import chemical_symbols

from e3sparse.backends import Potential
from e3sparse.errors import DataError
from e3sparse.training.config import FinetuneConfig
from e3sparse.training.evaluation import Predictions, errors, predict
from e3sparse.training.frames import Frame
from e3sparse.training.references import fit_references


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
        the base model can evaluate.
    """
    if _fits_references(config):
        known = _shifts_of_isolated(config, potential, isolated)
        return fit_references(frames, predicted.energy, known)
    off = errors(frames, predicted)["energy_mae"]
    if off > 1000.0:
        raise DataError(
            f"With --e0s keep the base model's energies are off by {off / 1000:.1f} eV/atom on "
            f"{config.train}: the labels have another zero of energy. Use --e0s fit."
        )
    return {}


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
