"""What a run ends with: errors, figures, the adapter, and the model file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from e3sparse.adapter.handle import Adapter
from e3sparse.errors import DivergedError
from e3sparse.frames.evaluation import Predictions, by_kind, error_table, errors, setback
from e3sparse.frames.facts import facts_of
from e3sparse.frames.reading import Frame
from e3sparse.potentials.backends import Potential
from e3sparse.training.beginning import Beginning, predicted
from e3sparse.training.config import FinetuneConfig
from e3sparse.training.energy_zero import said_of_digits, said_of_shifts_after, shifts_after
from e3sparse.training.losses import compared
from e3sparse.training.module import FineTuning
from e3sparse.training.recovery import Recovery, no_worse
from e3sparse.training.run_folder import RunFolder
from e3sparse.training.run_levels import level_table, write_levels
from e3sparse.training.run_records import ADAPTER, SPINS
from e3sparse.training.run_results import said_of_untouched, write_figures, write_results
from e3sparse.training.sparsity_levels import SparsityLevels


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
    levels
        Errors by level of sparsity, if there are several; empty otherwise.
    """

    out: Path
    table: pd.DataFrame
    adapter: Adapter | None
    levels: pd.DataFrame = field(default_factory=pd.DataFrame)


def conclude(
    config: FinetuneConfig,
    folder: RunFolder,
    start: Beginning,
    module: FineTuning,
    recovery: Recovery,
    levels: SparsityLevels | None,
    base_loss: float,
    console: Console,
) -> RunResult:
    """Evaluate the trained model and write everything that a finished run leaves.

    Raises
    ------
    DivergedError
        If the model is worse than the base model on the validation frames.
    """
    potential, adapter, looked_at = start.potential, start.adapter, start.looked_at
    at_levels: dict[str, dict[str, Any]] = {}
    if levels is not None:
        at_levels = write_levels(config, folder, module, levels, start, base_loss, console)
        levels.load(module, levels.within()[-1])
    after = predicted(potential, looked_at, console)
    after, shifts = _with_references_anew(config, start, after, console)
    _check_gain(config, start, after, base_loss)
    rows = start.errors_before()
    rows |= {f"{n} after": errors(f, after[n], start.references) for n, f in looked_at.items()}
    rows = {f"{n} {when}": rows[f"{n} {when}"] for n in looked_at for when in ("before", "after")}
    table = error_table(rows)
    kinds = by_kind(looked_at["valid"], start.before["valid"], after["valid"], start.references)
    if config.method != "scratch" and (warning := setback(rows, config.learning_rate, kinds)):
        console.print(warning, soft_wrap=True, markup=False)
    write_results(folder.path, table, adapter, potential, recovery.setbacks, shifts, at_levels)
    write_figures(folder, looked_at, start.before, after, start.references)
    references = {z: e + shifts.get(z, 0.0) for z, e in start.references.items()}
    if adapter is not None:
        adapter.energy_references.update(references)
        adapter.save_pretrained(
            folder.path / ADAPTER,
            base_model=config.model,
            framework=potential.framework,
            metrics={"frames": {name: len(frames) for name, frames in start.splits.items()}}
            | {name: dict(row) for name, row in rows.items() if name.endswith("after")},
        )
        if not config.magnetic and (kept := said_of_untouched(adapter)):
            console.print(kept, soft_wrap=True, markup=False)
        adapter.merge()
    potential.shift_energies(references)
    few = looked_at["valid"][:16]
    found = after["valid"].energy[: len(few)]
    if rounded := said_of_digits(potential, few, found, start.references):
        console.print(rounded, soft_wrap=True, markup=False)
    potential.save(folder.path / f"model{potential.suffix}")
    if config.magnetic:
        _save_spin_layers(folder.path, potential, start.splits["train"])
    folder.finish()
    return RunResult(folder.out, table, adapter, level_table(at_levels))


def _with_references_anew(
    config: FinetuneConfig, start: Beginning, after: dict[str, Predictions], console: Console
) -> tuple[dict[str, Predictions], dict[int, float]]:
    """Fit the energy references once more; returns shifted predictions, and the shifts in eV."""
    train = start.looked_at["train"]
    shifts = shifts_after(config, train, after["train"], start.references, start.isolated)
    if not shifts:
        return after, shifts
    shifted = {name: f.shifted(start.looked_at[name], shifts) for name, f in after.items()}
    was, now = (errors(train, found["train"], start.references) for found in (after, shifted))
    said = said_of_shifts_after(shifts, was["energy_mae"], now["energy_mae"])
    console.print(said, soft_wrap=True, markup=False)
    return shifted, shifts


def _check_gain(
    config: FinetuneConfig, start: Beginning, after: dict[str, Predictions], base_loss: float
) -> None:
    final = compared(config.loss).on_frames(
        start.looked_at["valid"], after["valid"], start.references
    )
    if config.method == "scratch" or config.allow_worse or no_worse(final, base_loss):
        return
    raise DivergedError(
        f"The best model has a loss of {final:.3g} on the validation frames, and the base "
        f"model {base_loss:.3g}: it is no better, and has not been written. Give a lower --lr "
        f"than {config.learning_rate:g} or more steps; or --resume with --allow-worse, and it "
        "is written as it is."
    )


def _save_spin_layers(out: Path, potential: Potential, train: Sequence[Frame]) -> None:
    from e3sparse.magnetism import MagneticPotential, save

    assert isinstance(potential, MagneticPotential)
    save(potential, out / SPINS, facts_of(train).there)
