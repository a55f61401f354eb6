"""Per-element energy references: the shift between two levels of theory."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from e3sparse.training.frames import Array, Frame, elements_of


def fit_references(
    frames: Sequence[Frame], predicted: Array, known: Mapping[int, float] = MappingProxyType({})
) -> dict[int, float]:
    """Fit one energy shift per element by least squares.

    Minimises Σ (E_ref − E_pred − Σ_Z n_Z s_Z)² over the frames. Where the frames cannot tell
    elements apart (one composition only), the smallest shifts that fit are taken.

    Parameters
    ----------
    frames
        Training frames.
    predicted
        Energies of the base model for them, in eV.
    known
        Shifts in eV by atomic number that are not fitted, such as those of isolated atoms.

    Returns
    -------
    dict
        Shift in eV by atomic number: `known`, and those of the other elements that occur.
    """
    elements = sorted(elements_of(frames) - known.keys())
    counts = np.array([[np.sum(f.atoms.numbers == z) for z in elements] for f in frames])
    residual = np.array([f.energy - reference_energy(f, known) for f in frames]) - predicted
    shifts, *_ = np.linalg.lstsq(counts.astype(float), residual, rcond=None)
    return {**known, **{z: float(shift) for z, shift in zip(elements, shifts, strict=True)}}


def reference_energy(frame: Frame, references: Mapping[int, float]) -> float:
    """Return the sum of the references over the atoms of a frame, in eV."""
    return sum(references.get(int(z), 0.0) for z in frame.atoms.numbers)
