"""NequIP's own commands, each in a process of its own."""

import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPTS = {"nequip-train": "nequip.scripts.train", "nequip-package": "nequip.scripts.package"}

# Importing NequIP takes 4 s of the 5 s of a short training, so one process imports it and is forked
# for each command. A fork has what the command has after its imports, and nothing of the tests.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([*SCRIPTS.values(), "lightning", "e3nn.o3"])


def shell(*command, cwd, check=True, fresh=False, **environment):
    """Run a command of NequIP's; returns what it said.

    Parameters
    ----------
    command
        As a shell would read it.
    cwd
        The folder that it is run in.
    check
        Whether it has to succeed.
    fresh
        Whether it is started as a shell would, which commands that start themselves again need.
    environment
        Variables besides those of this process.
    """
    command = list(map(str, command))
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    run = _started if fresh or command[0] not in SCRIPTS else _forked
    code, said = run(command, str(cwd), variables)
    assert not check or code == 0, said
    return said


def _started(command, cwd, variables):
    program = str(Path(sys.executable).parent / command[0])
    done = subprocess.run(
        [program, *command[1:]],
        cwd=cwd, env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def _forked(command, cwd, variables):
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said.txt"
        process = _FORKS.Process(target=_main, args=(command, cwd, variables, str(said)))
        process.start()
        process.join()
        return process.exitcode, said.read_text()


def _main(command, cwd, variables, said):
    file = os.open(said, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    sys.path[:0] = [p for p in variables.get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.argv = command
    sys.exit(importlib.import_module(SCRIPTS[command[0]]).main())
