"""SevenNet models for e3sparse."""

from e3sparse_sevennet.backend import SevenNetBackend, SevenNetPotential

__all__ = ["SevenNetBackend", "SevenNetPotential"]
