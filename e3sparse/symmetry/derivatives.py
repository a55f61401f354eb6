"""Checks of derivatives: forces, stress, what they conserve, and how they end at the cutoff."""

from collections.abc import Callable

import numpy as np
import torch
from ase import Atoms
from hypothesis import strategies as st
from numpy.typing import NDArray

from e3sparse.symmetry.check import Check, Drawing, knows_no_cells, lone_atom
from e3sparse.symmetry.search import Case, Errors
from e3sparse.symmetry.structures import directions
from e3sparse.symmetry.subjects import Subject
from e3sparse.symmetry.tolerances import deviation

Array = NDArray[np.float64]


def derivative_error(
    quantity: str,
    energy: Callable[[float], float],
    analytic: float,
    dtype: torch.dtype,
    per: float = 1.0,
) -> float:
    """Return the deviation of a derivative from five-point differences.

    Parameters
    ----------
    energy
        Energy in eV at a displacement along the direction.
    analytic
        What the model says that dE/dx / `per` is.
    per
        What the difference quotient is divided by, such as a volume.

    Notes
    -----
    The best of three steps counts: a pair of atoms may straddle a kink of a higher derivative of
    the cutoff function, but not at every step. A wrong derivative is wrong at each.
    """
    # float32 resolves energies of some 10 eV to 1e-6 eV.
    steps = (1e-3, 1e-4, 1e-5) if dtype == torch.float64 else (3e-2, 1e-2, 3e-3)

    def quotient(h: float) -> float:
        near, far = energy(h) - energy(-h), energy(2 * h) - energy(-2 * h)
        return (8 * near - far) / (12 * h) / per

    best = float("inf")
    for step in steps:
        best = min(best, deviation(quantity, analytic, quotient(step)))
        if best < 1e-9:
            break
    return best


# Conservation --------------------------------------------------------------------------------


def _conservation_cases(drawing: Drawing) -> st.SearchStrategy[Case]:
    return st.fixed_dictionaries({"atoms": drawing.structures(min_atoms=2)})


def _conservation(subject: Subject, atoms: Atoms) -> Errors:
    forces = subject(atoms).forces
    largest = max(1.0, float(np.abs(forces).max()))
    errors = {"net force": _cancels("net force", forces.sum(axis=0), largest)}
    if not atoms.pbc.any() and not (subject.magnetic and subject.spin_orbit):
        arms = atoms.positions - atoms.positions.mean(axis=0)
        scale = largest * max(1.0, float(np.abs(arms).max()))
        errors["torque"] = _cancels("torque", np.cross(arms, forces).sum(axis=0), scale)
    return errors


def _cancels(quantity: str, total: Array, scale: float) -> float:
    """Return the deviation from zero of a sum whose terms are as large as `scale`."""
    return deviation(quantity, total / scale, np.zeros(3))


check_conservation = Check(
    "conservation",
    "forces sum to 0, and so does the torque on a structure without a cell",
    _conservation_cases,
    _conservation,
)


# Cutoff --------------------------------------------------------------------------------------


def _no_cutoff(subject: Subject) -> str | None:
    return None if subject.cutoff is not None else "Its cutoff is not known."


def _cutoff_cases(drawing: Drawing) -> st.SearchStrategy[Case]:
    return st.fixed_dictionaries(
        {
            "atoms": drawing.structures(periodic=False, max_atoms=8),
            "probe": st.sampled_from(list(drawing.subject.numbers)),
        }
    )


def _cutoff(subject: Subject, atoms: Atoms, probe: int) -> Errors:
    assert subject.cutoff is not None
    # Every other atom is at least as far from a probe on the +x side of the last one.
    last = atoms.positions[atoms.positions[:, 0].argmax()]

    def at(distance: float) -> tuple[float, Array]:
        added = Atoms([probe], positions=[last + np.array([distance, 0.0, 0.0])])
        for name, values in atoms.arrays.items():
            if name not in added.arrays:
                added.set_array(name, np.ones((1, *values.shape[1:]), values.dtype))
        out = subject(atoms + added)
        return out.energy, out.forces

    inside = max(float(np.abs(at(x * subject.cutoff)[1][-1]).max()) for x in (0.3, 0.5, 0.7))
    if not inside > 1e-6:
        raise ValueError(
            f"the force on the probe is {inside:.0e} eV/Å at 0.3, 0.5 and 0.7 of the cutoff too, "
            "so a force of 0 at the cutoff shows nothing"
        )
    gap = 1e-7 if subject.dtype == torch.float64 else 1e-4
    (energy_in, forces_in), (energy_out, forces_out) = (
        at(subject.cutoff - gap),
        at(subject.cutoff + gap),
    )
    step = "energy step at the cutoff"
    force = "force at the cutoff"
    return {
        step: deviation(step, energy_in, energy_out),
        force: max(
            deviation(force, forces_in, forces_out),
            deviation(force, forces_in[-1], np.zeros(3)),
        ),
        "isolated force": deviation("isolated force", forces_out[-1], np.zeros(3)),
    }


check_cutoff = Check(
    "cutoff",
    "an atom leaves the cutoff without a step in energy or forces; inside it feels a force",
    _cutoff_cases,
    _cutoff,
    _no_cutoff,
)


# Forces and stress ---------------------------------------------------------------------------


def _force_cases(drawing: Drawing) -> st.SearchStrategy[Case]:
    return drawing.structures().flatmap(
        lambda atoms: st.fixed_dictionaries(
            {"atoms": st.just(atoms), "direction": directions(len(atoms))}
        )
    )


def _forces(subject: Subject, atoms: Atoms, direction: Array) -> Errors:
    def energy(step: float) -> float:
        moved = atoms.copy()
        moved.positions += step * direction
        return subject(moved).energy

    along = -float((subject(atoms).forces * direction).sum())
    return {
        "energy derivative": derivative_error("energy derivative", energy, along, subject.dtype)
    }


check_forces = Check("forces", "F = -dE/dR, by finite differences", _force_cases, _forces)


def _stress_cases(drawing: Drawing) -> st.SearchStrategy[Case]:
    drawn = drawing.structures(periodic=True)
    # Slabs and wires of the user's: some frameworks divide by the volume of another cell there.
    partly = [a for a in drawing.frames if 0 < a.pbc.sum() < 3 and a.cell.rank == 3]
    if partly:
        drawn = st.one_of(drawn, st.sampled_from(partly))
    return st.fixed_dictionaries({"atoms": drawn, "strain": directions(3)})


def _stress(subject: Subject, atoms: Atoms, strain: Array) -> Errors:
    symmetric = (strain + strain.T) / 2
    stress = subject(atoms).stress
    assert stress is not None

    def energy(step: float) -> float:
        strained = atoms.copy()
        deformation = np.eye(3) + step * symmetric
        strained.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
        return subject(strained).energy

    along = float((stress * symmetric).sum())
    volume = float(atoms.get_volume())
    name = "strain derivative"
    return {name: derivative_error(name, energy, along, subject.dtype, volume)}


def _no_stress(subject: Subject) -> str | None:
    if reason := knows_no_cells(subject):
        return reason
    cube = lone_atom(subject)
    cube.set_cell([2.5] * 3)
    cube.pbc = True
    return None if subject(cube).stress is not None else "It gives no stress."


check_stress = Check(
    "stress", "σ = dE/dε / V, by finite differences", _stress_cases, _stress, _no_stress
)
