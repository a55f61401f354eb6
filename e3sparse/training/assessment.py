"""The errors of a potential on the labelled frames of a file, and what is to be said of them."""

from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from e3sparse.frames.evaluation import counted_errors, joined_errors, predict
from e3sparse.frames.label_keys import LabelKeys
from e3sparse.frames.on_disk import IN_MEMORY, FramesOnDisk, read_set, sample, without
from e3sparse.frames.reading import Reading
from e3sparse.frames.references import fit_references
from e3sparse.potentials.backends import Potential
from e3sparse.training.plausibility import doubts, faulty_frames, other_units, said
from e3sparse.training.waiting import bar, predict_with_bar

EXAMINED = 2000
"""Frames of a set on disk that are looked at for what is strange, and that references are of."""
_AT_A_TIME = 1000


class Assessment(NamedTuple):
    """What was found.

    Attributes
    ----------
    errors
        As `e3sparse.frames.evaluation.errors` returns them.
    reading
        The file, with notes on what is strange of it too.
    """

    errors: dict[str, float]
    reading: Reading


def assess(
    potential: Potential,
    path: str | Path,
    keys: LabelKeys,
    *,
    fit: bool,
    skip_faulty: bool,
    console: Console,
    in_memory: int = IN_MEMORY,
) -> Assessment:
    """Read a file and evaluate a potential on it; frames on disk are never held all at once.

    Parameters
    ----------
    potential, path, keys
        What is evaluated, on what, and what its labels are called.
    fit
        Whether a shift per element is fitted to the file's energies first.
    skip_faulty
        Whether frames that cannot be used, or are nothing like the rest, are left out.
    console
        Where progress is shown.
    in_memory
        Frames that are held in memory at most, where the file can be left on disk.

    Raises
    ------
    DataError
        As `read_file` does.
    """
    reading = read_set(
        path,
        keys,
        known=potential.species.numbers,
        cutoff=potential.cutoff,
        magnetic=potential.magnetic,
        skip_faulty=skip_faulty,
        in_memory=in_memory,
    )
    frames, notes = reading.frames, list(reading.notes)
    some = sample(frames, EXAMINED, seed=0)
    predicted = predict_with_bar(potential, some, f"Evaluating {path}", console)
    faults = faulty_frames(some, predicted)
    if faults:
        fate = "Left out" if skip_faulty else "Frames that are nothing like the rest"
        notes.append(f"{fate}: {said(some, faults)}")
    if faults and skip_faulty:
        left = sorted(set(range(len(some))) - {fault.number for fault in faults})
        frames = without(frames, {some[fault.number].where for fault in faults})
        some, predicted = [some[n] for n in left], predicted.of(left)
    odd = other_units(some, predicted) + doubts(some, predicted)
    notes += [f"{path}: {sentence}" for sentence in odd]
    references = fit_references(some, predicted.energy) if fit else {}
    if isinstance(frames, FramesOnDisk):
        if len(some) < len(frames):
            shifts = " and shifts are" if fit else " is"
            notes.append(
                f"{path}: errors are of all {len(frames):,} frames; what is said of units and "
                f"faults{shifts} of {len(some):,} of them, drawn at random."
            )
        found = _in_parts(potential, frames, references, f"Evaluating all of {path}", console)
    else:
        found = joined_errors([counted_errors(some, predicted, references)])
    return Assessment(found, reading._replace(notes=notes))


def _in_parts(
    potential: Potential,
    frames: FramesOnDisk,
    references: dict[int, float],
    what: str,
    console: Console,
) -> dict[str, float]:
    parts = []
    with bar(what, len(frames), console) as advance:
        for start in range(0, len(frames), _AT_A_TIME):
            some = list(frames[start : start + _AT_A_TIME])
            predicted = predict(potential, some, done=advance)
            parts.append(counted_errors(some, predicted, references))
    return joined_errors(parts)
