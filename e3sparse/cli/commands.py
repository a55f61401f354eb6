"""Commands that an integration brings: entry points of the group `e3sparse.commands`.

Each is a function of the list of arguments that follow its name, which are its own to parse.
"""

from importlib.metadata import EntryPoint, entry_points

import typer

from e3sparse.errors import ConfigError

GROUP = "e3sparse.commands"


def installed_commands() -> dict[str, EntryPoint]:
    """Return the entry point of each command by name; none is imported."""
    return {point.name: point for point in entry_points(group=GROUP)}


def add_command(app: typer.Typer, name: str) -> None:
    """Make a command of an entry point known; it is imported when it is called."""
    framework = name.partition("-")[0]

    @app.command(
        name,
        help=f"{name} of {framework}, with a sparse delta; takes its flags and ours.",
        context_settings={
            "allow_extra_args": True,
            "ignore_unknown_options": True,
            "help_option_names": [],
        },
    )
    def call(context: typer.Context) -> None:
        try:
            command = installed_commands()[name].load()
        except ImportError as error:
            raise ConfigError(
                f"'{name}' cannot be imported ({error}): pip install 'e3sparse[{framework}]'."
            ) from error
        command(context.args)
