"""What replay needs of a potential of any backend."""

import torch
from potentials import random_deltas
from rich.console import Console

from e3sparse.training.config import make_config
from e3sparse.training.losses import Loss
from e3sparse.training.replay import Replay, replay_frames


def drifts(potential):
    """Return the replay loss of a fresh delta and of a random one, in train mode as in a run."""
    asked = make_config(
        {"model": "", "train": "none", "replay": "auto", "replay_structures": 6, "seed": 1}
    )
    frames = replay_frames(asked, potential, Console(quiet=True))
    assert {bool(f.atoms.pbc.all()) for f in frames} == {True, False}
    adapter = random_deltas(potential, "all")
    held = Replay.of(frames, potential, asked)
    potential.module.train()
    batch = held.batch(0)

    def drift():
        return Loss()(potential.forward(batch.inputs), batch).item()

    changed = drift()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.zero_()
    return drift(), changed
