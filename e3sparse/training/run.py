"""One fine-tuning run, from files to files."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from e3sparse.adapter.fingerprint import fingerprint
from e3sparse.adapter.handle import Adapter
from e3sparse.errors import DivergedError, Interrupted
from e3sparse.frames.batches import FrameDataset, loader
from e3sparse.frames.evaluation import Predictions, by_kind, error_table, errors, setback
from e3sparse.frames.facts import facts_of
from e3sparse.frames.on_disk import sample, without
from e3sparse.frames.reading import Frame
from e3sparse.potentials.backends import Potential
from e3sparse.training.config import FinetuneConfig
from e3sparse.training.data import Frames
from e3sparse.training.energy_zero import (
    choose_references,
    fate_of_isolated,
    said_of_digits,
    said_of_references,
    said_of_shifts_after,
    shifts_after,
)
from e3sparse.training.fisher import checked_for, fisher_for, prices_of
from e3sparse.training.fitting import fit
from e3sparse.training.inputs import load_inputs
from e3sparse.training.losses import Loss
from e3sparse.training.module import FineTuning
from e3sparse.training.recovery import Recovery, no_worse
from e3sparse.training.replay import Replay, replay_frames
from e3sparse.training.run_folder import RunFolder, digests
from e3sparse.training.run_levels import level_table, write_levels
from e3sparse.training.run_records import ADAPTER, SPINS
from e3sparse.training.run_results import (
    said_of_untouched,
    write_config,
    write_figures,
    write_results,
)
from e3sparse.training.scrutiny import examined, what_was_read
from e3sparse.training.sparsity_levels import levels_of
from e3sparse.training.spin_layers import with_spin_layers
from e3sparse.training.waiting import predict_with_bar


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


def finetune(
    config: FinetuneConfig,
    *,
    overwrite: bool = False,
    resume: bool = False,
    also_read: Mapping[str, Path] | None = None,
    dry_run: bool = False,
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
    also_read
        Files besides those of the settings that must not be replaced, by their flags.
    dry_run
        Whether to stop after the files are read and examined; nothing is written then.
    console
        Where to report; a new one if None.

    Raises
    ------
    E3SparseError
        If an input is bad; nothing has been written then.
    """
    console = console or Console()
    if resume:
        folder = RunFolder.resumed(config.out)
    else:
        folder = RunFolder.begin(
            config.out,
            config.files() | dict(also_read or {}),
            overwrite=overwrite or dry_run,
        )
    made_of = digests(config.files())
    inputs = load_inputs(config, console)
    potential, splits, isolated, notes, _ = inputs
    base = fingerprint(potential.module)
    if resume:
        folder.go_on(base=base, inputs=made_of)
    console.print(
        f"{potential.name}: {sum(p.numel() for p in potential.module.parameters()):,} parameters, "
        + ", ".join(f"{len(frames)} {name}" for name, frames in splits.items())
        + " frames",
        markup=False,
    )
    console.print(what_was_read(config, inputs))
    for note in notes:
        console.print(note, soft_wrap=True, markup=False)
    if config.method == "scratch":
        potential.reinitialize(config.seed)  # before references are fitted to what it predicts
    looked_at = {n: sample(f, config.examined_frames, config.seed) for n, f in splits.items()}
    for name, frames in looked_at.items():
        if len(frames) < len(splits[name]):
            console.print(
                f"{name}: the base model is asked about {len(frames):,} of {len(splits[name]):,} "
                "frames, drawn at random; units, faults, references and errors are of these."
            )
    to_replay = replay_frames(config, potential, console) if config.replay else None
    before = _predicted(potential, looked_at, console)
    if config.method != "scratch":
        asked = looked_at
        looked_at, before = examined(config, looked_at, before, console)
        for name, frames in asked.items():
            gone = {f.where for f in frames} - {f.where for f in looked_at[name]}
            splits[name] = without(splits[name], gone)
    references = choose_references(
        config, potential, looked_at["train"], before["train"], isolated["train"]
    )
    for name, atoms in isolated.items():
        if atoms:
            console.print(fate_of_isolated(config, name, atoms), markup=False)
    console.print(said_of_references(references, isolated["train"]))
    if isolated["train"] and references:
        off = errors(looked_at["train"], before["train"], references).get("energy_mae", 0.0)
        console.print(f"With these references the base model is off by {off:.1f} meV/atom on train")
    if config.magnetic:
        potential = with_spin_layers(config, potential, looked_at["train"])
        count = sum(p.numel() for p in potential.fresh_parameters())
        console.print(f"Spin-aware layers: {count:,} parameters, trained in full")
    fisher = fisher_for(config, potential, console) if config.fisher else None
    adapter = _prepare(config, potential, splits["train"])
    if fisher is not None and adapter is not None:
        fisher = checked_for(fisher, adapter)
        if config.fisher_price > 0:
            adapter.set_prices(prices_of(fisher, config.fisher_price))
    if adapter is not None:
        adapter.energy_references.update(references)
        console.print(adapter.summary().plan(adapter.method.final_sparsity))
    if dry_run:
        found = {f"{n} before": errors(f, before[n], references) for n, f in looked_at.items()}
        return RunResult(config.out, error_table(found), None)

    if not resume:
        named = () if adapter is None else levels_of(adapter)
        folder.start(potential.suffix, base=base, inputs=made_of, levels=named)
        folder.remember_references(references)
        write_config(folder.path, config, potential)
        folder.remember_settings()

    # Moments have no base model's to be compared with.
    loss = Loss(**config.loss.model_dump())
    plain = loss.model_copy(update={"moments": 0.0, "magnetic_forces": 0.0})
    base_loss = plain.on_frames(looked_at["valid"], before["valid"], references)
    recovery = Recovery(
        config.learning_rate,
        None if config.magnetic or config.method == "scratch" else base_loss,
        **({} if config.recover else {"returns": 0}),
    )
    module = FineTuning(
        potential,
        adapter,
        loss=loss,
        optimizer=config.optimizer,
        lr=config.learning_rate,
        fresh_lr=config.spin_lr,
        replay=Replay.of(to_replay, potential, config) if to_replay else None,
        far_off=inf if config.allow_worse else recovery.far_off,
        warmup=config.warmup,
        ema=config.ema,
        fisher=fisher,
        fisher_weight=config.fisher_weight,
    )
    data = Frames(
        potential,
        FrameDataset(splits["train"], potential, references),
        FrameDataset(splits["valid"], potential, references),
        batch_size=config.batch_size,
        valid_batch_size=config.valid_batch_size,
        seed=config.seed,
        workers=config.workers,
        accumulate=config.accumulate,
    )
    if adapter is not None and adapter.method.calibrated and not resume:
        some = data.train
        if len(looked_at["train"]) < len(splits["train"]):
            some = FrameDataset(looked_at["train"], potential, references)
        batches = loader(some, potential, config.batch_size)
        potential.module.train()
        adapter.calibrate(
            loss(potential.forward(b.inputs.to(potential.device)), b.to(potential.device))
            for b in batches
        )
    checkpoint = _checkpoint(folder, console) if resume else None
    try:
        levels = fit(config, folder, module, data, checkpoint, recovery)
    except Interrupted:
        raise
    except BaseException:
        if folder.path != folder.out:
            console.print(f"The earlier run in {folder.out} is as it was.", markup=False)
        raise

    at_levels: dict[str, dict[str, Any]] = {}
    if levels is not None:
        at_levels = write_levels(
            config, folder, module, levels, looked_at, references, isolated["train"], console
        )
        levels.load(module, levels.within()[-1])
    after = _predicted(potential, looked_at, console)
    shifts = shifts_after(config, looked_at["train"], after["train"], references, isolated["train"])
    if shifts:
        unshifted = errors(looked_at["train"], after["train"], references)
        after = {name: found.shifted(looked_at[name], shifts) for name, found in after.items()}
        now = errors(looked_at["train"], after["train"], references)
        said = said_of_shifts_after(shifts, unshifted["energy_mae"], now["energy_mae"])
        console.print(said, soft_wrap=True, markup=False)
    final_loss = plain.on_frames(looked_at["valid"], after["valid"], references)
    if config.method != "scratch" and not (config.allow_worse or no_worse(final_loss, base_loss)):
        raise DivergedError(
            f"The best model has a loss of {final_loss:.3g} on the validation frames, and the base "
            f"model {base_loss:.3g}: it is no better, and has not been written. Give a lower --lr "
            f"than {config.learning_rate:g} or more steps; or --resume with --allow-worse, and it "
            "is written as it is."
        )
    rows = {}
    for name, frames in looked_at.items():
        rows[f"{name} before"] = errors(frames, before[name], references)
        rows[f"{name} after"] = errors(frames, after[name], references)
    table = error_table(rows)
    kinds = by_kind(looked_at["valid"], before["valid"], after["valid"], references)
    if config.method != "scratch" and (warning := setback(rows, config.learning_rate, kinds)):
        console.print(warning, soft_wrap=True, markup=False)
    write_results(folder.path, table, adapter, potential, recovery.setbacks, shifts, at_levels)
    write_figures(folder, looked_at, before, after, references)
    of_base = references  # which `after` lacks
    references = {z: e + shifts.get(z, 0.0) for z, e in references.items()}
    if adapter is not None:
        adapter.energy_references.update(references)
        adapter.save_pretrained(
            folder.path / ADAPTER,
            base_model=config.model,
            framework=potential.framework,
            metrics={"frames": {name: len(frames) for name, frames in splits.items()}}
            | {name: dict(row) for name, row in rows.items() if name.endswith("after")},
        )
        if not config.magnetic and (kept := said_of_untouched(adapter)):
            console.print(kept, soft_wrap=True, markup=False)
        adapter.merge()
    potential.shift_energies(references)
    few = looked_at["valid"][:16]
    if rounded := said_of_digits(potential, few, after["valid"].energy[: len(few)], of_base):
        console.print(rounded, soft_wrap=True, markup=False)
    potential.save(folder.path / f"model{potential.suffix}")
    if config.magnetic:
        _save_spin_layers(folder.path, potential, splits["train"])
    folder.finish()
    return RunResult(folder.out, table, adapter, level_table(at_levels))


def _predicted(
    potential: Potential, splits: Mapping[str, Sequence[Frame]], console: Console
) -> dict[str, Predictions]:
    return {
        name: predict_with_bar(potential, frames, f"Evaluating {name}", console)
        for name, frames in splits.items()
    }


def _checkpoint(folder: RunFolder, console: Console) -> Path | None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = folder.last_checkpoint()
    for warning in caught:
        console.print(str(warning.message), markup=False)
    if found is None:
        console.print("The run has no checkpoint yet: it begins at the first step.")
    return found


def _prepare(
    config: FinetuneConfig, potential: Potential, train: Sequence[Frame]
) -> Adapter | None:
    if config.whole_model:
        return None
    adapter = potential.patch(
        config.targets, config.method, seed=config.seed, **config.settings_of_method
    )
    adapter.freeze_absent_species(facts_of(train).there)
    return adapter


def _save_spin_layers(out: Path, potential: Potential, train: Sequence[Frame]) -> None:
    from e3sparse.magnetism import MagneticPotential, save

    assert isinstance(potential, MagneticPotential)
    save(potential, out / SPINS, facts_of(train).there)
