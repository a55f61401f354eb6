"""Stopping a training that makes no progress, but not before its delta is sparse."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping


class Patience(EarlyStopping):
    """Stops after some validations without a better one, of models at their final sparsity.

    Parameters
    ----------
    validations
        How many.
    """

    def __init__(self, validations: int) -> None:
        super().__init__(
            "valid/score",
            patience=validations,
            check_finite=False,
            check_on_train_epoch_end=False,
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count a validation, unless its score is infinite because the delta is not settled."""
        settled: Any = pl_module.settled
        if settled:
            super().on_validation_end(trainer, pl_module)
