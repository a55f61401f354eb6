"""What `pip install` gets: a wheel and an sdist are built from a copy, looked into, and used."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, version

import pytest
from documents import PAGES, ROOT, name_of

BUILT_FROM = ("e3sparse", "integrations", "pyproject.toml", "README.md", "LICENSE")
ALSO = ("MANIFEST.in", "CHANGELOG.md", "CITATION.cff", "tests", "benchmarks")
"""What lies beside it in the repository, and could get in by mistake."""
SAMPLE = "e3sparse/sample_data/malonaldehyde"


def can_build():
    """Whether setuptools is there in a version that builds without a network."""
    try:
        return int(version("setuptools").split(".")[0]) >= 77
    except PackageNotFoundError:
        return False


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_build(), reason="setuptools 77 or newer is not installed"),
    pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="needs the whole repository"),
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the repository without what was built or trained in it."""
    copy = tmp_path_factory.mktemp("tree")
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info", ".hypothesis", "models", "results")
    for name in (*BUILT_FROM, *ALSO):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=junk)
        else:
            shutil.copy(source, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    """The wheel that pip builds."""
    out = tmp_path_factory.mktemp("wheel")
    quiet = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", ".", *quiet, "-w", out], cwd=tree, check=True
    )
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with what the wheel installs, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def files_of(folder):
    """Return the files below a folder of the repository that belong to its packages."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in str(path)
    }


def test_the_wheel_holds_all_of_the_packages_and_no_more(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    core = {f"e3sparse/{name}" for name in files_of(ROOT / "e3sparse")}
    assert names == core | files_of(ROOT / "integrations")
    for name in (
        "e3sparse/py.typed",
        "e3sparse/analysis/report.html.jinja",
        f"{SAMPLE}/train.xyz",
        "e3sparse/training/README.md",
        "e3sparse_nequip/configs/from_package.yaml",
        "e3sparse_pytest/test_symmetry.py",
    ):
        assert name in names


def test_the_sdist_holds_the_pages_and_no_tests(tree, tmp_path):
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    pages = {name_of(page) for page in PAGES if page.parts[len(ROOT.parts)] not in (".github",)}
    assert {page for page in pages if not page.startswith("benchmarks/")} <= names
    assert {"LICENSE", "CITATION.cff", "pyproject.toml", f"{SAMPLE}/train.xyz"} <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]


def test_what_is_installed_fine_tunes_and_reports(installed, tmp_path):
    """Two steps of the sample data, from the wheel's own files."""
    pytest.importorskip("sevenn")
    sample = installed / SAMPLE
    shell = (
        "import e3sparse, sys; from e3sparse.__main__ import main; print(e3sparse.__file__); main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}

    def run(*args):
        done = subprocess.run(
            [sys.executable, "-c", shell, *map(str, args)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(str(installed))

    run(
        *("finetune", "--model", "7net-0", "--train", sample / "valid.xyz", "--device", "cpu"),
        *("--max-steps", 2, "--batch-size", 2, "--out", "run"),
    )
    run("report", "run", "--out", "report")
    assert (tmp_path / "report" / "index.html").stat().st_size > 10_000
    run("demo", "--epochs", 1)
    assert (tmp_path / "e3sparse-demo" / "report" / "index.html").is_file()


def test_the_plugin_is_found_by_pytest(installed, tmp_path):
    """The symmetry suite as pytest lists it, from the wheel's entry point."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--collect-only", "-q"),
            *("--e3sparse-model", "7net-0", "-p", "no:cacheprovider"),
        ],
        env={**os.environ, "PYTHONPATH": str(installed)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_symmetry[rotation]" in done.stdout
    assert "17 tests collected" in done.stdout
