"""The command line: fine-tune, evaluate, merge, inspect, compare."""

import errno
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from e3sparse.errors import ConfigError, E3SparseError, Interrupted
from e3sparse.paths import KINDS

app = typer.Typer(
    help="Sparse, equivariant fine-tuning of e3nn potentials.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
adapters_app = typer.Typer(help="Look at saved adapters.", no_args_is_help=True)
app.add_typer(adapters_app, name="adapters")

# In a file or a pipe nobody sees 80 columns.
out = Console(width=None if sys.stdout.isatty() else 120)

ModelArgument = Annotated[str, typer.Argument(help="Model name or file.")]
BackendOption = Annotated[
    str | None, typer.Option(help="Framework of the model; found out if left out.")
]
HeadOption = Annotated[
    str | None, typer.Option(help="Head or level of theory, for models with several.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or auto.")]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32 or float64; the file's if left out.")
]
EnergyKey = Annotated[str | None, typer.Option(help="Energy label.  (default REF_energy)")]
ForcesKey = Annotated[str | None, typer.Option(help="Forces label.  (default REF_forces)")]
StressKey = Annotated[str | None, typer.Option(help="Stress label.  (default REF_stress)")]

_DATA, _METHOD, _TRAINING = "Data", "What is trained", "Training"


@app.command()
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
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
    e0s: Annotated[
        str | None,
        typer.Option(
            help="Energy references: fit a per-element shift, or keep.  (default fit)",
            rich_help_panel=_DATA,
        ),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            help="linear, fctp, tp, mlp, all, or a glob or regex on module paths; may be "
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
    patience: Annotated[
        int | None,
        typer.Option(
            help="Validations without progress before stopping.", rich_help_panel=_TRAINING
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="(default 0)", rich_help_panel=_TRAINING)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run folder.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder.")
    ] = False,
) -> None:
    """Fine-tune a model with a sparse delta (or whole) and write a run folder."""
    from e3sparse.training import run
    from e3sparse.training.config import make_config, read_config

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
        "e0s": e0s,
        "targets": targets[0] if targets and len(targets) == 1 else targets,
        "method": method,
        "epochs": epochs,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "valid_every": valid_every,
        "lr": lr,
        "optimizer": optimizer,
        "patience": patience,
        "seed": seed,
    }
    nested: dict[str, dict[str, Any]] = {
        "keys": {"energy": energy_key, "forces": forces_key, "stress": stress_key},
        "loss": {"energy": energy_weight, "forces": forces_weight, "stress": stress_weight},
        "method_settings": _settings(set_ or []) | {"target_sparsity": target_sparsity},
    }
    if resume:
        changed = [k for k, v in given.items() if v is not None and k != "out"]
        changed += [k for k, part in nested.items() if any(v is not None for v in part.values())]
        if changed or config:
            raise ConfigError(
                "--resume goes on with the settings of the run, so give it --out only "
                f"(given too: {', '.join(changed) or 'config'})."
            )
        folder = out_ or Path("run")
        values = read_config(folder / run.CONFIG) | {"out": folder}
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
    result = run.finetune(settings, overwrite=overwrite, resume=resume, console=out)
    _print_errors(result.table, f"{settings.model}, method {settings.method}")
    if result.adapter is not None:
        out.print(str(result.adapter.sparsity()))
    out.print(f"Run folder: {result.out}")


@app.command()
def evaluate(
    model: ModelArgument,
    data: Annotated[list[Path], typer.Option(help="Labelled frames; may be repeated.")],
    adapter: Annotated[Path | None, typer.Option(help="Adapter folder to put on first.")] = None,
    backend: BackendOption = None,
    head: HeadOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
    e0s: Annotated[
        str, typer.Option(help="keep, or fit per-element shifts on each file first.")
    ] = "keep",
    json: Annotated[Path | None, typer.Option(help="Write the figures here too.")] = None,
) -> None:
    """Print the errors of a model on labelled frames, per file and per element."""
    from e3sparse.files import replacing
    from e3sparse.training.evaluation import error_table, errors, predict
    from e3sparse.training.frames import LabelKeys, read_frames
    from e3sparse.training.references import fit_references

    if e0s not in ("keep", "fit"):
        raise ConfigError(f"--e0s is 'keep' or 'fit', not '{e0s}'.")
    potential = _load(model, backend, head, device, dtype)
    if adapter is not None:
        potential.load_adapter(adapter)
    said = {"energy": energy_key, "forces": forces_key, "stress": stress_key}
    keys = LabelKeys(**{k: v for k, v in said.items() if v is not None})
    rows = {}
    for path in data:
        frames = read_frames(path, keys, known=potential.species.numbers, cutoff=potential.cutoff)
        predicted = predict(potential, frames)
        references = fit_references(frames, predicted.energy) if e0s == "fit" else {}
        rows[str(path)] = errors(frames, predicted, references)
    table = error_table(rows)
    _print_errors(table, model)
    if json is not None:
        with replacing(json) as temporary:
            table.to_json(temporary, orient="index", indent=1)


