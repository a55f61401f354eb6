"""Each check catches the model that breaks its promise alone, and is the first to do so."""

import pytest
import torch
from toys import CONTROLS, MAGNETIC, CartesianBias, Handed, toy

from e3sparse import symmetry
from e3sparse.symmetry import CHECKS

DTYPES = (torch.float32, torch.float64)
pytestmark = pytest.mark.any_e3nn


@pytest.mark.parametrize("magnetic", [False, True], ids=["", "magnetic"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_potential_that_keeps_its_promises_passes(dtype, magnetic):
    results = list(symmetry.run(toy(dtype=dtype, magnetic=magnetic)))
    assert [str(result) for result in results if not result.ok] == []
    skipped = {result.check for result in results if result.status == "skipped"}
    expected = set() if dtype == torch.float64 else {"dtype"}
    if not magnetic:
        expected |= {"time reversal", "spin rotation", "magnetic forces"}
    assert skipped == expected
    assert all(result.cases >= 20 for result in results if result.status == "passed")


def test_every_check_has_a_control():
    assert set(CONTROLS.values()) == set(CHECKS)


SMALL = {"examples": 10, "max_atoms": 14}
SIZES = pytest.mark.parametrize(
    "size", [SMALL, pytest.param({}, marks=pytest.mark.nightly)], ids=["small", "full"]
)


@SIZES
@pytest.mark.parametrize("control", CONTROLS, ids=lambda cls: cls.__name__)
def test_the_check_that_is_meant_catches_it_first(control, size):
    failed = next(result for result in symmetry.run(toy(control), **size) if not result.ok)
    assert failed.check == CONTROLS[control]
    if not failed.reason:
        assert failed.error > 2 * failed.tolerance
    # Few atoms are left of the structures that were drawn.
    for value in failed.worst.values():
        if hasattr(value, "positions"):
            assert len(value) <= 12


@SIZES
@pytest.mark.parametrize("control", CONTROLS, ids=lambda cls: cls.__name__)
def test_a_healthy_twin_passes_that_check(control, size):
    healthy = toy(magnetic=control in MAGNETIC)
    symmetry.asserting(CHECKS[CONTROLS[control]])(healthy, **size)


def test_a_counterexample_fails_again():
    potential = toy(CartesianBias)
    result = symmetry.check_rotation(potential)
    case = dict(result.worst)
    errors = symmetry.check_rotation.measure(potential, **case)
    assert errors[result.quantity] == result.error
    assert max(symmetry.check_rotation.measure(toy(), **case).values()) < 1e-12


def test_an_assertion_says_what_to_type():
    with pytest.raises(AssertionError) as failure:
        symmetry.assert_rotation(toy(CartesianBias))
    text = str(failure.value)
    assert "rotation: failed" in text
    assert "atoms = Atoms(" in text


def test_what_is_not_claimed_is_measured_and_forgiven():
    handed = toy(Handed)
    assert symmetry.check_inversion(handed).status == "failed"
    handed.parity = False
    result = symmetry.check_inversion(handed)
    assert result.status == "not claimed"
    assert result.ok
    assert result.error > result.tolerance
    assert "rotations only" in str(result)
    healthy = toy()
    healthy.parity = False
    assert symmetry.check_inversion(healthy).error < 1e-12
