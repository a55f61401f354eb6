"""One fine-tuning run, from files to files."""

import warnings
from collections.abc import Mapping
from math import inf
from pathlib import Path

from rich.console import Console

from e3sparse.adapter.fingerprint import fingerprint
from e3sparse.errors import Interrupted
from e3sparse.frames.batches import FrameDataset, loader
from e3sparse.frames.evaluation import error_table
from e3sparse.training.beginning import Beginning, begin
from e3sparse.training.conclusion import RunResult, conclude
from e3sparse.training.config import FinetuneConfig
from e3sparse.training.data import Frames
from e3sparse.training.fitting import fit
from e3sparse.training.inputs import load_inputs
from e3sparse.training.losses import Loss, compared
from e3sparse.training.module import FineTuning
from e3sparse.training.recovery import Recovery
from e3sparse.training.replay import Replay
from e3sparse.training.run_folder import RunFolder, digests
from e3sparse.training.run_results import write_config
from e3sparse.training.sparsity_levels import levels_of

__all__ = ["RunResult", "finetune"]


def finetune(
    config: FinetuneConfig,
    *,
    overwrite: bool = False,
    resume: bool = False,
    also_read: Mapping[str, Path] | None = None,
    dry_run: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Fine-tune a model and write the run folder.

    Parameters
    ----------
    config
        The settings.
    overwrite
        Whether an existing run folder may be replaced.
    resume
        Whether to go on with the run in the folder.
    also_read
        Files besides those of the settings that must not be replaced, by their flags.
    dry_run
        Whether to stop after the files are read and examined; nothing is written then.
    console
        Where to report; a new one if None.

    Raises
    ------
    E3SparseError
        If an input is bad; nothing has been written then.
    """
    console = console or Console()
    if resume:
        folder = RunFolder.resumed(config.out)
    else:
        folder = RunFolder.begin(
            config.out,
            config.files() | dict(also_read or {}),
            overwrite=overwrite or dry_run,
        )
    made_of = digests(config.files())
    inputs = load_inputs(config, console)
    base = fingerprint(inputs.potential.module)
    if resume:
        folder.go_on(base=base, inputs=made_of)
    start = begin(config, inputs, console)
    if dry_run:
        return RunResult(config.out, error_table(start.errors_before()), None)
    if not resume:
        levels = () if start.adapter is None else levels_of(start.adapter)
        folder.start(start.potential.suffix, base=base, inputs=made_of, levels=levels)
        folder.remember_references(start.references)
        write_config(folder.path, config, start.potential)
        folder.remember_settings()

    valid = start.looked_at["valid"], start.before["valid"]
    base_loss = compared(config.loss).on_frames(*valid, start.references)
    recovery = Recovery(
        config.learning_rate,
        None if config.magnetic or config.method == "scratch" else base_loss,
        **({} if config.recover else {"returns": 0}),
    )
    module = _module(config, start, recovery)
    data = _data(config, start)
    if start.adapter is not None and start.adapter.method.calibrated and not resume:
        _calibrate(config, start, module.loss, data)
    checkpoint = _checkpoint(folder, console) if resume else None
    try:
        found = fit(config, folder, module, data, checkpoint, recovery)
    except Interrupted:
        raise
    except BaseException:
        if folder.path != folder.out:
            console.print(f"The earlier run in {folder.out} is as it was.", markup=False)
        raise
    return conclude(config, folder, start, module, recovery, found, base_loss, console)


def _module(config: FinetuneConfig, start: Beginning, recovery: Recovery) -> FineTuning:
    replayed = start.to_replay
    return FineTuning(
        start.potential,
        start.adapter,
        loss=Loss(**config.loss.model_dump()),
        optimizer=config.optimizer,
        lr=config.learning_rate,
        fresh_lr=config.spin_lr,
        replay=Replay.of(replayed, start.potential, config) if replayed else None,
        far_off=inf if config.allow_worse else recovery.far_off,
        warmup=config.warmup,
        ema=config.ema,
        fisher=start.fisher,
        fisher_weight=config.fisher_weight,
    )


def _data(config: FinetuneConfig, start: Beginning) -> Frames:
    train, valid = (
        FrameDataset(start.splits[name], start.potential, start.references)
        for name in ("train", "valid")
    )
    return Frames(
        start.potential,
        train,
        valid,
        batch_size=config.batch_size,
        valid_batch_size=config.valid_batch_size,
        seed=config.seed,
        workers=config.workers,
        accumulate=config.accumulate,
    )


def _calibrate(config: FinetuneConfig, start: Beginning, loss: Loss, data: Frames) -> None:
    assert start.adapter is not None
    potential, some = start.potential, data.train
    if len(start.looked_at["train"]) < len(start.splits["train"]):
        some = FrameDataset(start.looked_at["train"], potential, start.references)
    batches = loader(some, potential, config.batch_size)
    potential.module.train()
    start.adapter.calibrate(
        loss(potential.forward(b.inputs.to(potential.device)), b.to(potential.device))
        for b in batches
    )


def _checkpoint(folder: RunFolder, console: Console) -> Path | None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = folder.last_checkpoint()
    for warning in caught:
        console.print(str(warning.message), markup=False)
    if found is None:
        console.print("The run has no checkpoint yet: it begins at the first step.")
    return found
