"""The plan of the house: which package may import which, and where each library begins."""

import ast
import json
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import e3sparse
from e3sparse.moved import MOVED

PACKAGE = Path(e3sparse.__file__).parent
pytestmark = pytest.mark.any_e3nn
FRAMEWORKS = {"mace", "nequip", "allegro", "sevenn"}

BASE = "errors files output_folders version"
CORE = f"{BASE} layers deltas adapter"
MAY_IMPORT = {
    "errors": "",
    "version": "",
    "moved": "",
    "files": "errors",
    "output_folders": "errors files",
    "layers": "errors",
    "deltas": "errors layers",
    "adapter": "errors files version layers deltas",
    "potentials": CORE,
    "frames": f"{CORE} potentials",
    "magnetism": f"{CORE} potentials",
    "symmetry": f"{CORE} potentials magnetism",
    "datasets": f"{BASE} potentials",
    "training": f"{CORE} potentials frames magnetism",
    "analysis": f"{CORE} potentials frames training",
    "robustness": f"{BASE} potentials training",
    "cli": f"{CORE} potentials frames magnetism symmetry datasets training analysis robustness",
    "__main__": "cli",
}
"""Each package, or module beside them, and what it may import; `e3sparse` itself imports lazily."""

BEGINS = {
    "torch": "layers deltas adapter potentials frames magnetism symmetry training analysis cli",
    "e3nn": "layers adapter magnetism symmetry",
    "safetensors": "adapter training",
    "huggingface_hub": "adapter",
    "ase": "potentials frames magnetism symmetry datasets training analysis robustness cli",
    "lightning": "training",
    "schedulefree": "training",
    "hypothesis": "symmetry",
    "pytest": "",
    "pandas": "frames training analysis cli",
    "matplotlib": "training analysis robustness",
    "yaml": "training analysis cli",
    "typer": "cli",
    "rich": "training analysis cli datasets",
}
"""Each library that not every user has, or that is slow to import, and the packages that may."""

SOURCES = {p.relative_to(PACKAGE).as_posix(): p.read_text() for p in PACKAGE.rglob("*.py")}


