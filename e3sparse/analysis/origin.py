"""Where a change is read from: what run folders and adapter folders say of themselves."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols

from e3sparse.adapter.config import CONFIG_NAME
from e3sparse.adapter.config import read_config as read_adapter_config
from e3sparse.adapter.hub import local_folder
from e3sparse.errors import ConfigError, nearest
from e3sparse.training.run_folder import RunFolder
from e3sparse.training.run_records import (
    ADAPTER,
    RESULTS,
    adapter_of,
    best_of,
    read_checkpoint,
    read_results,
    read_settings,
)
from e3sparse.training.run_records import CONFIG as RUN_CONFIG

_FORCES = "forces_mae_"


@dataclass(frozen=True)
class Origin:
    """Where a change comes from: the folders that are there, and what to load."""

    source: Path
    adapter: Path | None
    run: Path | None
    base: str
    backend: str | None
    head: str | None
    method: str
    magnetic: bool


def find_origin(
    source: Path, base: str | None = None, backend: str | None = None, head: str | None = None
) -> Origin:
    """Find out what a folder holds; `base`, `backend` and `head` overrule what it says.

    Raises
    ------
    ConfigError
        If it is neither a run nor an adapter folder, its run did not finish, or it has no base.
    """
    source = local_folder(source)
    if not source.is_dir():
        there = [p.name for p in source.parent.iterdir()] if source.parent.is_dir() else []
        raise ConfigError(
            f"There is no folder {source}.{nearest(source.name, there)} Give a run folder of "
            "e3sparse finetune, or an adapter folder."
        )
    is_run = (source / RUN_CONFIG).is_file()
    folder = adapter_of(source) if is_run else source
    adapter = folder if (folder / CONFIG_NAME).is_file() else None
    if adapter is None and not is_run:
        raise ConfigError(
            f"{source} is neither a run folder (it has no {RUN_CONFIG}) nor an adapter folder (it "
            f"has no {CONFIG_NAME})."
        )
    if not is_run:
        config = read_adapter_config(source)
        # The folder `adapter` of a run lies beside what the run recorded.
        run = source.parent if (source.parent / RUN_CONFIG).is_file() else None
        if run is not None and source.name == ADAPTER:
            adapter_of(run)
        settings = read_settings(run) if run else {"model": config.base_model}
        settings["method"] = config.method
    else:
        run, settings = source, read_settings(source)
        if not (source / RESULTS).is_file():
            raise ConfigError(
                f"The run in {source} has not finished: it has no {RESULTS}. Go on with: "
                f"{RunFolder(source).resume_command}"
            )
    if settings["method"] == "scratch":
        raise ConfigError(
            f"{source} was trained from scratch: there is no base model that it could have changed."
        )
    model = base or settings.get("model")
    if not model:
        raise ConfigError(f"{source} does not say which base model it belongs to: give --base.")
    return Origin(
        source,
        adapter,
        run,
        str(model),
        backend or settings.get("backend"),
        head or settings.get("head"),
        str(settings["method"]),
        bool(settings.get("magnetic")),
    )


def thresholds(origin: Origin, paths: Iterable[str]) -> dict[str, float]:
    """Read δ = sigmoid(τ) of each layer from the checkpoint of a run, without unpickling code."""
    best = best_of(origin.run) if origin.run else None
    if origin.method != "soft_threshold" or best is None:
        return {}
    state = read_checkpoint(best)["state_dict"]
    taus = {name: value for name, value in state.items() if name.endswith(".tau")}
    found = {}
    for path in paths:
        for name, tau in taus.items():
            # Below spin-aware layers the base model is their backbone.
            if name.startswith((f"model.{path}.e3sparse.", f"model.backbone.{path}.e3sparse.")):
                found[path] = float(torch.sigmoid(tau.double()))
    return found


def elements_trained_on(origin: Origin) -> frozenset[int] | None:
    """Read the elements of the training frames off the errors by element that a run recorded."""
    recorded: dict[str, Any] = {}
    if origin.run is not None and (origin.run / RESULTS).is_file():
        recorded = read_results(origin.run)["errors"]
    elif origin.adapter is not None:
        recorded = read_adapter_config(origin.adapter).metrics
    errors = recorded.get("train after")
    if not isinstance(errors, dict):
        return None
    symbols = [key.removeprefix(_FORCES) for key in errors if key.startswith(_FORCES)]
    # The table of a run has one column for every element of any of its files.
    there = [s for s in symbols if errors[f"{_FORCES}{s}"] is not None]
    return frozenset(chemical_symbols.index(s) for s in there) or None


def distinct(sources: Sequence[Path]) -> list[str]:
    """Name folders by as many of their last parts as it takes to tell them apart."""
    resolved = [source.resolve() for source in sources]
    if len(set(resolved)) < len(resolved):
        twice = next(p for i, p in enumerate(sources) if resolved[i] in resolved[:i])
        raise ConfigError(f"{twice} is given twice: compare different folders.")
    parts = [p.parts[:-1] if p.name == ADAPTER else p.parts for p in resolved]
    if len(set(parts)) < len(parts):
        parts = [p.parts for p in resolved]
    length = 1
    while len({part[-length:] for part in parts}) < len(parts):
        length += 1
    return ["/".join(part[-length:]) for part in parts]
