"""A null model of a pattern: the same fine-tuning on labels that belong to other frames."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from e3sparse.errors import DataError
from e3sparse.frames.reading import COMPUTED, LabelKeys, label_of


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
        If a frame is the only one of its composition or has no energy or forces, or frames of one
        composition do not carry the same labels.
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
    for members in groups.values():
        cycle = rng.permutation(members)
        for here, there in zip(cycle, np.roll(cycle, 1), strict=True):
            _take_labels(shuffled[here], frames[here], frames[there], keys)
    return shuffled


def _take_labels(new: Atoms, old: Atoms, other: Atoms, keys: LabelKeys) -> None:
    """Put the labels of `other` where `old` has its own."""
    here = np.argsort(old.numbers, kind="stable")
    there = np.argsort(other.numbers, kind="stable")
    computed = {}
    per_atom = (keys.forces, keys.moments, keys.magnetic_forces)
    for key in (keys.energy, keys.stress, *per_atom):
        own, label = label_of(old, key), label_of(other, key)
        if own is None and label is None and key not in (keys.energy, keys.forces):
            continue
        if own is None or label is None:
            raise DataError(
                f"Not every frame of {old.get_chemical_formula()} has the label '{key}'. Add it, "
                "or give the right names as keys."
            )
        values = label.copy()
        if key in per_atom:
            values[here] = label[there]
        if key in COMPUTED and old.calc is not None:
            computed[key] = values if values.shape else float(values)
        elif key in old.arrays:
            new.arrays[key] = values
        else:
            new.info[key] = values if values.shape else float(values)
    if computed:
        new.calc = SinglePointCalculator(new, **computed)
