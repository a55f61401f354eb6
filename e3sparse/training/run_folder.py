"""What a run leaves in its folder, besides checkpoints and models."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

import e3sparse
from e3sparse.adapter import Adapter
from e3sparse.backends import Potential
from e3sparse.files import replacing
from e3sparse.training import figures
from e3sparse.training.config import DEPENDENT, FinetuneConfig
from e3sparse.training.evaluation import Predictions
from e3sparse.training.frames import Frame

CONFIG = "config.yaml"
RESULTS = "results.json"


def write_config(config: FinetuneConfig, potential: Potential) -> None:
    values = config.model_dump(mode="json")
    values["lr"] = config.learning_rate
    for switch, settings in DEPENDENT.items():
        for name in settings:
            if not values[switch]:
                del values[name]  # their defaults may be others in the version that reads it
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


def write_results(
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
            "fresh": sum(p.numel() for p in potential.fresh_parameters()),
        }
    with replacing(out / RESULTS) as temporary:
        pd.Series(summary).to_json(temporary, indent=1)


def write_figures(
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
