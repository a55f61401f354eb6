"""The command line: fine-tune, evaluate, check, merge, inspect, compare, convert."""

import warnings
from typing import Annotated

import typer

from e3sparse.cli.check import check
from e3sparse.cli.commands import add_command, installed_commands
from e3sparse.cli.convert import convert
from e3sparse.cli.demo import demo
from e3sparse.cli.ending import ended_well
from e3sparse.cli.finetune import finetune
from e3sparse.cli.inspection import inspect
from e3sparse.cli.models import evaluate, merge
from e3sparse.cli.report import report
from e3sparse.cli.results import compare, diff
from e3sparse.version import __version__

app = typer.Typer(
    help="Sparse, equivariant fine-tuning of e3nn potentials.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"e3sparse {__version__}")
        raise typer.Exit


@app.callback()
def _application(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    pass


for command in (finetune, evaluate, check, merge, inspect, compare, report, convert, demo):
    app.command()(command)
adapters_app = typer.Typer(help="Look at saved adapters.", no_args_is_help=True)
adapters_app.command("diff")(diff)
# With one command only, Typer would do without its name.
adapters_app.callback()(lambda: None)
app.add_typer(adapters_app, name="adapters")
for name in installed_commands():
    add_command(app, name)


def main() -> None:
    """Run the command line; see `e3sparse.cli.ending` for how it ends."""
    # e3nn 0.4 says so of a file of its own, each time that MACE is imported.
    warnings.filterwarnings("ignore", "Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    with ended_well():
        app()
