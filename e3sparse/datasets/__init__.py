"""Published data sets, converted to extended XYZ with our labels. One file a format."""

from e3sparse.datasets.base import Entry, Format
from e3sparse.datasets.deepmd import DeePMD
from e3sparse.datasets.mptrj import MPtrj
from e3sparse.datasets.rmd17 import RMD17
from e3sparse.datasets.vasp import VASP
from e3sparse.errors import ConfigError, nearest

FORMATS: dict[str, type[Format]] = {cls.name: cls for cls in (MPtrj, DeePMD, RMD17, VASP)}


def make_format(name: str) -> Format:
    """Return the format of that name.

    Raises
    ------
    ConfigError
        If there is no such format.
    """
    if name not in FORMATS:
        raise ConfigError(
            f"There is no format '{name}'.{nearest(name, FORMATS)} Formats: {', '.join(FORMATS)}."
        )
    return FORMATS[name]()


__all__ = ["FORMATS", "RMD17", "VASP", "DeePMD", "Entry", "Format", "MPtrj", "make_format"]
