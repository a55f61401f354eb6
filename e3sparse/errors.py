"""The errors that e3sparse raises: each message is a sentence that says what to do."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class E3SparseError(Exception):
    """Base of every error that is the user's to mend."""

    exit_code = 2


class TargetError(E3SparseError):
    """`targets` does not select what can be patched."""


class PatchError(E3SparseError):
    """The model is not in a state in which this can be done."""


class AdapterFileError(E3SparseError):
    """An adapter folder cannot be read, or does not belong to this model."""


class DataError(E3SparseError):
    """Frames or labels that cannot be trained on."""


class ConfigError(E3SparseError):
    """Settings that do not fit together, or name something that is not there."""


class DivergedError(E3SparseError):
    """A training found nothing that could be kept."""


class Interrupted(E3SparseError):  # noqa: N818 -- what the user wanted
    """A training was stopped from the keyboard and can be resumed."""

    exit_code = 130


class Terminated(Interrupted):
    """A command was stopped by SIGTERM."""

    exit_code = 143


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the known word nearest to `word`, or `""`."""
    close = get_close_matches(word, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


_BOUNDS = {
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "finite_number": "a finite number",
    "too_short": "at least {min_length} long",
    "too_long": "at most {max_length} long",
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping of names to values",
    "model": "a mapping of names to values",
    "path": "a path",
}


def wrong_values(error: "ValidationError", known: Iterable[str] = ()) -> list[str]:
    """Return what pydantic found wrong: for each value a clause without a full stop.

    Parameters
    ----------
    error
        Of settings or of a document.
    known
        Names that there are, for the one nearest to a name that there is not.
    """
    return [_clause(dict(found), list(known)) for found in error.errors()]


def _clause(found: dict[str, Any], known: list[str]) -> str:
    name, kind = ".".join(map(str, found["loc"])), found["type"]
    if kind == "missing":
        return f"{name} is missing"
    if kind == "extra_forbidden":
        close = get_close_matches(name, known, n=1)
        return f"'{name}' is unknown" + (f" (did you mean '{close[0]}'?)" if close else "")
    bounds = {k: f"{v:g}" if isinstance(v, float) else v for k, v in found.get("ctx", {}).items()}
    wanted = _BOUNDS.get(kind, "").format(**bounds)
    wanted = wanted or _KINDS.get(kind.partition("_")[0], "")
    if wanted:
        return f"{name or 'it'} has to be {wanted}, and is {found['input']!r:.60}"
    said = found["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{name}: {said}" if name else said
