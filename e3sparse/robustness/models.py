"""What is looked at: a function from structures to energies, forces and stresses."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from e3sparse.errors import ConfigError
from e3sparse.potentials.backends import Potential
from e3sparse.potentials.single_points import Evaluation, single_points

MOST_ATOMS = 256
"""Atoms in one batch."""


class Model(Protocol):
    """Anything that can be looked at, such as a `Subject` of the symmetry suite."""

    @property
    def numbers(self) -> Sequence[int]:
        """Atomic numbers that it knows."""

    @property
    def cutoff(self) -> float | None:
        """In Å, beyond which atoms do not see each other."""

    def evaluate(self, structures: Sequence[Atoms]) -> list[Evaluation]:
        """Return energy (eV), forces (eV/Å) and stress (eV/Å³) of each structure."""


class PotentialModel:
    """A backend's potential, patched or not, evaluated in batches.

    Raises
    ------
    ConfigError
        If it reads spins: dimers and random structures have none.
    """

    def __init__(self, potential: Potential) -> None:
        if potential.magnetic:
            raise ConfigError(
                f"{potential.name} reads spins, and the structures that are looked at have none: "
                "look at the model without its spin-aware layers."
            )
        self.potential = potential
        self.numbers: Sequence[int] = potential.species.numbers
        self.cutoff: float | None = potential.cutoff

    def evaluate(self, structures: Sequence[Atoms]) -> list[Evaluation]:
        """Evaluate structures, as many at a time as have `MOST_ATOMS` atoms."""
        found: list[Evaluation] = []
        batch: list[Atoms] = []
        for atoms in structures:
            if batch and sum(map(len, batch)) + len(atoms) > MOST_ATOMS:
                found += single_points(self.potential, batch)
                batch = []
            batch.append(atoms)
        return found + (single_points(self.potential, batch) if batch else [])


class Counted:
    """A model that tells how many structures it has evaluated."""

    def __init__(self, model: Model, done: Callable[[int], object]) -> None:
        self.model, self.done = model, done
        self.numbers, self.cutoff = model.numbers, model.cutoff

    def evaluate(self, structures: Sequence[Atoms]) -> list[Evaluation]:
        """Evaluate structures and tell."""
        found = self.model.evaluate(structures)
        self.done(len(structures))
        return found


class ModelCalculator(Calculator):
    """Any model for ASE's dynamics."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Evaluate `atoms`; see ASE's `Calculator.calculate`."""
        super().calculate(atoms, properties, system_changes)
        structure: Any = self.atoms
        (found,) = self.model.evaluate([structure])
        self.results = {"energy": found.energy, "forces": np.asarray(found.forces)}
