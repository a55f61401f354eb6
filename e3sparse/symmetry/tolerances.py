"""Every tolerance of the symmetry suite, in one table, each with its reason.

An error is the largest deviation over `max(largest value, floor)`: relative where the values are
large, absolute in units of the floor where they cancel.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from e3sparse.potentials.quantities import further_quantities


@dataclass(frozen=True)
class Tolerance:
    """What one quantity may be off by.

    Attributes
    ----------
    float64, float32
        Largest relative error that passes, by the precision of the model.
    floor
        The scale below which errors are absolute, in the quantity's unit.
    unit
        Unit of the quantity.
    reason
        Why these numbers.
    """

    float64: float
    float32: float
    floor: float
    unit: str
    reason: str

    def at(self, dtype: torch.dtype) -> float:
        """Return the tolerance for a precision.

        What is narrower than float32 may be off by the rounding of 16 sums of its largest value,
        if that is more: 0.13 in bfloat16, 0.016 in float16.
        """
        if dtype == torch.float64:
            return self.float64
        return max(self.float32, 16 * torch.finfo(dtype).eps if self.float32 else 0.0)


TOLERANCES: dict[str, Tolerance] = {
    "features": Tolerance(
        1e-9, 1e-4, 1.0, "", "a few hundred sums of products: 1e-14 and 1e-6 were the worst seen"
    ),
    "energy": Tolerance(
        1e-9, 1e-3, 1.0, "eV", "sums over atoms in another order; float32 energies cancel"
    ),
    "forces": Tolerance(
        1e-8, 1e-3, 1.0, "eV/Å", "one derivative: loses a digit or two against the energy"
    ),
    "stress": Tolerance(
        1e-8, 1e-3, 0.1, "eV/Å³", "forces times distances over the volume; 0.1 eV/Å³ is 16 GPa"
    ),
    "moments": Tolerance(1e-8, 1e-3, 1.0, "μ_B", "a readout of the same depth as the forces"),
    "magnetic forces": Tolerance(1e-8, 1e-3, 1.0, "eV/μ_B", "one derivative, like the forces"),
    "net force": Tolerance(1e-8, 1e-3, 1.0, "eV/Å", "pair contributions cancel to rounding"),
    "torque": Tolerance(1e-8, 1e-3, 1.0, "eV", "pair contributions cancel to rounding"),
    "leaked gradient": Tolerance(
        0.0, 0.0, 1.0, "eV/Å", "frames share no edge, so nothing is there to be rounded"
    ),
    "isolated force": Tolerance(
        0.0, 0.0, 1.0, "eV/Å", "an atom without neighbours has nothing to be rounded"
    ),
    "energy step at the cutoff": Tolerance(
        1e-8, 1e-3, 1.0, "eV", "taken across 2e-7 Å (float32: 2e-4 Å) of a function with slope 0"
    ),
    "force at the cutoff": Tolerance(
        1e-5,
        1e-2,
        1.0,
        "eV/Å",
        "1e-7 Å (float32: 1e-4 Å) inside a cutoff function that may end with a curvature: that of "
        "SevenNet-0 reaches 12 eV/Å²",
    ),
    "energy derivative": Tolerance(
        1e-6, 2e-2, 1.0, "eV/Å", "five-point difference: rounding over the step of 1e-3 Å"
    ),
    "strain derivative": Tolerance(
        1e-6, 2e-2, 0.1, "eV/Å³", "five-point difference: rounding over a strain of 1e-3"
    ),
    "spin derivative": Tolerance(
        1e-6, 2e-2, 1.0, "eV/μ_B", "five-point difference: rounding over the step of 1e-3 μ_B"
    ),
}


def tolerance_of(quantity: str) -> Tolerance:
    """Return the row of the table, or what holds for a further quantity that a model predicts."""
    if quantity in TOLERANCES:
        return TOLERANCES[quantity]
    (unit,) = (further.unit for further in further_quantities() if further.title == quantity)
    return Tolerance(1e-8, 1e-3, 1.0, unit, "no deeper a readout than the moments or the forces")


def deviation(quantity: str, value: ArrayLike, expected: ArrayLike) -> float:
    """Return the error of `value` in the table's measure; infinite where it is not finite."""
    one, two = np.asarray(value, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if one.shape != two.shape:
        raise ValueError(f"{quantity} have shapes {one.shape} and {two.shape}.")
    if one.size == 0:
        return 0.0
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        return float("inf")
    scale = max(float(np.abs(two).max()), tolerance_of(quantity).floor)
    return float(np.abs(one - two).max()) / scale
