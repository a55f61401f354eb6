"""Lightning's Trainer: what of it settings reach, what a run keeps to itself, and the loggers."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from e3sparse.errors import ConfigError, nearest

if TYPE_CHECKING:
    from e3sparse.training.config import FinetuneConfig

_FLAGS = {
    "accelerator": "device",
    "devices": "devices",
    "strategy": "strategy",
    "logger": "logger",
    "max_epochs": "epochs",
    "max_steps": "max-steps",
    "check_val_every_n_epoch": "valid-every",
    "accumulate_grad_batches": "accumulate",
    "gradient_clip_val": "clip-grad",
    "default_root_dir": "out",
}
"""Arguments of Lightning's that have a flag of ours."""

_HALF = (
    "forces are derivatives that are differentiated once more, for which 8 or 11 bits have not "
    "been shown to be enough. --matmul-precision high is faster arithmetic, and --dtype chooses "
    "float32 or float64"
)
_OURS = {
    "precision": _HALF,
    "num_nodes": "results are written by the one process that the run was begun by",
    "inference_mode": "forces need gradients in a validation too",
    "num_sanity_val_steps": "the base model is evaluated before the training anyway",
    "enable_checkpointing": "the results are made of the checkpoints",
    "enable_progress_bar": "the run has a bar of its own",
    "enable_model_summary": "the run prints a summary of its own",
    "use_distributed_sampler": "a run that goes on has to know the order of its frames",
    "plugins": "the run writes its checkpoints by one of its own",
    "barebones": "the results are made of logs and checkpoints",
    "fast_dev_run": "it writes no checkpoint. --max-steps 1 is a short run, --dry-run none",
    "overfit_batches": "it changes the order of frames. Give fewer frames",
    "limit_train_batches": "a run that goes on has to know the order of its frames. Give fewer "
    "frames, or --max-steps",
    "limit_val_batches": "the best model is that of the whole validation. Give fewer frames by "
    "--valid",
    "val_check_interval": "validations are at the end of epochs: --valid-every",
    "max_time": "the method has to come to its end. Stop it by Ctrl-C, and go on by --resume",
}
"""Arguments of Lightning's that would break what a run promises, and why."""

LOGGERS = {
    "csv": [],
    "tensorboard": ["tensorboard", "tensorboardX"],
    "wandb": ["wandb"],
    "mlflow": ["mlflow", "mlflow_skinny"],
}
"""Names of loggers, and the packages of which they need one."""


def check_trainer(config: "FinetuneConfig") -> None:
    """Refuse arguments of the Trainer, loggers and strategies that a run cannot have.

    Raises
    ------
    ValueError
        Saying what is wrong, and which setting to use.
    """
    known = [name for name in inspect.signature(Trainer).parameters if name != "self"]
    for name in config.trainer:
        if name in _FLAGS:
            raise ValueError(f"trainer: {name} is a setting of its own, --{_FLAGS[name]}")
        if name in _OURS:
            raise ValueError(f"trainer: {name} cannot be set, because {_OURS[name]}")
        if name not in known:
            raise ValueError(
                f"trainer: Lightning's Trainer has no argument '{name}'.{nearest(name, known)}"
            )
    for name in logger_names(config):
        if name not in LOGGERS:
            raise ValueError(
                f"there is no logger '{name}'.{nearest(name, LOGGERS)} Loggers: "
                f"{', '.join(LOGGERS)}"
            )
        packages = LOGGERS[name]
        if packages and not any(find_spec(package) for package in packages):
            raise ValueError(
                f"logger {name} needs the package '{packages[0]}', which is not installed: "
                f"pip install {packages[0]}"
            )
    if config.strategy != "auto" and not config.strategy.startswith("ddp_spawn"):
        raise ValueError(
            f"strategy {config.strategy} cannot be used: it starts the program again for each "
            "device or shares out weights, and results are written by one process that holds "
            "them all. Use auto or ddp_spawn"
        )
    try:
        Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **further(config))
        further_callbacks(config)
    except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
        raise ValueError(f"trainer: Lightning says: {error}") from None


def logger_names(config: "FinetuneConfig") -> list[str]:
    """Return the loggers that were asked for, csv among them: the figures are made of it."""
    named = [config.logger] if isinstance(config.logger, str) else config.logger
    return list(dict.fromkeys(["csv", *named]))


def make_loggers(config: "FinetuneConfig", path: Path) -> list[Logger]:
    """Return the loggers of a run, whose own files are in `path`.

    TensorBoard's files are in `tensorboard/` beside the run folder, named after it, because a run
    knows the files of its folder by name. W&B and MLflow take their settings from the environment.
    """
    name = config.out.resolve().name
    makers: dict[str, Any] = {
        "csv": lambda: CSVLogger(path, name="logs"),
        "tensorboard": lambda: TensorBoardLogger(config.out.resolve().parent / "tensorboard", name),
        "wandb": lambda: WandbLogger(name=name, project="e3sparse", save_dir=config.out.parent),
        "mlflow": lambda: MLFlowLogger("e3sparse", run_name=name),
    }
    return [makers[logger]() for logger in logger_names(config)]


def further(config: "FinetuneConfig") -> dict[str, Any]:
    """Return the arguments that the settings give under `trainer:`, without callbacks."""
    return {name: value for name, value in config.trainer.items() if name != "callbacks"}


def further_callbacks(config: "FinetuneConfig") -> list[Callback]:
    """Return the callbacks that the settings name under `trainer: callbacks:`.

    Raises
    ------
    ConfigError
        If one cannot be made.
    """
    named = config.trainer.get("callbacks") or []
    return [_callback(entry) for entry in (named if isinstance(named, list) else [named])]


def _callback(entry: Any) -> Callback:
    arguments: Mapping[str, Any] = {}
    if isinstance(entry, Mapping) and "class_path" in entry:
        arguments, entry = entry.get("init_args", {}), entry["class_path"]
    if not isinstance(entry, str):
        raise ConfigError(
            f"trainer: callbacks: {entry!r} is no callback. Give a class of "
            "lightning.pytorch.callbacks, or class_path and init_args."
        )
    module, _, name = entry.rpartition(".")
    module = module or "lightning.pytorch.callbacks"
    try:
        made = getattr(import_module(module), name)(**arguments)
    except ImportError as error:
        raise ConfigError(f"trainer: callbacks: {entry}: {error}.") from None
    except AttributeError:
        there = [n for n in dir(import_module(module)) if n[0].isupper()]
        raise ConfigError(
            f"trainer: callbacks: {module} has no '{name}'.{nearest(name, there)}"
        ) from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trainer: callbacks: {entry}: {error}.") from None
    if not isinstance(made, Callback):
        raise ConfigError(f"trainer: callbacks: {entry} is no callback of Lightning's.")
    return made


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Multiply float32 matrices at a precision, and as before afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
