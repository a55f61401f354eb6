"""What every backend refuses alike: heads that a model has not, references without a place."""

from collections.abc import Sequence

from e3sparse.errors import ConfigError, nearest


class HeadNotChosenError(ConfigError):
    """A model has several heads and none was chosen.

    Attributes
    ----------
    heads
        Those that it has.
    """

    def __init__(self, name: str, heads: Sequence[str]) -> None:
        super().__init__(f"{name} has several heads: choose --head {' | '.join(heads)}.")
        self.heads = tuple(heads)


def chosen_head(name: str, heads: Sequence[str], head: str | None) -> str | None:
    """Return the head, or level of theory, that a model is used with; None if it knows no heads.

    Raises
    ------
    HeadNotChosenError
        If there are several and none was chosen.
    ConfigError
        If there is none of that name.
    """
    if head is None and len(heads) <= 1:
        return heads[0] if heads else None
    if not heads:
        raise ConfigError(f"{name} has one level of theory only: leave --head out.")
    if head is None:
        raise HeadNotChosenError(name, heads)
    if head not in heads:
        raise ConfigError(
            f"{name} has no head '{head}'.{nearest(head, heads)} It has: {', '.join(heads)}."
        )
    return head


def without_element_shifts(name: str) -> ConfigError:
    """Return the error for energy references that a model has no place for."""
    return ConfigError(
        f"{name} has no energy shift of each element's own, so energy references cannot be folded "
        "into it: use --e0s keep."
    )
