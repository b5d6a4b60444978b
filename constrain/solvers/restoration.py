"""Restoration: points with less violation, for an interior point whose steps are all refused.

Only the violation |h|^2 / 2 of the constraints with their slacks is minimized, inside of the bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from constrain.solvers.newton import projected_gradient, projected_newton

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from constrain.solvers.systems import Jacobian

    Vector = NDArray[np.float64]

__all__ = ["NEAR_BEST", "State", "descended", "nearer"]

NEAR_BEST = 1e-6
"""Error that is good enough where rounding allows no more."""
_DESCENTS = 200
"""Most steps of a restoration with a block for every row."""


@dataclass
class State:
    """A point v = (x, s) with all that is known of it, and its multipliers."""

    v: Vector
    f: float
    h: Vector
    y: Vector
    lower: Vector
    upper: Vector
    gradient: Vector = field(default_factory=lambda: np.zeros(0))
    jacobian: Jacobian = field(default_factory=lambda: np.zeros((0, 0)))


class Run(Protocol):
    """What a run of the interior point offers; vectors v are decisions and slacks."""

    n: int
    m: int
    mu: float
    slack: NDArray[np.intp]
    low: Vector
    high: Vector
    has_low: NDArray[np.bool_]
    has_high: NDArray[np.bool_]

    def values(self, v: Vector) -> tuple[float, Vector]:
        """F and h."""
        ...

    def differentiate(self, state: State) -> None:
        """Fills in the first derivatives."""
        ...

    def pull(self, state: State, y: Vector) -> Vector:
        """Transposed Jacobian of h times y."""
        ...

    def gaps(self, v: Vector) -> tuple[Vector, Vector]:
        """Distances to the bounds; 1 where there are none."""
        ...

    def inside(self, v: Vector, push: float) -> Vector:
        """The nearest point that keeps a distance > 0 from all bounds."""
        ...

    def violation(self, h: Vector) -> float:
        """Sum of the absolute residuals."""
        ...

    def fraction(self, v: Vector, dv: Vector) -> float:
        """Longest step inside of the bounds."""
        ...

    def damped(
        self, state: State, sigma: Vector, damping: float, loosened: float
    ) -> Callable[[Vector, Vector], tuple[Vector, Vector]] | None:
        """A solver with `damping` times the identity in the place of second derivatives."""
        ...


class _Restored(Exception):  # a signal
    """The restoration has reduced the violation enough."""

    def __init__(self, v: Vector) -> None:
        self.v = v


def nearer(run: Run, state: State, theta: float) -> Vector | Literal["infeasible", "limit"]:
    """A point of a tenth of the violation, by projected Newton steps on |r|^2 / 2; dense.

    The residuals r are those of the equalities and max(0, c) of the others, so that no slack has to follow.
    """
    probe = State(state.v, 0.0, state.h, state.y, state.lower, state.upper)
    low, high = run.low[: run.n], run.high[: run.n]

    def residuals(x: Vector) -> tuple[float, Vector, Vector]:
        """The objective, the residuals, and the point with the slacks that fit."""
        f, c = run.values(np.concatenate([x, np.zeros(len(run.slack))]))
        r = c.copy()
        r[run.slack] = np.maximum(c[run.slack], 0.0)
        return f, r, np.concatenate([x, np.maximum(-c[run.slack], 0.0)])

    def value(x: Vector) -> tuple[float, Vector]:
        f, r, v = residuals(x)
        if not (np.isfinite(f) and np.isfinite(r).all()):
            return 1e300, np.zeros_like(x)
        inner = run.inside(v, 1e-8)
        if run.violation(run.values(inner)[1]) <= 0.1 * theta:
            raise _Restored(inner)
        probe.v = v
        run.differentiate(probe)
        return 0.5 * float(r @ r), run.pull(probe, r)[: run.n]

    def gauss_newton(x: Vector) -> Vector:
        _, r, probe.v = residuals(x)
        run.differentiate(probe)
        assert isinstance(probe.jacobian, np.ndarray)  # dense
        counted = np.ones(run.m, bool)
        counted[run.slack] = r[run.slack] > 0
        A = probe.jacobian[counted]
        return A.T @ A

    try:
        found = projected_newton(
            value, gauss_newton, state.v[: run.n], low, high, tolerance=1e-12, iterations=200
        )
    except _Restored as restored:
        return restored.v
    _, r, v = residuals(found.x)
    if np.abs(r).max() > NEAR_BEST:
        state.v, (state.f, state.h) = v, run.values(v)
        slope = projected_gradient(found.x, found.gradient, low, high)
        small = np.abs(slope).max() <= 1e-5 * np.abs(r).max()
        return "infeasible" if small or found.converged else "limit"
    return run.inside(v, 1e-8)


def descended(run: Run, state: State, theta: float) -> Vector | Literal["infeasible", "limit"]:
    """The same with a block for every row: Levenberg-Marquardt steps on |h|^2 / 2 and a barrier."""
    probe = State(state.v, state.f, state.h, state.y, state.lower, state.upper)
    damping, mu = 1e-4, min(run.mu, 1e-4 * theta)

    def merit(v: Vector, h: Vector) -> float:
        below, above = run.gaps(v)
        if min(below.min(initial=1.0), above.min(initial=1.0)) <= 0 or not np.isfinite(h).all():
            return np.inf
        return 0.5 * float(h @ h) - mu * float(np.log(below).sum() + np.log(above).sum())

    for _ in range(_DESCENTS):
        run.differentiate(probe)
        below, above = run.gaps(probe.v)
        pushes = mu * run.has_high / above - mu * run.has_low / below
        sigma = mu * (run.has_low / below**2 + run.has_high / above**2)
        solver = run.damped(probe, sigma, damping, 1.0)
        if solver is None:
            return "limit"
        step = solver(pushes, probe.h)[0]
        alpha = run.fraction(probe.v, step)
        v = probe.v + alpha * step
        f, h = run.values(v)
        before, gain = merit(probe.v, probe.h), merit(probe.v, probe.h) - merit(v, h)
        if gain > 0:
            damping = max(0.1 * damping, 1e-10)
            probe.v, probe.f, probe.h = v, f, h
            if run.violation(h) <= 0.1 * theta:
                return v
        else:
            damping *= 10
        if abs(gain) <= 1e-3 * abs(before) and alpha > 0.5:  # this barrier is done
            mu *= 0.5
        if damping > 1e8 or mu < 1e-9 * theta:
            break
    slope = projected_gradient(probe.v, run.pull(probe, probe.h), run.low, run.high)
    if run.violation(probe.h) > NEAR_BEST and np.abs(slope).max() <= 1e-3 * np.abs(probe.h).max():
        state.v, state.f, state.h = probe.v, probe.f, probe.h
        return "infeasible"
    return "limit"
