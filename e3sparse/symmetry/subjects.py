"""What is tested: any potential, seen as a function from structures to energies and forces."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.stress import voigt_6_to_full_3x3_stress

from e3sparse.errors import ConfigError
from e3sparse.potentials.backends import Potential
from e3sparse.potentials.single_points import Evaluation, batch_of, single_points


class Subject(ABC):
    """A potential under test. Give `evaluate`, and whatever below differs from the default.

    Attributes
    ----------
    numbers
        Atomic numbers that it knows; counterexamples shrink to the first.
    cutoff
        Distance in Å beyond which atoms do not see each other; None if unknown.
    dtype
        Precision that it computes in, which chooses the tolerances.
    parity
        Whether it claims to be equivariant under improper rotations too.
    periodic
        Whether it knows cells; if not, it is tested on clusters alone.
    batched
        Whether `evaluate` evaluates several structures together.
    magnetic
        Whether it reads spins from the array `"spin"` of a structure.
    spin_orbit
        Whether spins may feel the lattice; if not, a rotation of all spins alone changes nothing.
    single
        The same model in float32, where there is one.
    """

    numbers: Sequence[int] = (1,)
    cutoff: float | None = None
    dtype: torch.dtype = torch.float64
    parity: bool = True
    periodic: bool = True
    batched: bool = False
    magnetic: bool = False
    spin_orbit: bool = True
    single: "Subject | None" = None

    @abstractmethod
    def evaluate(self, frames: Sequence[Atoms]) -> list[Evaluation]:
        """Evaluate structures, as one batch where that is possible."""

    def leaked_gradient(self, frames: Sequence[Atoms]) -> float | None:
        """Return the largest derivative of a structure's energy by another one of its batch.

        Returns
        -------
        float or None
            In eV/Å; None where it cannot be had.
        """
        return None

    def __call__(self, atoms: Atoms) -> Evaluation:
        """Evaluate one structure."""
        return self.evaluate([atoms])[0]


class PotentialSubject(Subject):
    """A backend's potential, patched or not, as it is at each call."""

    batched = True

    def __init__(self, potential: Potential, single: Potential | None = None) -> None:
        self.potential = potential
        self.numbers = sorted(potential.species.numbers)
        self.cutoff = potential.cutoff
        self.dtype = potential.dtype
        self.parity = potential.parity
        self.magnetic, self.spin_orbit = potential.magnetic, potential.spin_orbit
        self.single = None if single is None else PotentialSubject(single)

    def evaluate(self, frames: Sequence[Atoms]) -> list[Evaluation]:
        return single_points(self.potential, frames)

    def leaked_gradient(self, frames: Sequence[Atoms]) -> float | None:
        module = self.potential.module
        training = module.training
        module.train()  # frameworks free the graph of the energy otherwise
        try:
            out = self.potential.forward(batch_of(self.potential, frames))
        finally:
            module.train(training)
        if out.geometry is None:
            return None
        geometry, frame = out.geometry
        leaked = 0.0
        for index, energy in enumerate(out.energy):
            grad = torch.autograd.grad(energy, geometry, retain_graph=True, allow_unused=True)[0]
            if grad is not None and bool((frame != index).any()):
                leaked = max(leaked, float(grad[frame != index].abs().max()))
        return leaked


class CalculatorSubject(Subject):
    """An ASE calculator.

    Parameters
    ----------
    calculator
        Its stress is left out where it has none.
    numbers
        Atomic numbers to test with.
    cutoff
        In Å, for the checks that need it.
    dtype
        Precision that the calculator computes in.
    periodic
        Whether it knows cells.
    """

    def __init__(
        self,
        calculator: Calculator,
        numbers: Sequence[int],
        *,
        cutoff: float | None = None,
        dtype: torch.dtype = torch.float64,
        periodic: bool = True,
    ) -> None:
        self.calculator = calculator
        self.periodic = periodic
        self.numbers = numbers
        self.cutoff = cutoff
        self.dtype = dtype

    def evaluate(self, frames: Sequence[Atoms]) -> list[Evaluation]:
        return [self._one(atoms.copy()) for atoms in frames]

    def _one(self, atoms: Atoms) -> Evaluation:
        # Nothing may be reused from the structure before, which differs by a symmetry.
        self.calculator.reset()
        atoms.calc = self.calculator
        energy = float(atoms.get_potential_energy())
        forces = np.array(atoms.get_forces(), dtype=np.float64)
        stress = None
        if atoms.pbc.all() and "stress" in self.calculator.implemented_properties:
            try:
                stress = voigt_6_to_full_3x3_stress(atoms.get_stress(voigt=True))
            except PropertyNotImplementedError:
                stress = None
        return Evaluation(energy, forces, stress)


def as_subject(model: object) -> Subject:
    """Return a potential of any kind as a `Subject`.

    Raises
    ------
    ConfigError
        If it is none that is known, or a calculator, whose elements have to be named.
    """
    if isinstance(model, Subject):
        return model
    if isinstance(model, Potential):
        return PotentialSubject(model)
    if isinstance(model, Calculator):
        raise ConfigError(
            "A calculator does not say which elements it knows: give "
            "CalculatorSubject(calculator, numbers=[1, 8], cutoff=5.0)."
        )
    raise ConfigError(
        f"A {type(model).__name__} is not a potential: give a backend's potential, a "
        "CalculatorSubject or a Subject of your own. The layers of a model are tested by "
        "check_equivariance(module)."
    )
