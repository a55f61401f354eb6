"""What a run says of its files before it trains, and what it refuses to train on."""

from collections.abc import Mapping, Sequence

import numpy as np
from ase.data import chemical_symbols
from rich.console import Console
from rich.table import Table

from e3sparse.errors import DataError
from e3sparse.frames.evaluation import PERIODICITY, Predictions
from e3sparse.frames.facts import facts_of
from e3sparse.frames.reading import Frame
from e3sparse.training.config import FinetuneConfig
from e3sparse.training.plausibility import doubts, faulty_frames, other_units, said


def what_was_read(splits: Mapping[str, Sequence[Frame]]) -> Table:
    """Return a table of frames, elements, periodicity and labels of each split."""
    table = Table("", "frames", "atoms", "elements", "kinds", "energies", "forces", "stresses")
    for name, frames in splits.items():
        facts = facts_of(frames)
        kinds = [PERIODICITY[n] for n in facts.periodic]
        table.add_row(
            name,
            str(len(frames)),
            f"{facts.atoms.sum():,}",
            " ".join(chemical_symbols[z] for z in sorted(facts.there)),
            ", ".join(f"{kinds.count(kind)} {kind}" for kind in PERIODICITY if kind in kinds),
            str((~np.isnan(facts.energy)).sum()),
            str(facts.forces.sum()),
            str(facts.stress.sum()),
        )
    return table


def examined(
    config: FinetuneConfig,
    splits: Mapping[str, list[Frame]],
    predicted: Mapping[str, Predictions],
    console: Console,
) -> tuple[dict[str, list[Frame]], dict[str, Predictions]]:
    """Return the frames that can be meant, and what the base model says of them.

    Raises
    ------
    DataError
        If frames are nothing like the rest and `skip_faulty` is not set, nothing is left without
        them, or labels of the training frames agree with the base model in another unit only.
    """
    kept, still = dict(splits), dict(predicted)
    for name, frames in splits.items():
        faults = faulty_frames(frames, predicted[name])
        if not faults:
            continue
        listing = said(frames, faults)
        if not config.skip_faulty:
            raise DataError(
                f"{len(faults)} of {len(frames)} {name} frames are nothing like the rest. "
                f"{listing} Mend or remove them, or go on without them: --skip-faulty."
            )
        console.print(f"Left out of {name}: {listing}", soft_wrap=True, markup=False)
        out = {fault.number for fault in faults}
        left = [n for n in range(len(frames)) if n not in out]
        if not left:
            raise DataError(f"No frame of {name} is left: {listing}")
        kept[name] = [frames[n] for n in left]
        still[name] = predicted[name].of(left)
    for sentence in doubts(kept["train"], still["train"]):
        console.print(f"{config.train}: {sentence}", soft_wrap=True, markup=False)
    if config.check_units:
        found = other_units(kept["train"], still["train"])
        if found:
            raise DataError(
                f"{config.train}: {' '.join(found)} If the labels are right and the base model is "
                "that wrong, give --no-check-units."
            )
    return kept, still
