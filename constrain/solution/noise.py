"""What batches say: the gradient of the Lagrangian beside their noise, and errors of a run's multipliers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from constrain._lazy import attribute

__all__ = ["CRITICAL", "GradientNoise", "RunError"]

CRITICAL = 2.01
"""One-sided 95 % quantile, in standard deviations, of the estimate where the gradient is 0.

There it is distributed like a weighted sum of centered chi-squares, whose tail is longest with one of them.
"""


@dataclass(frozen=True)
class GradientNoise:
    """Estimate of |grad L|^2 from independent batches.

    The square of a batch's gradient is |grad L|^2 plus the noise of that batch, so that it says nothing close
    to a stationary point. Products of the gradients of *different* batches have no such term.

    Attributes:
        squared: mean of <g_A, g_B> over pairs of different batches A, B: unbiased, and below 0 about every
            other time at a stationary point.
        error: its standard error.
        detectable: size of |grad L| from which so many batches tell it from 0.
        floor: tr(S) / rows, the noise in the square of one batch's gradient.
        batches: number of batches.
        rows: rows per batch.
    """

    squared: float
    error: float
    detectable: float
    floor: float
    batches: int
    rows: int

    @property
    def distinguishable(self) -> bool:
        """Whether the gradient is shown not to be 0, at a level of about 5 %."""
        return self.norm > self.detectable

    @property
    def norm(self) -> float:
        """Estimate of |grad L|; 0 where that of its square is below 0."""
        return math.sqrt(max(0.0, self.squared))

    def __str__(self) -> str:
        if self.distinguishable:
            said = f"|grad L| {self.norm:.1e}, not 0"
        else:
            said = f"|grad L| not distinguishable from 0 at this sample size (below {self.detectable:.1e})"
        squares = f"squared {self.squared:.1e} ± {self.error:.1e}, noise of one batch {self.floor:.1e}"
        return f"{said}; {squares}; {self.batches} batches of {self.rows} rows"


@dataclass(frozen=True)
class RunError:
    """How far the averaged multiplier of a run on batches is from the mean around which it moved.

    It is the Monte Carlo error of the run, from its batches alone. Another start can settle at another point
    with other multipliers, of which this says nothing, and so can another sample, for which there is
    `kkt(order=2).standard_errors`.

    Attributes:
        value: average over the last third of the run.
        error: its standard error by batch means; NaN where none is valid.
        groups: number of consecutive groups of records whose means were compared.
        records: records of the last third.
        reason: why there is no error; else empty.
    """

    value: float
    error: float = math.nan
    groups: int = 0
    records: int = 0
    reason: str = ""

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Where the mean around which the run moved is, by Student's t; NaN without an error."""
        t = attribute("scipy.stats:t")
        half = float(t.ppf(0.5 + confidence / 2, max(self.groups - 1, 1))) * self.error
        return self.value - half, self.value + half

    def __str__(self) -> str:
        if self.reason:
            return f"{self.value:.4g}, no error of the run: {self.reason}"
        return f"{self.value:.4g} ± {self.error:.2g} (run, {self.groups} groups of {self.records} records)"
