"""`e3sparse compare` and `adapters diff`: what runs left behind, side by side."""

from pathlib import Path
from typing import Annotated

import typer

from e3sparse.cli.tables import frame_table, out


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
) -> None:
    """Print the test errors of several runs side by side."""
    from e3sparse.training.run_comparison import compare_runs

    out.print(frame_table(compare_runs(runs), "Runs", ".4g"))


def diff(
    a: Annotated[Path, typer.Argument(help="An adapter folder, or the run folder around it.")],
    b: Annotated[Path, typer.Argument(help="Another.")],
) -> None:
    """Compare two adapters: settings, and the entries that each layer's delta changes."""
    from e3sparse.analysis.comparison import compare_adapters, differing_settings

    a, b = _adapter_in(a), _adapter_in(b)
    for name, (one, two) in differing_settings(a, b).items():
        out.print(f"{name}: {one} | {two}")
    table = compare_adapters(a, b)
    table.columns = table.columns.str.replace("_", " ")
    out.print(frame_table(table, f"A = {a}, B = {b}", ".3g"))


def _adapter_in(folder: Path) -> Path:
    """Return the adapter folder: this one, or that of a run."""
    from e3sparse.adapter.hub import local_folder
    from e3sparse.training.run_records import ADAPTER, adapter_of

    folder = local_folder(folder)
    return adapter_of(folder) if (folder / ADAPTER).is_dir() else folder
