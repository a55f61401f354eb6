"""However a command ends, it is one sentence and an exit code, and no traceback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from e3sparse.cli.ending import DEBUG, ended_well
from e3sparse.errors import ConfigError, DivergedError, Interrupted
from e3sparse.training.config import read_config

pytestmark = pytest.mark.any_e3nn


@pytest.fixture(autouse=True)
def _handler():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def end(error, capsys):
    """Return the exit code and what is printed where a command raises this."""
    with pytest.raises(SystemExit) as ended, ended_well():
        raise error
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ConfigError("No run in [bold]/tmp/[/]x[/b] here."), 2, "error: No run in [bold]/tmp/[/]x"),
        (DivergedError("It diverged."), 2, "error: It diverged."),
        (Interrupted("Stopped."), 130, "stopped: Stopped."),
        (KeyboardInterrupt(), 130, "stopped: Stopped from the keyboard"),
        (SystemExit(130), 130, "stopped: Stopped from the keyboard"),
        (NotADirectoryError(20, "Not a directory", "a/b"), 2, "'a/b' cannot be used: a part of"),
        (PermissionError(13, "Permission denied", "a"), 2, "'a' cannot be used: there is no perm"),
        (OSError(30, "Read-only file system", "a"), 2, "the file system is read-only"),
        (OSError(36, "File name too long", "a" * 300), 2, "the name is too long"),
        (OSError(28, "No space left on device"), 2, "No space is left on the disk"),
        (OSError(5, "Input/output error", "a"), 2, "'a' cannot be used: input/output error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_is_foreseen(error, code, says, capsys):
    found, printed = end(error, capsys)
    assert found == code
    assert says in printed
    assert "Traceback" not in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("[/] no\nmarkup"), KeyError("x"), OSError("odd")])
def test_what_is_not_foreseen_leaves_its_traceback_in_a_file(error, capsys, monkeypatch):
    code, printed = end(error, capsys)
    assert code == 1
    assert f"This was not foreseen: {type(error).__name__}: " in printed
    assert printed.count("\n") == 1
    written = Path(printed.partition("The traceback is in ")[2].partition(";")[0])
    assert "Traceback (most recent call last)" in written.read_text()
    written.unlink()
    monkeypatch.setenv(DEBUG, "1")
    with pytest.raises(type(error)), ended_well():
        raise error


def test_nothing_is_said_of_what_ends_by_itself(capsys):
    with ended_well():
        pass
    with pytest.raises(SystemExit) as ended, ended_well():
        sys.exit(2)
    assert ended.value.code == 2
    assert capsys.readouterr().err == ""


def test_a_training_deals_with_its_own_signals():
    seen = []
    with ended_well():
        ours = signal.getsignal(signal.SIGTERM)

        def lightning(number, frame):
            seen.append(number)
            ours(number, frame)

        signal.signal(signal.SIGTERM, lightning)
        os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGTERM, ours)
    assert seen == [signal.SIGTERM]


def test_sigterm_ends_what_is_no_training(capsys):
    def work():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    with pytest.raises(SystemExit) as ended, ended_well():
        work()
    assert ended.value.code == 143
    assert "stopped: Stopped by SIGTERM" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("after", [0, 0.1, 0.7, 1.5])
def test_a_process_that_is_still_importing(number, code, after, tmp_path):
    (tmp_path / "a.xyz").write_text("1\n\nH 0 0 0\n")
    begin = [
        "from e3sparse import __main__ as begin",
        "listen = begin.signal.signal",
        "begin.signal.signal = lambda *a: (listen(*a), print('here', flush=True))",
        "begin.main()",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", "\n".join(begin), "evaluate", "model", "--data", tmp_path / "a.xyz"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert [process.stdout.readline() for _ in range(2)] == ["here\n", "here\n"]
    time.sleep(after)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert "Traceback" not in printed
    # A machine may be so fast that the command has found by then that there is no such model.
    assert process.returncode in (code, 2)
    assert printed.startswith(("stopped: ", "error: "))


@pytest.mark.parametrize(
    "text", [b"\xff\xfe\x00", b"[" * 5000, b"a: [1, 2\nb: c", b"only text", b""]
)
def test_a_config_that_is_none_is_one_sentence(text, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=str(path)) as refused:
        read_config(path)
    assert "\n" not in str(refused.value)
