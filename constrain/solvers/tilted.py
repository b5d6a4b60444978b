"""Expected costs with an entropy over distributions, under constraints on expectations.

    minimize    c·p + sum_b temperature_b sum_{i in b} p_i log p_i
    subject to  sum_{i in b} p_i = mass_b  for every block b,    G p <= h,    E p = d

A divergence from a reference q is such an entropy, with - temperature log q in the costs. For multipliers v
of the constraints on expectations the minimizer is a tilted softmax of every block,

    p_b(v) = mass_b softmax(-(c + v·G) / temperature_b),

so the dual function is a sum of log-partition functions, smooth and concave; its gradient is the residual
G p(v) - h, its Hessian minus the covariance of the rows of G under p over the temperature. It is maximized by
Newton steps within v >= 0 (a quadratic program in v, solved as nonnegative least squares: Lawson and Hanson,
Solving Least Squares Problems, 1974) with an Armijo search. Where costs are large against the temperature,
p(0) sits in a corner and has no covariance; then the temperature falls to its value in stages, each from
the multipliers of the one before.

Any v bounds the optimal value from below, so a problem is proven to be infeasible when the dual function
exceeds every value that the objective can take.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy import linalg as scipy_linalg
from scipy import optimize as scipy_optimize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from constrain.runtime.result import Ending

__all__ = ["Tilted", "TiltedSolution", "maximize_dual"]

Floats: TypeAlias = "NDArray[np.float64]"

cholesky: Any = scipy_linalg.cholesky  # type: ignore[reportUnknownMemberType]  # scipy has no types
solve_triangular: Any = scipy_linalg.solve_triangular  # type: ignore[reportUnknownMemberType]
nnls: Any = scipy_optimize.nnls  # type: ignore[reportUnknownMemberType]

STEPS = 100
"""Most Newton steps of a stage; a few are enough where some point is strictly feasible."""
BALANCED = 1e-13
"""Residuals below this share of their units are zero."""
ROUGHLY = 1e-5
"""The same in the stages before the last one."""
ARMIJO, HALVINGS = 1e-4, 12
"""Of the line search: least share of the predicted increase, and most halvings of a step."""
DAMPING = (1e-13, 1e-9, 1e-6, 1e-3, 1.0, 1e3)
"""Shares of the curvature's diagonal that are added to it, the next one where no step helps."""
DIRECT, RANGE, COOLING = 300.0, 10.0, 4.0
"""Range of costs over temperature within a block up to which one stage is tried, that of the first of several
stages, and the factor between them."""


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

    def curvature(self, p: Floats) -> Floats:
        """Covariance of the rows over the temperature, summed over blocks."""
        given, rows = self.given, self.rows
        means = np.add.reduceat(rows * p, given.starts, axis=1) / given.mass
        centered = rows - means[:, self.block]
        return (centered * (p / self.own)) @ centered.T

    def off(self, at: _Point) -> Floats:
        """What the gradient is short of balance, in units of the rows; 0 for rows that no decision moves."""
        open_ = self.given.equal | (at.prices > 0)
        left = np.where(open_, at.gradient, np.maximum(at.gradient, 0.0))
        return np.where(self.flat, 0.0, np.abs(left)) / self.scale


def maximize_dual(given: Tilted, start: Floats | None = None, deadline: float = np.inf) -> TiltedSolution:
    """Solves the problem.

    Args:
        given: the problem.
        start: (k,) multipliers to start from; zeros where left out.
        deadline: on the clock of `time.perf_counter`.
    """
    span = _span(given)
    trace: list[tuple[float, float]] = []
    if span <= DIRECT or not len(given.rows):
        found = _stage(given, start, span, deadline, trace)
        if found.ending != "limit":
            return found
    heat = span / RANGE
    while heat > 1.0:
        warmer = replace(given, temperature=heat * given.temperature)
        start = _stage(warmer, start, span, deadline, trace, ROUGHLY).prices
        heat /= COOLING
    return _stage(given, start, span, deadline, trace)


