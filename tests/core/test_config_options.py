"""A command's options are made of the fields of its settings."""

from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from e3sparse.cli import app
from e3sparse.cli.config_options import given, options_of, with_options
from e3sparse.errors import ConfigError
from e3sparse.training.config import FinetuneConfig, make_config


class Colours(BaseModel):
    edge: str = Field("red", description="Of edges.")
    width: float = Field(
        1.0, description="Of a line.", json_schema_extra={"flag": "line-width", "panel": "Other"}
    )
    others: dict[str, str] = {}


def said(panel: str = "Plot", flag: str | None = None) -> dict[str, Any]:
    return {"description": "It.", "json_schema_extra": {"panel": panel, "flag": flag}}


class Settings(BaseModel):
    file: Path = Field(..., **said())
    size: int | None = Field(None, **said())
    names: str | list[str] = Field("all", **said())
    kind: Literal["bar", "line"] = Field("bar", **said())
    grid: bool = Field(True, **said())
    colours: Colours = Field(Colours(), **said(flag="{}-colour"))
    hidden: int = 3


OPTIONS = options_of(Settings)


def settings_by(*arguments):
    """Return what flags say, as a command with such settings sees it."""
    seen = {}

    @with_options(OPTIONS)
    def command(context: typer.Context, **values):
        seen.update(given(OPTIONS, context, values))

    plain = typer.Typer()
    plain.command()(command)
    result = CliRunner().invoke(plain, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return seen


def test_each_described_field_is_a_flag():
    assert [option.flag for option in OPTIONS] == [
        *("file", "size", "names", "kind", "grid", "edge-colour", "line-width"),
    ]
    assert {option.panel for option in OPTIONS} == {"Plot", "Other"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {}),
        ("--size 3 --kind line", {"size": 3, "kind": "line"}),
        ("--kind bar", {"kind": "bar"}),  # the default, but the user has said so
        ("--no-grid", {"grid": False}),
        ("--names a", {"names": "a"}),
        ("--names a --names b", {"names": ["a", "b"]}),
        ("--file x --edge-colour blue", {"file": Path("x"), "colours": {"edge": "blue"}}),
        ("--line-width 2", {"colours": {"width": 2.0}}),
    ],
)
def test_what_is_given_is_what_was_said(arguments, expected):
    assert settings_by(*arguments.split()) == expected


def test_every_setting_of_a_run_has_a_flag():
    # Dictionaries, which `--set` and `--set-spins` fill, or a file of settings alone.
    of_dictionaries = {"method_settings", "spin_settings", "trainer"}
    places = {option.place[0] for option in options_of(FinetuneConfig)}
    assert places == set(FinetuneConfig.model_fields) - of_dictionaries


def test_help_shows_the_defaults_of_the_settings():
    shown = CliRunner().invoke(app, ["finetune", "-h"], env={"COLUMNS": "400"}).output
    for option in options_of(FinetuneConfig):
        (line,) = [line for line in shown.splitlines() if f"│ --{option.flag} " in line]
        assert " ".join(option.field.description.split()) in " ".join(line.split())
        default = option.field.get_default(call_default_factory=True)
        if isinstance(default, int | float | str) and not isinstance(default, bool):
            assert f"[default: {default}]" in line


def test_the_version():
    from e3sparse.version import __version__

    assert CliRunner().invoke(app, ["--version"]).output == f"e3sparse {__version__}\n"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"lr": -1}, "lr has to be greater than 0, and is -1."),
        ({"epochs": "many"}, "epochs has to be a whole number, and is 'many'."),
        ({"traim": "x"}, "'traim' is unknown (did you mean 'train'?)."),
        ({"train": None}, "train has to be a path, and is None."),
        ({"loss": {"forces": "much"}}, "loss.forces has to be a number, and is 'much'."),
        ({"method": "bugdet"}, "method: there is no method 'bugdet'. Did you mean 'budget'?"),
        ({"method_settings": {"wramup": 0.1}}, "no setting 'wramup'. Did you mean 'warmup'?"),
        ({"method_settings": {"target_sparsity": 2}}, "target_sparsity has to be less than 1"),
        ({"lr": 0, "epochs": 0}, "epochs has to be at least 1, and is 0; lr has to be"),
    ],
)
def test_wrong_settings_are_named_in_plain_words(wrong, says):
    with pytest.raises(ConfigError) as refused:
        make_config({"model": "m", "train": "t"} | wrong)
    assert says in str(refused.value)
    assert "Input should" not in str(refused.value)
