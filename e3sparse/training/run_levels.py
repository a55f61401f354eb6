"""The adapters of a run's levels of sparsity, and how good each is."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.console import Console

from e3sparse.frames.evaluation import errors
from e3sparse.training.beginning import Beginning
from e3sparse.training.config import FinetuneConfig
from e3sparse.training.energy_zero import shifts_after
from e3sparse.training.losses import compared
from e3sparse.training.module import FineTuning
from e3sparse.training.recovery import no_worse
from e3sparse.training.run_folder import RunFolder, level_folder
from e3sparse.training.sparsity_levels import SparsityLevels, levels_of
from e3sparse.training.waiting import predict_with_bar


def write_levels(
    config: FinetuneConfig,
    folder: RunFolder,
    module: FineTuning,
    levels: SparsityLevels,
    start: Beginning,
    base_loss: float,
    console: Console,
) -> dict[str, dict[str, Any]]:
    """Save the best delta of each level as an adapter folder, unless it is worse than the base.

    The model is left at the last of them; see `SparsityLevels.load`.

    Returns
    -------
    dict
        Of each level, by its sparsity: the adapter folder, counts, and the errors on each split.
    """
    splits, references = start.looked_at, start.references
    adapter, found = levels.adapter, {}
    for level, name in enumerate(levels_of(adapter)):
        if level not in levels.losses:
            console.print(f"No validation fell on a sparsity of {name}: it has no adapter.")
            continue
        levels.load(module, level)
        after = {
            split: predict_with_bar(module.potential, frames, f"{split} at {name}", console)
            for split, frames in splits.items()
        }
        shifts = shifts_after(config, splits["train"], after["train"], references, start.isolated)
        together = {z: e + shifts.get(z, 0.0) for z, e in references.items()}
        final = compared(config.loss).on_frames(splits["valid"], after["valid"], together)
        if not (config.allow_worse or no_worse(final, base_loss)):
            console.print(f"With a sparsity of {name} no model was better than the base model.")
            continue
        rows = {split: errors(splits[split], after[split], together) for split in splits}
        adapter.energy_references.update(together)
        adapter.save_pretrained(
            folder.path / level_folder(name),
            base_model=config.model,
            framework=module.potential.framework,
            metrics={f"{split} after": row for split, row in rows.items()},
        )
        counts = adapter.sparsity()
        found[name] = {"adapter": level_folder(name), "updated": counts.updated, "errors": rows}
    return found


def level_table(found: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return a row for each level: updated entries, and the errors on test or validation."""
    rows = {}
    for name, level in found.items():
        split = "test" if "test" in level["errors"] else "valid"
        row = level["errors"][split]
        rows[name] = {
            "updated": int(level["updated"]),
            f"{split} E MAE (meV/atom)": row.get("energy_mae"),
            f"{split} F MAE (meV/Å)": row.get("forces_mae"),
            "adapter": level["adapter"],
        }
    return pd.DataFrame.from_dict(rows, orient="index")
