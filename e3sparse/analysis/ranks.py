"""Rank correlation with a confidence interval."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

FEWEST = 5


class RankCorrelation(NamedTuple):
    """Spearman's ρ over `groups` pairs, with a 95 % interval from resampling the pairs."""

    rho: float
    low: float
    high: float
    groups: int

    def __str__(self) -> str:
        if np.isnan(self.rho):
            return f"not defined ({self.groups} groups)"
        return f"{self.rho:+.2f} ({self.low:+.2f} to {self.high:+.2f}, {self.groups} groups)"


def rank_correlation(
    x: ArrayLike, y: ArrayLike, *, resamples: int = 4000, seed: int = 0
) -> RankCorrelation:
    """Return Spearman's rank correlation and its bootstrap interval.

    Pairs in which one value is not finite are left out. The interval is from the 2.5th to the
    97.5th percentile over samples of the pairs with replacement. Fewer than five pairs, or values
    that are all equal, give NaN.
    """
    pairs = np.stack([np.asarray(x, float), np.asarray(y, float)])
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    count = pairs.shape[1]
    rho = _spearman(pairs[0][None], pairs[1][None])[0] if count >= FEWEST else np.nan
    if np.isnan(rho):
        return RankCorrelation(np.nan, np.nan, np.nan, count)
    drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
    found = _spearman(pairs[0][drawn], pairs[1][drawn])
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return RankCorrelation(float(rho), float(low), float(high), count)


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return ρ of each row of (samples, pairs); NaN where a row is constant."""
    ranks = [pd.DataFrame(v).rank(axis=1).to_numpy() for v in (x, y)]
    a, b = (r - r.mean(axis=1, keepdims=True) for r in ranks)
    norm = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    product = (a * b).sum(axis=1)
    rho: np.ndarray = np.divide(product, norm, out=np.full_like(norm, np.nan), where=norm > 0)
    return rho
