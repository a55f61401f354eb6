"""The errors that e3sparse raises: each message is a sentence that says what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


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
