"""Spin-aware layers for potentials that know nothing of spins.

>>> from e3sparse import magnetism
>>> potential = magnetism.add_spins(load_potential("7net-0"))
>>> adapter = potential.patch("linear")

The model gets a sparse delta, the new layers are trained in full, and the sum has the symmetries
of magnetism for any weights: see `e3sparse.magnetism.irreps`.
"""

from e3sparse.magnetism.block import SpinBlock, SpinOutput, SpinSettings
from e3sparse.magnetism.file import load, save
from e3sparse.magnetism.potential import MagneticPotential, add_spins
from e3sparse.potentials.spins import SPINS, spins_of

__all__ = [
    "SPINS",
    "MagneticPotential",
    "SpinBlock",
    "SpinOutput",
    "SpinSettings",
    "add_spins",
    "load",
    "save",
    "spins_of",
]
