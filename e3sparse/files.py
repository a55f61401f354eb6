"""Writing files so that nothing half-written is ever seen."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e3sparse.errors import E3SparseError

_PREFIX = ".writing-"
_TORCH_WRITER = ("inline_container", "PytorchStreamWriter", "iostream error")
LEFTOVERS = f"{_PREFIX}*"
"""Pattern of the names of files that were being written when a process was killed."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, renamed to `path` when the block succeeds.

    Raises
    ------
    E3SparseError
        If the disk is full or the folder cannot be written; `path` is then as it was.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix is kept, because some writers choose their format by it.
        handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise E3SparseError(_sentence(path, error)) from error
    except RuntimeError as error:
        # torch writes in C++, whose errors are of no kind that says why.
        if not any(name in str(error) for name in _TORCH_WRITER):
            raise
        raise E3SparseError(
            f"{path} cannot be written whole, mostly because the disk is full "
            f"({shutil.disk_usage(path.parent).free / 2**20:.0f} MiB are free): free some, then "
            "run this again."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _sentence(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"No space is left on the disk to write {path}: free some, then run this again."
    return f"{path} cannot be written ({error.strerror or error}): choose another place."
