"""The symmetry suite as a pytest plugin: `pytest --e3sparse-model MODEL`.

Apart from e3sparse, because pytest imports its plugins in every project, and e3sparse imports
torch: nothing is imported here until a model is named.
"""

from pathlib import Path

import pytest

SUITE = Path(__file__).with_name("test_symmetry.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("e3sparse", "symmetry of a potential")
    group.addoption(
        "--e3sparse-model",
        metavar="PATH_OR_NAME",
        help="Test the symmetries of this model; alone if no test files are named.",
    )
    group.addoption("--e3sparse-backend", metavar="NAME", help="Its framework, e.g. sevennet.")
    group.addoption("--e3sparse-adapter", metavar="DIR", help="Adapter folder to put on first.")
    group.addoption("--e3sparse-head", metavar="NAME", help="Head or level of theory.")
    group.addoption("--e3sparse-device", metavar="DEVICE", default="cpu", help="cpu or cuda.")
    group.addoption(
        "--e3sparse-dtype",
        choices=("float64", "float32"),
        default="float64",
        help="float64 (default) tests float32 too.",
    )
    group.addoption("--e3sparse-frames", metavar="FILE", help="Structures to try besides.")
    group.addoption(
        "--e3sparse-examples", type=int, default=20, metavar="N", help="Cases for each check."
    )
    group.addoption("--e3sparse-seed", type=int, default=0, metavar="N", help="Of the cases.")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("e3sparse_model") is None:
        return
    # Without file arguments pytest would collect all tests of the project it stands in.
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    config.args = [*(config.args if named else []), str(SUITE)]
