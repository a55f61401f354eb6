"""Converting as a user does it."""

import ase.io
import pytest

from e3sparse.datasets import make_format
from e3sparse.datasets.conversion import convert


@pytest.fixture
def converted(tmp_path):
    """Convert sources of a format and read the extended XYZ back."""

    def call(name, *sources, **options):
        out = tmp_path / "out.xyz"
        convert(make_format(name), sources, out, **options)
        return ase.io.read(out, index=":")

    return call
