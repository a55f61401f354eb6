"""What several runs found, as one table."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from e3sparse.training.run_records import read_results, read_settings


def compare_runs(runs: Sequence[Path]) -> pd.DataFrame:
    """Return zero-shot and final errors of runs that share a test (or validation) set.

    Raises
    ------
    ConfigError
        If a folder is not that of a finished run, or a file in it is damaged.
    """
    rows: dict[str, dict[str, object]] = {}
    for run in runs:
        results, config = read_results(run), read_settings(run)
        split = "test" if "test after" in results["errors"] else "valid"
        before, after = (results["errors"][f"{split} {when}"] for when in ("before", "after"))
        sparsity = results.get("sparsity", {})
        if not rows:
            rows["zero-shot"] = _row(before, {})
        rows[f"{config['method']} ({run})"] = _row(after, sparsity)
    return pd.DataFrame.from_dict(rows, orient="index")


def _row(errors: dict[str, float], sparsity: dict[str, float]) -> dict[str, object]:
    layerwise, updated = sparsity.get("layerwise"), sparsity.get("updated")
    return {
        "E MAE (meV/atom)": errors["energy_mae"],
        "F MAE (meV/Å)": errors["forces_mae"],
        "layer-wise sparsity": "" if layerwise is None else f"{layerwise:.2%}",
        "updated parameters": "" if updated is None else f"{int(updated):,}",
    }
