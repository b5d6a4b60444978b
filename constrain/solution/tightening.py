"""What `solve(margin=...)` did to the bounds, and what that cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from constrain.solution.records import Number

__all__ = ["Tightening"]


@dataclass(frozen=True)
class Tightening:
    """Margins by which bounds were tightened, and the price.

    Attributes:
        margins: per constraint how far its bound was moved, >= 0, in its own units; per level of a block.
        errors: per constraint the standard error of its residual, of that shape, on the training sample or
            the calibration sample; empty where the margins were given.
        gaps: per constraint how much less room it had on the calibration sample than on the training sample;
            empty without such a sample.
        level: one-sided error level of each number, after the correction for their number; 0 where the
            margins were given.
        counted: numbers that share the error level: those that sampling error could decide.
        confidence: with which all of them hold, as far as sampling error is concerned; 0 where the margins
            were given.
        objective: value without margins, in the user's sense.
        price: how much worse the objective became, >= 0 but for rounding.
        expected: the price that the multipliers without margins predict; NaN without multipliers.
        skipped: constraints without a margin, and why.
        held_back: rows that were kept out of training to measure the gaps; 0 where a sample was given, or
            none was needed.
    """

    margins: dict[str, Number]
    errors: dict[str, Number]
    gaps: dict[str, Number]
    level: float
    counted: int
    confidence: float
    objective: float
    price: float
    expected: float
    skipped: dict[str, str] = field(default_factory=dict[str, str])
    held_back: int = 0

    def largest(self, name: str) -> float:
        """The largest margin of a constraint."""
        return float(np.max(np.asarray(self.margins[name]), initial=0.0))
