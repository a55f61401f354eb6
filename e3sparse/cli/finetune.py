"""`e3sparse finetune`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from e3sparse.cli.config_options import given, options_of, with_options
from e3sparse.cli.options import TrustOption
from e3sparse.cli.tables import frame_table, out, print_errors
from e3sparse.errors import ConfigError
from e3sparse.training.config import FinetuneConfig

Granularity = Literal["entry", "channel", "block"]
_OPTIONS = options_of(FinetuneConfig)
_RUN, _METHOD, _MAGNETISM = "Model and run", "What is trained", "Magnetism"


@with_options(_OPTIONS)
def finetune(
    context: typer.Context,
    model_: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Base model, as by --model.")
    ] = None,
    train_: Annotated[
        Path | None, typer.Argument(metavar="TRAIN", help="Training frames, as by --train.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of settings; flags take precedence.", rich_help_panel=_RUN),
    ] = None,
    target_sparsity: Annotated[
        str | None,
        typer.Option(
            help="Share of zeros in the delta at the end; 0.97 for budget if left out. auto prunes "
            "on while that costs less than --tolerance.",
            metavar="SHARE|auto",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Stop pruning where the validation loss is so much (as a share) above the "
            "lowest; 0.05 with --target-sparsity auto.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    sparsity_path: Annotated[
        str | None,
        typer.Option(
            help="Several shares of zeros, such as 0.85,0.97,0.995: one run stays at each for a "
            "while, and leaves an adapter of each.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    granularity: Annotated[
        Granularity | None,
        typer.Option(
            help="What is kept or pruned together: entry (by default), channel or block of a path "
            "and element.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Another setting of the method: NAME=VALUE.", rich_help_panel=_METHOD
        ),
    ] = None,
    set_spins: Annotated[
        list[str] | None,
        typer.Option(
            help="A setting of the spin-aware layers: NAME=VALUE.", rich_help_panel=_MAGNETISM
        ),
    ] = None,
    trust_model: TrustOption = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace the run folder.", rich_help_panel=_RUN),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in the folder.", rich_help_panel=_RUN),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Read and check the files, print what is there, and stop.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    **values: Any,
) -> None:
    """Fine-tune a model with a sparse delta (or whole) and write a run folder."""
    from e3sparse.training import run
    from e3sparse.training.config import make_config

    if overwrite and resume:
        raise ConfigError("--overwrite and --resume exclude each other.")
    said = given(_OPTIONS, context, values)
    for name, argument in (("model", model_), ("train", train_)):
        if argument is None:
            continue
        if name in said:
            raise ConfigError(
                f"'{argument}' was given as {name.upper()} and '{said[name]}' as --{name}: "
                "give one of them."
            )
        said[name] = argument
    by_name = _pairs("--set", set_ or [])
    if target_sparsity is not None:
        by_name["target_sparsity"] = _share(target_sparsity)
    if sparsity_path is not None:
        if target_sparsity is not None:
            raise ConfigError("--sparsity-path and --target-sparsity exclude each other.")
        by_name |= _path(sparsity_path)
    if granularity is not None:
        by_name["granularity"] = granularity
    if tolerance is not None:
        by_name["tolerance"] = tolerance
    said |= {"method_settings": by_name} if by_name else {}
    said |= {"spin_settings": _pairs("--set-spins", set_spins)} if set_spins else {}
    settings = make_config(_resumed(said, config) if resume else _joined(said, config))
    result = run.finetune(
        settings,
        overwrite=overwrite,
        resume=resume,
        also_read={} if config is None else {"--config": config},
        dry_run=dry_run,
        console=out,
    )
    print_errors(result.table, f"{settings.model}, method {settings.method}")
    if len(result.levels):
        out.print(frame_table(result.levels, "Levels of sparsity", ".4g"))
    if result.adapter is not None:
        out.print(str(result.adapter.sparsity()))
    out.print("A dry run: nothing was written." if dry_run else f"Run folder: {result.out}")


def _joined(said: dict[str, Any], config: Path | None) -> dict[str, Any]:
    """Return the settings of the file, with those that flags gave in place of its own."""
    from e3sparse.training.config import read_config

    values = read_config(config) if config else {}
    for name, value in said.items():
        there: Any = values.get(name)
        nested = isinstance(there, dict) and isinstance(value, dict)
        values[name] = there | value if nested else value
    for name in ("model", "train"):
        if name not in values:
            raise ConfigError(
                f"There is no {name.upper()}: give it as an argument (e3sparse finetune MODEL "
                f"TRAIN), by --{name}, or as '{name}:' in the --config file."
            )
    return values


def _resumed(said: dict[str, Any], config: Path | None) -> dict[str, Any]:
    """Return the settings that the run was started with."""
    from e3sparse.training.run_folder import RunFolder
    from e3sparse.training.run_records import read_settings

    changed = [name for name in said if name not in ("out", "allow_worse")]
    if changed or config:
        raise ConfigError(
            "--resume goes on with the settings of the run, so give it --out only "
            f"(given too: {', '.join(changed) or 'config'})."
        )
    folder: Path = said.get("out", FinetuneConfig.model_fields["out"].default)
    settings: dict[str, Any] = read_settings(RunFolder.resumed(folder).path)
    return {**settings, **said, "out": folder}


def _path(text: str) -> dict[str, Any]:
    """Return the settings of the method for several sparsities."""
    try:
        *levels, last = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--sparsity-path takes shares of zeros with commas between them, such as "
            f"0.85,0.97,0.995, not '{text}'."
        ) from None
    return {"levels": levels, "target_sparsity": last}


def _share(text: str) -> float | str:
    """Return the number, or the text for the method to judge."""
    try:
        return float(text)
    except ValueError:
        return text


def _pairs(flag: str, pairs: list[str]) -> dict[str, Any]:
    import yaml

    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"{flag} takes NAME=VALUE, not '{pair}'.")
        settings[name] = yaml.safe_load(value)
    return settings
