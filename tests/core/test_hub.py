"""Adapters on the Hugging Face Hub: a hub on this machine takes them and gives them back."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hub_stand_in import hub

from e3sparse.adapter.hub import local_folder
from e3sparse.errors import ConfigError

pytestmark = pytest.mark.any_e3nn
needs_the_package = pytest.mark.skipif(
    find_spec("huggingface_hub") is None, reason="huggingface_hub is not installed"
)

BEGIN = """
import copy, torch
from e3nn import o3
import e3sparse
from pathlib import Path
from e3sparse.adapter.file import read_values
torch.manual_seed(0)
model = o3.Linear("4x0e + 2x1o", "4x0e + 2x1o")
twin = copy.deepcopy(model)
"""
PUSH = """
adapter = e3sparse.patch(model, "linear", "dense")
with torch.no_grad():
    for parameter in adapter.parameters():
        parameter.normal_()
adapter.save_pretrained("adapter", push_to_hub="org/name")
again = e3sparse.load(twin, "hf://org/name@main")
assert all(torch.equal(v, again.values()[path]) for path, v in adapter.values().items())
values = read_values(Path("hf://org/name"))  # a path loses a slash, as on the command line
assert values.keys() == adapter.values().keys()
print("the same")
"""


LOAD = """
for name in ("other", "nothing"):
    try:
        e3sparse.load(twin, f"hf://org/{name}")
    except e3sparse.E3SparseError as error:
        print(error)
"""


def run(code, folder, **settings):
    """Run code in a process of its own, because huggingface_hub reads its settings at import."""
    settings |= {
        "HF_HOME": str(folder / "home"),
        "HF_TOKEN": "hf_of_nobody",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code],
        cwd=folder,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    return [*done.stdout.splitlines(), *done.stderr.strip().splitlines()[-1:]]


@needs_the_package
def test_an_adapter_goes_there_and_comes_back(tmp_path):
    with hub() as (address, repositories):
        repositories["org/other"] = {"adapter_config.json": b"{}"}
        same, other, nothing = run(PUSH + LOAD, tmp_path, HF_ENDPOINT=address)
        assert same == "the same"
        assert "hf://org/other holds no adapter: it has no adapter_model.safetensors" in other
        assert "hf://org/nothing could not be fetched" in nothing
        assert set(repositories["org/name"]) == {
            "README.md", "adapter_config.json", "adapter_model.safetensors",
        }  # fmt: skip
        for name, content in repositories["org/name"].items():
            assert content == (tmp_path / "adapter" / name).read_bytes()


@needs_the_package
def test_without_a_network_the_way_out_is_said(tmp_path):
    other, _, pushed = run(LOAD + PUSH, tmp_path, HF_HUB_OFFLINE="1")
    assert "hf://org/other could not be fetched" in other
    assert "give its path" in other
    assert "could not be uploaded to 'org/name'" in pushed
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


@pytest.mark.parametrize("address", ["hf://", "hf://org", "hf://org/name/more", "hf:org/name"])
def test_what_is_no_address(address):
    with pytest.raises(ConfigError, match="hf://ORGANISATION/NAME"):
        local_folder(address)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'e3sparse\[hub\]'"):
        local_folder("hf://org/name")


def test_paths_stay_what_they_are(tmp_path):
    assert local_folder(tmp_path) == tmp_path
    assert local_folder("hf") == Path("hf")
