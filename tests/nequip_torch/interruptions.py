"""A training that is cut off, as a Lightning callback."""

from lightning.pytorch.callbacks import Callback


class StopAfter(Callback):
    """Interrupt the process at the beginning of an epoch."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epochs:
            raise KeyboardInterrupt
