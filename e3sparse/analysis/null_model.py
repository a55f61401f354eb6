"""A null model of a pattern: the same fine-tuning on labels that belong to other frames."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from ase import Atoms

from e3sparse.errors import DataError
from e3sparse.training.frames import LabelKeys


def shuffle_labels(
    frames: Sequence[Atoms], *, seed: int = 0, keys: LabelKeys | None = None
) -> list[Atoms]:
    """Deal the labels out anew among frames of the same composition.

    What is left for a fine-tuning to find is everything but the physics: the structures and
    elements, the distribution of the labels, the architecture and the optimizer. A pattern of
    change that a run on these labels shows too says nothing about the physics.

    Parameters
    ----------
    frames
        Labelled frames.
    seed
        Another seed deals otherwise.
    keys
        Names of the labels.

    Returns
    -------
    list of Atoms
        Copies in the same order. No frame keeps its own labels: within each composition they go
        round a random cycle. The forces of the k-th atom of an element become those of the k-th
        atom of that element in the other frame.

    Raises
    ------
    DataError
        If a frame is the only one of its composition, or frames of one composition do not carry
        the same labels.
    """
    keys = keys or LabelKeys()
    groups: dict[str, list[int]] = defaultdict(list)
    for number, atoms in enumerate(frames):
        groups[atoms.get_chemical_formula()].append(number)
    alone = [formula for formula, members in groups.items() if len(members) == 1]
    if alone:
        raise DataError(
            f"{', '.join(alone)}: only one frame has this composition, so its labels cannot be "
            "exchanged. Leave it out, or add frames of the same composition."
        )
    rng = np.random.default_rng(seed)
    shuffled = [atoms.copy() for atoms in frames]
    for formula, members in groups.items():
        cycle = rng.permutation(members)
        for here, there in zip(cycle, np.roll(cycle, 1), strict=True):
            _take_labels(shuffled[here], frames[there], keys, formula)
    return shuffled


def _take_labels(atoms: Atoms, other: Atoms, keys: LabelKeys, formula: str) -> None:
    here = np.argsort(atoms.numbers, kind="stable")
    there = np.argsort(other.numbers, kind="stable")
    for key in (keys.energy, keys.stress, keys.forces, keys.moments):
        own, foreign = (key in a.info or key in a.arrays for a in (atoms, other))
        if own != foreign:
            raise DataError(f"Only some of the frames of {formula} have the label '{key}'.")
        if key in other.info:
            atoms.info[key] = other.info[key]
        elif own:
            values = np.empty_like(other.arrays[key])
            values[here] = other.arrays[key][there]
            atoms.arrays[key] = values
