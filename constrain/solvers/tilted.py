"""Expected costs with an entropy over distributions, under constraints on expectations.

    minimize    c·p + sum_b temperature_b sum_{i in b} p_i log p_i
    subject to  sum_{i in b} p_i = mass_b  for every block b,    G p <= h,    E p = d

A divergence from a reference q is such an entropy, with - temperature log q in the costs. For multipliers v
of the constraints on expectations the minimizer is a tilted softmax of every block,

    p_b(v) = mass_b softmax(-(c + v·G) / temperature_b),

so the dual function is a sum of log-partition functions, smooth and concave; its gradient is the residual
G p(v) - h, its Hessian minus the covariance of the rows of G under p over the temperature. It is maximized by
projected Newton steps (Bertsekas, SIAM J. Control Optim. 20 (1982) 221) with an Armijo search. Any v bounds
the optimal value from below, so a problem is proven to be infeasible when the dual function exceeds every
value that the objective can take.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from constrain.runtime.result import Ending

__all__ = ["Tilted", "TiltedSolution", "maximize_dual"]

Floats: TypeAlias = "NDArray[np.float64]"

STEPS = 200
"""Most Newton steps; a few are enough where some point is strictly feasible."""
BALANCED = 1e-13
"""Residuals below this share of their units are zero."""
SINGULAR = 1e-12
"""Eigenvalues below this share of the largest one: directions in which nothing changes."""
ARMIJO = 1e-4


@dataclass(frozen=True)
class Tilted:
    """The numbers of such a problem. Entries of one block follow each other.

    Attributes:
        cost: (n,) of the entries.
        starts: (b,) first entry of each block.
        mass: (b,) sum of the entries of each block, positive.
        temperature: (b,) positive.
        rows: (k, n) of the constraints on expectations.
        bound: (k,) right sides.
        equal: (k,) whether a row is an equality.
    """

    cost: Floats
    starts: NDArray[np.int64]
    mass: Floats
    temperature: Floats
    rows: Floats
    bound: Floats
    equal: NDArray[np.bool_]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(b,) entries per block."""
        return np.diff(np.append(self.starts, len(self.cost)))


@dataclass(frozen=True)
class TiltedSolution:
    """Where the dual method ended.

    Attributes:
        p: (n,) the entries.
        prices: (k,) multipliers of the rows, >= 0 for inequalities.
        masses: (b,) multipliers of the sums of the blocks.
        value: of the dual function: a lower bound of the optimal value.
        ending: `converged`, `infeasible` (proven) or `limit`.
        trace: per step the cost of p, and the largest violation in the units of the rows.
    """

    p: Floats
    prices: Floats
    masses: Floats
    value: float
    ending: Ending
    trace: list[tuple[float, float]]


@dataclass(frozen=True)
class _Point:
    """Multipliers and what follows from them; fields as in `TiltedSolution`."""

    prices: Floats
    p: Floats
    normalizer: Floats
    value: float
    gradient: Floats


class _Dual:
    """The dual function, with rows divided by their largest deviation from their mean over a block."""

    def __init__(self, given: Tilted) -> None:
        self.given = given
        self.block = np.repeat(np.arange(len(given.starts)), given.sizes)
        means = np.add.reduceat(given.rows, given.starts, axis=1) / given.sizes if len(given.rows) else None
        spread = np.abs(given.rows - means[:, self.block]).max(axis=1) if means is not None else np.ones(0)
        size = np.abs(given.rows).max(axis=1, initial=0.0)
        self.flat = spread <= 1e-14 * size
        self.unit = np.where(self.flat, 1.0, spread)
        self.rows = given.rows / self.unit[:, None]
        self.bound = given.bound / self.unit
        self.own = given.temperature[self.block]
        terms = given.mass * given.temperature * np.log(given.mass)
        self.offset = float(terms.sum())
        self.ceiling = float((given.mass * np.maximum.reduceat(given.cost, given.starts)).sum()) + self.offset
        """At least every value of the objective: a negative entropy is at most mass log mass."""
        self.scale = 1.0 + np.abs(self.bound) + np.abs(self.rows).max(axis=1, initial=0.0) * given.mass.sum()

    def at(self, prices: Floats) -> _Point:
        given = self.given
        exponent = -(given.cost + prices @ self.rows) / self.own
        top = np.maximum.reduceat(exponent, given.starts)
        weight = np.exp(exponent - top[self.block])
        total = np.add.reduceat(weight, given.starts)
        p = (given.mass / total)[self.block] * weight
        normalizer = top + np.log(total)
        value = (
            self.offset - float((given.mass * given.temperature) @ normalizer) - float(self.bound @ prices)
        )
        return _Point(prices, p, normalizer, value, self.rows @ p - self.bound)

    def curvature(self, p: Floats, free: NDArray[np.bool_]) -> Floats:
        """Covariance of the free rows over the temperature, summed over blocks."""
        given, rows = self.given, self.rows[free]
        means = np.add.reduceat(rows * p, given.starts, axis=1) / given.mass
        centered = rows - means[:, self.block]
        return (centered * (p / self.own)) @ centered.T

    def pinned(self, at: _Point) -> NDArray[np.bool_]:
        """Inequalities with multiplier zero that have room, and rows that no decision moves."""
        idle = ~self.given.equal & (at.prices <= 0) & (at.gradient <= 0)
        return idle | self.flat


