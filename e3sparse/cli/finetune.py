"""`e3sparse finetune`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from e3sparse.cli.options import (
    BackendOption,
    DeviceOption,
    DtypeOption,
    EnergyKey,
    ForcesKey,
    HeadOption,
    MomentsKey,
    SpinKey,
    StressKey,
    TrustOption,
)
from e3sparse.cli.tables import out, print_errors
from e3sparse.errors import ConfigError

_DATA, _METHOD, _TRAINING, _MAGNETISM = "Data", "What is trained", "Training", "Magnetism"


def finetune(
    model: Annotated[str | None, typer.Option(help="Base model: a name or a file.")] = None,
    train: Annotated[
        Path | None, typer.Option(help="Training frames.", rich_help_panel=_DATA)
    ] = None,
    valid: Annotated[
        Path | None,
        typer.Option(help="Validation frames; else a part of train.", rich_help_panel=_DATA),
    ] = None,
    test: Annotated[Path | None, typer.Option(help="Test frames.", rich_help_panel=_DATA)] = None,
    out_: Annotated[Path | None, typer.Option("--out", help="Run folder.  (default run)")] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings; flags count more.")
    ] = None,
    backend: BackendOption = None,
    head: HeadOption = None,
    device: DeviceOption = None,
    devices: Annotated[
        int | None, typer.Option(help="How many of them share each step.  (default 1)")
    ] = None,
    dtype: DtypeOption = None,
    accelerate: Annotated[
        str | None,
        typer.Option(
            help="How the model is evaluated: auto; none, as the framework does; cueq "
            "(cuEquivariance), for SevenNet also oeq.  (default auto)"
        ),
    ] = None,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
    moments_key: MomentsKey = None,
    spin_key: SpinKey = None,
    e0s: Annotated[
        str | None,
        typer.Option(
            help="Energy references: fit a shift per element, from isolated atoms in train and by "
            "least squares for elements without one; or keep the model's.  (default fit)",
            rich_help_panel=_DATA,
        ),
    ] = None,
    refit_e0s: Annotated[
        bool,
        typer.Option(
            "--refit-e0s/--no-refit-e0s",
            help="Fit the references that were fitted once more after training.",
            rich_help_panel=_DATA,
        ),
    ] = True,
    skip_faulty: Annotated[
        bool,
        typer.Option(
            "--skip-faulty",
            help="Leave out frames that cannot be used or are nothing like the rest.",
            rich_help_panel=_DATA,
        ),
    ] = False,
    energy_only: Annotated[
        bool,
        typer.Option(
            "--energy-only", help="Train on files without forces too.", rich_help_panel=_DATA
        ),
    ] = False,
    check_units: Annotated[
        bool,
        typer.Option(
            "--check-units/--no-check-units",
            help="Refuse labels that agree with the base model in another unit only.",
            rich_help_panel=_DATA,
        ),
    ] = True,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that read frames and build graphs, for sets on disk (.db, .aselmdb).  "
            "(default 0)",
            rich_help_panel=_DATA,
        ),
    ] = None,
    magnetic: Annotated[
        bool,
        typer.Option(
            "--magnetic",
            help="Put spin-aware layers on the model, and learn moments too.",
            rich_help_panel=_MAGNETISM,
        ),
    ] = False,
    spin_orbit: Annotated[
        bool,
        typer.Option(
            "--spin-orbit",
            help="Let the spins feel the lattice; else a rotation of all spins changes nothing.",
            rich_help_panel=_MAGNETISM,
        ),
    ] = False,
    spin_lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of the spin-aware layers.  (default 0.01)",
            rich_help_panel=_MAGNETISM,
        ),
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(
            help="auto, or a file of structures: penalise drift from the base model on small "
            "structures of all its elements or on these, labelled by itself. Give a lower --lr "
            "with it.  (default none)",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    replay_weight: Annotated[
        float | None, typer.Option(help="(default 0.1)", rich_help_panel=_TRAINING)
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            help="linear, fctp, tp, mlp, everything, or a glob or regex on module paths; may be "
            "repeated.  (default linear)",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="budget, soft_threshold, low_rank, dense, fixed_mask; full or scratch for the "
            "whole model.  (default budget)",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    target_sparsity: Annotated[
        float | None,
        typer.Option(help="Share of zeros in the delta at the end.", rich_help_panel=_METHOD),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Another setting of the method: NAME=VALUE.", rich_help_panel=_METHOD
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="(default 50)", rich_help_panel=_TRAINING)
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Counts instead of epochs.", rich_help_panel=_TRAINING)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="(default 8)", rich_help_panel=_TRAINING)
    ] = None,
    valid_every: Annotated[
        int | None,
        typer.Option(help="Epochs between validations.  (default 1)", rich_help_panel=_TRAINING),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate; the method's own if left out.", rich_help_panel=_TRAINING
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="schedule_free, adamw (cosine) or sgd.  (default schedule_free)",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    energy_weight: Annotated[
        float | None, typer.Option(help="(default 1)", rich_help_panel=_TRAINING)
    ] = None,
    forces_weight: Annotated[
        float | None, typer.Option(help="(default 1)", rich_help_panel=_TRAINING)
    ] = None,
    stress_weight: Annotated[
        float | None, typer.Option(help="(default 1)", rich_help_panel=_TRAINING)
    ] = None,
    moments_weight: Annotated[
        float | None,
        typer.Option(help="(default 1)", rich_help_panel=_MAGNETISM),
    ] = None,
    magnetic_forces_weight: Annotated[
        float | None,
        typer.Option(
            help="Learn REF_magforces, -dE/dm, too.  (default 0)", rich_help_panel=_MAGNETISM
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Validations without progress before stopping.", rich_help_panel=_TRAINING
        ),
    ] = None,
    recover: Annotated[
        bool,
        typer.Option(
            "--recover/--no-recover",
            help="Go back to an earlier state, and on at half the rate, when losses leave all "
            "bounds.",
            rich_help_panel=_TRAINING,
        ),
    ] = True,
    allow_worse: Annotated[
        bool,
        typer.Option(
            "--allow-worse",
            help="Write the model even if its validation loss is higher than the base model's.",
            rich_help_panel=_TRAINING,
        ),
    ] = False,
    seed: Annotated[int | None, typer.Option(help="(default 0)", rich_help_panel=_TRAINING)] = None,
    trust_model: TrustOption = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run folder.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Read and examine the files, say what is there, and stop."),
    ] = False,
) -> None:
    """Fine-tune a model with a sparse delta (or whole) and write a run folder."""
    from e3sparse.training import run
    from e3sparse.training.config import make_config, read_config
    from e3sparse.training.run_folder import RunFolder
    from e3sparse.training.run_records import read_settings

    if overwrite and resume:
        raise ConfigError("--overwrite and --resume exclude each other.")
    given = {
        "model": model,
        "train": train,
        "valid": valid,
        "test": test,
        "out": out_,
        "backend": backend,
        "head": head,
        "device": device,
        "devices": devices,
        "dtype": dtype,
        "accelerate": accelerate,
        "e0s": e0s,
        "refit_e0s": None if refit_e0s else False,
        "skip_faulty": skip_faulty or None,
        "energy_only": energy_only or None,
        "check_units": None if check_units else False,
        "workers": workers,
        "magnetic": magnetic or None,
        "spin_orbit": spin_orbit or None,
        "spin_lr": spin_lr,
        "replay": replay,
        "replay_weight": replay_weight,
        "targets": targets[0] if targets and len(targets) == 1 else targets,
        "method": method,
        "epochs": epochs,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "valid_every": valid_every,
        "lr": lr,
        "optimizer": optimizer,
        "patience": patience,
        "recover": None if recover else False,
        "allow_worse": allow_worse or None,
        "seed": seed,
    }
    nested: dict[str, dict[str, Any]] = {
        "keys": {
            "energy": energy_key,
            "forces": forces_key,
            "stress": stress_key,
            "moments": moments_key,
            "spin": spin_key,
        },
        "loss": {
            "energy": energy_weight,
            "forces": forces_weight,
            "stress": stress_weight,
            "moments": moments_weight,
            "magnetic_forces": magnetic_forces_weight,
        },
        "method_settings": {"target_sparsity": target_sparsity} | _settings(set_ or []),
    }
    if resume:
        also = {"out", "allow_worse"}
        changed = [k for k, v in given.items() if v is not None and k not in also]
        changed += [k for k, part in nested.items() if any(v is not None for v in part.values())]
        if changed or config:
            raise ConfigError(
                "--resume goes on with the settings of the run, so give it --out only "
                f"(given too: {', '.join(changed) or 'config'})."
            )
        folder = out_ or Path("run")
        values = read_settings(RunFolder.resumed(folder).path) | {"out": folder}
        values |= {"allow_worse": True} if allow_worse else {}
    else:
        values = read_config(config) if config else {}
        values |= {k: v for k, v in given.items() if v is not None}
        for name, part in nested.items():
            said = {k: v for k, v in part.items() if v is not None}
            if said:
                values[name] = {**values.get(name, {}), **said}
        for name in ("model", "train"):
            if name not in values:
                raise ConfigError(f"Give --{name}, or '{name}:' in the --config file.")
    settings = make_config(values)
    also_read = {} if config is None else {"--config": config}
    result = run.finetune(
        settings,
        overwrite=overwrite,
        resume=resume,
        also_read=also_read,
        dry_run=dry_run,
        console=out,
    )
    print_errors(result.table, f"{settings.model}, method {settings.method}")
    if result.adapter is not None:
        out.print(str(result.adapter.sparsity()))
    out.print("A dry run: nothing was written." if dry_run else f"Run folder: {result.out}")


def _settings(pairs: list[str]) -> dict[str, Any]:
    import yaml

    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set takes NAME=VALUE, not '{pair}'.")
        settings[name] = yaml.safe_load(value)
    return settings
