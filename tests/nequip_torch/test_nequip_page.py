"""NequIP's page: its Python runs on a package of ours, and its YAML names what is there."""

import shutil

import documents
import yaml
from documents import ROOT
from hydra.utils import get_class

PAGE = ROOT / "integrations" / "e3sparse_nequip" / "README.md"
MODEL = ROOT / "benchmarks" / "models" / "nequip_rmd17.nequip.zip"


def test_the_python_of_the_page_runs(tmp_path, monkeypatch, capsys):
    shutil.copy(MODEL, tmp_path / "oam-l.nequip.zip")
    monkeypatch.chdir(tmp_path)
    assert documents.blocks(PAGE, "python")
    documents.run_python(PAGE)
    assert "patched entries" in capsys.readouterr().out


def targets(value):
    """Yield the classes that a config names."""
    if isinstance(value, dict):
        yield from [value["_target_"]] if "_target_" in value else []
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, dict | list):
            yield from targets(part)


def test_the_yaml_of_the_page_names_what_is_there():
    named = [t for block in documents.blocks(PAGE, "yaml") for t in targets(yaml.safe_load(block))]
    assert len(named) == 2
    for target in named:
        assert get_class(target).__name__ == target.rpartition(".")[2]