def maximize_dual(given: Tilted, start: Floats | None = None, deadline: float = np.inf) -> TiltedSolution:
    """Solves the problem.

    Args:
        given: the problem.
        start: (k,) multipliers to start from; zeros where left out.
        deadline: on the clock of `time.perf_counter`.
    """
    dual = _Dual(given)
    prices = np.zeros(len(given.rows)) if start is None else start * dual.unit
    point = dual.at(np.where(given.equal, prices, np.maximum(prices, 0.0)))
    trace: list[tuple[float, float]] = []
    ending: Ending = "limit"
    for _ in range(STEPS):
        free = ~dual.pinned(point)
        off = np.where(free, point.gradient, 0.0)
        trace.append((point.value - float(point.prices @ point.gradient), _violation(dual, point)))
        if (np.abs(off) <= BALANCED * dual.scale).all():
            ending = "converged"
            break
        if point.value > dual.ceiling + 1e-9 * (1.0 + abs(dual.ceiling)):
            return _solution(dual, point, "infeasible", trace)
        moved = _step(dual, point, free) if time.perf_counter() < deadline else None
        if moved is None:
            break
        point = moved
    if ending != "converged" and (np.abs(np.where(dual.pinned(point), 0.0, point.gradient)) <= 1e-10).all():
        ending = "converged"  # rounding, not the number of steps, is what is left
    if _contradicted(dual, point):
        ending = "infeasible"
    return _solution(dual, point, ending, trace)


def _step(dual: _Dual, point: _Point, free: NDArray[np.bool_]) -> _Point | None:
    """The next point; None where no step makes the dual function larger."""
    values, vectors = _eigen(dual.curvature(point.p, free))
    gradient = point.gradient[free]
    kept = values > SINGULAR * max(values.max(initial=0.0), 1e-300)
    inverse = 1.0 / np.where(kept, values, max(float(values.max(initial=0.0)), 1e-300))
    direction = np.zeros(len(free))
    direction[free] = vectors @ (inverse * (vectors.T @ gradient))
    length, before = 1.0, float(np.abs(gradient).max())
    for _ in range(60):
        prices = point.prices + length * direction
        prices = np.where(dual.given.equal, prices, np.maximum(prices, 0.0))
        trial = dual.at(prices)
        gain = ARMIJO * float(point.gradient @ (prices - point.prices))
        if trial.value >= point.value + gain and np.isfinite(trial.value):
            return trial
        rounding = 1e-14 * (1.0 + abs(point.value) + float(np.abs(dual.bound * point.prices).sum()))
        off = float(np.abs(np.where(dual.pinned(trial), 0.0, trial.gradient)).max(initial=0.0))
        if trial.value >= point.value - rounding and off < 0.5 * before:
            return trial
        length *= 0.5
    return None


def _eigen(matrix: Floats) -> tuple[Floats, Floats]:
    found: Any = np.linalg.eigh(matrix)
    return found


def _violation(dual: _Dual, point: _Point) -> float:
    """The largest violation, in the units of the rows."""
    over = np.where(dual.given.equal, np.abs(point.gradient), np.maximum(point.gradient, 0.0)) * dual.unit
    return float(over.max(initial=0.0))


def _contradicted(dual: _Dual, point: _Point) -> bool:
    """Whether a row that no decision moves is violated."""
    over = np.where(dual.given.equal, np.abs(point.gradient), point.gradient)
    return bool((dual.flat & (over > 1e-9 * dual.scale)).any())


def _solution(dual: _Dual, point: _Point, ending: Ending, trace: list[tuple[float, float]]) -> TiltedSolution:
    given = dual.given
    masses = given.temperature * (point.normalizer - np.log(given.mass) - 1.0)
    p = np.maximum(point.p, np.finfo(np.float64).tiny)
    return TiltedSolution(p, point.prices / dual.unit, masses, point.value, ending, trace)
