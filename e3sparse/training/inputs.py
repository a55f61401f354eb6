"""What a run starts from: the base model and the frames of each split."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console

from e3sparse.errors import DataError
from e3sparse.frames.oddities import shared
from e3sparse.frames.on_disk import read_set, take
from e3sparse.frames.reading import Frame, Reading
from e3sparse.potentials.backends import Potential, load_potential
from e3sparse.training.config import FinetuneConfig
from e3sparse.training.waiting import announce


class Inputs(NamedTuple):
    """A model and its data.

    Attributes
    ----------
    potential
        The base model.
    splits
        Frames of `"train"`, `"valid"` and, if there is one, `"test"`.
    isolated
        Isolated atoms of each file, by atomic number.
    notes
        What is to be said of how the files were read.
    readings
        What was read of each file.
    """

    potential: Potential
    splits: dict[str, Sequence[Frame]]
    isolated: dict[str, dict[int, Frame]]
    notes: list[str]
    readings: dict[str, Reading]


def load_inputs(config: FinetuneConfig, console: Console) -> Inputs:
    """Load the model and read every file; the console is told of large ones.

    Raises
    ------
    ConfigError, DataError
        As `load_potential` and `read_file` do, if a file has no forces and that was not asked for,
        or if too few frames are left to hold some out.
    """
    announce(config.model, console)
    potential = load_potential(
        config.model,
        backend=config.backend,
        device=config.device,
        dtype=None if config.dtype is None else getattr(torch, config.dtype),
        head=config.head,
    )
    potential.accelerate_by(config.accelerate)

    isolated: dict[str, dict[int, Frame]] = {}
    notes: list[str] = []
    readings: dict[str, Reading] = {}

    def read(name: str, path: Path) -> Sequence[Frame]:
        announce(path, console)
        found = readings[name] = read_set(
            path,
            config.keys,
            known=potential.species.numbers,
            cutoff=potential.cutoff,
            magnetic=config.magnetic,
            skip_faulty=config.skip_faulty,
            in_memory=config.in_memory,
        )
        frames, isolated[name] = found.frames, found.isolated
        notes.extend(found.notes)
        if not config.energy_only and np.isnan(frames[0].forces).all():
            raise DataError(
                f"{path} has energies and no forces ('{config.keys.forces}'), from which little "
                "is learned. Give --forces-key if it has some, or --energy-only if that is meant."
            )
        return frames

    splits: dict[str, Sequence[Frame]] = {"train": read("train", config.train)}
    if config.valid is not None:
        splits["valid"] = read("valid", config.valid)
    else:
        splits["train"], splits["valid"] = _hold_out(config, splits["train"])
    if config.test is not None:
        splits["test"] = read("test", config.test)
    return Inputs(potential, splits, isolated, [*notes, *shared(splits)], readings)


def _hold_out(
    config: FinetuneConfig, frames: Sequence[Frame]
) -> tuple[Sequence[Frame], Sequence[Frame]]:
    count = max(1, round(len(frames) * config.valid_fraction))
    if count >= len(frames):
        raise DataError(
            f"{config.train} has {len(frames)} frames, too few to hold some out for validation: "
            "give --valid."
        )
    order = np.random.default_rng(config.seed).permutation(len(frames))
    return take(frames, order[count:]), take(frames, order[:count])
