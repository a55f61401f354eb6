"""Fine-tunings that are killed at any moment, on two file systems, and go on to the same numbers.

A kill at a file event is made by the process itself, before the nth time that it opens for writing,
renames, removes or makes something in the folder of the run: the same moment each time. The other
kills come from outside.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any

from faults_outcomes import FORK, Found, Printed, command, of_refusal, where
from faults_subjects import Project, numbers_of, restored

SHARED_MEMORY = Path("/dev/shm")
LISTING = "e3sparse-run.json"
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
HOW = (
    "SIGKILL at a file event",
    "SIGKILL at a random moment",
    "SIGTERM at a random moment",
    "SIGKILL while a checkpoint is written",
    "SIGKILL in the first seconds",
    "SIGTERM in the first seconds",
)
FIRST = 8.0
"""Seconds, in which a command imports what it needs and reads its input."""


class Child:
    """A command in a process of its own, forked from this one, which has imported everything.

    Parameters
    ----------
    arguments
        Of the command line.
    folder
        Whose file events count.
    at
        The number of the file event at which the process kills itself.
    prepare
        Called in the child first.
    """

    def __init__(
        self,
        arguments: list[str],
        folder: Path,
        at: int | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._receive, send = FORK.Pipe(duplex=False)
        self.process: BaseProcess = FORK.Process(
            target=_child, args=(arguments, folder, at, prepare, send)
        )
        self.process.start()
        send.close()

    def ended(self) -> tuple[Printed | None, int]:
        """Return what the command printed, None if it was killed, and its file events."""
        try:
            printed, events = self._receive.recv()
        except EOFError:
            printed, events = None, 0
        self.process.join()
        return printed, events


def _child(
    arguments: list[str],
    folder: Path,
    at: int | None,
    prepare: Callable[[], None] | None,
    send: Any,
) -> None:
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    if prepare is not None:
        prepare()
    events = 0

    def count(event: str, given: tuple[Any, ...]) -> None:
        nonlocal events
        if event not in EVENTS or not str(given[0]).startswith(str(folder)):
            return
        if event == "open" and not given[2] & (os.O_WRONLY | os.O_RDWR):
            return
        events += 1
        if events == at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    try:
        printed = command(*arguments)
    except BaseException as error:
        printed = Printed(1, "", where(error))
    send.send((printed, events))


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not p.is_symlink()
    }


def finished(folder: Path) -> bool:
    """Return whether a folder says that the run in it came to its end."""
    try:
        return bool(json.loads((folder / LISTING).read_text())["finished"])
    except (OSError, ValueError, KeyError):
        return False


class Kills:
    """Kills of `finetune`, then `--resume`.

    Parameters
    ----------
    place
        An empty folder.
    seed
        Of all random numbers.
    """

    tries, block, limit = 96, 6, 600.0

    def __init__(self, place: Path, seed: int) -> None:
        self.seed = seed
        self.project = Project(place / "project")
        # What a fine-tuning imports and compiles, children have of this process.
        assert command(*self._arguments(place / "warm")).code == 0
        other = SHARED_MEMORY if SHARED_MEMORY.is_dir() else place
        self._shared = tempfile.TemporaryDirectory(prefix="faults-", dir=other)
        self.places = [place / "tries", Path(self._shared.name)]
        self.places[0].mkdir()
        for folder in (place / "old", place / "reference"):
            folder.mkdir()
        self.old = place / "old" / "run"
        self._whole(self._arguments(self.old, seed=1), place / "old")
        (self.old / "notes.txt").write_text("mine\n")
        reference = place / "reference" / "run"
        start = time.monotonic()
        self.events = self._whole(self._arguments(reference), place / "reference")
        self.seconds = time.monotonic() - start
        self.right = numbers_of(reference)

    def _arguments(self, out: Path, **flags: Any) -> list[str]:
        return self.project.arguments(out, **flags)

    def _whole(self, arguments: list[str], folder: Path) -> int:
        printed, events = Child(arguments, folder).ended()
        assert printed is not None, arguments
        assert printed.code == 0, printed.err
        return events

    def attack(self, number: int) -> str:
        """Return how and where the process is killed."""
        turn = number // len(HOW)
        how = HOW[number % len(HOW)]
        where_ = "/tmp" if turn % 2 == 0 else "/dev/shm"
        return f"{how}, {where_}{', --overwrite' if turn // 2 % 2 else ''}"

    def attempt(self, number: int) -> Found:
        """Kill a run, go on with it, and look at what there is at each step."""
        rng = Random(f"kills {self.seed} {number}")
        turn = number // len(HOW)
        folder = self.places[turn % 2] / str(number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        out = folder / "run"
        flags = []
        if turn // 2 % 2:
            restored(self.old, out)
            flags = ["--overwrite"]
        arguments = [*self._arguments(out), *flags]
        said = self._killed(number, rng, arguments, folder)
        try:
            found = self.judged(out, arguments, self.old if flags else None)
        except Exception as error:
            found = Found("foreign", f"afterwards: {where(error)}")
        if "Traceback" in said and found.outcome in ("right", "named"):
            found = Found("foreign", f"on the signal: {said[-200:]}")
        shutil.rmtree(folder, ignore_errors=True)
        return found

    def _killed(self, number: int, rng: Random, arguments: list[str], folder: Path) -> str:
        how = HOW[number % len(HOW)]
        sent = signal.SIGTERM if "SIGTERM" in how else signal.SIGKILL
        if "first seconds" in how:
            temporary = folder / "temporary"
            temporary.mkdir()
            process = subprocess.Popen(
                [sys.executable, "-c", "from e3sparse.__main__ import main; main()", *arguments],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"TMPDIR": str(temporary)},
            )
            time.sleep(rng.uniform(0.05, FIRST))
            process.send_signal(sent)
            return process.communicate()[1]
        at = rng.randint(1, self.events) if "file event" in how else None
        child = Child(arguments, folder, at)
        if "checkpoint" in how:
            _wait_for_writing(folder, rng.randint(1, 6), child.process)
        elif "random" in how:
            child.process.join(rng.uniform(0.0, 0.95 * self.seconds))
        if "file event" not in how:
            child.process.terminate() if sent == signal.SIGTERM else child.process.kill()
        printed, _ = child.ended()
        return "" if printed is None else printed.err

    def judged(self, out: Path, arguments: list[str], old: Path | None) -> Found:
        """Judge what a run that was stopped left, and whether it can be brought to its end."""
        folder, beside = out.parent, out.with_name(f"{out.name}.unfinished")
        whole = finished(beside) or (finished(out) and old is None)
        if old is not None and not whole:
            now = contents(out)
            gone = [name for name, was in contents(old).items() if now.get(name) != was]
            if gone and not self._same(out):
                return Found("lost", f"of the older run: {', '.join(gone[:3])}")
        trained = [p for run in (out, beside) for p in run.glob("checkpoints/last*.ckpt")]
        trained = [p for p in trained if old is None or p.parents[1] == beside]
        printed, _ = Child(["finetune", "--resume", "--out", str(out)], folder).ended()
        if printed is None:
            return Found("foreign", "--resume crashed")
        found = Found("right") if printed.code == 0 else of_refusal(printed)
        if found.outcome == "foreign":
            return Found("foreign", f"--resume: {found.said}")
        if found.outcome == "named" and self._same(out):
            found = Found("right")  # it had come to its end
        elif found.outcome == "named":
            if trained:
                return Found("lost", f"a training with checkpoints: {found.said}")
            again, _ = Child(arguments, folder).ended()
            if again is None or again.code != 0:
                more = "crashed" if again is None else " ".join(again.err.split())
                return Found("lost", f"{found.said} Then the command again: {more}")
        if not self._same(out):
            return Found("silent", "other numbers than those of an uninterrupted run")
        if old is not None and not (out / "notes.txt").exists():
            return Found("lost", "a file that is not the run's")
        if litter := self._litter(folder):
            return Found("lost", f"litter stays: {', '.join(litter[:3])}")
        return found

    def _same(self, out: Path) -> bool:
        return finished(out) and numbers_of(out) == self.right

    @staticmethod
    def _litter(folder: Path) -> list[str]:
        names = [p for p in folder.rglob("*") if p.name.startswith(".writing-")]
        names += [p for p in folder.iterdir() if p.name not in ("run", "temporary")]
        names += list((folder / "temporary").iterdir())
        return [str(p.relative_to(folder)) for p in names]


def _wait_for_writing(folder: Path, number: int, process: BaseProcess) -> None:
    """Wait until the nth temporary file in a folder of checkpoints is there, or the end."""
    seen: set[str] = set()
    folders = [folder / "run" / "checkpoints", folder / "run.unfinished" / "checkpoints"]
    while process.is_alive() and len(seen) < number:
        for checkpoints in folders:
            try:
                seen |= {e.name for e in os.scandir(checkpoints) if e.name[:9] == ".writing-"}
            except FileNotFoundError:
                time.sleep(0.001)
