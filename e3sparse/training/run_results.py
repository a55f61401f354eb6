"""What a run leaves in its folder, besides checkpoints and models."""

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from ase.data import chemical_symbols

from e3sparse.adapter.handle import Adapter
from e3sparse.files import replacing
from e3sparse.frames.evaluation import Predictions
from e3sparse.frames.reading import Frame
from e3sparse.potentials.backends import Potential
from e3sparse.training import run_figures
from e3sparse.training.config import DEPENDENT, FinetuneConfig
from e3sparse.training.run_folder import RunFolder
from e3sparse.training.run_records import CONFIG, METRICS, RESULTS
from e3sparse.version import __version__


def write_config(folder: Path, config: FinetuneConfig, potential: Potential) -> None:
    """Write the settings, with paths that hold from everywhere, and versions."""
    values = config.model_dump(mode="json")
    values["lr"] = config.learning_rate
    for flag, path in config.files().items():
        values[flag.lstrip("-")] = str(path.resolve())
    values["out"] = str(config.out.resolve())
    for switch, settings in DEPENDENT.items():
        for name in settings:
            if not values[switch]:
                del values[name]  # their defaults may be others in the version that reads it
    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    with replacing(folder / "versions.json") as temporary:
        found = _versions() | dict(potential.framework)
        temporary.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "e3sparse": __version__}
    for name in ("torch", "e3nn", "lightning", "schedulefree", "ase", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["command"] = " ".join(sys.argv)
    return found


def write_results(
    folder: Path,
    table: pd.DataFrame,
    adapter: Adapter | None,
    potential: Potential,
    setbacks: Sequence[Mapping[str, Any]],
    shifts: Mapping[int, float],
    levels: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write errors, counts, setbacks, the references' last shifts, and levels of sparsity."""
    with replacing(folder / "results.csv") as temporary:
        table.to_csv(temporary, index_label="split")
    summary: dict[str, Any] = {
        "errors": table.to_dict(orient="index"),
        "setbacks": list(setbacks),
        "e0s_shifted_after": {chemical_symbols[z]: shift for z, shift in shifts.items()},
    }
    if levels:
        summary["levels"] = dict(levels)
    if adapter is not None:
        counts = adapter.sparsity()
        summary["sparsity"] = {
            "layerwise": counts.layerwise,
            "total": counts.total,
            "updated": counts.updated,
            "entries": counts.entries,
            "parameters": counts.parameters,
            "fresh": sum(p.numel() for p in potential.fresh_parameters()),
        }
    with replacing(folder / RESULTS) as temporary:
        pd.Series(summary).to_json(temporary, indent=1)


def write_figures(
    folder: RunFolder,
    splits: dict[str, list[Frame]],
    before: dict[str, Predictions],
    after: dict[str, Predictions],
    references: dict[int, float],
) -> None:
    """Write the metrics of all steps, the learning curve and the parity plot."""
    metrics = folder.metrics()
    with replacing(folder.path / METRICS) as temporary:
        metrics.to_csv(temporary, index=False)
    run_figures.learning_curve(metrics, folder.path / "figures" / "learning.png")
    name = "test" if "test" in splits else "valid"
    parity = folder.path / "figures" / "parity.png"
    run_figures.parity(splits[name], before[name], after[name], references, parity)


def said_of_untouched(adapter: Adapter) -> str | None:
    """Return the sentence that says which structures do not change at all, if any do not."""
    untouched = set(adapter.untouched_species())
    touched = sorted(set(adapter.species.numbers) - untouched - {0})
    if not untouched or not touched:
        return None
    symbols = ", ".join(chemical_symbols[z] for z in touched)
    return (
        f"Only weights and energies of {symbols} have changed: structures without these elements "
        "give the base model's numbers to the last digit."
    )
