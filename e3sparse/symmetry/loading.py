"""A model file as a subject of the suite, in float64 and float32."""

from pathlib import Path

import torch

from e3sparse.potentials.backends import Potential, load_potential
from e3sparse.symmetry.subjects import PotentialSubject


def load_subject(
    model: str,
    *,
    backend: str | None = None,
    adapter: str | Path | None = None,
    spins: str | Path | None = None,
    head: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> PotentialSubject:
    """Load a model, with an adapter on it if one is named.

    Parameters
    ----------
    model, backend, head, device
        As in `load_potential`.
    adapter
        Folder of an adapter.
    spins
        Folder of spin-aware layers, which are put on after the adapter.
    dtype
        Of float64, where symmetries hold to rounding, the model is loaded in float32 as well, to
        be compared.

    Raises
    ------
    ConfigError, AdapterFileError
        As `load_potential` and `Potential.load_adapter` do.
    """

    def load(precision: torch.dtype) -> Potential:
        potential = load_potential(
            model, backend=backend, device=device, dtype=precision, head=head
        )
        if adapter is not None:
            potential.load_adapter(adapter)
        if spins is None:
            return potential
        # Its layers are e3nn's, which other models have no need to import.
        from e3sparse.magnetism.saved_layers import with_forces

        return with_forces(potential, spins)

    single = load(torch.float32) if dtype == torch.float64 else None
    return PotentialSubject(load(dtype), single)
