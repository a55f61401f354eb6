"""The drawn elements of O(3), and the matrices by which irreps follow them."""

import numpy as np
import pytest
import torch
from e3nn import o3
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from e3sparse.symmetry import Orthogonal, rotations
from e3sparse.symmetry.rotations import _NASTY_ANGLES, _uniform

IRREPS = "2x0e+0o+1o+2x1e+2o+3e"


@given(rotations())
def test_orthogonal_with_the_right_determinant(q):
    np.testing.assert_allclose(q.matrix @ q.matrix.T, np.eye(3), atol=1e-14)
    assert np.linalg.det(q.matrix) == pytest.approx(q.det)


@given(rotations(), rotations())
def test_irreps_follow_as_a_representation(a, b):
    together = torch.from_numpy(a.matrix @ b.matrix)
    product = a.on_irreps(IRREPS) @ b.on_irreps(IRREPS)
    # Of the product as a matrix: e3nn's own, which loses digits next to its poles.
    theirs = o3.Irreps(IRREPS).D_from_matrix(together.to(torch.get_default_dtype())).double()
    torch.testing.assert_close(product, theirs, rtol=0, atol=2e-3)
    identity = torch.eye(product.shape[0], dtype=torch.float64)
    torch.testing.assert_close(product @ product.T, identity, rtol=0, atol=1e-12)


@given(rotations())
def test_vectors_are_1o_and_moments_1e(q):
    np.testing.assert_allclose(q.on_irreps("1o").numpy(), q.matrix, rtol=0, atol=1e-13)
    np.testing.assert_allclose(q.on_irreps("1e").numpy(), q.det * q.matrix, rtol=0, atol=1e-13)
    r = np.array([[0.3, -1.0, 2.0]])
    np.testing.assert_allclose(q.act_axial(r), q.det * q.act(r), atol=1e-15)


def test_near_the_identity_no_digits_are_lost():
    turn = Orthogonal((0.0, 0.0, 1.0), 1e-6).on_irreps("1o")
    assert float(turn[1, 0]) == pytest.approx(np.radians(1e-6), rel=1e-6, abs=0)


def test_the_uniform_half_is_uniform():
    matrices = np.array([Orthogonal(*_uniform(seed)).matrix for seed in range(4000)])
    # The average over SO(3) of R is 0, of R_ij R_kl is δ_ik δ_jl / 3; five standard deviations.
    noise = 5 / np.sqrt(len(matrices))
    assert np.abs(matrices.mean(axis=0)).max() < noise
    second = np.einsum("nij,nkl->ijkl", matrices, matrices) / len(matrices)
    expected = np.einsum("ik,jl->ijkl", np.eye(3), np.eye(3)) / 3
    assert np.abs(second - expected).max() < noise


def test_half_of_the_drawn_ones_are_uniform():
    drawn = set()

    @settings(max_examples=200, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(rotations())
    def collect(q):
        drawn.add(q)

    collect()
    assert sum(q.degrees not in _NASTY_ANGLES for q in drawn) > 50


@pytest.mark.parametrize(
    ("condition", "simplest"),
    [
        (lambda q: q.improper, Orthogonal((0.0, 0.0, 1.0), 180.0, True)),
        (lambda q: not np.allclose(q.matrix, np.eye(3)), Orthogonal((0.0, 0.0, 1.0), 180.0)),
        (lambda q: np.allclose(q.matrix, -np.eye(3)), Orthogonal((0.0, 0.0, 1.0), 0.0, True)),
        (lambda q: 0 < q.degrees < 1e-2, Orthogonal((0.0, 0.0, 1.0), 1e-3)),
    ],
    ids=["mirror", "half turn", "inversion", "nearly nothing"],
)
def test_nasty_ones_are_drawn_and_are_the_simplest(condition, simplest):
    assert find(rotations(), condition, settings=settings(derandomize=True)) == simplest


@given(st.booleans().flatmap(lambda i: st.tuples(st.just(i), rotations(i))))
def test_the_sign_can_be_chosen(drawn):
    improper, q = drawn
    assert q.improper == improper
