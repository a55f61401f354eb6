"""A bar over the whole run with loss, force MAE, sparsity and time left."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class RunProgress(ProgressBar):
    """One bar for all epochs; where the output is no terminal, a line for each validation."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._progress: Progress | None = None
        self._task: Any = None

    def enable(self) -> None:
        """Report; Lightning's switch."""
        self._enabled = True

    def disable(self) -> None:
        """Do not report, as on every rank but the first; Lightning's switch."""
        self._enabled = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the terminal, in the process that trains: a console cannot be sent to another."""
        super().setup(trainer, pl_module, stage)
        self._console = Console()

    def say(self, sentence: str) -> None:
        """Print a sentence, above the bar if there is one."""
        if self._enabled:
            console = self._console if self._progress is None else self._progress.console
            console.print(sentence, soft_wrap=True, markup=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        if not (self._enabled and self._console.is_terminal):
            return
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=self._console,
        )
        self._progress.start()
        self._task = self._progress.add_task(
            "",
            total=int(trainer.estimated_stepping_batches),
            completed=trainer.global_step,
            metrics="",
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar on."""
        if self._progress is not None:
            self._progress.update(
                self._task, completed=trainer.global_step, metrics=_line(trainer, "train")
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print a line where there is no bar."""
        if self._enabled and self._progress is None:
            total = int(trainer.estimated_stepping_batches)
            self._console.print(f"step {trainer.global_step}/{total}  {_line(trainer, 'valid')}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the bar, so that the error stands alone."""
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _line(trainer: Trainer, split: str) -> str:
    metrics = trainer.callback_metrics
    parts = []
    if f"{split}/loss" in metrics:
        parts.append(f"{split} loss {float(metrics[f'{split}/loss']):.3g}")
    if f"{split}/forces_mae" in metrics:
        parts.append(f"F MAE {float(metrics[f'{split}/forces_mae']):.1f} meV/Å")
    if "sparsity" in metrics:
        parts.append(f"sparsity {float(metrics['sparsity']):.1%}")
    return "  ".join(parts)
