"""The search finds the worst case, a simple one that fails, and always the same."""

import pytest
from hypothesis import strategies as st

from e3sparse.symmetry.search import search
from e3sparse.symmetry.tolerances import TOLERANCES, deviation

numbers = st.fixed_dictionaries({"x": st.integers(0, 10_000)})

pytestmark = pytest.mark.any_e3nn


def run(measure, tolerance=1.0, **options):
    options = {"examples": 50, "seed": 0} | options
    return search(numbers, lambda case: measure(**case), lambda _: tolerance, **options)


def test_the_worst_of_those_that_pass():
    seen = []

    def measure(x):
        seen.append(x)
        return {"small": x / 1e9, "large": x / 1e6}

    found = run(measure)
    assert not found.failed
    assert (found.quantity, found.case) == ("large", {"x": max(seen)})
    assert found.error == max(seen) / 1e6
    assert found.cases == len(seen) == 50


def test_the_simplest_of_those_that_fail():
    found = run(lambda x: {"a": 2.0 if x > 1234 else 0.5})
    assert found.failed
    assert (found.case, found.error) == ({"x": 1235}, 2.0)


def test_without_a_stop_the_worst_that_fails():
    seen = []

    def measure(x):
        seen.append(x)
        return {"a": float(x)}

    found = run(measure, stop=False)
    assert found.failed
    assert found.case == {"x": max(seen)}
    assert len(seen) == 50


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_fails(bad):
    assert run(lambda x: {"a": bad if x > 5 else 0.0}).case == {"x": 6}


def test_what_raises_fails_and_says_so():
    def measure(x):
        if x > 9:
            raise RuntimeError("no such element\nat line 3")
        return {"a": 0.0}

    found = run(measure)
    assert found.case == {"x": 10}
    assert found.reason == "The model raised RuntimeError: no such element"


def test_zero_tolerance_means_zero():
    assert not run(lambda x: {"a": 0.0}, 0.0).failed
    assert run(lambda x: {"a": 1e-300}, 0.0).failed


def test_the_same_seed_finds_the_same():
    def cases(seed):
        seen = []
        run(lambda x: seen.append(x) or {"a": 0.0}, seed=seed)
        return seen

    assert cases(1) == cases(1) != cases(2)


def test_a_long_shrink_is_cut_short(monkeypatch):
    monkeypatch.setattr("e3sparse.symmetry.search._SHRINKS", 20)
    calls = 0

    def measure(x):
        nonlocal calls
        calls += 1
        return {"a": 2.0 if sum(x) > 10**9 else 0.0}

    strategy = st.fixed_dictionaries({"x": st.lists(st.integers(0, 10**9), min_size=40)})
    found = search(strategy, lambda c: measure(**c), lambda _: 1.0, examples=20, seed=0)
    assert found.failed
    assert sum(found.case["x"]) > 10**9
    assert 20 < calls <= 20 + 20


def test_deviations_are_relative_above_the_floor():
    assert deviation("forces", [[1e3 + 1e-3]], [[1e3]]) == pytest.approx(1e-6)
    assert deviation("forces", [[1e-3]], [[0.0]]) == pytest.approx(1e-3)
    assert deviation("forces", [[float("nan")]], [[0.0]]) == float("inf")
    assert deviation("forces", [[float("inf")]], [[float("inf")]]) == float("inf")
    assert deviation("forces", [], []) == 0.0
    with pytest.raises(ValueError, match="shapes"):
        deviation("forces", [[1.0]], [1.0])


def test_every_tolerance_has_a_reason():
    for name, row in TOLERANCES.items():
        assert row.reason, name
        assert 0 <= row.float64 <= row.float32 < 0.1
