"""Options of a command made of the fields of its settings, so that a setting is declared once."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Settings = dict[str, Any]


@dataclass(frozen=True)
class ConfigOption:
    """A flag, and where in the settings its value goes.

    Attributes
    ----------
    parameter
        Name of the parameter that Typer passes.
    place
        Names of the fields that lead to the setting: one, or two for a nested model.
    flag, panel, field
        Its name without dashes, the heading that it stands under, and what describes it.
    """

    parameter: str
    place: tuple[str, ...]
    flag: str
    panel: str
    field: FieldInfo

    def signature(self) -> inspect.Parameter:
        """Return the parameter that Typer makes the option of."""
        field = self.field
        names = [f"--{self.flag}"]
        if field.annotation is bool:
            names = [f"--{self.flag}/--no-{self.flag}"]
        required = field.is_required()
        description = field.description or ""
        if required:
            description += f" Required: as an argument, by --{self.flag} or in --config."
        option = typer.Option(*names, help=description, rich_help_panel=self.panel)
        kind = _of_a_flag(field.annotation)
        default = None if required else field.get_default(call_default_factory=True)
        if kind == list[str]:
            default = [default] if isinstance(default, str) else default
        return inspect.Parameter(
            self.parameter,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[kind if default is not None else kind | None, option],
        )


def options_of(settings: type[BaseModel]) -> list[ConfigOption]:
    """Return a flag for each field that names a heading, those of nested models included."""
    return list(_options(settings))


def _options(settings: type[BaseModel]) -> Iterator[ConfigOption]:
    for name, field in settings.model_fields.items():
        said = field.json_schema_extra
        if not isinstance(said, dict):
            continue
        panel, flag = str(said["panel"]), said.get("flag")
        nested = field.annotation
        if not (isinstance(nested, type) and issubclass(nested, BaseModel)):
            shown = str(flag or name.replace("_", "-"))
            yield ConfigOption(name, (name,), shown, panel, field)
            continue
        for part, inner in nested.model_fields.items():
            if inner.description is None:  # for a file of settings only
                continue
            extra = inner.json_schema_extra if isinstance(inner.json_schema_extra, dict) else {}
            shown = str(extra.get("flag") or str(flag).format(part.replace("_", "-")))
            yield ConfigOption(
                shown.replace("-", "_"), (name, part), shown, str(extra.get("panel", panel)), inner
            )


def _of_a_flag(annotation: Any) -> Any:
    """Return the type that Typer reads: without None, and a list where there may be several."""
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        lists = [kind for kind in kinds if get_origin(kind) is list]
        return (lists or kinds)[0]
    return annotation


def with_options(
    options: list[ConfigOption],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, which takes them as `**values`, these options beside its own."""

    def give(command: Callable[..., None]) -> Callable[..., None]:
        made = [option.signature() for option in options]
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(command).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        # The help lists headings, and options below them, in this order.
        together = [*made, *own]
        command.__signature__ = inspect.Signature(together)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in together}
        return command

    return give


def given(
    options: list[ConfigOption], context: typer.Context, values: Mapping[str, Any]
) -> Settings:
    """Return the settings that the user gave by flags, nested as in a file of settings."""
    said: Settings = {}
    for option in options:
        source = context.get_parameter_source(option.parameter)
        if source is None or source.name == "DEFAULT":
            continue
        value = values[option.parameter]
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        place = said
        for name in option.place[:-1]:
            place = place.setdefault(name, {})
        place[option.place[-1]] = value
    return said
