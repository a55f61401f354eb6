"""The table of what was read: one row for each file."""

from collections.abc import Sequence
from pathlib import Path

from ase.data import chemical_symbols
from rich.table import Table

from e3sparse.frames.evaluation import PERIODICITY
from e3sparse.frames.facts import WEIGHTED, facts_of
from e3sparse.frames.reading import Reading
from e3sparse.frames.weights import said_of_weights

_COLUMNS = ("file", "frames", "elements", "periodicity", "labels", "references", "left out")


def table_of_files(rows: Sequence[Sequence[str]]) -> Table:
    """Return the table of some rows; see `read_row`."""
    table = Table(title="What was read", show_lines=len(rows) > 1)
    for name in _COLUMNS:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def read_row(
    path: str | Path,
    reading: Reading,
    *,
    references: str,
    used_for: str = "",
    left_out: Sequence[str] = (),
) -> list[str]:
    """Return what is said of a file, by column.

    Parameters
    ----------
    path, reading
        The file, and what was read of it.
    references
        How the zeros of energy are got.
    used_for
        What becomes of its frames, where that is not plain.
    left_out
        What is not used, besides what `reading` says.
    """
    facts, account = facts_of(reading.frames), reading.account
    kinds = [int((facts.periodic == n).sum()) for n in range(len(PERIODICITY))]
    labels = [f"{count:,} {name}: {key}" for (name, key), count in sorted(account.labels.items())]
    weights = said_of_weights(dict(zip(WEIGHTED, facts.weights.T, strict=True)))
    if weights:
        labels.append(f"weights in the loss: {weights}")
    used = f"{len(facts.atoms):,}"
    if account.held > len(facts.atoms):
        used += f" of {account.held:,}"
    atoms = ", ".join(chemical_symbols[z] for z in sorted(reading.isolated))
    return [
        str(path),
        "\n".join(filter(None, (used, used_for, f"isolated: {atoms}" if atoms else ""))),
        " ".join(chemical_symbols[z] for z in sorted(facts.there)),
        "\n".join(f"{n:,} {kind}" for n, kind in zip(kinds, PERIODICITY, strict=True) if n),
        "\n".join(labels),
        references,
        "\n".join([*account.left_out, *left_out]) or "nothing",
    ]
