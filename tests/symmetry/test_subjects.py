"""What can be tested: ASE calculators, subjects of one's own, and nothing else."""

import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.calculators.morse import MorsePotential
from toys import toy

from e3sparse import symmetry
from e3sparse.errors import ConfigError
from e3sparse.symmetry import CalculatorSubject, Evaluation, Subject

pytestmark = pytest.mark.any_e3nn


def lennard_jones(**options):
    calculator = LennardJones(sigma=2.0, epsilon=0.1, rc=5.137, **options)
    return CalculatorSubject(calculator, numbers=[18], cutoff=5.137)


def test_an_ase_calculator_passes():
    results = {r.check: r for r in symmetry.run(lennard_jones(smooth=True), max_atoms=8)}
    assert [str(result) for result in results.values() if not result.ok] == []
    assert "one structure at a time" in results["batch"].reason
    assert results["forces"].status == results["stress"].status == "passed"


def test_a_calculator_that_stops_short_at_its_cutoff_fails():
    result = symmetry.check_cutoff(lennard_jones(smooth=False), max_atoms=4)
    assert result.status == "failed"
    assert result.quantity == "force at the cutoff"


def test_what_a_calculator_does_not_say_is_left_out():
    subject = CalculatorSubject(MorsePotential(), numbers=[18])
    results = {r.check: r for r in symmetry.run(subject, examples=2, max_atoms=3)}
    assert results["cutoff"].reason == "Its cutoff is not known."
    assert results["stress"].status in ("passed", "skipped")


def test_calculators_are_evaluated_anew_for_each_structure():
    subject = lennard_jones(smooth=True)
    near = Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 2.0]])
    far = Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 3.0]])
    assert subject(near).energy != subject(far).energy


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (LennardJones(), "which elements it knows"),
        (torch.nn.Linear(1, 1), "Linear is not a potential"),
        (None, "NoneType is not a potential"),
    ],
    ids=["calculator", "module", "nothing"],
)
def test_what_is_no_subject(model, says):
    with pytest.raises(ConfigError, match=says):
        symmetry.check_rotation(model)


class Harmonic(Subject):
    """Atoms tied to the origin, of one structure at a time, without a stress."""

    def evaluate(self, frames):
        return [Evaluation(float((a.positions**2).sum()), -2 * a.positions, None) for a in frames]


def test_a_subject_of_ones_own_and_frames_of_ones_own():
    with pytest.raises(AssertionError, match="translation: failed"):
        symmetry.assert_translation(Harmonic())
    symmetry.assert_forces(Harmonic())
    symmetry.assert_rotation(Harmonic())
    assert symmetry.check_stress(Harmonic()).reason == "It gives no stress."
    seen = []

    class Watching(Harmonic):
        def evaluate(self, frames):
            seen.extend(frames)
            return super().evaluate(frames)

    mine = bulk("Cu", cubic=True)
    symmetry.assert_forces(Watching(), frames=[mine])
    assert any(set(atoms.numbers) == {29} for atoms in seen)
    assert any(set(atoms.numbers) == {1} for atoms in seen)


class Molecular(Subject):
    """Pairs of atoms as in a molecule, whatever the cell: that is what such models see."""

    periodic = False

    def evaluate(self, frames):
        return [self.one(atoms.positions) for atoms in frames]

    def one(self, positions):
        apart = positions[:, None] - positions[None]  # (N, N, 3)
        energy = (apart**2).sum() / 4
        return Evaluation(float(energy), -apart.sum(axis=1), None)


def test_a_model_without_cells_is_tested_on_molecules():
    results = {r.check: r for r in symmetry.run(Molecular(), examples=10, max_atoms=6)}
    assert [str(result) for result in results.values() if not result.ok] == []
    for check in ("periodic images", "supercell", "stress"):
        assert results[check].reason == "It knows no cells."
    assert results["forces"].status == results["rotation"].status == "passed"
    claiming = Molecular()
    claiming.periodic = True
    assert symmetry.check_supercell(claiming).status == "failed"


@pytest.mark.parametrize("check", symmetry.CHECKS)
def test_results_are_json(check):
    result = symmetry.CHECKS[check](toy(magnetic=True), examples=2, max_atoms=3)
    plain = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert plain["check"] == check
    assert plain["status"] == "passed"
    assert plain["worst"]


def test_a_result_that_is_not_finite_is_json_too():
    class Broken(Harmonic):
        def evaluate(self, frames):
            return [Evaluation(np.nan, np.zeros((len(a), 3)), None) for a in frames]

    result = symmetry.check_translation(Broken())
    assert result.status == "failed"
    assert result.as_dict()["error"] is None
