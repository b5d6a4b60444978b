"""Intervals of rates: Wilson's, and the exact one of Clopper and Pearson where there are few rows.

Wilson's interval covers about 95 % on average over rates, and less for single ones when rows are few: of 20
rows 84 % for rates a little below 0.009. That of Clopper and Pearson covers at least as often as it says, for
every rate and number of rows, and is wider.

Sources: Wilson (1927), JASA 22; Clopper & Pearson (1934), Biometrika 26; Brown, Cai & DasGupta (2001),
Interval estimation for a binomial proportion, Statistical Science 16, on the border of 40 rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FEW", "clopper_pearson", "rate_deviates", "rate_interval", "wilson"]

FEW = 40
"""Rows below which intervals of rates are exact."""


def wilson(
    share: Any, rows: Any, confidence: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson's interval of a rate.

    Args:
        share: observed rates.
        rows: numbers of observations.
        confidence: two-sided level.
    """
    z = float(special.ndtri(0.5 + confidence / 2))
    p, count = np.asarray(share, dtype=np.float64), np.asarray(rows, dtype=np.float64)
    center = (p + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    return np.maximum(0.0, center - half), np.minimum(1.0, center + half)


def clopper_pearson(
    share: Any, rows: Any, confidence: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The rates that an exact test of each side does not reject; arguments as of `wilson`."""
    count = np.asarray(rows, dtype=np.float64)
    hits = np.round(np.asarray(share, dtype=np.float64) * count)
    tail = (1 - confidence) / 2
    lower = special.betaincinv(np.maximum(hits, 1), np.maximum(count - hits + 1, 1), tail)
    upper = special.betainccinv(hits + 1, np.maximum(count - hits, 1), tail)
    return np.where(hits <= 0, 0.0, lower), np.where(hits >= count, 1.0, upper)


def rate_interval(
    share: Any, rows: Any, confidence: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact below `FEW` rows, else Wilson's; arguments as of `wilson`."""
    few = np.asarray(rows) < FEW
    exact, score = clopper_pearson(share, rows, confidence), wilson(share, rows, confidence)
    return np.where(few, exact[0], score[0]), np.where(few, exact[1], score[1])


def rate_deviates(
    residual: NDArray[np.float64],
    share: NDArray[np.float64],
    rows: NDArray[np.float64],
    bound: NDArray[np.float64],
) -> NDArray[np.float64]:
    """How far a rate is from a bound as a normal deviate, by the test that the interval inverts.

    Args:
        residual: signed distance from the bound, whose sign the result has.
        share: observed rates.
        rows: numbers of observations.
        bound: rates they are compared with.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        score = residual / np.sqrt(np.clip(bound * (1 - bound), 0, None) / rows)
    few = (rows < FEW) & (bound > 0) & (bound < 1)
    if not few.any():
        return score
    hits, inside = np.round(share * rows), np.clip(bound, 0.0, 1.0)
    below = special.betainc(np.maximum(rows - hits, 1e-300), hits + 1, 1 - inside)  # P(count <= hits)
    above = special.betainc(np.maximum(hits, 1e-300), rows - hits + 1, inside)  # P(count >= hits)
    tail = np.minimum(np.where(hits >= rows, 1.0, below), np.where(hits <= 0, 1.0, above))
    exact = np.copysign(-special.ndtri(np.minimum(0.5, tail)), residual)
    return np.where(few, exact, score)
