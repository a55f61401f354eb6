"""Spins of a structure: where they are kept, and what may be given for them."""

import numpy as np
from ase import Atoms
from numpy.typing import ArrayLike, NDArray

from e3sparse.errors import DataError
from e3sparse.potentials.quantities import SPINS as SPINS

MAGNETIC = 0.1
"""In μ_B: what the paper calls a magnetic atom. A smaller moment has no direction worth a spin."""

SHORT = 0.5
"""Spins shorter than this fade, in units of what is given: 1 for directions, μ_B for moments."""

Array = NDArray[np.float64]


def as_vectors(values: ArrayLike, atoms: int, what: str) -> Array:
    """Return spins or moments as (N, 3); collinear ones point along ±z.

    Raises
    ------
    DataError
        If they are not finite, or neither one nor three numbers per atom.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{what} are not numbers.") from None
    if array.shape == (atoms,) or array.shape == (atoms, 1):
        array = np.column_stack([np.zeros((atoms, 2)), array.reshape(-1)])
    if array.shape != (atoms, 3):
        raise DataError(
            f"{what} have shape {array.shape}: expected ({atoms},) for collinear or ({atoms}, 3)."
        )
    if not np.isfinite(array).all():
        raise DataError(f"{what} are not all finite numbers.")
    return array


def directions_of(moments: Array) -> Array:
    """Return the directions of moments (N, 3) in μ_B; zero for atoms that are not magnetic."""
    length = np.linalg.norm(moments, axis=1, keepdims=True)
    return np.where(length > MAGNETIC, moments / np.maximum(length, MAGNETIC), 0.0)


def spins_of(atoms: Atoms) -> Array | None:
    """Return the spins (N, 3) of a structure; None where it has none.

    They are its array `"spin"`, or else the directions of ASE's initial magnetic moments, as in
    training.
    """
    where = f"The spins of {atoms.get_chemical_formula()}"
    if SPINS in atoms.arrays:
        return as_vectors(atoms.arrays[SPINS], len(atoms), where)
    if atoms.has("initial_magmoms"):
        moments = as_vectors(atoms.arrays["initial_magmoms"], len(atoms), where)
        return directions_of(moments) if moments.any() else None
    return None
