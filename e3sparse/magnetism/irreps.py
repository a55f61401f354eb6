"""Irreps graded by time reversal, and the rule by which products combine them.

A quantity is (l, p, t): its angular momentum, its parity under inversion and its parity under
time reversal. A spin is an axial vector that is odd in time, (1, +1, -1); positions and the
features of a model without spins are even in time. e3nn knows l and p, so that whatever has both
time parities is kept as two of e3nn's: a `Graded` pair of an even and an odd stream.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from e3nn import o3

EVEN, ODD = 1, -1
PARITIES = (EVEN, ODD)

T = TypeVar("T")
U = TypeVar("U")


class Irrep(NamedTuple):
    """One irreducible representation of O(3) x time reversal.

    Attributes
    ----------
    l
        Angular momentum.
    p
        Parity under inversion: 1 for even and axial, -1 for odd and polar.
    t
        Parity under time reversal.
    """

    l: int  # noqa: E741
    p: int
    t: int


SPIN = Irrep(1, 1, ODD)
"""A magnetic moment: an axial vector that is odd in time."""


def product(one: Irrep, two: Irrep) -> list[Irrep]:
    """Return what a product of two irreps contains: the selection rule.

    |l1 - l2| ≤ l ≤ l1 + l2, p = p1 p2, t = t1 t2.
    """
    degrees = range(abs(one.l - two.l), one.l + two.l + 1)
    return [Irrep(degree, one.p * two.p, one.t * two.t) for degree in degrees]


@dataclass(frozen=True)
class Graded(Generic[T]):
    """Something of each time parity, such as irreps or features."""

    even: T
    odd: T

    def __getitem__(self, t: int) -> T:
        return self.even if t == EVEN else self.odd

    def map(self, function: Callable[[T], U]) -> "Graded[U]":
        """Apply a function to both streams."""
        return Graded(function(self.even), function(self.odd))


def irreps_of(streams: Graded[o3.Irreps]) -> Iterator[Irrep]:
    """Return each irrep that occurs in either stream once."""
    for t in PARITIES:
        for irrep in dict.fromkeys(ir for _, ir in streams[t]):
            yield Irrep(irrep.l, irrep.p, t)


def graded(irreps: set[Irrep], multiplicity: int) -> Graded[o3.Irreps]:
    """Return the streams that hold each of these irreps `multiplicity` times."""

    def stream(t: int) -> o3.Irreps:
        members = sorted((i.l, -i.p) for i in irreps if i.t == t)
        return o3.Irreps([(multiplicity, (degree, -p)) for degree, p in members])

    return Graded(stream(EVEN), stream(ODD))


def reachable(
    one: Graded[o3.Irreps], two: Graded[o3.Irreps], lmax: int, multiplicity: int
) -> Graded[o3.Irreps]:
    """Return the streams of all products of two features, up to `lmax`."""
    found = {
        irrep
        for a in irreps_of(one)
        for b in irreps_of(two)
        for irrep in product(a, b)
        if irrep.l <= lmax
    }
    return graded(found, multiplicity)