def imported(source):
    """Return the modules of all imports, those inside functions too, of `a.b` style names."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
            # `from e3sparse import x` may import a module as well as a name.
            found |= {f"{node.module}.{a.name}" for a in node.names if node.module == "e3sparse"}
    return found


def package_of(module):
    """Return the package, or the module beside the packages, that a file or module is in."""
    return module.removesuffix(".py").replace(".", "/").split("/")[0]


def own(source):
    """Return what a source imports of e3sparse, by package."""
    names = {name for name in imported(source) if name.split(".")[0] == "e3sparse"}
    return {package_of(name.partition(".")[2]) or "e3sparse" for name in names}


def libraries(source):
    return {name.split(".")[0] for name in imported(source)} - {"e3sparse"}


@pytest.mark.parametrize("file", sorted(set(SOURCES) - {"__init__.py"}))
def test_a_module_imports_what_its_package_may(file):
    package = package_of(file)
    assert own(SOURCES[file]) <= {package, *MAY_IMPORT[package].split()}
    found = libraries(SOURCES[file])
    assert not found & FRAMEWORKS
    assert not {name for name in found if name.startswith("e3sparse_")}
    assert {name for name in found & set(BEGINS) if package not in BEGINS[name].split()} == set()


def test_packages_are_in_one_line():
    order = TopologicalSorter({name: may.split() for name, may in MAY_IMPORT.items()})
    assert list(order.static_order())[-2:] == ["cli", "__main__"]


def module_graph(sources):
    """Return what each module imports of the others at its top."""
    names = {
        file: "e3sparse." + file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for file in sources
        if file != "__init__.py"
    }
    graph = {}
    for file, name in names.items():
        top = ast.Module(
            [
                n
                for n in ast.parse(sources[file]).body
                if isinstance(n, ast.Import | ast.ImportFrom)
            ],
            [],
        )
        found = imported(ast.unparse(top))
        graph[name] = (found & set(names.values())) - {name}
    return graph


def test_no_module_imports_itself_in_a_circle():
    TopologicalSorter(module_graph(SOURCES)).prepare()


def test_the_control_sees_a_circle():
    sources = {
        "a.py": "from e3sparse.b import x",
        "b.py": "import e3sparse.c",
        "c.py": "from e3sparse import a",
    }
    with pytest.raises(CycleError):
        TopologicalSorter(module_graph(sources)).prepare()


@pytest.mark.parametrize(
    ("source", "packages", "others"),
    [
        ("import mace.tools", set(), {"mace"}),
        ("def f():\n    from sevenn.nn import x", set(), {"sevenn"}),
        ("from . import mace", set(), set()),
        ("from e3sparse.layers.layouts import Layout", {"layers"}, set()),
        ("from e3sparse import training", {"e3sparse", "training"}, set()),
        ("import torch, e3sparse.cli.main as n", {"cli"}, {"torch"}),
    ],
)
def test_the_control_sees_imports(source, packages, others):
    assert own(source) == packages
    assert libraries(source) == others


def test_every_package_says_what_it_is_for():
    for file, source in SOURCES.items():
        assert ast.get_docstring(ast.parse(source)), file
    assert {package_of(file) for file in SOURCES} - {"__init__"} == set(MAY_IMPORT)


def loaded_by(code):
    """Return the top-level packages that a fresh interpreter has loaded after running code."""
    code = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(run.stdout.splitlines()[-1])}


@pytest.mark.parametrize(
    ("code", "without", "with_"),
    [
        ("import e3sparse", {"torch", "e3nn", "numpy", "ase"}, set()),
        ("import e3sparse.cli", {"torch", "pandas", "ase", "matplotlib"}, {"typer"}),
        ("import e3sparse; e3sparse.patch", {"e3nn", "ase", "pandas"}, {"torch", "pydantic"}),
        ("import e3sparse.potentials.backends", {"lightning", "hypothesis"}, {"ase", "torch"}),
        ("import e3sparse.magnetism", {"hypothesis", "pytest", "lightning"}, {"torch"}),
        ("import e3sparse.training.run", {"hypothesis", "pytest"}, {"lightning"}),
        ("import e3sparse.analysis.report", {"lightning", "hypothesis"}, {"pandas"}),
        ("import e3sparse.analysis.causality", {"lightning", "hypothesis"}, {"pandas"}),
    ],
)
def test_what_is_loaded(code, without, with_):
    code = f"import torch; torch.serialization.add_safe_globals([slice])\n{code}" if (
        "magnetism" in code
    ) else code  # fmt: skip
    found = loaded_by(code)
    assert with_ <= found
    assert not found & (without | FRAMEWORKS)


@pytest.mark.parametrize(
    "module",
    ["magnetism", "frames.evaluation", "training.run", "analysis.report", "cli", "cli.models"],
)
def test_nothing_but_the_symmetry_suite_needs_what_draws_cases(module):
    # The extra `train` installs neither of them.
    code = (
        "import sys, torch\n"
        "torch.serialization.add_safe_globals([slice])\n"
        "sys.modules.update(hypothesis=None, pytest=None)\n"
        f"import e3sparse.{module}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_control_needs_what_draws_cases():
    code = "import sys; sys.modules.update(hypothesis=None); import e3sparse.symmetry"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "hypothesis" in run.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", e3sparse.__all__)
def test_public_names_are_there(name):
    assert getattr(e3sparse, name) is not None
    assert name in dir(e3sparse)


def test_a_public_name_that_does_not_exist():
    with pytest.raises(AttributeError, match="no attribute 'patched'"):
        e3sparse.patched  # noqa: B018


def test_modules_are_found_under_their_old_names():
    # In a fresh interpreter: the warning comes with the first import.
    code = (
        "import importlib, warnings\n"
        "warnings.simplefilter('error')\n"
        "import e3sparse\n"
        "for old, new in e3sparse.moved.MOVED.items():\n"
        "    with warnings.catch_warnings(record=True) as caught:\n"
        "        warnings.simplefilter('always')\n"
        "        try:\n"
        "            there = importlib.import_module(new)\n"
        "        except ImportError as error:\n"
        "            if error.name and not error.name.startswith('e3sparse'):\n"
        "                continue\n"
        "            raise\n"
        "        here = importlib.import_module(old)\n"
        "    assert any(new in str(w.message) for w in caught), old\n"
        "    names = [n for n in vars(there) if not n.startswith('__')]\n"
        "    assert names and all(getattr(here, n) is getattr(there, n) for n in names), old\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "e3sparse.paths" in MOVED


def test_what_has_no_old_name():
    with pytest.raises(ModuleNotFoundError):
        __import__("e3sparse.path")
