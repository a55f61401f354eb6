"""Each look sees through the potential that is insane in its way, and lets a sane one pass."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.collections import g2
from pair_toys import CONTROLS, Bonds, Collapses, HoleInDimers, SoftWall, Squeezed

from e3sparse.errors import ConfigError
from e3sparse.robustness import LOOKS, Finding, Verdict, look_at, subjects_of
from e3sparse.robustness.cells import minima
from e3sparse.robustness.dimers import POINTS, dimer_curves, softest
from e3sparse.robustness.forces import forces_of, of_real
from e3sparse.robustness.subjects import MOST_PAIRS, numbers_of
from e3sparse.robustness.suite import evaluations

pytestmark = pytest.mark.any_e3nn
KNOWN = (1, 6, 8)
STEPS = 150


@pytest.fixture(scope="module")
def subjects():
    return subjects_of([6, 8], known=KNOWN)


@pytest.fixture(scope="module")
def outcomes(subjects):
    """Each potential looked at alone."""
    return {cls: look_at(cls(), None, subjects, steps=STEPS) for cls in (Bonds, *CONTROLS)}


def test_a_sane_potential_passes(outcomes):
    assert [str(v) for v in outcomes[Bonds].verdicts if not v.ok] == []
    assert [v.look for v in outcomes[Bonds].verdicts] == list(LOOKS)
    assert [v.look for v in outcomes[Bonds].verdicts if v.word != "holds"] == ["structures given"]


@pytest.mark.parametrize("control", CONTROLS, ids=lambda cls: cls.__name__)
def test_the_look_that_is_meant_sees_through_it(control, outcomes):
    assert not outcomes[control].ok
    assert CONTROLS[control] in [v.look for v in outcomes[control].verdicts if not v.ok]


def test_every_look_without_labels_has_a_control():
    assert {*CONTROLS.values()} == {*LOOKS} - {"structures given"}


def test_a_pair_is_named(outcomes):
    lost = {v.look: v.lost for v in outcomes[HoleInDimers].verdicts}
    assert lost["holes in dimers"] == ["C–O"]
    lost = {v.look: v.lost for v in outcomes[SoftWall].verdicts}
    assert lost["short-range wall"] == ["C–C"]
    assert lost["holes in dimers"] == []


def test_what_did_not_hold_for_the_base_is_not_lost(subjects, outcomes):
    outcome = look_at(Squeezed(), Squeezed(), subjects, steps=10)
    assert outcome.ok
    words = {v.look: v.word for v in outcome.verdicts}
    assert words["pressure"] == "no worse than the base"
    sane, insane = (outcomes[cls].verdicts[3].model for cls in (Bonds, Squeezed))
    assert Verdict("pressure", insane, sane).word == "lost"
    assert Verdict("pressure", sane, insane).word == "holds"


def test_a_hole_is_lost_next_to_a_base_without(subjects):
    outcome = look_at(HoleInDimers(), Bonds(), subjects, steps=10)
    assert [v.word for v in outcome.verdicts[:2]] == ["lost", "lost"]
    assert not outcome.ok


@pytest.mark.parametrize(
    ("model", "base", "word"),
    [
        (None, None, "not looked at"),
        ({}, None, "holds"),
        ({}, {"C–C": 1.0}, "holds"),
        ({"C–C": 1.0}, None, "fails"),
        ({"C–C": 1.0}, {}, "lost"),
        ({"C–C": 1.05}, {"C–C": 1.0}, "no worse than the base"),
        ({"C–C": 1.2}, {"C–C": 1.0}, "lost"),
        ({"C–O": 0.0}, {"C–C": 1.0}, "lost"),
        ({"C–C": float("nan")}, {"C–C": 1.0}, "lost"),
    ],
)
def test_verdicts(model, base, word):
    model, base = (None if one is None else Finding("", one, 0.1) for one in (model, base))
    verdict = Verdict("look", model, base)
    assert verdict.word == word
    assert verdict.ok == (word not in ("fails", "lost"))
    json.dumps(verdict.as_dict(), allow_nan=False)


def test_labels_judge_the_structures_given():
    given = []
    for name in ("H2O", "CO2"):
        atoms = g2[name].copy()
        atoms.arrays["REF_forces"] = Bonds().evaluate([atoms])[0].forces
        given.append(atoms)
    subjects = subjects_of(known=KNOWN, given=given)
    assert {*subjects.bonds} == {(1, 1), (1, 8), (8, 8), (1, 6), (6, 8), (6, 6)}
    right, wrong = (forces_of(model, subjects.real) for model in (Bonds(), Collapses()))
    verdicts = [
        Verdict("structures given", *of_real(one, two, subjects.labels))
        for one, two in ((right, wrong), (wrong, right), (wrong, None))
    ]
    assert [v.word for v in verdicts] == ["holds", "lost", "holds"]
    assert verdicts[0].model.figures["rmse_ev_a"] < 1e-12


def test_the_same_seed_gives_the_same(subjects, outcomes):
    again = look_at(Bonds(), None, subjects_of([6, 8], known=KNOWN), steps=STEPS)
    assert again.as_dict() == outcomes[Bonds].as_dict()
    other = look_at(Bonds(), None, subjects_of([6, 8], known=KNOWN), steps=STEPS, seed=1)
    assert other.as_dict() != again.as_dict()


def test_progress_reaches_its_end(subjects):
    counts = []
    look_at(Bonds(), None, subjects, steps=STEPS, done=counts.append)
    assert sum(counts) == pytest.approx(evaluations(subjects, STEPS, 1), rel=0.01)


def test_a_wall_of_no_numbers_is_none():
    class NoNumber(Bonds):
        def forces(self, graph, forces):
            return forces * np.nan

    curve = dimer_curves(NoNumber(), {(6, 6): 1.5})[6, 6]
    assert len(curve.distances) == POINTS
    assert softest(curve) == pytest.approx(1.2, abs=0.05)


@pytest.mark.parametrize(
    ("energies", "at"),
    [
        ([3, 1, 2], [1]),
        ([1, 2, 3], [0]),
        ([3, 2, 1], [2]),
        ([3, 1, 2, 0, 4], [1, 3]),
        ([3, 1, 1, 2], [1]),
        ([3, 1, 1.001, 0.9, 4], [3]),
        ([0.9, 1.001, 1, 4], [0]),
    ],
)
def test_minima_are_parted_by_barriers(energies, at):
    found = minima(np.array(energies, dtype=float))
    assert [energies[n] for n in found] == [energies[n] for n in at]


def test_pairs_are_capped_and_it_is_said():
    subjects = subjects_of(range(1, 11), known=range(1, 90))
    assert len(subjects.bonds) == MOST_PAIRS
    assert {z for pair in subjects.bonds for z in pair} == {1, 2, 3, 4, 5, 6}
    assert "21 of 55 pairs" in subjects.notes[0]
    assert subjects_of([1, 6], known=KNOWN).notes == []


def test_short_bonds_in_the_data_count():
    given = [Atoms("CC", [[0, 0, 0], [0, 0, 1.21]])]
    assert subjects_of(known=KNOWN, given=given).bonds == {(6, 6): pytest.approx(1.21)}
    assert subjects_of([6], known=KNOWN).bonds == {(6, 6): pytest.approx(1.52)}


@pytest.mark.parametrize(
    ("text", "said"),
    [("C,Xy", "'Xy', which is no element"), ("C,Fe", "does not know Fe"), ("", "no element")],
)
def test_elements_that_are_none(text, said):
    assert numbers_of("O, C,O", KNOWN) == [8, 6]
    with pytest.raises(ConfigError, match=said):
        numbers_of(text, KNOWN)


def test_nothing_to_look_at():
    with pytest.raises(ConfigError, match="give --elements H,C,O"):
        subjects_of(known=KNOWN)