def _span(given: Tilted) -> float:
    """The largest range of costs over temperature within a block: how far p(0) is in a corner."""
    high = np.maximum.reduceat(given.cost, given.starts)
    low = np.minimum.reduceat(given.cost, given.starts)
    return float(((high - low) / given.temperature).max())


def _stage(
    given: Tilted,
    start: Floats | None,
    span: float,
    deadline: float,
    trace: list[tuple[float, float]],
    tolerance: float = BALANCED,
) -> TiltedSolution:
    """Newton steps at one temperature."""
    dual = _Dual(given)
    prices = np.zeros(len(given.rows)) if start is None else start * dual.unit
    point = dual.at(np.where(given.equal, prices, np.maximum(prices, 0.0)))
    point, ending = _climbed(dual, point, tolerance, deadline, trace)
    # exponents, costs over temperature, are known up to rounding only
    if ending == "limit" and (dual.off(point) <= max(1e-11, 1e-15 * span)).all():
        ending = "converged"
    return _solution(dual, point, "infeasible" if _contradicted(dual, point) else ending, trace)


def _climbed(
    dual: _Dual, point: _Point, tolerance: float, deadline: float, trace: list[tuple[float, float]]
) -> tuple[_Point, Ending]:
    """Newton steps from a point until it is balanced within the tolerance."""
    for _ in range(STEPS):
        trace.append((point.value - float(point.prices @ point.gradient), _violation(dual, point)))
        if (dual.off(point) <= tolerance).all():
            return point, "converged"
        if point.value > dual.ceiling + 1e-9 * (1.0 + abs(dual.ceiling)):
            return point, "infeasible"
        moved = _step(dual, point) if time.perf_counter() < deadline else None
        if moved is None:
            break
        point = moved
    return point, "limit"


def _step(dual: _Dual, point: _Point) -> _Point | None:
    """The next point; None where no step makes the dual function larger."""
    before = float(dual.off(point).max())
    rounding = 1e-14 * (1.0 + abs(point.value) + float(np.abs(dual.bound * point.prices).sum()))
    curvature = dual.curvature(point.p)
    for damping in DAMPING:
        target = _target(dual, point, curvature, damping)
        if target is None:
            continue
        length = 1.0
        for _ in range(HALVINGS):
            trial = dual.at(point.prices + length * (target - point.prices))
            gain = ARMIJO * float(point.gradient @ (trial.prices - point.prices))
            balanced = trial.value >= point.value - rounding and float(dual.off(trial).max()) < 0.5 * before
            if np.isfinite(trial.value) and (
                balanced or (gain > rounding and trial.value >= point.value + gain)
            ):
                return trial
            length *= 0.5
    return None


def _target(dual: _Dual, point: _Point, curvature: Floats, damping: float) -> Floats | None:
    """Multipliers that maximize the quadratic model of the dual function within their bounds.

    With R'R the damped curvature M: minimize |R v - R'^-1 (gradient + M prices)|^2. Equalities come first, so
    that they follow from the inequalities by back substitution.
    """
    diagonal = curvature.diagonal()
    if not diagonal.max(initial=0.0) > 0:
        return None
    order = np.argsort(~dual.given.equal, kind="stable")
    free = int(dual.given.equal.sum())
    damped = curvature + np.diag(damping * diagonal + 1e-15 * diagonal.max())
    aim = (point.gradient + damped @ point.prices)[order]
    try:
        root: Floats = cholesky(damped[np.ix_(order, order)])
        aim = solve_triangular(root, aim, trans=1)
        below: Floats = nnls(root[free:, free:], aim[free:])[0] if free < len(order) else np.zeros(0)
    except (np.linalg.LinAlgError, RuntimeError):
        return None
    above: Floats = solve_triangular(root[:free, :free], aim[:free] - root[:free, free:] @ below)
    target = np.empty(len(order))
    target[order] = np.concatenate([above, below])
    return np.where(dual.flat, 0.0, target)


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
