"""A check: cases, a measure, and the tolerances of the table."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from ase import Atoms
from hypothesis import strategies as st

from e3sparse.potentials.quantities import QUANTITIES, Quantity, record_values, values_of
from e3sparse.potentials.single_points import Array, Evaluation
from e3sparse.potentials.spins import SPINS
from e3sparse.symmetry.result import Result, Status
from e3sparse.symmetry.rotations import Orthogonal
from e3sparse.symmetry.search import Case, Errors, search
from e3sparse.symmetry.structures import structures
from e3sparse.symmetry.subjects import Subject, as_subject
from e3sparse.symmetry.tolerances import deviation, tolerance_of

Reason = str | None


@dataclass(frozen=True)
class Drawing:
    """Where the structures of a check are drawn from.

    Attributes
    ----------
    subject
        Gives the elements.
    frames
        Structures of the user's, half of those drawn; the other half is `structures`.
    max_atoms
        Of the structures that are not the user's.
    """

    subject: Subject
    frames: tuple[Atoms, ...] = ()
    max_atoms: int = 30

    def structures(
        self, *, periodic: bool | None = None, min_atoms: int = 1, max_atoms: int = 30
    ) -> st.SearchStrategy[Atoms]:
        """Draw structures, with spins if the model reads them, in cells if it knows them."""
        periodic = periodic if self.subject.periodic else False
        most = min(max_atoms, self.max_atoms)
        drawn = structures(
            self.subject.numbers,
            periodic=periodic,
            min_atoms=min(min_atoms, most),
            max_atoms=most,
            with_spins=self.subject.magnetic,
        )
        given = [
            atoms
            for atoms in self.frames
            if min_atoms <= len(atoms)
            and (atoms.pbc.all() if periodic else periodic is None or not atoms.pbc.any())
        ]
        return st.one_of(drawn, st.sampled_from(given)) if given else drawn


def _always(subject: Subject) -> Reason:
    return None


def knows_no_cells(subject: Subject) -> Reason:
    """Say why a check of crystals does not apply, or None."""
    return None if subject.periodic else "It knows no cells."


@dataclass(frozen=True)
class Check:
    """One promise of a potential, and how it is tested. Call it on a potential.

    Attributes
    ----------
    name
        As in the command's table and in pytest.
    claim
        The promise, as a formula.
    cases
        Where the inputs come from.
    measure
        Errors by quantity (a row of `TOLERANCES`) for one case.
    inapplicable
        A sentence where the check does not apply to a model, or None.
    unclaimed
        A sentence where the model does not promise this, or None: it is measured all the same.
    precision
        The precision that chooses the tolerances, if not the model's.
    """

    name: str
    claim: str
    cases: Callable[[Drawing], st.SearchStrategy[Case]]
    measure: Callable[..., Errors]
    inapplicable: Callable[[Subject], Reason] = field(default=_always)
    unclaimed: Callable[[Subject], Reason] = field(default=_always)
    precision: torch.dtype | None = None

    def __call__(
        self,
        model: object,
        *,
        examples: int = 20,
        seed: int = 0,
        frames: Iterable[Atoms] = (),
        max_atoms: int = 30,
    ) -> Result:
        """Test a potential.

        Parameters
        ----------
        model
            A `Subject`, or a backend's `Potential`.
        examples
            How many cases are drawn.
        seed
            The same seed draws the same cases.
        frames
            Structures that are tried besides the drawn ones.
        max_atoms
            Of the drawn structures.

        Returns
        -------
        Result
        """
        subject = as_subject(model)
        if reason := self.inapplicable(subject):
            return Result(self.name, self.claim, "skipped", reason=reason)
        waived = self.unclaimed(subject)
        dtype = self.precision or subject.dtype
        found = search(
            self.cases(Drawing(subject, tuple(frames), max_atoms)),
            lambda case: self.measure(subject, **case),
            lambda quantity: tolerance_of(quantity).at(dtype),
            examples=examples,
            seed=seed,
            stop=waived is None,
        )
        status: Status = "failed" if found.failed else "passed"
        return Result(
            self.name,
            self.claim,
            "not claimed" if waived else status,
            found.quantity,
            found.error,
            tolerance_of(found.quantity).at(dtype) if found.quantity else 0.0,
            found.cases,
            found.case,
            waived or found.reason,
        )


def compare(value: Evaluation, expected: Evaluation) -> dict[str, float]:
    """Return the deviation of each quantity that both have."""
    said, wanted = values_of(value), values_of(expected)
    return {
        (title := QUANTITIES[name].title): deviation(title, said[name], wanted[name])
        for name in said
        if name in wanted
    }


def each(of: Evaluation, change: Callable[[Quantity, Array], Array]) -> Evaluation:
    """Return an evaluation in which each quantity is changed as its description says."""
    values = {
        name: change(QUANTITIES[name], np.asarray(value)) for name, value in values_of(of).items()
    }
    return Evaluation(**record_values(values | {"energy": float(values["energy"])}))


def turned(quantity: Quantity, values: Array, by: Orthogonal) -> Array:
    """Return what a quantity, `(…, *quantity.shape)`, is after O(3) has acted on positions."""
    for axis in range(values.ndim - quantity.rank, values.ndim):
        values = np.moveaxis(by.act(np.moveaxis(values, axis, -1)), -1, axis)
    return by.det * values if quantity.axial else values


def lone_atom(subject: Subject, number: int | None = None) -> Atoms:
    """Return one atom, with a spin if the model reads spins."""
    atom = Atoms([subject.numbers[0] if number is None else number], positions=[(0.0, 0.0, 0.0)])
    if subject.magnetic:
        atom.set_array(SPINS, np.array([[0.0, 0.0, 1.0]]))
    return atom
