"""What a run says of its files before it trains, and what it refuses to train on."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from e3sparse.errors import DataError
from e3sparse.frames.evaluation import Predictions
from e3sparse.frames.facts import facts_of
from e3sparse.frames.reading import Frame
from e3sparse.training.config import FinetuneConfig
from e3sparse.training.energy_zero import source_of_references, unused_isolated
from e3sparse.training.files_table import read_row, table_of_files
from e3sparse.training.inputs import Inputs
from e3sparse.training.plausibility import doubts, faulty_frames, other_units, said


def what_was_read(config: FinetuneConfig, inputs: Inputs) -> Table:
    """Return a table of the files of a run: what they hold, and what is done with it."""
    rows = []
    for name, reading in inputs.readings.items():
        used_for, path = name, getattr(config, name)
        if name == "train" and config.valid is None:
            parts = (f"{len(inputs.splits[part]):,} {part}" for part in ("train", "valid"))
            used_for = ", ".join(parts)
        rows.append(
            read_row(
                path,
                reading,
                references=source_of_references(
                    config, name, reading.isolated, facts_of(reading.frames).there
                ),
                used_for=used_for,
                left_out=unused_isolated(config, name, reading.isolated),
            )
        )
    return table_of_files(rows)


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
