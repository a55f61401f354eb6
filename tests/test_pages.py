"""Pages: README is short, Python runs, commands parse, links lead somewhere, tables are true."""

import re
import runpy
import shutil
import sys

import documents
import pytest
import typer
from documents import PAGES, README, ROOT, name_of

from e3sparse.cli import app

pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(), reason="only the whole repository has all pages"
)

LINES_OF_README = 180
BENCHMARKS = ROOT / "benchmarks" / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
TABLE = re.compile(r"(<!-- table: \S+ -->\n).*?(<!-- end -->)", re.DOTALL)
HERE = [page for page in PAGES if page.parent.name not in documents.ELSEWHERE]
WITH_PYTHON = [page for page in HERE if documents.blocks(page, "python")]
COMMANDS = [(page, args) for page in PAGES for args in documents.commands(page, "e3sparse")]


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= LINES_OF_README


def test_the_python_of_readme_does_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = documents.run_python(README)
    assert "13 updated of 128 patched entries" in capsys.readouterr().out
    assert type(names["model"]).__name__ == "Linear"
    written = {p.name for p in (tmp_path / "adapter").iterdir()}
    assert written >= {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("page", [p for p in WITH_PYTHON if p != README], ids=name_of)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    documents.run_python(page)


def inert(command):
    """Return a command of the command line that parses its arguments and does nothing."""
    command.callback = lambda **_: None
    for sub in getattr(command, "commands", {}).values():
        inert(sub)
    return command


@pytest.mark.parametrize(
    ("page", "args"), COMMANDS, ids=[f"{name_of(p)}: {' '.join(a)}" for p, a in COMMANDS]
)
def test_commands_parse(page, args):
    inert(typer.main.get_command(app)).main(args, standalone_mode=False)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["finetune", "--modle", "7net-0"], "--modle"),
        (["adapters", "dif", "a", "b"], "dif"),
        (["merge", "7net-0", "--adapter", "run/adapter"], "out_"),
    ],
)
def test_commands_that_are_wrong_do_not_parse(args, said):
    with pytest.raises(Exception, match=said) as raised:
        inert(typer.main.get_command(app)).main(args, standalone_mode=False)
    assert any(kind.__name__ == "UsageError" for kind in type(raised.value).__mro__)


def test_flags_in_the_text_exist(request):
    """Those of e3sparse and of its pytest plugin; MACE's page is looked at where MACE is."""
    known = documents.options(typer.main.get_command(app))
    for page in HERE:
        if page.parent.name == "datasets" and "benchmarks" in page.parts:
            continue  # of a script of its own
        for code in documents.inline(page):
            if flag := re.match(r"--[a-z0-9-]+(?![\w-])", code):
                assert flag[0] in known, f"{name_of(page)}: {code}"
        for args in documents.commands(page, "pytest"):
            for flag in args:
                if flag.startswith("--e3sparse"):
                    request.config.getoption(flag.removeprefix("--").replace("-", "_"))


def test_scripts_in_the_text_exist():
    for page in PAGES:
        for script in re.findall(r"(?:benchmarks|tests)/[\w/]+\.py", page.read_text()):
            assert (ROOT / script).is_file(), f"{name_of(page)}: {script}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in documents.links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in documents.anchors(target), link


def test_anchors_are_those_of_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b`, c: 97 %\n## MACE's own\n```\n# none\n```\n## MACE's own\n")
    assert documents.anchors(page) == {"a-b-c-97-", "maces-own", "maces-own-1"}


def test_every_result_is_on_the_page_of_the_benchmarks():
    text = BENCHMARKS.read_text()
    for path in [*RESULTS.glob("*.md"), *RESULTS.glob("*.png")]:
        assert path.name in text, path.name


def test_tables_are_what_the_results_give(tmp_path, monkeypatch):
    """Every table is taken out of a copy, of the files of results too, and made again."""
    for page in [
        *PAGES,
        *(ROOT / "benchmarks").glob("*.py"),
        *RESULTS.glob("*.csv"),
        *RESULTS.glob("*.json"),
    ]:
        copied(page, tmp_path)
    pages = [tmp_path / name_of(page) for page in PAGES]
    assert sum(len(TABLE.findall(page.read_text())) for page in pages) > 20
    for page in pages:
        page.write_text(TABLE.sub(r"\1\2", page.read_text()))
    monkeypatch.syspath_prepend(tmp_path / "benchmarks")
    # Another test may have imported a benchmark, which would write where it comes from.
    for name in [name for name in sys.modules if (ROOT / "benchmarks" / f"{name}.py").is_file()]:
        monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)
    try:
        runpy.run_path(str(tmp_path / "benchmarks" / "pages.py"), run_name="__main__")
    finally:
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]
    for path in [*PAGES, *RESULTS.glob("*.md")]:
        said = "run `python benchmarks/pages.py`: it changes"
        assert (tmp_path / name_of(path)).read_text() == path.read_text(), f"{said} {path}"


def copied(path, tree):
    """Copy a file of the repository into another tree."""
    target = tree / name_of(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target)
