"""The training itself, by Lightning: callbacks, signals, and the state that is kept."""

import logging
import warnings
from pathlib import Path

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from e3sparse.errors import DivergedError, Interrupted
from e3sparse.training.checkpoints import SCORE, WholeCheckpoints, checkpoint_callbacks
from e3sparse.training.config import FinetuneConfig
from e3sparse.training.data import Frames
from e3sparse.training.module import FineTuning
from e3sparse.training.patience import Patience
from e3sparse.training.progress import RunProgress
from e3sparse.training.recovery import Recovery
from e3sparse.training.run_folder import LAST, RunFolder
from e3sparse.training.run_records import read_checkpoint
from e3sparse.training.sparsity_levels import SparsityLevels, levels_of
from e3sparse.training.trainer import further, further_callbacks, make_loggers, matmul_precision


def fit(
    config: FinetuneConfig,
    folder: RunFolder,
    module: FineTuning,
    data: Frames,
    checkpoint: Path | None,
    recovery: Recovery,
) -> SparsityLevels | None:
    """Train a module from the start or a checkpoint, and leave it at its best validation.

    Returns
    -------
    SparsityLevels or None
        What the levels came to, if there are several; the module is left at the sparsest that is
        within the tolerance.

    Raises
    ------
    Interrupted
        If the training was stopped and can be resumed.
    DivergedError
        If there is no state that could be kept.
    """
    callbacks: list[Callback] = [
        RunProgress(),
        recovery,
        *checkpoint_callbacks(folder.checkpoints),
    ]
    levels = None
    if (adapter := module.adapter) is not None and levels_of(adapter):
        levels = SparsityLevels(adapter, folder.checkpoints)
        callbacks.append(levels)
    callbacks += further_callbacks(config)
    if config.patience is not None:
        callbacks.append(Patience(config.patience))
    device = str(module.potential.device)
    # Lightning's advice (workers, log intervals) is about other workloads than ours.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings(), matmul_precision(config.matmul_precision):
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
        trainer = Trainer(
            accelerator="cpu" if device == "cpu" else "gpu",
            devices=config.devices,
            # Spawned ranks train and leave a checkpoint; only this process writes the results.
            strategy="ddp_spawn"
            if config.devices > 1 and config.strategy == "auto"
            else config.strategy,
            max_epochs=config.epochs if config.max_steps is None else -1,
            max_steps=config.max_steps or -1,
            check_val_every_n_epoch=config.valid_every,
            num_sanity_val_steps=0,
            gradient_clip_val=config.clip_grad or None,
            accumulate_grad_batches=config.accumulate,
            inference_mode=False,
            logger=make_loggers(config, folder.path),
            callbacks=callbacks,
            plugins=[WholeCheckpoints(folder.listing().run)],
            enable_model_summary=False,
            use_distributed_sampler=False,
            **{"log_every_n_steps": 1, **further(config)},
        )
        module.train()
        try:
            trainer.fit(
                module,
                data,
                ckpt_path=None if checkpoint is None else str(checkpoint),
                weights_only=True,
            )
        except (KeyboardInterrupt, SystemExit) as stop:
            # Lightning has saved a checkpoint and leaves the interpreter.
            raise Interrupted(
                f"Training was interrupted at step {trainer.global_step}. Go on with: "
                f"{folder.resume_command}"
            ) from stop
    # Of ranks that were spawned this process knows only what they have written.
    written = read_checkpoint(folder.checkpoints / LAST)["callbacks"]
    for callback in (recovery, levels):
        if callback is not None and callback.state_key in written:
            callback.load_state_dict(written[callback.state_key])
    if levels is not None and levels.losses:
        levels.load(module, levels.within()[-1])
        return levels
    best = read_checkpoint(folder.best, module.device)
    (score,) = (
        saved["best_model_score"]
        for saved in best["callbacks"].values()
        if saved.get("monitor") == SCORE
    )
    if not torch.isfinite(score):
        raise DivergedError(
            f"No validation had a finite loss after the delta was as sparse as asked for, or one "
            f"near the base model's: training diverged. Give a lower --lr than "
            f"{config.learning_rate:g}; no model has been written."
        )
    module.load_state_dict(best["state_dict"])
    return None
