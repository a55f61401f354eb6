"""One fine-tuning run, from files to files."""

import logging
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from pydantic import ValidationError
from rich.console import Console

from e3sparse.adapter import Adapter
from e3sparse.backends import Potential
from e3sparse.errors import ConfigError, DataError, DivergedError, Interrupted
from e3sparse.training.config import FinetuneConfig
from e3sparse.training.data import FrameDataset, Frames, loader
from e3sparse.training.energy_zero import choose_references, fate_of_isolated
from e3sparse.training.evaluation import error_table, errors, predict, setback
from e3sparse.training.frames import Frame, average_neighbours, elements_of
from e3sparse.training.inputs import load_inputs
from e3sparse.training.module import FineTuning
from e3sparse.training.patience import Patience
from e3sparse.training.progress import RunProgress
from e3sparse.training.replay import Replay, replay_frames
from e3sparse.training.run_folder import CONFIG, write_config, write_figures, write_results

SPIN_LAYERS = "spins"
_LAST, _BEST, _SCORE = "last", "best", "valid/score"


@dataclass(frozen=True)
class RunResult:
    """What a run found.

    Attributes
    ----------
    out
        The run folder.
    table
        Errors by row (`"test before"`, `"test after"`, …).
    adapter
        None for full fine-tuning.
    """

    out: Path
    table: pd.DataFrame
    adapter: Adapter | None


