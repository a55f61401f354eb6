"""Per-element energy references: the shift between two levels of theory."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from scipy.optimize import least_squares, linprog

from e3sparse.frames.reading import Array, Frame, elements_of
from e3sparse.frames.weights import counts_for

_FRAMES = 500
"""Of which the robust shifts are taken; more would not change them."""
_IMPOSSIBLE = 1e7
"""In eV/atom: ten times what binds all electrons of the heaviest atom."""
_TOLD, _LEAST_SPREAD, _PASSES = 0.05, 1e-7, 3
"""Compositions tell a shift if they vary along it by that share of their size; in eV/atom; how
often what is a bad frame is judged by what the fit before has left."""
_APART, _TIMES = 2.0, 20.0
"""A frame is off if it is so by more eV/atom, and by more times what the median frame is."""


def fit_references(
    frames: Sequence[Frame], predicted: Array, known: Mapping[int, float] = MappingProxyType({})
) -> dict[int, float]:
    """Fit one energy shift per element by least squares.

    Minimises Σ (E_ref − E_pred − Σ_Z n_Z s_Z)² over the frames whose energy counts. Where the
    frames cannot tell elements apart (one composition only), the smallest shifts that fit are
    taken. A single bad frame moves all of them: see `outlying`.

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
    labelled = [n for n, frame in enumerate(frames) if _counts_energy(frame)]
    if not labelled:
        return dict(known)
    some = [frames[n] for n in labelled]
    elements = sorted(elements_of(some) - known.keys())
    residual = np.array([f.energy - reference_energy(f, known) for f in some])
    residual = residual - np.asarray(predicted)[labelled]
    shifts, *_ = np.linalg.lstsq(_counts(some, elements), residual, rcond=None)
    return {**known, **{z: float(shift) for z, shift in zip(elements, shifts, strict=True)}}


def _counts_energy(frame: Frame) -> bool:
    return not np.isnan(frame.energy) and counts_for(frame, "energy")


def offsets_left(
    frames: Sequence[Frame], left: Array, fixed: Iterable[int] = ()
) -> dict[int, float]:
    """Fit the energy shift per element that is left between labels and a trained model.

    Minimises Σ H((e − Σ_Z n_Z s_Z)/N) over the frames that have an energy, H the Huber loss, which
    a bad frame moves little. Shifts along which the frames' compositions hardly differ would be
    noise, however large: of these the frames' least shifts are taken, as of one composition only.

    Parameters
    ----------
    frames
        Training frames.
    left
        (frames,) e, labels less predictions, in eV.
    fixed
        Atomic numbers of elements that get no shift.

    Returns
    -------
    dict
        Shift in eV by atomic number, of the elements that are not fixed.
    """
    elements = sorted(elements_of(frames) - set(fixed))
    atoms = np.array([len(frame.atoms) for frame in frames])
    target = np.asarray(left) / atoms
    known = np.isfinite(target) & np.array([counts_for(frame, "energy") for frame in frames])
    if not elements or not known.any():
        return {}
    share, target = (_counts(frames, elements) / atoms[:, None])[known], target[known]
    _, sizes, directions = np.linalg.svd(share, full_matrices=False)
    told = directions[sizes > _TOLD * sizes[0]] if sizes[0] > 0 else directions[:0]
    if not len(told):
        return {}
    shifts, left_over = np.zeros(len(elements)), target - np.median(target)
    for _ in range(_PASSES):
        scale = max(1.4826 * float(np.median(np.abs(left_over))), _LEAST_SPREAD)

        def off(c: Array, scale: float = scale) -> Array:
            residual: Array = (share @ (told.T @ c) - target) / scale
            return residual

        shifts = told.T @ least_squares(off, told @ shifts, loss="huber").x
        left_over = target - share @ shifts
    return {z: float(shift) for z, shift in zip(elements, shifts, strict=True)}


def robust_shifts(frames: Sequence[Frame], energies: Array) -> dict[int, float]:
    """Return the shifts of least absolute deviation per atom, which no single frame moves.

    Parameters
    ----------
    frames
        Which all have an energy.
    energies
        (frames,) in eV, that the shifts are to add up to.
    """
    elements = sorted(elements_of(frames))
    some = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _FRAMES)).astype(int))
    counts = _counts([frames[n] for n in some], elements)
    atoms = counts.sum(axis=1)
    # What is beyond all measure says no more than what is impossible, and has no place in a fit.
    target = np.clip(np.nan_to_num(energies[some] / atoms), -_IMPOSSIBLE, _IMPOSSIBLE)
    share = counts / atoms[:, None]
    middle = float(np.median(target))
    slack = np.eye(len(some))
    found = linprog(
        np.r_[np.zeros(len(elements)), np.ones(2 * len(some))],
        A_eq=np.hstack([share, slack, -slack]),
        b_eq=target - middle,
        bounds=[(None, None)] * len(elements) + [(0, None)] * (2 * len(some)),
    )
    shifts = found.x[: len(elements)] if found.success else np.zeros(len(elements))
    return {z: middle + float(shift) for z, shift in zip(elements, shifts, strict=True)}


def outlying(frames: Sequence[Frame], predicted: Array) -> dict[int, float]:
    """Return the frames whose energies no shift per element brings near to the base model.

    Parameters
    ----------
    frames
        Which all have an energy.
    predicted
        (frames,) energies of the base model in eV.

    Returns
    -------
    dict
        By the frame's position, how far its energy is from the others' shifts in eV/atom.
    """
    if len(frames) < 3:  # of two nobody can say which is wrong
        return {}
    off = np.array([frame.energy for frame in frames]) - predicted
    shifts = robust_shifts(frames, off)
    atoms = np.array([len(frame.atoms) for frame in frames])
    left = (off - [reference_energy(frame, shifts) for frame in frames]) / atoms
    bound = max(_APART, _TIMES * float(np.median(np.abs(left))))
    return {int(n): float(left[n]) for n in np.flatnonzero(~(np.abs(left) <= bound))}


def reference_energy(frame: Frame, references: Mapping[int, float]) -> float:
    """Return the sum of the references over the atoms of a frame, in eV."""
    return sum(references.get(int(z), 0.0) for z in frame.atoms.numbers)


def _counts(frames: Sequence[Frame], elements: Sequence[int]) -> Array:
    rows = [[np.sum(f.atoms.numbers == z) for z in elements] for f in frames]
    return np.array(rows, dtype=float).reshape(len(frames), len(elements))
