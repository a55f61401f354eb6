"""Forces on structures that nobody trained on, next to the base's and to labels."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from e3sparse.robustness.findings import Finding
from e3sparse.robustness.models import Model

Forces = Sequence[NDArray[np.float64]]
LARGEST_EV_A = 100.0
"""A random structure with a larger force is one that a model has no idea of."""
GROWTH = 3.0
"""The largest force may grow by this over the base's, and over `LARGEST_EV_A`."""


def forces_of(model: Model, structures: Sequence[Atoms]) -> Forces:
    """Return the forces (N, 3) in eV/Å of each structure."""
    return [np.asarray(found.forces) for found in model.evaluate(structures)]


def rms(forces: Forces, others: Forces | None = None) -> float:
    """Return the root mean square of a component, or of its difference from others."""
    values = np.concatenate(forces)
    return float(
        np.sqrt(np.square(values - (0 if others is None else np.concatenate(others))).mean())
    )


def largest(forces: Forces) -> NDArray[np.float64]:
    """Return the largest component in eV/Å of each structure's forces; ∞ for no number."""
    return np.array([np.nan_to_num(np.abs(one), nan=np.inf).max() for one in forces])


def of_random(
    model: Forces, base: Forces | None, structures: Sequence[Atoms]
) -> tuple[Finding, Finding | None]:
    """Judge forces on random structures, none of which has atoms that overlap by much."""
    names = [f"{atoms.get_chemical_formula()} number {n}" for n, atoms in enumerate(structures)]
    if base is None:
        return _wild(names, largest(model), LARGEST_EV_A), None
    found = _wild(names, largest(model), GROWTH * LARGEST_EV_A)
    both = np.maximum(largest(model), largest(base))
    tame = [n for n, most in enumerate(both) if most <= LARGEST_EV_A]
    if tame:
        apart = rms([model[n] for n in tame], [base[n] for n in tame])
        found = replace(
            found,
            said=f"{found.said}; RMS from the base's {apart:.2f} eV/Å in the others",
            figures={**found.figures, "rms_from_base_ev_a": apart},
        )
    return found, _wild(names, largest(base), LARGEST_EV_A)


def _wild(names: Sequence[str], most: NDArray[np.float64], limit: float) -> Finding:
    wild = {name: float(np.log(top)) for name, top in zip(names, most, strict=True) if top > limit}
    said = f"above {limit:g} eV/Å in {len(wild)} of {len(names)}"
    return Finding(said, wild, float(np.log(GROWTH)), {"wild": len(wild), "random": len(names)})


def of_real(
    model: Forces, base: Forces | None, labels: Sequence[NDArray[np.float64] | None]
) -> tuple[Finding, Finding | None]:
    """Judge forces on structures given: by their labels, no worse than the base; or measure."""
    labelled = [n for n, label in enumerate(labels) if label is not None]
    found: list[Finding] = []
    errors: list[float] = []
    for forces in (model, base):
        if forces is None:
            continue
        said, figures = [], {"rms_ev_a": rms(forces)}
        if labelled:
            error = rms([forces[n] for n in labelled], [np.asarray(labels[n]) for n in labelled])
            errors.append(error)
            figures["rmse_ev_a"] = error
            said.append(f"RMSE {error:.3f} eV/Å")
        if forces is model and base is not None:
            figures["rms_from_base_ev_a"] = rms(model, base)
            said.append(f"RMS from the base's {rms(model, base):.3f} eV/Å")
        found.append(Finding(", ".join(said) or f"RMS {rms(forces):.2f} eV/Å", figures=figures))
    finite = all(np.isfinite(forces).all() for forces in model)
    if not finite or (len(errors) == 2 and not errors[0] <= errors[1]):
        found[0] = replace(found[0], failures={"error": np.inf})
    return found[0], found[1] if base is not None else None
