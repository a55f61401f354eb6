"""An ASE calculator for any backend's potential, patched or not."""

from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from e3sparse.backends import Potential


class PotentialCalculator(Calculator):
    """Energy (eV), forces (eV/Å) and stress (eV/Å³) of a potential as it is at each call.

    Parameters
    ----------
    potential
        Any loaded potential; deltas on its module count.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, potential: Potential, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.potential = potential

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
        if out.stress is not None and structure.pbc.all():
            stress = out.stress[0].detach().cpu().numpy()
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress)
