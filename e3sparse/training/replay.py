"""Replay: stay near the base model on structures that the training frames say nothing about.

The structures need no labels from anywhere: the base model labels them before it is changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from ase import Atoms
from rich.console import Console
from rich.progress import track

from e3sparse.errors import ConfigError, DataError
from e3sparse.frames.batches import Batch, FrameDataset, collate
from e3sparse.frames.evaluation import predict
from e3sparse.frames.reading import Frame
from e3sparse.potentials.backends import Potential
from e3sparse.potentials.structure_files import read_structures
from e3sparse.training.config import FinetuneConfig
from e3sparse.training.losses import Loss
from e3sparse.training.random_structures import varied_structures

AUTO = "auto"
MOST_STEPS = 10
"""Of a descent on the base model's energy, of which every length up to this is as likely."""
LARGEST_FORCE = 20.0
"""In eV/Å. Beyond it a base model is asked for what it has never seen either."""
_RATE, _LARGEST_STEP = 0.05, 0.15  # Å per eV/Å, and Å
_SPARE = 2


def replay_frames(config: FinetuneConfig, potential: Potential, console: Console) -> list[Frame]:
    """Return structures labelled by the base model.

    Parameters
    ----------
    config
        `replay` is `"auto"`, for random structures of all elements that the model knows, or a
        file of structures, whose own labels are not read.
    potential
        The base model, unpatched.
    console
        Where to show progress.

    Raises
    ------
    ConfigError
        If the base model holds too few random structures together.
    DataError
        As `read_structures` does, or if the base model has no finite label for a structure of the
        file.
    """
    if config.replay == AUTO:
        return random_frames(config.replay_structures, config.seed, potential, console)
    structures = read_structures(str(config.replay), potential.species.numbers)
    frames = _labelled([_bare(atoms) for atoms in structures], potential)
    for number, frame in enumerate(frames):
        if not (np.isfinite(frame.energy) and np.isfinite(frame.forces).all()):
            raise DataError(
                f"The base model's energy or forces of frame {number} of {config.replay} are not "
                "finite: do two of its atoms coincide? Leave it out of what is replayed."
            )
    return frames


def random_frames(wanted: int, seed: int, potential: Potential, console: Console) -> list[Frame]:
    """Return small random structures of all elements that a model knows, labelled by it.

    Raises
    ------
    ConfigError
        If the model holds too few of them together.
    """
    numbers = [z for z in potential.species.numbers if z]
    rng = np.random.default_rng(seed)
    drawn = islice(varied_structures(numbers, rng), _SPARE * wanted)
    frames = [Frame(atoms, 0.0, np.zeros(0), None) for atoms in drawn]
    steps = rng.integers(MOST_STEPS + 1, size=len(frames))
    about = "Random structures to replay"
    rounds = range(int(steps.max()) + 1)
    for step in track(rounds, about, console=console, transient=True):
        # One that does not move on is labelled where it is.
        moving = [n for n in range(len(frames)) if step <= steps[n]]
        found = _labelled([frames[n].atoms for n in moving], potential)
        for n, frame in zip(moving, found, strict=True):
            frames[n] = frame if step == steps[n] else replace(frame, atoms=_descended(frame))
    # False for NaN too.
    kept = [f for f in frames if np.abs(f.forces).max() < LARGEST_FORCE][:wanted]
    if len(kept) < wanted / 2:
        raise ConfigError(
            f"Only {len(kept)} of {len(frames)} random structures have forces below "
            f"{LARGEST_FORCE:g} eV/Å in {potential.name}, so that it has little to say about "
            "them: give structures of your own with --replay FILE, or no --fisher auto."
        )
    return kept


def _labelled(structures: Sequence[Atoms], potential: Potential) -> list[Frame]:
    blank = [Frame(atoms, 0.0, np.zeros(0), None) for atoms in structures]
    found = predict(potential, blank)
    return [
        Frame(atoms, float(energy), forces, None)
        for atoms, energy, forces in zip(structures, found.energy, found.forces, strict=True)
    ]


def _descended(frame: Frame) -> Atoms:
    """Return a structure one step of steepest descent further."""
    moves = _RATE * np.nan_to_num(frame.forces)
    longest = np.linalg.norm(moves, axis=1).max()
    atoms: Atoms = frame.atoms.copy()
    atoms.positions += moves * min(1.0, _LARGEST_STEP / max(longest, _LARGEST_STEP))
    return atoms


def _bare(atoms: Atoms) -> Atoms:
    """Return a structure without labels, velocities or spins."""
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


@dataclass(frozen=True)
class Replay:
    """Random batches of structures on which a model is held to what the base model said.

    Attributes
    ----------
    frames
        Labelled by the base model.
    potential
        Whose graphs they get.
    weight
        Of their loss, in units of that of the training frames.
    energies
        How much their energies count, in units of what those of training frames do.
    batch_size
        Structures in each step.
    seed
        A batch depends on it and on the number of the step, so that a resumed run sees the same.
    """

    frames: FrameDataset
    potential: Potential
    weight: float
    energies: float
    batch_size: int
    seed: int

    @classmethod
    def of(cls, frames: Sequence[Frame], potential: Potential, config: FinetuneConfig) -> "Replay":
        """Build the graphs of some frames for a potential, patched by now."""
        return cls(
            FrameDataset(frames, potential, {}),
            potential,
            config.replay_weight,
            config.replay_energy_weight,
            min(config.replay_batch_size, len(frames)),
            config.seed,
        )

    def loss(self, of_labels: Loss) -> Loss:
        """Return the loss on what is replayed, made of that on labels."""
        return of_labels.model_copy(update={"energy": self.energies * of_labels.energy})

    def batch(self, step: int, rank: int = 0) -> Batch:
        """Return the structures of a step, on the potential's device."""
        rng = np.random.default_rng([self.seed, step, rank])
        drawn = rng.choice(len(self.frames), size=self.batch_size, replace=False)
        batch = collate(self.potential, [self.frames[int(i)] for i in drawn])
        return batch.to(self.potential.device)
