"""Where the command line begins: a stop is one sentence from here on, also while it is imported."""

import os
import signal
from typing import Any, NoReturn


def main() -> None:
    """Import the command line and run it."""
    # Nothing has been written yet, so the process can end in the middle of an import.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    from e3sparse.cli import main as run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _stop(number: int, frame: Any) -> NoReturn:
    by = "from the keyboard" if number == signal.SIGINT else "by SIGTERM"
    os.write(2, f"stopped: Stopped {by}; nothing was written.\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":
    main()
