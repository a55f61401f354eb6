"""What became of one try, and tries in a child process that may hang, crash or eat memory.

right: it ended with the numbers of the undamaged, to the last digit. named: refused, with one
sentence for the user. foreign: a traceback of ours or of a library, exit code 1, "Aborted.", or a
process that crashed. silent: it went on with other numbers, or a refusal left the model changed.
hang: longer than the limit. lost: a file or a training that was there is gone. executed: a payload
in a file ran.
"""

import contextlib
import io
import multiprocessing
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol
from unittest import mock

from e3sparse.errors import E3SparseError

OUTCOMES = ("right", "named", "foreign", "silent", "hang", "lost", "executed")
GOOD = ("right", "named")
MEMORY = 24 * 2**30
"""Address space of a try in bytes; importing torch takes some of it."""
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Found:
    """The outcome of one try, and what was said."""

    outcome: str
    said: str = ""


class Kind(Protocol):
    """A kind of attack; try `number` is the same whenever it is made.

    Attributes
    ----------
    tries
        How many the whole run makes.
    block
        How many are one row of the results; a run that is stopped does its last block again.
    limit
        Seconds after which a try hangs.
    """

    tries: int
    block: int
    limit: float

    def attack(self, number: int) -> str:
        """Return what try `number` does, in a word or two."""

    def attempt(self, number: int) -> Found:
        """Make the try."""


def of_call(call: Callable[[], object], right: object) -> Found:
    """Judge a call of the public API by the answer that the undamaged gave."""
    try:
        answer = call()
    except E3SparseError as error:
        return named(str(error))
    except (Exception, SystemExit) as error:
        return Found("foreign", where(error))
    return Found("right") if answer == right else Found("silent", "other numbers")


def named(sentence: str) -> Found:
    """A refusal counts as a named error if it says something on one line."""
    if len(sentence) < 20 or "Traceback" in sentence or "\n" in sentence.strip():
        return Found("foreign", f"no sentence: {sentence!r}")
    return Found("named", sentence)


def where(error: BaseException) -> str:
    """Return the kind and text of an error, and the last line of e3sparse on its way."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "e3sparse" in Path(f.filename).parts] or frames
    at = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    return f"{type(error).__name__}{at}: {str(error)[:200]}".replace("\n", " ")


@dataclass(frozen=True)
class Printed:
    """What a command left behind on the terminal."""

    code: int
    out: str
    err: str


def command(*arguments: object) -> Printed:
    """Run the command line in this process.

    Raises what the command line raises besides its exit.
    """
    from e3sparse.cli import main

    out, err = io.StringIO(), io.StringIO()
    code: int | str | None = 0
    with (
        mock.patch.object(sys, "argv", ["e3sparse", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    number = code if isinstance(code, int) else int(code is not None)
    return Printed(number, out.getvalue(), err.getvalue())


def of_command(
    call: Callable[[], Printed], right: object, answer: Callable[[Printed], object]
) -> Found:
    """Judge a command: exit code 0 and the answer of the undamaged, or 2 and a sentence."""
    try:
        printed = call()
        if printed.code == 0:
            same = answer(printed) == right
            return Found("right") if same else Found("silent", "other numbers")
    except (Exception, KeyboardInterrupt) as error:
        return Found("foreign", where(error))
    return of_refusal(printed)


def of_refusal(printed: Printed) -> Found:
    """Judge a command that ended with another exit code than 0."""
    said = " ".join(printed.err.split())
    if printed.code != 2 or "error:" not in said:
        return Found("foreign", f"exit code {printed.code}: {said[-200:]}")
    return named(said.partition("error:")[2].strip())


def tried(kind: Kind, numbers: list[int]) -> Iterator[Found]:
    """Make tries in a child process, and in another one from where one hangs or crashes."""
    left = list(numbers)
    while left:
        receive, send = FORK.Pipe(duplex=False)
        child = FORK.Process(target=_work, args=(kind, left, send))
        child.start()
        send.close()
        try:
            while left:
                found, goes_on = _received(receive, child, kind.limit)
                left.pop(0)
                yield found
                if not goes_on:
                    break
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid or 0, signal.SIGKILL)  # with what it started
            child.kill()
            child.join()
            receive.close()


def _received(
    receive: Connection, child: multiprocessing.process.BaseProcess, limit: float
) -> tuple[Found, bool]:
    """Return what a child found, and whether it goes on with the next try."""
    if not receive.poll(limit):
        return Found("hang", f"more than {limit:g} s"), False
    try:
        return receive.recv(), True
    except EOFError:
        child.join()
        return Found("foreign", f"the process ended with {child.exitcode}"), False


def _work(kind: Kind, numbers: list[int], send: Connection) -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for number in numbers:
        send.send(kind.attempt(number))
