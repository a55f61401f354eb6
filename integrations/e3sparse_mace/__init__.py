"""The MACE backend of e3sparse."""

from e3sparse_mace.backend import MACEBackend, MACEPotential

__all__ = ["MACEBackend", "MACEPotential"]
