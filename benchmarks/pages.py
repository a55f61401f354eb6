"""Write every table of benchmarks/results from its CSV, and put the tables into the pages.

    .venv/bin/python benchmarks/pages.py

A table stands between `<!-- table: FILE -->` and `<!-- end -->` on any page of the repository; what
is between them is replaced by the table of benchmarks/results/FILE. tests/test_pages.py runs this
in a copy and finds that nothing changes.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import comparison
import costs
import energies
import explosions
import extrapolation
import faults
import forgetting
import gpu
import large_sets
import magnetic
import methods
import nve
import pareto
import replay_noise
import robust

HERE = Path(__file__).resolve().parent
ROOT, RESULTS = HERE.parent, HERE / "results"
FOLDERS = ("benchmarks", "e3sparse", "integrations")
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
TABLES = (
    *(methods.table, costs.table, forgetting.table, extrapolation.table, magnetic.table),
    *(
        nve.table,
        gpu.table,
        comparison.table,
        pareto.reach,
        energies.table,
        explosions.table,
        robust.table,
        replay_noise.table,
        large_sets.table,
        faults.table,
    ),
)


def pages() -> Iterator[Path]:
    """Yield the pages of the repository; the tables in benchmarks/results are none."""
    yield from sorted([*ROOT.glob("*.md"), *(ROOT / ".github").glob("*.md")])
    for folder in FOLDERS:
        yield from sorted((ROOT / folder).rglob("README.md"))


def filled(text: str) -> str:
    """Return the text with the tables as they are now."""
    return MARKED.sub(lambda m: f"{m[1]}{rows_of(RESULTS / m[2])}{m[3]}", text)


def rows_of(path: Path) -> str:
    """Return the lines of the one table in a file, or of its first where it has several."""
    found: list[str] = []
    for line in path.read_text().splitlines():
        if line.startswith("|"):
            found.append(line)
        elif found:
            break
    if not found:
        raise ValueError(f"{path} has no table.")
    return "".join(f"{line}\n" for line in found)


if __name__ == "__main__":
    for write in TABLES:
        write()
    for page in pages():
        page.write_text(filled(page.read_text()))
