"""What is shown while large files are read and many frames are evaluated."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from e3sparse.frames.evaluation import Predictions, predict
from e3sparse.frames.reading import Frame
from e3sparse.potentials.backends import Potential

LARGE = 20_000_000
"""Bytes from which on a file is announced: ASE reads a few MB of extended XYZ a second."""


def announce(path: str | Path, console: Console) -> None:
    """Say that a large file is read now; a file that is read at once, or is none, needs no word."""
    path = Path(path)
    if path.is_file() and (size := path.stat().st_size) >= LARGE:
        console.print(f"Reading {path} ({size / 1e6:,.0f} MB) …", soft_wrap=True, markup=False)


def predict_with_bar(
    potential: Potential, frames: Sequence[Frame], what: str, console: Console
) -> Predictions:
    """Evaluate a potential as `predict` does, under a bar that goes when it is full."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=len(frames))
        return predict(potential, frames, done=lambda count: bar.advance(task, count))
