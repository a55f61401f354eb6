"""Delta methods: how a ΔW is parametrised. One file each, behind one interface.

Imports `layers`. A method of somebody else's is made known by `register_method`, or by an entry
point of the group `e3sparse.methods` that names its class.
"""

from importlib.metadata import entry_points
from typing import Any, TypeVar

from pydantic import ValidationError

from e3sparse.deltas.base import Method, ParamGroup
from e3sparse.deltas.budget import Budget
from e3sparse.deltas.dense import Dense
from e3sparse.deltas.fixed_mask import FixedMask
from e3sparse.deltas.low_rank import LowRank
from e3sparse.deltas.soft_threshold import SoftThreshold
from e3sparse.errors import ConfigError, nearest, wrong_values
from e3sparse.layers.delta import Delta

GROUP = "e3sparse.methods"
METHODS: dict[str, type[Method]] = {}
"""The methods that are known by now, by name; see `known_methods`."""

M = TypeVar("M", bound=Method)


def register_method(cls: type[M]) -> type[M]:
    """Make a method known by its name, so that it can be asked for and its adapters be loaded.

    Raises
    ------
    ConfigError
        If another method has that name.
    """
    if METHODS.setdefault(cls.name, cls) is not cls:
        taken = METHODS[cls.name]
        raise ConfigError(
            f"There is a method '{cls.name}' already ({taken.__module__}.{taken.__qualname__}): "
            f"give {cls.__qualname__} another name."
        )
    return cls


for _method in (Budget, SoftThreshold, LowRank, Dense, FixedMask):
    register_method(_method)


def known_methods() -> dict[str, type[Method]]:
    """Return all methods by name, those of installed distributions too."""
    for point in entry_points(group=GROUP):
        if point.name not in METHODS:
            register_method(point.load())
    return METHODS


def make_method(method: str | Method, **settings: Any) -> Method:
    """Return the method of that name with these settings.

    Raises
    ------
    ConfigError
        If there is no such method, or it has no such setting, or the value is out of range.
    """
    if isinstance(method, Method):
        if settings:
            raise ConfigError("Give settings either in the method object or as keywords, not both.")
        return method
    known = METHODS if method in METHODS else known_methods()
    if method not in known:
        raise ConfigError(
            f"There is no method '{method}'.{nearest(method, known)} "
            f"Methods: {', '.join(known)}. One of your own is made known by "
            "e3sparse.deltas.register_method, in a module that has to be imported first."
        )
    cls = known[method]
    for name in settings:
        if name not in cls.model_fields:
            settable = ", ".join(cls.model_fields) or "none"
            raise ConfigError(
                f"Method '{method}' has no setting '{name}'.{nearest(name, cls.model_fields)} "
                f"Its settings: {settable}."
            )
    try:
        return cls(**settings)
    except ValidationError as error:
        wrong = "; ".join(wrong_values(error))
        raise ConfigError(f"Method '{method}' refuses its settings: {wrong}.") from error


__all__ = [
    "METHODS",
    "Budget",
    "Delta",
    "Dense",
    "FixedMask",
    "LowRank",
    "Method",
    "ParamGroup",
    "SoftThreshold",
    "known_methods",
    "make_method",
    "register_method",
]
