"""What is shown while large files are read and many frames are evaluated."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    with bar(what, len(frames), console) as advance:
        return predict(potential, frames, done=advance)


@contextmanager
def bar(what: str, total: int, console: Console) -> Iterator[Callable[[int], None]]:
    """Show a bar, which goes when it is full; yield what is told how much more was done."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
