"""Differences of two rates over rows that do not overlap: Newcombe's hybrid score interval.

The delta method gives a difference of rates at 0 or 1 no width at all, and is off for small groups.
Newcombe's interval is made of the Wilson limits (l, u) of both rates: with d = p1 - p2 it reaches from
d - sqrt((p1 - l1)^2 + (u2 - p2)^2) to d + sqrt((u1 - p1)^2 + (p2 - l2)^2).

Source: Newcombe, Interval estimation for the difference between independent proportions, Statistics in
Medicine 17 (1998), method 10.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from constrain.diagnostics.point import array_of
from constrain.language import nodes as n
from constrain.language.picked import place_of
from constrain.language.types import type_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from constrain.lowering.program import Form
    from constrain.runtime.evaluator import Evaluator

__all__ = ["RatePair", "maybe_pair", "rate_pair", "wilson_limits"]

FAR = 40.0
"""Normal deviates beyond this have no probability."""


def wilson_limits(share: float, rows: float, z: float) -> tuple[float, float]:
    """Wilson's limits of a rate at a normal deviate."""
    center = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return max(0.0, center - half), min(1.0, center + half)


@dataclass(frozen=True)
class RatePair:
    """A left side P(A | B) - P(C | D) whose rows do not overlap.

    Attributes:
        shares: the two rates.
        rows: the rows that each is of.
        absolute: whether the left side is the size of the difference.
    """

    shares: tuple[float, float]
    rows: tuple[float, float]
    absolute: bool

    def interval(self, z: float) -> tuple[float, float]:
        """Limits of the left side at a normal deviate."""
        (p, q), (m, k) = self.shares, self.rows
        (low_p, up_p), (low_q, up_q) = wilson_limits(p, m, z), wilson_limits(q, k, z)
        low, up = p - q - math.hypot(p - low_p, up_q - q), p - q + math.hypot(up_p - p, q - low_q)
        if not self.absolute:
            return low, up
        return max(0.0, low, -up), max(up, -low)

    def deviate(self, bound: float) -> float:
        """The normal deviate at which the interval just reaches a bound, by bisection."""
        value = self.interval(0.0)[0]
        side = 1 if bound > value else 0
        low, high = 0.0, FAR
        for _ in range(60):
            z = (low + high) / 2
            end = self.interval(z)[side]
            short = end < bound if side else end > bound
            low, high = (z, high) if short else (low, z)
        return low

    def ratio(self, op: str, bounds: Sequence[float]) -> float:
        """The residual as a normal deviate: below 0 where there is room."""
        value = self.interval(0.0)[0]
        if op == "==":
            return self.deviate(bounds[0])
        sides = {"<=": (1,), ">=": (-1,), "between": (-1, 1)}[op]
        own = [
            math.copysign(self.deviate(bound), side * (value - bound))
            for side, bound in zip(sides, bounds, strict=True)
        ]
        return max(own)


def maybe_pair(form: Form) -> bool:
    """Whether a left side is the difference of two rates, or its size."""
    left = form.lhs
    inner = left.args[0] if isinstance(left, n.Apply) and left.atom == "abs" else left
    if not isinstance(inner, n.Apply) or inner.atom != "sub" or len(inner.args) != 2:
        return False
    moments = [(place_of(arg) or (arg,))[0] for arg in inner.args]
    return all(isinstance(m, n.Moment) and isinstance(m.integrand, n.Indicator) for m in moments)


def rate_pair(evaluator: Evaluator, form: Form, moments: Sequence[Tensor]) -> RatePair | None:
    """The two rates of a left side that is their difference; None for any other, and where rows overlap."""
    left = form.lhs
    absolute = isinstance(left, n.Apply) and left.atom == "abs"
    inner = left.args[0] if isinstance(left, n.Apply) and absolute else left
    if not isinstance(inner, n.Apply) or inner.atom != "sub" or len(inner.args) != 2:
        return None
    if any(n.mentions(side, n.Moment) for side in form.rhs) or type_of(left).levels is not None:
        return None
    if type_of(left).shape != ():
        return None
    places = [place_of(arg) or (arg, None) for arg in inner.args]
    found: list[tuple[n.Moment, int | None]] = []
    for moment, place in places:
        if not isinstance(moment, n.Moment) or not isinstance(moment.integrand, n.Indicator):
            return None
        found.append((moment, place))
    if not _apart(evaluator, found):
        return None
    numbers = [_counted(evaluator, moments, moment, place) for moment, place in found]
    if any(rows < 1 for _, rows in numbers):
        return None
    (first, second) = numbers
    return RatePair((first[0], second[0]), (first[1], second[1]), absolute)


def _counted(
    evaluator: Evaluator, moments: Sequence[Tensor], moment: n.Moment, place: int | None
) -> tuple[float, float]:
    """A rate and its number of rows."""
    where = ... if place is None else place
    population = evaluator.populations[moment.data]
    counts = array_of(population.stratum(moment.given, moment.by).counts)[where]
    value = array_of(moments[evaluator.program.moments.index(moment)])[where]
    return float(value), float(counts)


def _apart(evaluator: Evaluator, found: Sequence[tuple[n.Moment, int | None]]) -> bool:
    """Whether no row counts for both, and rows are draws."""
    (first, i), (second, j) = found
    populations = [evaluator.populations[moment.data] for moment, _ in found]
    if not all(population.sampled for population in populations):
        return False
    if first.data is not second.data:
        return True
    if first is second:
        return i != j
    if (first.given, first.by) == (second.given, second.by):
        return i is not None and i != j
    strata = [populations[0].stratum(moment.given, moment.by) for moment, _ in found]
    masks = [_mask(s.mask, s.codes, place) for s, (_, place) in zip(strata, found, strict=True)]
    if masks[0] is None or masks[1] is None:
        return False
    return not bool(np.any(masks[0] & masks[1]))


def _mask(
    mask: Tensor | None, codes: Tensor | None, place: int | None
) -> np.ndarray[tuple[int], np.dtype[np.bool_]] | None:
    """The rows that count, (rows,) bool; None where all do, or it is not known."""
    own = None if codes is None or place is None else (codes == place).cpu().numpy()
    kept = None if mask is None else mask.cpu().numpy().astype(bool)
    if own is None or kept is None:
        return own if kept is None else kept
    return own & kept
