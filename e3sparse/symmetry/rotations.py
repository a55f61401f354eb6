"""Elements of O(3): drawn by hypothesis, and how they act on irreps."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Orthogonal:
    """A rotation about an axis, followed by the inversion if it is improper.

    Attributes
    ----------
    axis
        Any vector but zero.
    degrees
        Angle of the rotation.
    improper
        Whether the determinant is -1. The mirror normal to an axis is `(axis, 180, True)`.
    """

    axis: tuple[float, float, float] = (0.0, 0.0, 1.0)
    degrees: float = 0.0
    improper: bool = False

    @property
    def det(self) -> int:
        return -1 if self.improper else 1

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The (3, 3) matrix Q; a vector r becomes Q r."""
        axis = np.asarray(self.axis, dtype=np.float64)
        x, y, z = axis / np.linalg.norm(axis)
        cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
        angle = math.radians(self.degrees)
        # Rodrigues' formula; 2 sin²(ω/2) is 1 - cos ω without its cancellation near 0.
        proper: NDArray[np.float64] = (
            np.eye(3) + math.sin(angle) * cross + 2 * math.sin(angle / 2) ** 2 * (cross @ cross)
        )
        return float(self.det) * proper

    def act(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Apply Q to the rows of (…, 3)."""
        return vectors @ self.matrix.T

    def act_axial(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Apply det(Q) Q to the rows of (…, 3), as to magnetic moments."""
        return self.det * self.act(vectors)

    def on_irreps(self, irreps: Any) -> Tensor:
        """Return the (dim, dim) matrix, float64, by which irreps transform.

        Taken from how the spherical harmonics themselves turn, Y(R r) = D Y(r), on enough points
        to solve for D. e3nn's own `D_from_matrix` goes by Euler angles, which lose half the
        digits of rotations near the identity.
        """
        from e3nn import o3

        blocks = []
        for mul, ir in o3.Irreps(irreps):
            block = _harmonics_turned(ir.l, self.det * self.matrix)
            if self.improper:
                block = ir.p * block
            blocks += [block] * mul
        return torch.block_diag(*blocks) if blocks else torch.zeros(0, 0, dtype=torch.float64)


def _harmonics_turned(degree: int, proper: NDArray[np.float64]) -> Tensor:
    from e3nn import o3

    generator = torch.Generator().manual_seed(0)
    points = torch.randn(8 * degree + 4, 3, generator=generator, dtype=torch.float64)
    turned = points @ torch.from_numpy(proper).T

    def harmonics(vectors: Tensor) -> Tensor:
        values: Tensor = o3.spherical_harmonics([degree], vectors, True, "component")
        return values

    solved: Tensor = torch.linalg.lstsq(harmonics(points), harmonics(turned)).solution
    return solved.T


_DIRECTIONS = [
    (0.0, 0.0, 1.0),
    (1.0, 0.0, 0.0),
    (0.0, 1.0, 0.0),
    (1.0, 1.0, 0.0),
    (1.0, 1.0, 1.0),
    (1.0, -2.0, 3.0),
]
_NASTY_ANGLES = [180.0, 90.0, 120.0, 0.0, 1e-3, 1e-6, 180.0 - 1e-6]


def _uniform(seed: int) -> tuple[tuple[float, float, float], float]:
    # Four normal numbers are a uniform direction of a quaternion. Drawn from a seed, because what
    # hypothesis draws itself is anything but uniform.
    quaternion = np.random.default_rng(seed).normal(size=4)
    length = float(np.linalg.norm(quaternion[1:]))
    x, y, z = (float(v) / length for v in quaternion[1:])
    return (x, y, z), math.degrees(2 * math.atan2(length, float(quaternion[0])))


@st.composite
def rotations(draw: st.DrawFn, /, improper: bool | None = None) -> Orthogonal:
    """Draw elements of O(3): half of them uniform on it, half of them nasty.

    The nasty ones are the identity and near it, 90°, 120° and 180° about axes and diagonals, the
    inversion and mirrors. A counterexample shrinks to one of them if it can.

    Parameters
    ----------
    improper
        True for determinant -1 only, False for +1 only, None for both.
    """
    # All is drawn in either case, so that the shrinker can turn a uniform one into a nasty one.
    uniform = draw(st.booleans())
    axis, degrees = draw(st.sampled_from(_DIRECTIONS)), draw(st.sampled_from(_NASTY_ANGLES))
    seed = draw(st.integers(0, 2**32 - 1))
    sign = draw(st.booleans()) if improper is None else improper
    return Orthogonal(*_uniform(seed), sign) if uniform else Orthogonal(axis, degrees, sign)
