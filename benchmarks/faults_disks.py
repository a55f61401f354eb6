"""Disks that fill up while something is written; afterwards there is room, and it is done again.

The disk is a small tmpfs where one may be mounted. Elsewhere no file may grow beyond a limit
(RLIMIT_FSIZE), which is another error of the same kind; the name of the attack says which it was.
The temporary folder ($TMPDIR) is on the same disk.
"""

import contextlib
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from faults_kills import Child, contents, finished
from faults_outcomes import Found, command, of_refusal, where
from faults_subjects import Project, numbers_of

WHAT = ("finetune", "finetune --overwrite", "finetune", "merge --overwrite", "report --overwrite")
ROOM = 64 * 2**20


def mounted(folder: Path, size: int) -> bool:
    """Mount a tmpfs of a size in bytes, or change its size; False if that is not allowed."""
    options = f"remount,size={size}" if folder.is_mount() else f"size={size}"
    asked = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        return subprocess.run(asked, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[bool]:
    """Mount a tmpfs for a while; yields whether that is allowed here."""
    if folder.is_mount():  # of a try that hung
        subprocess.run(["umount", "-l", str(folder)], check=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    is_mounted = mounted(folder, ROOM)
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def used(folder: Path) -> int:
    """Return the bytes that the files of a folder take, in whole pages, and their folders'."""
    pages = sum(-(-p.stat().st_size // 4096) if p.is_file() else 1 for p in folder.rglob("*"))
    return 4096 * pages


class Disks:
    """Full disks under `finetune`, `merge` and `report`.

    Parameters
    ----------
    place
        An empty folder.
    seed
        Of all random numbers.
    """

    tries, block, limit = 60, 5, 600.0

    def __init__(self, place: Path, seed: int) -> None:
        self.place, self.seed = place, seed
        self.project = Project(place / "project")
        # What a fine-tuning imports and compiles, children have of this process.
        assert command(*self.project.arguments(place / "warm")).code == 0
        for name, drawn in (("run", 0), ("other", 1)):
            (place / name).mkdir()
            arguments = self.project.arguments(place / name / "run", seed=drawn)
            printed, _ = Child(arguments, place / name).ended()
            assert printed is not None, name
            assert printed.code == 0, printed.err
        self.need = used(place / "run")
        with disk(place / "disk") as is_mounted:
            self.kind = "tmpfs" if is_mounted else "RLIMIT_FSIZE"
        self.right: dict[str, object] = {"finetune": numbers_of(place / "run" / "run")}
        for what in ("merge", "report"):
            out = self._out(what, place)
            self._whole(self._arguments(what, out, 0), place)
            self.right[what] = self._answer(what, out)

    def attack(self, number: int) -> str:
        """Return what is written, and the kind of disk."""
        return f"{WHAT[number % len(WHAT)]}, {self.kind}"

    @staticmethod
    def _out(what: str, folder: Path) -> Path:
        return folder / {"merge": "merged.pth", "report": "report", "finetune": "run"}[what]

    def _arguments(self, what: str, out: Path, number: int) -> list[str]:
        """Return the arguments of a command; number 1 writes other results."""
        if what == "finetune":
            return self.project.arguments(out, seed=number)
        run = self.place / ("run", "other")[number] / "run"
        if what == "merge":
            adapter = ["--adapter", str(run / "adapter")]
            return ["merge", str(self.project.model), *adapter, "--out", str(out)]
        return ["report", str(run), "--out", str(out)]

    def _whole(self, arguments: list[str], folder: Path) -> None:
        printed, _ = Child(arguments, folder).ended()
        assert printed is not None, arguments
        assert printed.code == 0, printed.err

    def _answer(self, what: str, out: Path) -> object:
        if what == "finetune":
            return numbers_of(out) if finished(out) else None
        if what == "merge":
            import torch

            saved = torch.load(out, weights_only=False)["model_state_dict"]
            return {name: value.numpy().tobytes() for name, value in saved.items()}
        return [path.read_text() for path in sorted((out / "tables").iterdir())]

    def attempt(self, number: int) -> Found:
        """Fill the disk, look at what is left, make room and do it again."""
        rng = Random(f"disks {self.seed} {number}")
        what, _, overwrite = WHAT[number % len(WHAT)].partition(" ")
        folder = self.place / "disk"
        with disk(folder) as is_mounted:
            try:
                return self._tried(what, bool(overwrite), folder, rng, is_mounted)
            except Exception as error:
                return Found("foreign", f"afterwards: {where(error)}")

    def _tried(
        self, what: str, overwrite: bool, folder: Path, rng: Random, is_mounted: bool
    ) -> Found:
        out = self._out(what, folder)
        before: dict[str, bytes] = {}
        if overwrite:
            self._earlier(what, out)
            before = contents(folder)
        arguments = [*self._arguments(what, out, 0), *(["--overwrite"] if overwrite else [])]
        need = self.need if what == "finetune" else self.need // 2
        room = used(folder) + 8192 + int(need * rng.uniform(0.0, 1.05))
        prepare: Callable[[], None] | None = None
        if is_mounted:
            mounted(folder, room)
        else:
            limit = int(need * rng.uniform(0.0, 0.4))

            def prepare() -> None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        printed, _ = Child(arguments, folder, prepare=prepare).ended()
        if printed is None:
            return Found("foreign", "the command crashed")
        found = Found("right") if printed.code == 0 else of_refusal(printed)
        if found.outcome == "foreign":
            return found
        if found.outcome == "named":
            now = contents(folder)
            gone = [name for name, was in before.items() if now.get(name) != was]
            if gone:
                return Found("lost", f"of the earlier results: {', '.join(gone[:3])}")
            if is_mounted:
                mounted(folder, ROOM)
            if again := self._again(what, out, arguments):
                return Found("lost", f"{found.said} Then: {again}")
        same = self._answer(what, out) == self.right[what]
        return found if same else Found("silent", "other numbers")

    def _earlier(self, what: str, out: Path) -> None:
        """Put earlier results in the place of what is to be written."""
        if what == "finetune":
            shutil.copytree(self.place / "other" / "run", out)
            return
        kept = self.place / f"earlier-{out.name}"
        if not kept.exists():
            self._whole(self._arguments(what, kept, 1), self.place)
        (shutil.copytree if kept.is_dir() else shutil.copy)(kept, out)

    def _again(self, what: str, out: Path, arguments: list[str]) -> str:
        """Do it again, as the sentence says; returns what went wrong."""
        beside = out.with_name(f"{out.name}.unfinished")
        mine = beside if arguments[-1] == "--overwrite" else out
        begun = any(mine.glob("checkpoints/last*.ckpt"))
        said = ""
        resumed = ["finetune", "--resume", "--out", str(out)]
        for again in (resumed, arguments) if what == "finetune" else (arguments,):
            printed, _ = Child(again, out.parent).ended()
            if printed is not None and printed.code == 0:
                return ""
            said = "it crashed" if printed is None else " ".join(printed.err.split())
            if begun and again is resumed:
                break  # a training with checkpoints must go on
        return said
