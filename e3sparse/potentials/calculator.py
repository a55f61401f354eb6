"""An ASE calculator for any backend's potential, patched or not."""

from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from e3sparse.potentials.backends import Potential
from e3sparse.potentials.spins import SPINS, spins_of


class PotentialCalculator(Calculator):
    """Energy (eV), forces (eV/Å) and stress (eV/Å³) of a potential as it is at each call.

    Of a magnetic potential also `magmoms`, the moment vectors (N, 3) in μ_B. It reads the array
    `"spin"` of the structure, or else its initial magnetic moments.

    Parameters
    ----------
    potential
        Any loaded potential; deltas on its module count.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress", "magmoms"]  # noqa: RUF012

    def __init__(self, potential: Potential, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.potential = potential

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Return what has changed; ASE knows nothing of spins and charges."""
        changes: list[str] = super().check_state(atoms, tol)
        if not changes and self.potential.magnetic and isinstance(self.atoms, Atoms):
            old, new = spins_of(self.atoms), spins_of(atoms)
            if (old is None) != (new is None) or (old is not None and (old != new).any()):
                changes.append(SPINS)
        if not changes and isinstance(self.atoms, Atoms):
            changes += [k for k in self.potential.frame_inputs if _differ(self.atoms, atoms, k)]
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Evaluate `atoms`; see ASE's `Calculator.calculate`."""
        super().calculate(atoms, properties, system_changes)
        potential = self.potential
        potential.module.eval()
        structure = self.atoms
        assert isinstance(structure, Atoms)
        batch = potential.collate([potential.graph(structure)]).to(potential.device)
        out = potential.forward(batch)
        energy = float(out.energy[0].detach())
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": out.forces.detach().cpu().numpy(),
        }
        if out.moments is not None:
            self.results["magmoms"] = out.moments.detach().cpu().numpy()
        if out.stress is not None and structure.pbc.all():
            stress = out.stress[0].detach().cpu().numpy()
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress)


def _differ(old: Atoms, new: Atoms, key: str) -> bool:
    return not all(
        np.array_equal(getattr(old, place).get(key), getattr(new, place).get(key))
        for place in ("info", "arrays")
    )