def finetune(
    config: FinetuneConfig,
    *,
    overwrite: bool = False,
    resume: bool = False,
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
    console
        Where to report; a new one if None.

    Raises
    ------
    E3SparseError
        If an input is bad; nothing has been written then.
    """
    console = console or Console()
    _check_folder(config.out, overwrite, resume)
    potential, splits, isolated = load_inputs(config)
    console.print(
        f"{potential.name}: {sum(p.numel() for p in potential.module.parameters()):,} parameters, "
        + ", ".join(f"{len(frames)} {name}" for name, frames in splits.items())
        + " frames"
    )
    if config.method == "scratch":
        potential.reinitialize(config.seed)  # before references are fitted to what it predicts
    to_replay = replay_frames(config, potential, console) if config.replay else None
    before = {name: predict(potential, frames) for name, frames in splits.items()}
    references = choose_references(
        config, potential, splits["train"], before["train"], isolated["train"]
    )
    for name, atoms in isolated.items():
        if atoms:
            console.print(fate_of_isolated(config, name, atoms))
    if isolated["train"] and references:
        off = errors(splits["train"], before["train"], references)["energy_mae"]
        console.print(f"With these references the base model is off by {off:.1f} meV/atom on train")
    if config.magnetic:
        potential = _with_spin_layers(config, potential, splits["train"])
        count = sum(p.numel() for p in potential.fresh_parameters())
        console.print(f"Spin-aware layers: {count:,} parameters, trained in full")
    adapter = _prepare(config, potential, splits["train"])
    if adapter is not None:
        adapter.energy_references.update(references)
        console.print(str(adapter.sparsity()))

    if overwrite and config.out.exists():
        shutil.rmtree(config.out)
    config.out.mkdir(parents=True, exist_ok=True)
    write_config(config, potential)

    module = FineTuning(
        potential,
        adapter,
        loss=config.loss,
        optimizer=config.optimizer,
        lr=config.learning_rate,
        fresh_lr=config.spin_lr,
        replay=Replay.of(to_replay, potential, config) if to_replay else None,
    )
    data = Frames(
        potential,
        FrameDataset(splits["train"], potential, references),
        FrameDataset(splits["valid"], potential, references),
        batch_size=config.batch_size,
        valid_batch_size=config.valid_batch_size,
        seed=config.seed,
    )
    if adapter is not None and adapter.method.calibrated and not resume:
        batches = loader(data.train, potential, config.batch_size)
        potential.module.train()
        adapter.calibrate(
            config.loss(potential.forward(b.inputs.to(potential.device)), b.to(potential.device))
            for b in batches
        )
    _fit(config, module, data, resume)

    after = {name: predict(potential, frames) for name, frames in splits.items()}
    rows = {}
    for name, frames in splits.items():
        rows[f"{name} before"] = errors(frames, before[name], references)
        rows[f"{name} after"] = errors(frames, after[name], references)
    table = error_table(rows)
    if config.method != "scratch" and (warning := setback(rows, config.learning_rate)):
        console.print(warning)
    write_results(config.out, table, adapter, potential)
    write_figures(config.out, splits, before, after, references)
    if adapter is not None:
        adapter.save_pretrained(
            config.out / "adapter",
            base_model=config.model,
            framework=potential.framework,
            metrics={name: dict(row) for name, row in rows.items() if name.endswith("after")},
        )
        adapter.merge()
    potential.shift_energies(references)
    potential.save(config.out / f"model{potential.suffix}")
    if config.magnetic:
        _save_spin_layers(config.out, potential, splits["train"])
    return RunResult(config.out, table, adapter)


def resumable(out: Path) -> Path | None:
    """Return the checkpoint that a run in `out` would go on from."""
    last = out / "checkpoints" / f"{_LAST}.ckpt"
    return last if last.is_file() else None


def _check_folder(out: Path, overwrite: bool, resume: bool) -> None:
    if resume:
        if resumable(out) is None:
            raise ConfigError(f"There is no run to resume in {out}: it has no checkpoint yet.")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not overwrite:
            raise ConfigError(
                f"{out} exists. Give another --out, --overwrite to replace it, or --resume to go "
                "on."
            )
        if not (out / CONFIG).is_file():
            raise ConfigError(
                f"{out} is not a run folder of e3sparse (it has no {CONFIG}), so --overwrite "
                "leaves it alone. Give another --out."
            )


def _prepare(config: FinetuneConfig, potential: Potential, train: list[Frame]) -> Adapter | None:
    if config.whole_model:
        return None
    adapter = potential.patch(
        config.targets, config.method, seed=config.seed, **config.method_settings
    )
    adapter.freeze_absent_species(elements_of(train))
    return adapter


def _with_spin_layers(
    config: FinetuneConfig, potential: Potential, train: list[Frame]
) -> Potential:
    # Its layers are e3nn's, which a run without spins has no need to import.
    from e3sparse.magnetism import add_spins

    settings = {
        "spin_orbit": config.spin_orbit,
        "average_neighbours": average_neighbours(train, potential.cutoff),
    }
    if config.loss.magnetic_forces > 0 and any(f.magnetic_forces is None for f in train):
        raise DataError(
            f"The loss has a weight for magnetic forces, and not every frame of {config.train} has "
            f"a label '{config.keys.magnetic_forces}'. Set the weight to 0, or name "
            "the right one as keys.magnetic_forces in a --config."
        )
    try:
        magnetic = add_spins(potential, seed=config.seed, **settings | config.spin_settings)
        magnetic.magnetic_forces = config.loss.magnetic_forces > 0
        return magnetic
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"Settings are wrong: spin_settings.{where}: {first['msg']}.") from None


def _save_spin_layers(out: Path, potential: Potential, train: list[Frame]) -> None:
    from e3sparse.magnetism import MagneticPotential, save

    assert isinstance(potential, MagneticPotential)
    save(potential, out / SPIN_LAYERS, elements_of(train))


def _fit(config: FinetuneConfig, module: FineTuning, data: Frames, resume: bool) -> None:
    checkpoints = config.out / "checkpoints"
    callbacks: list[Callback] = [
        RunProgress(),
        # Both after the validation, while the averaged weights are in place. They are two, because
        # Lightning saves an interrupted training under the name of the best model otherwise.
        ModelCheckpoint(
            checkpoints,
            filename=_BEST,
            monitor=_SCORE,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        ),
        ModelCheckpoint(
            checkpoints,
            filename=_LAST,
            enable_version_counter=False,
            save_on_exception=True,
            save_on_train_epoch_end=False,
        ),
    ]
    if config.patience is not None:
        callbacks.append(Patience(config.patience))
    device = str(module.potential.device)
    # Lightning's advice (workers, log intervals) is about other workloads than ours.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
        trainer = Trainer(
            accelerator="cpu" if device == "cpu" else "gpu",
            devices=config.devices,
            # Spawned ranks train and leave a checkpoint; only this process writes the results.
            strategy="auto" if config.devices == 1 else "ddp_spawn",
            max_epochs=config.epochs if config.max_steps is None else -1,
            max_steps=config.max_steps or -1,
            check_val_every_n_epoch=config.valid_every,
            num_sanity_val_steps=0,
            inference_mode=False,
            log_every_n_steps=1,
            logger=CSVLogger(config.out, name="logs"),
            callbacks=callbacks,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        checkpoint = str(resumable(config.out)) if resume else None
        module.train()
        try:
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False)
        except (KeyboardInterrupt, SystemExit) as stop:
            # Lightning has saved a checkpoint and leaves the interpreter.
            raise Interrupted(
                f"Training was interrupted at step {trainer.global_step}. Go on with: "
                f"e3sparse finetune --resume --out {config.out}"
            ) from stop
    best = torch.load(checkpoints / f"{_BEST}.ckpt", map_location=module.device, weights_only=False)
    (score,) = (
        saved["best_model_score"]
        for saved in best["callbacks"].values()
        if saved.get("monitor") == _SCORE
    )
    if not torch.isfinite(score):
        raise DivergedError(
            f"No validation had a finite loss after the delta was as sparse as asked for: training "
            f"diverged. Give a lower --lr than {config.learning_rate:g}; {config.out} holds "
            "metrics.csv, and no model."
        )
    module.load_state_dict(best["state_dict"])
