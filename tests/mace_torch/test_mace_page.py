"""MACE's page: its Python runs on a model of ours, and MACE knows the flags of its commands."""

import shutil

import documents
import pytest
import typer
from documents import PAGES, ROOT
from e3sparse_mace.run_train import _parser
from mace import tools

from e3sparse.cli import app

PAGE = ROOT / "integrations" / "e3sparse_mace" / "README.md"
MODEL = ROOT / "benchmarks" / "models" / "mace_rmd17.model"
COMMANDS = [
    args[1:]
    for page in PAGES
    for args in documents.commands(page, "e3sparse")
    if args[0] == "mace-run-train"
]


def test_the_python_of_the_page_runs(tmp_path, monkeypatch, capsys):
    shutil.copy(MODEL, tmp_path / "my.model")
    monkeypatch.chdir(tmp_path)
    assert documents.blocks(PAGE, "python")
    documents.run_python(PAGE)
    assert "patched entries" in capsys.readouterr().out


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_mace_knows_the_flags(args):
    _, rest = _parser().parse_known_args(args)
    tools.build_default_arg_parser().parse_args(rest)


def test_flags_in_the_text_exist():
    parsers = (_parser(), tools.build_default_arg_parser())
    known = documents.options(typer.main.get_command(app))
    known |= {flag for parser in parsers for flag in parser._option_string_actions}
    flags = [code for code in documents.inline(PAGE) if code.startswith("--")]
    assert len(flags) > 10
    for flag in flags:
        assert flag.split()[0] in known, flag


def test_mace_refuses_other_flags(capsys):
    with pytest.raises(SystemExit):
        tools.build_default_arg_parser().parse_args([*COMMANDS[0], "--e3sparse_no_such_flag"])
    assert "e3sparse_no_such_flag" in capsys.readouterr().err
