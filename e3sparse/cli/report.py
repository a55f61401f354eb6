"""`e3sparse report`: what a fine-tuning changed, and whether that can be believed."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from e3sparse.cli.options import (
    BackendOption,
    DeviceOption,
    EnergyKey,
    ForcesKey,
    HeadOption,
    StressKey,
    TrustOption,
)
from e3sparse.cli.tables import frame_table
from e3sparse.cli.tables import out as console
from e3sparse.errors import ConfigError, nearest


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run or adapter folder; further ones are compared with the first."),
    ],
    compare: Annotated[
        list[Path] | None,
        typer.Option(help="Others to compare with: --compare A B …, after the first folder."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model; what the folder says if left out.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Labelled frames not trained on: sets the delta of one (layer, l, element) at a "
            "time to zero, and says how much of the gain in force error it carries."
        ),
    ] = None,
    elements: Annotated[
        str | None,
        typer.Option(help="Elements of the training frames, e.g. Fe,O; if no run recorded them."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("report"),
    backend: BackendOption = None,
    head: HeadOption = None,
    device: DeviceOption = "cpu",
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
    trust_model: TrustOption = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the report.")] = False,
) -> None:
    """Show which angular-momentum channels of which elements a fine-tuning changed.

    Writes index.html, which needs no other file, figures/ (PNG, SVG) and tables/ (CSV).
    """
    from e3sparse.analysis.causality import ablate
    from e3sparse.analysis.reading import read_changes
    from e3sparse.analysis.report import check_folder, write_report
    from e3sparse.frames.reading import LabelKeys

    check_folder(out, overwrite)
    if data is not None and not data.is_file():
        raise ConfigError(f"There is no file {data}.")
    # A shell hands over what follows --compare A as further arguments.
    sources = list(dict.fromkeys([runs[0], *(compare or []), *runs[1:]]))
    numbers = None if elements is None else _numbers(elements)
    changes = read_changes(sources, base=base, backend=backend, head=head, elements=numbers)
    first = changes[0]
    ablations = {}
    if data is not None:
        said = {"energy": energy_key, "forces": forces_key, "stress": stress_key}
        keys = LabelKeys(**{k: v for k, v in said.items() if v is not None})
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("one group at a time", total=None)
            ablations[first.name] = ablate(
                first,
                data,
                keys=keys,
                device=device or "cpu",
                started=lambda done, groups: bar.update(task, completed=done, total=groups),
            )
    page = write_report(changes, out, ablations=ablations, overwrite=overwrite)
    from e3sparse.analysis.tables import layer_table

    columns = ["entries", "updated", "relative", "one_minus_r2"]
    table = layer_table(first).set_index("layer")[columns]
    table.columns = ["entries", "updated", "‖ΔW‖/‖W‖", "1 − R²"]
    console.print(frame_table(table, f"{first.name} ({first.method})", ".3g"))
    for name, found in ablations.items():
        console.print(
            f"{name}: force MAE {found.before:.1f} → {found.after:.1f} meV/Å on {found.frames} "
            f"frames; rank correlation of 1 − R² with the share of the gain "
            f"{found.correlations['one_minus_r2']}"
        )
    console.print(f"Report: {page}")


def _numbers(symbols: str) -> list[int]:
    from ase.data import chemical_symbols

    found = []
    for symbol in symbols.replace(",", " ").split():
        if symbol not in chemical_symbols[1:]:
            raise ConfigError(f"'{symbol}' is no element.{nearest(symbol, chemical_symbols[1:])}")
        found.append(chemical_symbols.index(symbol))
    return found
