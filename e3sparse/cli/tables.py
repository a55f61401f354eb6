"""Tables on the terminal."""

import sys
from math import isnan
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

# In a file or a pipe nobody sees 80 columns. Paths may hold what Rich would take for markup.
out = Console(width=None if sys.stdout.isatty() else 120, markup=False)


def print_errors(table: "pd.DataFrame", title: str) -> None:
    """Print mean absolute errors, and those of forces and moments by element."""
    from e3sparse.potentials.quantities import QUANTITIES

    columns = {
        f"{name}_mae": f"{name} MAE ({quantity.unit_of_error})"
        for name, quantity in QUANTITIES.items()
    }
    columns["sign_errors"] = "moments of the wrong sign (share)"
    main = table[[c for c in columns if c in table]].rename(columns=columns)
    out.print(frame_table(main, title, ".3f"))
    _print_per_element(table, "forces_mae_", "Force MAE per element (meV/Å)", ".2f")
    _print_per_element(table, "moments_mae_", "Moment MAE per element (μ_B)", ".3f")


def _print_per_element(table: "pd.DataFrame", prefix: str, title: str, number: str) -> None:
    elements = [str(c) for c in table.columns if str(c).startswith(prefix)]
    if len(elements) > 1:
        short = table[elements].rename(columns={c: c.removeprefix(prefix) for c in elements})
        out.print(frame_table(short, title, number))


def frame_table(frame: "pd.DataFrame", title: str, number: str) -> Table:
    """Return a table of a frame; floats are formatted with `number`."""

    def cell(value: object) -> str:
        if isinstance(value, int):
            return f"{value:,}"
        if isinstance(value, float):
            return "–" if isnan(value) else format(value, number)
        return str(value)

    table = Table(title=title)
    table.add_column("", overflow="fold")
    for column in frame.columns:
        table.add_column(str(column), justify="right", overflow="fold")
    for name, *values in frame.itertuples():
        table.add_row(str(name), *map(cell, values))
    return table
