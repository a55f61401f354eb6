"""What can be read of a run's folder, with a sentence for each file that is missing or damaged."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import torch
import yaml

from e3sparse.adapter.config import CONFIG_NAME, TENSORS_NAME
from e3sparse.errors import ConfigError
from e3sparse.output_folders import intact

CONFIG, RESULTS, METRICS = "config.yaml", "results.json", "metrics.csv"
ADAPTER, SPINS = "adapter", "spins"
CHECKPOINTS, BEST = "checkpoints", "best.ckpt"
LISTING = "e3sparse-run.json"
RUN = "e3sparse_run"
"""Key of a checkpoint: the name of the run that it belongs to."""


def resume_command(out: Path) -> str:
    """Return what goes on with a run."""
    return f"e3sparse finetune --resume --out {shlex.quote(str(out))}"


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint of a run: tensors and plain data, nothing that is executed.

    Raises
    ------
    ConfigError
        If it is missing or damaged.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is missing, or is no file.")
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds, and for some damage more than it says
        raise ConfigError(f"{path} is damaged ({type(error).__name__}).") from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ConfigError(f"{path} is no checkpoint of a run.")
    return checkpoint


def adapter_of(run: Path) -> Path:
    """Return the adapter folder of a run, which may have been removed as a whole.

    Raises
    ------
    ConfigError
        If a file in it is missing, or is not what the run wrote.
    """
    folder = run / ADAPTER
    if folder.is_dir():
        for name in (CONFIG_NAME, TENSORS_NAME):
            intact(run, LISTING, f"{ADAPTER}/{name}")
    return folder


def best_of(run: Path) -> Path | None:
    """Return the checkpoint of a run's best validation; None if it has been removed.

    Raises
    ------
    ConfigError
        If it is not what the run wrote.
    """
    file = f"{CHECKPOINTS}/{BEST}"
    return intact(run, LISTING, file) if os.path.lexists(run / file) else None


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the settings of a run.

    Raises
    ------
    ConfigError
        If they are missing, damaged, or not what the run wrote.
    """
    path = intact(folder, LISTING, CONFIG)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise ConfigError(f"{path} is damaged: it is not valid YAML.") from None
    if not isinstance(values, dict) or not isinstance(values.get("method"), str):
        raise ConfigError(f"{path} is damaged: it does not hold the settings of a run.")
    return values


def read_results(folder: Path) -> dict[str, Any]:
    """Read the errors, and counts if there are any, of a finished run.

    Raises
    ------
    ConfigError
        If the run has not finished, or the file is damaged or not what the run wrote.
    """
    path = intact(folder, LISTING, RESULTS)
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} is not the folder of a finished run: it has no {RESULTS}. Go on with: "
            f"{resume_command(folder)}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is damaged or cannot be read ({type(error).__name__})."
        ) from None
    rows = results.get("errors") if isinstance(results, dict) else None
    known = isinstance(rows, dict) and all(
        isinstance(row, dict) and {"energy_mae", "forces_mae"} <= set(row) for row in rows.values()
    )
    if not (known and rows and {"valid before", "valid after"} <= set(rows)):
        raise ConfigError(f"{path} is damaged: it does not hold the errors of a run.")
    found: dict[str, Any] = results
    return found
