"""The command line: fine-tune, evaluate, check, merge, inspect, compare, convert."""

import errno
import sys

import typer
from rich.console import Console
from rich.markup import escape

from e3sparse.cli.check import check
from e3sparse.cli.commands import add_command, installed_commands
from e3sparse.cli.convert import convert
from e3sparse.cli.finetune import finetune
from e3sparse.cli.models import evaluate, inspect, merge
from e3sparse.cli.report import report
from e3sparse.cli.results import compare, diff
from e3sparse.errors import E3SparseError, Interrupted

app = typer.Typer(
    help="Sparse, equivariant fine-tuning of e3nn potentials.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (finetune, evaluate, check, merge, inspect, compare, report, convert):
    app.command()(command)
adapters_app = typer.Typer(help="Look at saved adapters.", no_args_is_help=True)
adapters_app.command("diff")(diff)
# With one command only, Typer would do without its name.
adapters_app.callback()(lambda: None)
app.add_typer(adapters_app, name="adapters")
for name in installed_commands():
    add_command(app, name)


def main() -> None:
    """Run the command line; errors that are the user's to mend end with exit code 2."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        app()
    except E3SparseError as error:
        label = "stopped" if isinstance(error, Interrupted) else "error"
        errors.print(f"[bold red]{label}:[/] {escape(str(error))}")
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        errors.print("[bold red]error:[/] No space is left on the disk: free some and --resume.")
        sys.exit(2)
