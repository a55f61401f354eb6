"""The core knows no framework, and importing it does not import e3nn."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import e3sparse

PACKAGE = Path(e3sparse.__file__).parent
FRAMEWORKS = {"mace", "nequip", "allegro", "sevenn"}
EXTRAS = {
    *("ase", "hypothesis", "lightning", "matplotlib", "pandas", "pytest", "pytorch_lightning"),
    *("rich", "schedulefree", "typer", "yaml"),
}
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
MAY_USE_EXTRAS = (
    *("training/", "symmetry/", "analysis/", "cli", "datasets/"),
    *("calculator.py", "backends.py", "structures.py", "spins.py"),
    *("magnetism/file.py", "magnetism/potential.py"),
)


def imported(source):
    """Return the top-level packages of all imports, those inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def test_importing_e3sparse_imports_neither_e3nn_nor_a_framework():
    # numpy is the control: it is imported, and the list would show it.
    code = "import json, sys, e3sparse; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = {name.split(".")[0] for name in json.loads(run.stdout.splitlines()[-1])}
    assert {"e3sparse", "torch", "numpy", "pydantic", "safetensors"} <= modules
    assert not modules & ({"e3nn"} | FRAMEWORKS | EXTRAS)


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_a_framework(module):
    packages = imported((PACKAGE / module).read_text())
    assert not packages & FRAMEWORKS
    assert not {name for name in packages if name.startswith("e3sparse_")}
    if not module.startswith(MAY_USE_EXTRAS):
        assert not packages & EXTRAS


@pytest.mark.parametrize(
    ("source", "packages"),
    [
        ("import mace.tools", {"mace"}),
        ("def f():\n    from sevenn.nn import x", {"sevenn"}),
        ("from . import mace", set()),
        ("import torch, nequip as n", {"torch", "nequip"}),
    ],
)
def test_the_control_sees_imports(source, packages):
    assert imported(source) == packages


def test_the_core_is_there():
    assert {"paths.py", "injection.py", "deltas/budget.py", "training/run.py"} <= set(MODULES)
