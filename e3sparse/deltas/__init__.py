"""Delta methods: how a ΔW is parametrised. One file each, behind one interface."""

from typing import Any

from pydantic import ValidationError

from e3sparse.deltas.base import Delta, Method, ParamGroup
from e3sparse.deltas.budget import Budget
from e3sparse.deltas.dense import Dense
from e3sparse.deltas.fixed_mask import FixedMask
from e3sparse.deltas.low_rank import LowRank
from e3sparse.deltas.soft_threshold import SoftThreshold
from e3sparse.errors import ConfigError, nearest

METHODS: dict[str, type[Method]] = {
    cls.name: cls for cls in (Budget, SoftThreshold, LowRank, Dense, FixedMask)
}


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
    if method not in METHODS:
        raise ConfigError(
            f"There is no method '{method}'.{nearest(method, METHODS)} "
            f"Methods: {', '.join(METHODS)}."
        )
    cls = METHODS[method]
    for name in settings:
        if name not in cls.model_fields:
            known = ", ".join(cls.model_fields) or "none"
            raise ConfigError(
                f"Method '{method}' has no setting '{name}'.{nearest(name, cls.model_fields)} "
                f"Its settings: {known}."
            )
    try:
        return cls(**settings)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or method}: {e['msg']}" for e in error.errors()
        )
        raise ConfigError(f"Method '{method}' refuses its settings: {problems}.") from error


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
    "make_method",
]
