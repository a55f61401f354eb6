"""Saved spin-aware layers on a potential that is to say all that it can."""

from pathlib import Path

from e3sparse.magnetism.file import load
from e3sparse.magnetism.potential import MagneticPotential
from e3sparse.potentials.backends import Potential


def with_forces(potential: Potential, folder: str | Path) -> MagneticPotential:
    """Put saved spin-aware layers on a potential, and ask for magnetic forces; see `load`."""
    magnetic = load(potential, folder)
    magnetic.magnetic_forces = True
    return magnetic
