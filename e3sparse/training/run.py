"""One fine-tuning run, from files to files."""

import logging
import platform
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from ase.data import chemical_symbols
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console

import e3sparse
from e3sparse.adapter import Adapter
from e3sparse.backends import Potential, load_potential
from e3sparse.errors import ConfigError, DataError, Interrupted
from e3sparse.files import replacing
from e3sparse.training import figures
from e3sparse.training.config import FinetuneConfig
from e3sparse.training.data import FrameDataset, Frames, loader
from e3sparse.training.evaluation import Predictions, error_table, errors, predict
from e3sparse.training.frames import Frame, elements_of, read_split
from e3sparse.training.module import FineTuning
from e3sparse.training.progress import RunProgress
from e3sparse.training.references import fit_references

CONFIG = "config.yaml"
RESULTS = "results.json"
_LAST, _BEST = "last", "best"


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
    splits, isolated, potential = _load_inputs(config)
    console.print(
        f"{potential.name}: {sum(p.numel() for p in potential.module.parameters()):,} parameters, "
        + ", ".join(f"{len(frames)} {name}" for name, frames in splits.items())
        + " frames"
    )
    before = {name: predict(potential, frames) for name, frames in splits.items()}
    references = _references(config, potential, splits["train"], before["train"], isolated["train"])
    for name, atoms in isolated.items():
        if atoms:
            console.print(_fate_of_isolated(config, name, atoms))
    if isolated["train"] and references:
        off = errors(splits["train"], before["train"], references)["energy_mae"]
        console.print(f"With these references the base model is off by {off:.1f} meV/atom on train")
    adapter = _prepare(config, potential, splits["train"])
    if adapter is not None:
        adapter.energy_references.update(references)
        console.print(str(adapter.sparsity()))

    if overwrite and config.out.exists():
        shutil.rmtree(config.out)
    config.out.mkdir(parents=True, exist_ok=True)
    _write_config(config, potential)

    module = FineTuning(
        potential, adapter, loss=config.loss, optimizer=config.optimizer, lr=config.learning_rate
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
    _write_results(config.out, table, adapter, potential)
    _write_figures(config.out, splits, before, after, references)
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


def _load_inputs(
    config: FinetuneConfig,
) -> tuple[dict[str, list[Frame]], dict[str, dict[int, Frame]], Potential]:
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    potential = load_potential(
        config.model,
        backend=config.backend,
        device=device,
        dtype=None if config.dtype is None else getattr(torch, config.dtype),
        head=config.head,
    )

    isolated: dict[str, dict[int, Frame]] = {}

    def read(name: str, path: Path) -> list[Frame]:
        frames, isolated[name] = read_split(
            path, config.keys, known=potential.species.numbers, cutoff=potential.cutoff
        )
        return frames

    splits = {"train": read("train", config.train)}
    if config.valid is not None:
        splits["valid"] = read("valid", config.valid)
    else:
        splits["train"], splits["valid"] = _hold_out(config, splits["train"])
    if config.test is not None:
        splits["test"] = read("test", config.test)
    return splits, isolated, potential


def _hold_out(config: FinetuneConfig, frames: list[Frame]) -> tuple[list[Frame], list[Frame]]:
    count = max(1, round(len(frames) * config.valid_fraction))
    if count >= len(frames):
        raise DataError(
            f"{config.train} has {len(frames)} frames, too few to hold some out for validation: "
            "give --valid."
        )
    order = np.random.default_rng(config.seed).permutation(len(frames))
    return [frames[i] for i in order[count:]], [frames[i] for i in order[:count]]


def _fits_references(config: FinetuneConfig) -> bool:
    return config.e0s == "fit" or config.method == "scratch"


def _references(
    config: FinetuneConfig,
    potential: Potential,
    frames: Sequence[Frame],
    predicted: Predictions,
    isolated: dict[int, Frame],
) -> dict[int, float]:
    if _fits_references(config):
        known = _shifts_of_isolated(config, potential, isolated)
        return fit_references(frames, predicted.energy, known)
    off = errors(frames, predicted)["energy_mae"]
    if off > 1000.0:
        raise DataError(
            f"With --e0s keep the base model's energies are off by {off / 1000:.1f} eV/atom on "
            f"{config.train}: the labels have another zero of energy. Use --e0s fit."
        )
    return {}


def _shifts_of_isolated(
    config: FinetuneConfig, potential: Potential, isolated: dict[int, Frame]
) -> dict[int, float]:
    if not isolated:
        return {}
    predicted = predict(potential, list(isolated.values())).energy
    shifts = {}
    for (number, frame), energy in zip(isolated.items(), predicted, strict=True):
        if not np.isfinite(energy):
            raise DataError(
                f"The base model gives an isolated {chemical_symbols[number]} atom an energy of "
                f"{energy}, so the one in {config.train} cannot be its reference. Remove that "
                "frame: the shift is then fitted on the others."
            )
        shifts[number] = frame.energy - float(energy)
    return shifts


def _fate_of_isolated(config: FinetuneConfig, split: str, isolated: dict[int, Frame]) -> str:
    if split != "train":
        fate = "left out"
    elif _fits_references(config):
        fate = "their labels set the energy references"
    else:
        fate = "not used (--e0s keep)"
    symbols = ", ".join(chemical_symbols[z] for z in sorted(isolated))
    return f"Isolated atoms in {getattr(config, split)} ({symbols}): {fate}"


def _prepare(config: FinetuneConfig, potential: Potential, train: list[Frame]) -> Adapter | None:
    if config.method == "scratch":
        potential.reinitialize(config.seed)
    if config.whole_model:
        return None
    adapter = potential.patch(
        config.targets, config.method, seed=config.seed, **config.method_settings
    )
    adapter.freeze_absent_species(elements_of(train))
    return adapter


def _fit(config: FinetuneConfig, module: FineTuning, data: Frames, resume: bool) -> None:
    checkpoints = config.out / "checkpoints"
    callbacks: list[Callback] = [
        RunProgress(),
        ModelCheckpoint(
            checkpoints,
            filename=_BEST,
            monitor="valid/score",
            save_last=True,
            enable_version_counter=False,
            save_on_exception=True,
        ),
    ]
    if config.patience is not None:
        callbacks.append(EarlyStopping("valid/score", patience=config.patience, check_finite=False))
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
    best = checkpoints / f"{_BEST}.ckpt"
    state = torch.load(best, map_location=module.device, weights_only=False)["state_dict"]
    module.load_state_dict(state)


def _write_config(config: FinetuneConfig, potential: Potential) -> None:
    values = config.model_dump(mode="json")
    values["lr"] = config.learning_rate
    with replacing(config.out / CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(values, sort_keys=False))
    with replacing(config.out / "versions.json") as temporary:
        pd.Series(_versions() | dict(potential.framework)).to_json(temporary, indent=1)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "e3sparse": e3sparse.__version__}
    for name in ("torch", "e3nn", "lightning", "schedulefree", "ase", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["command"] = " ".join(sys.argv)
    return found


def _write_results(
    out: Path, table: pd.DataFrame, adapter: Adapter | None, potential: Potential
) -> None:
    with replacing(out / "results.csv") as temporary:
        table.to_csv(temporary, index_label="split")
    summary: dict[str, Any] = {"errors": table.to_dict(orient="index")}
    if adapter is not None:
        counts = adapter.sparsity()
        summary["sparsity"] = {
            "layerwise": counts.layerwise,
            "total": counts.total,
            "updated": counts.updated,
            "entries": counts.entries,
            "parameters": counts.parameters,
        }
    with replacing(out / RESULTS) as temporary:
        pd.Series(summary).to_json(temporary, indent=1)


def _write_figures(
    out: Path,
    splits: dict[str, list[Frame]],
    before: dict[str, Predictions],
    after: dict[str, Predictions],
    references: dict[int, float],
) -> None:
    logs = sorted(out.glob("logs/version_*/metrics.csv"), key=lambda p: p.stat().st_mtime)
    metrics = pd.concat([pd.read_csv(log) for log in logs], ignore_index=True)
    with replacing(out / "metrics.csv") as temporary:
        metrics.to_csv(temporary, index=False)
    figures.learning_curve(metrics, out / "figures" / "learning.png")
    name = "test" if "test" in splits else "valid"
    parity = out / "figures" / "parity.png"
    figures.parity(splits[name], before[name], after[name], references, parity)
