"""What rounding may do to what the tests compare, from the precision and the number of terms.

Two sums of the same n numbers in another order (another batch, another number of threads, another
machine) differ by up to n·eps of their largest term, not of their value: energies that cancel keep
the error of what cancelled. So a number may be off by `terms · eps`, of itself or of `floor`, the
size of what was added up, whichever is larger. A label, or an energy of which only a small part was
computed, has the scale of that part: it is given as `scale`.
"""

from dataclasses import dataclass

import pytest
import torch


@dataclass(frozen=True)
class Rounding:
    """How many terms a quantity is the sum of, and their size.

    Attributes
    ----------
    terms
        Products that are added up one after the other on the way to it.
    floor
        The size of the largest of them, in the quantity's unit.
    unit, reason
        Of the two numbers.
    """

    terms: int
    floor: float
    unit: str
    reason: str


TABLE = {
    "weights": Rounding(16, 1.0, "", "W + ΔW, written and read; an update of W of a few terms"),
    "features": Rounding(100, 1.0, "", "two layers of some 50 products"),
    "energy": Rounding(100, 1.0, "eV", "edges, channels and atoms, some 100 in a row"),
    "forces": Rounding(300, 1.0, "eV/Å", "the derivative of each product is two"),
    "stress": Rounding(300, 0.1, "eV/Å³", "forces times distances over the volume"),
    "energy_mae": Rounding(100, 12e3, "meV/atom", "the errors of 12 eV/atom"),
    "forces_mae": Rounding(300, 1e3, "meV/Å", "the errors of 1 eV/Å"),
    "moments_mae": Rounding(300, 1.0, "μ_B", "a readout of the same depth as the forces"),
}


def rounding(quantity, dtype):
    """Return the relative error that passes."""
    return TABLE[quantity].terms * torch.finfo(dtype).eps


def close(quantity, expected, dtype, *, scale=None, decimals=None):
    """Return what equals `expected` to rounding.

    Parameters
    ----------
    quantity
        One of the table.
    expected
        A number or an array.
    dtype
        The narrowest precision that the number went through: that of a file counts too.
    scale
        The size of what was computed, where it is neither the value nor the floor.
    decimals
        With how many a file holds the number, where it is written as text.
    """
    relative = rounding(quantity, dtype)
    allowed = relative * (TABLE[quantity].floor if scale is None else scale)
    if decimals is not None:
        allowed += 0.5 * 10.0**-decimals
    return pytest.approx(expected, rel=relative if scale is None else 0.0, abs=allowed)
