"""Checkpoints that are whole or not there."""

from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from e3sparse.errors import DivergedError
from e3sparse.files import replacing
from e3sparse.training.run_records import RUN

SCORE = "valid/score"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the one before it, which it replaces when it is on the disk.

    Lightning writes to `$TMPDIR` and copies from there if that is another file system: a kill or a
    full disk in that moment leaves half a checkpoint.

    Parameters
    ----------
    run
        Name of the run, for `RunFolder` to know its own checkpoints by.
    """

    def __init__(self, run: str | None) -> None:
        super().__init__()
        self._run = run

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write to a temporary name and rename; `last.ckpt` becomes `last.previous.ckpt`."""
        path = Path(path)
        with replacing(path) as temporary:
            torch.save({**checkpoint, RUN: self._run}, temporary)
            if path.name == "last.ckpt" and path.exists():
                path.replace(path.with_name("last.previous.ckpt"))


class LastCheckpoint(ModelCheckpoint):
    """The newest state, also of a training that is interrupted, but not of one that diverged."""

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save, unless there is nothing that is worth it."""
        if not isinstance(exception, DivergedError):
            super().on_exception(trainer, pl_module, exception)


def checkpoint_callbacks(folder: Path) -> list[ModelCheckpoint]:
    """Return what saves the best and the newest state, both after the validation.

    The averaged weights are in place then. They are two, because Lightning saves an interrupted
    training under the name of the best model otherwise.
    """
    options: dict[str, Any] = {"enable_version_counter": False, "save_on_train_epoch_end": False}
    return [
        ModelCheckpoint(folder, filename="best", monitor=SCORE, **options),
        LastCheckpoint(folder, filename="last", save_on_exception=True, **options),
    ]