@app.command()
def merge(
    model: ModelArgument,
    adapter: Annotated[list[Path], typer.Option(help="Adapter folder; several are added up.")],
    out_: Annotated[Path, typer.Option("--out", help="Model file to write.")],
    backend: BackendOption = None,
    head: HeadOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Fold adapters into their base model and write an ordinary model file."""
    import e3sparse

    if out_.exists() and not overwrite:
        raise ConfigError(f"{out_} exists. Give another --out, or --overwrite.")
    potential = _load(model, backend, head, "cpu", None)
    for number, folder in enumerate(adapter):
        loaded = potential.load_adapter(folder, name=f"adapter{number}")
        out.print(f"{folder}: {loaded.sparsity()}")
    e3sparse.merge(potential.module)
    potential.save(out_)
    out.print(f"Wrote {out_}")


@app.command()
def inspect(
    model: ModelArgument,
    targets: Annotated[
        list[str] | None, typer.Option(help="List the layers that these would patch.")
    ] = None,
    backend: BackendOption = None,
    head: HeadOption = None,
) -> None:
    """Show which layers a model has, and what each target would patch."""
    from e3sparse.targets import candidates, select

    potential = _load(model, backend, head, "cpu", None)
    found = candidates(potential.module, potential.species)
    parameters = sum(p.numel() for p in potential.module.parameters())
    out.print(
        f"{model}: {parameters:,} parameters, cutoff {potential.cutoff} Å, "
        f"{len(potential.species.numbers)} elements"
    )
    overview = Table("targets", "layers", "entries", "share of parameters")
    for name in (*KINDS, "all"):
        layers = [x for x in found.layers.values() if name in ("all", x.kind)]
        entries = sum(layout.numel for layout in layers)
        # Reweighted paths are no parameters of the model: their weights come from the radial net.
        owned = sum(layout.numel for layout in layers if layout.parameter is not None)
        overview.add_row(name, str(len(layers)), f"{entries:,}", f"{owned / parameters:.2%}")
    out.print(overview)
    picked = select(potential.module, targets, potential.species) if targets else found
    listing = Table(title="Layers")
    for column in ("layer", "kind", "entries", "species axis", "irreps"):
        listing.add_column(column, overflow="fold")
    for path, layout in picked.layers.items():
        axis = layout.blocks[0].species_axis
        listing.add_row(
            path, layout.kind, f"{layout.numel:,}", "" if axis is None else str(axis), layout.irreps
        )
    out.print(listing)
    reasons = Counter(f"{s.kind}: {s.reason}" for s in found.skipped)
    for reason, count in reasons.items():
        out.print(f"Passed over, {count} x {reason}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
) -> None:
    """Print the test errors of several runs side by side."""
    from e3sparse.training.report import compare_runs

    out.print(_frame_table(compare_runs(runs), "Runs", ".4g"))


@adapters_app.command("diff")
def diff(
    a: Annotated[Path, typer.Argument(help="An adapter folder.")],
    b: Annotated[Path, typer.Argument(help="Another.")],
) -> None:
    """Compare two adapters: settings, and the entries that each layer's delta changes."""
    from e3sparse.comparison import compare_adapters, differing_settings

    for name, (one, two) in differing_settings(a, b).items():
        out.print(f"{name}: {one} | {two}")
    table = compare_adapters(a, b)
    table.columns = table.columns.str.replace("_", " ")
    out.print(_frame_table(table, f"A = {a}, B = {b}", ".3g"))


def _load(
    model: str, backend: str | None, head: str | None, device: str | None, dtype: str | None
) -> Any:
    import torch

    from e3sparse.backends import load_potential

    if dtype not in (None, "float32", "float64"):
        raise ConfigError(f"--dtype is float32 or float64, not '{dtype}'.")
    return load_potential(
        model,
        backend=backend,
        device=device or "cpu",
        dtype=None if dtype is None else getattr(torch, dtype),
        head=head,
    )


def _settings(pairs: list[str]) -> dict[str, Any]:
    import yaml

    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set takes NAME=VALUE, not '{pair}'.")
        settings[name] = yaml.safe_load(value)
    return settings


def _print_errors(table: pd.DataFrame, title: str) -> None:
    units = {"energy": "meV/atom", "forces": "meV/Å", "stress": "meV/Å³"}
    columns = {f"{name}_mae": f"{name} MAE ({unit})" for name, unit in units.items()}
    main = table[[c for c in columns if c in table]].rename(columns=columns)
    out.print(_frame_table(main, title, ".3f"))
    prefix = "forces_mae_"
    elements = [str(c) for c in table.columns if str(c).startswith(prefix)]
    if len(elements) > 1:
        short = table[elements].rename(columns={c: c.removeprefix(prefix) for c in elements})
        out.print(_frame_table(short, "Force MAE per element (meV/Å)", ".2f"))


def _frame_table(frame: pd.DataFrame, title: str, number: str) -> Table:
    def cell(value: object) -> str:
        if isinstance(value, int):
            return f"{value:,}"
        return format(value, number) if isinstance(value, float) else str(value)

    table = Table(title=title)
    table.add_column("", overflow="fold")
    for column in frame.columns:
        table.add_column(str(column), justify="right", overflow="fold")
    for name, *values in frame.itertuples():
        table.add_row(str(name), *map(cell, values))
    return table


def main() -> None:
    """Run the command line; errors that are the user's to mend end with exit code 2."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        app()
    except E3SparseError as error:
        label = "stopped" if isinstance(error, Interrupted) else "error"
        errors.print(f"[bold red]{label}:[/] {escape(str(error))}")
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        errors.print("[bold red]error:[/] No space is left on the disk: free some and --resume.")
        sys.exit(2)
