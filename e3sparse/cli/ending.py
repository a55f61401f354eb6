"""How a command ends: with one sentence and an exit code, whatever happens.

Exit codes: 2 for what is the user's to mend, 130 and 143 for SIGINT and SIGTERM, 1 for a fault of
ours, whose traceback is in a file then, and for a check that found a broken promise.
"""

import errno
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

from e3sparse.errors import E3SparseError, Interrupted, Terminated

DEBUG = "E3SPARSE_DEBUG"
"""Environment variable that lets exceptions through."""

_KEYBOARD = "Stopped from the keyboard; nothing more was written."


@contextmanager
def ended_well() -> Iterator[None]:
    """Turn exceptions of the block into a sentence and an exit code.

    Raises
    ------
    SystemExit
        Unless the block ends by itself.
    """
    _listen()
    try:
        yield
    except E3SparseError as error:
        _end("stopped" if isinstance(error, Interrupted) else "error", error, error.exit_code)
    except SystemExit as ending:  # Typer has dealt with it
        if ending.code == 130:
            _end("stopped", _KEYBOARD, 130)
        raise
    except KeyboardInterrupt:
        _end("stopped", _KEYBOARD, 130)
    except OSError as error:
        if os.environ.get(DEBUG) or (error.filename is None and error.errno != errno.ENOSPC):
            _unforeseen(error)
        _end("error", _sentence(error), 2)
    except Exception as error:
        _unforeseen(error)


def _listen() -> None:
    """Let SIGTERM end a command as SIGINT does, before and after a training, which has its own."""

    def terminated(number: int, frame: Any) -> None:
        # Lightning calls earlier handlers beside its own, and ends the training by itself.
        if signal.getsignal(signal.SIGTERM) is terminated:
            raise Terminated("Stopped by SIGTERM; nothing more was written.")

    try:
        signal.signal(signal.SIGTERM, terminated)
    except ValueError:  # not the main thread, as in a test or a notebook
        return


def _sentence(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "No space is left on the disk: free some and --resume."
    why = {
        errno.ENOTDIR: "a part of the path is a file and no folder",
        errno.EACCES: "there is no permission",
        errno.EPERM: "there is no permission",
        errno.EROFS: "the file system is read-only",
        errno.ENAMETOOLONG: "the name is too long",
        errno.ENOENT: "there is no such file or folder",
        errno.EISDIR: "it is a folder",
        errno.ELOOP: "it is a link to itself",
    }.get(error.errno or 0, (error.strerror or str(error)).lower())
    name = str(error.filename)
    shown = name if len(name) <= 200 else f"{name[:100]}…{name[-60:]}"
    return f"'{shown}' cannot be used: {why}. Give another path."


def _unforeseen(error: Exception) -> NoReturn:
    if os.environ.get(DEBUG):
        raise error
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", prefix="e3sparse-", suffix=".traceback", delete=False
    ) as file:
        file.write(" ".join(sys.argv) + "\n\n")
        traceback.print_exception(error, file=file)
    said = " ".join(str(error).split()) or "no message"
    _end(
        "error",
        f"This was not foreseen: {type(error).__name__}: {said[:300]}. The traceback is in "
        f"{file.name}; please report it.",
        1,
    )


def _end(label: str, said: object, code: int) -> NoReturn:
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    console.print(Text(f"{label}: ", style="bold red"), str(said), sep="")
    sys.exit(code)
