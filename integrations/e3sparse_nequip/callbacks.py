"""What a sparse NequIP training logs and leaves behind, as a Lightning callback."""

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from e3sparse.errors import ConfigError
from e3sparse_nequip.training import SparseMixin


class SparsityMonitor(Callback):
    """Logs the sparsity beside NequIP's metrics and writes the adapter when the training ends.

    `sparsity/layerwise`, `sparsity/total` and `sparsity/updated` are of the weights that are
    validated (averaged, where there is an average). The adapter is that of the best checkpoint, so
    it is what a package of that checkpoint has merged.

    Parameters
    ----------
    adapter
        Folder for the adapter (several models: one below it for each); None to write none.
    """

    def __init__(self, adapter: str | Path | None = "adapter") -> None:
        self.folder = None if adapter is None else Path(adapter)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what would fail at the end."""
        if not isinstance(pl_module, SparseMixin):
            raise ConfigError(
                f"SparsityMonitor needs a training module of e3sparse_nequip, not "
                f"{type(pl_module).__name__}."
            )
        if self.folder is not None and not isinstance(trainer.checkpoint_callback, ModelCheckpoint):
            raise ConfigError(
                "SparsityMonitor writes the adapter of the best checkpoint: add a ModelCheckpoint "
                "to the callbacks, or set its 'adapter' to null."
            )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Log the counts, summed over the models."""
        counts = [adapter.sparsity() for adapter in pl_module.adapters().values()]
        updated = sum(count.updated for count in counts)
        pl_module.log_dict(
            {
                "sparsity/layerwise": 1 - updated / sum(count.entries for count in counts),
                "sparsity/total": 1 - updated / sum(count.parameters for count in counts),
                "sparsity/updated": float(updated),
            }
        )

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the adapter of the best checkpoint."""
        if self.folder is None or not trainer.is_global_zero:
            return
        checkpoints = trainer.checkpoint_callback
        assert isinstance(checkpoints, ModelCheckpoint)
        best = checkpoints.best_model_path or checkpoints.last_model_path
        if not best:
            warnings.warn("No checkpoint was written, so no adapter is.", stacklevel=2)
            return
        module = type(pl_module).load_from_checkpoint(best, map_location="cpu", weights_only=False)
        module.adapted_model()
        if not module.settled:
            warnings.warn(
                f"{best} is from before the delta was sparse: no later epoch was validated.",
                stacklevel=2,
            )
        adapters = module.adapters()
        for name, adapter in adapters.items():
            folder = self.folder if len(adapters) == 1 else self.folder / name
            adapter.save_pretrained(
                folder,
                base_model=_base(module.hparams["model"]),
                framework={"nequip": version("nequip")},
            )


def _base(model: dict[str, Any]) -> str:
    """Return the file that the model came from, past modifiers, or what built it."""
    inner = model.get("model")
    if isinstance(inner, dict):
        return _base(inner)
    return str(model.get("package_path") or model.get("checkpoint_path") or model.get("_target_"))
