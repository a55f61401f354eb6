"""Put the tables of benchmarks/results into the README, where it names them.

    python benchmarks/readme.py

A table stands between `<!-- table: FILE -->` and `<!-- end -->`; what is between them is replaced
by the table of benchmarks/results/FILE.
"""

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
README, RESULTS = HERE.parent / "README.md", HERE / "results"
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """Return the text with the tables as they are now."""
    return MARKED.sub(lambda m: f"{m[1]}{table(RESULTS / m[2])}{m[3]}", text)


def table(path: Path) -> str:
    """Return the lines of the one table in a file."""
    return "".join(f"{x}\n" for x in path.read_text().splitlines() if x.startswith("|"))


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
