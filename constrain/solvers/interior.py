"""Primal-dual interior point with a filter line search: smooth problems, second derivatives.

    minimize f(x)   subject to   c_i(x) == 0 (equalities),  c_i(x) <= 0 (the others),  low <= x <= high

After Waechter & Biegler (2006), "On the implementation of an interior-point filter line-search algorithm
for large-scale nonlinear programming": inequalities get slacks, c + s = 0 with s >= 0; a sequence of barrier
problems is solved by Newton's method on the perturbed KKT system; the matrix is shifted until its inertia is
that of a minimum; a step is taken when it reduces the violation or the barrier function enough for a filter;
second-order corrections keep steps long near curved constraints. Where no step is acceptable, the violation
alone is minimized (restoration): ending there at a positive value is a proof of local infeasibility.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from constrain.solvers.restoration import NEAR_BEST, State, descended, nearer
from constrain.solvers.systems import eye_like, finite, kkt_factor, pulled

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from constrain.solvers.dense import Factor
    from constrain.solvers.row_system import RowFactor
    from constrain.solvers.systems import Hessian, Jacobian

    Vector = NDArray[np.float64]

__all__ = ["InteriorPoint", "InteriorResult", "Smooth", "interior_point"]

UNBOUNDED = -1e15
"""Scaled objective below which a feasible run calls the problem unbounded."""
_LOOSENED = 1e-9
"""Diagonal of the multipliers in every KKT system: constraints may depend on each other."""
_LARGE_MULTIPLIER = 1e3
"""Largest least-squares multiplier that is used as a start."""
_FRACTION = 0.99
_TARGET = 10.0
_CENTER, _POWER = 0.2, 1.5
_FILTER = 1e-5
_ARMIJO = 1e-4
_CORRECTIONS = 4
_RESTORATIONS = 12
_GROWN, _CRAWL = 100.0, 10
"""Size of multipliers that are watched, and the steps for which they grow while conditions gain no digit."""
_STILL, _STILLS = 1e-14, 3
"""Relative length of a step that is none, and how many of them in a row leave no digit to gain."""


class Smooth(Protocol):
    """A smooth problem in flat vectors.

    Attributes:
        low: lower bounds, (n,), -inf where there are none.
        high: upper bounds, (n,).
        equal: which constraints are equalities, (m,).
    """

    low: Vector
    high: Vector
    equal: NDArray[np.bool_]

    def values(self, x: Vector) -> tuple[float, Vector]:
        """F and c, (m,)."""
        ...

    def derivatives(self, x: Vector) -> tuple[Vector, Jacobian]:
        """Gradient of f, (n,), and Jacobian of c: (m, n), or with a block for every row."""
        ...

    def hessian(self, x: Vector, y: Vector) -> Hessian:
        """Hessian of f + y . c: (n, n), or with a block for every row."""
        ...


@dataclass(frozen=True)
class InteriorResult:
    """End of a run.

    Attributes:
        x: the point.
        y: multipliers of L = f + y . c, >= 0 for inequalities.
        ending: `converged`; `infeasible` when the violation is stationary and not zero; `unbounded`;
            `growing` when multipliers grow while the conditions nearly hold; `limit`.
        error: largest scaled entry of the KKT conditions.
        iterations: Newton steps.
        message: in words.
    """

    x: Vector
    y: Vector
    ending: Literal["converged", "infeasible", "unbounded", "growing", "limit"]
    error: float
    iterations: int
    message: str = ""


@dataclass(frozen=True)
class InteriorPoint:
    """Options of the method.

    Attributes:
        tolerance: largest scaled entry of the KKT conditions at the end.
        iterations: most Newton steps.
        barrier: first barrier parameter.
        push: least distance of the start from the bounds, relative to the larger of 1 and the bound.
        watchful: whether it ends where multipliers grow without bound.
    """

    tolerance: float = 1e-9
    iterations: int = 500
    barrier: float = 0.1
    push: float = 1e-2
    watchful: bool = True


def interior_point(
    problem: Smooth,
    x: Vector,
    y: Vector | None = None,
    *,
    options: InteriorPoint | None = None,
    record: Callable[[int, float, Vector, Vector, float, float], None] | None = None,
) -> InteriorResult:
    """Solves from `x`.

    Args:
        problem: with finite values at `x`, or next to it inside of the bounds.
        x: start, (n,).
        y: first multipliers, (m,); None estimates them by least squares.
        options: of the method.
        record: called after every step with its number, f, c, y, the KKT error and the barrier parameter.
    """
    return _Run(problem, options or InteriorPoint(), record).run(np.asarray(x, float), y)


class _Run:
    """One run; slacks of inequalities follow the decisions in one vector."""

    def __init__(self, problem: Smooth, options: InteriorPoint, record: Any) -> None:
        self.problem, self.options, self.record = problem, options, record
        self.n, self.m = len(problem.low), len(problem.equal)
        self.slack = np.flatnonzero(~problem.equal)
        self.low = np.concatenate([problem.low, np.zeros(len(self.slack))])
        self.high = np.concatenate([problem.high, np.full(len(self.slack), np.inf)])
        self.has_low, self.has_high = np.isfinite(self.low), np.isfinite(self.high)
        self.mu = options.barrier
        self.shift = 0.0
        self.filter: list[tuple[float, float]] = []
        self.restorations = 0
        self.trend: list[tuple[float, float]] = []

    # ------------------------------------------------------------------------------------- evaluation
    def values(self, v: Vector) -> tuple[float, Vector]:
        f, c = self.problem.values(v[: self.n])
        h = c.copy()
        h[self.slack] += v[self.n :]
        return f, h

    def differentiate(self, state: State) -> None:
        g, state.jacobian = self.problem.derivatives(state.v[: self.n])
        state.gradient = np.concatenate([g, np.zeros(len(self.slack))])

    def pull(self, state: State, y: Vector) -> Vector:
        """Transposed Jacobian of h times y."""
        return np.concatenate([pulled(state.jacobian, y), y[self.slack]])

    def gaps(self, v: Vector) -> tuple[Vector, Vector]:
        """Distances to the bounds; 1 where there are none."""
        below = np.where(self.has_low, v - np.where(self.has_low, self.low, 0.0), 1.0)
        above = np.where(self.has_high, np.where(self.has_high, self.high, 0.0) - v, 1.0)
        return below, above

    def _barrier(self, v: Vector, f: float) -> float:
        below, above = self.gaps(v)
        if min(below.min(initial=1.0), above.min(initial=1.0)) <= 0:
            return np.inf
        return f - self.mu * float(np.log(below).sum() + np.log(above).sum())

    def _barrier_gradient(self, state: State) -> Vector:
        below, above = self.gaps(state.v)
        return state.gradient - self.mu * self.has_low / below + self.mu * self.has_high / above

    def _error(self, state: State, mu: float) -> float:
        """Largest entry of the KKT conditions, dual ones relative to large multipliers."""
        below, above = self.gaps(state.v)
        dual = state.gradient + self.pull(state, state.y) - state.lower + state.upper
        count = max(self.m + int(self.has_low.sum() + self.has_high.sum()), 1)
        total = np.abs(state.y).sum() + state.lower.sum() + state.upper.sum()
        relative = max(100.0, total / count) / 100.0
        products = np.concatenate(
            [(state.lower * below - mu)[self.has_low], (state.upper * above - mu)[self.has_high]]
        )
        return max(
            np.abs(dual).max(initial=0.0) / relative,
            np.abs(state.h).max(initial=0.0),
            np.abs(products).max(initial=0.0) / relative,
        )

    # ------------------------------------------------------------------------------------------ start
    def inside(self, v: Vector, push: float) -> Vector:
        """The nearest point that keeps a distance > 0 from all bounds."""
        low, high = np.where(self.has_low, self.low, 0.0), np.where(self.has_high, self.high, 0.0)
        width = np.where(self.has_low & self.has_high, high - low, np.inf)
        from_low = np.minimum(push * np.maximum(1.0, np.abs(low)), push * width)
        from_high = np.minimum(push * np.maximum(1.0, np.abs(high)), push * width)
        v = np.where(self.has_low, np.maximum(v, low + from_low), v)
        return np.where(self.has_high, np.minimum(v, high - from_high), v)

    def _first(self, x: Vector, y: Vector | None) -> State:
        v = self.inside(np.concatenate([x, np.ones(len(self.slack))]), self.options.push)
        v[self.n :] = -self.problem.values(v[: self.n])[1][self.slack]
        v = self.inside(v, self.options.push)
        f, h = self.values(v)
        warm = y is not None
        below, above = self.gaps(v)
        if warm:
            lower, upper = self.has_low * self.mu / below, self.has_high * self.mu / above
        else:
            lower, upper = self.has_low * 1.0, self.has_high * 1.0
        state = State(v, f, h, np.zeros(self.m) if y is None else y.copy(), lower, upper)
        self.differentiate(state)
        if not warm:
            state.y = self._estimate(state)
        return state

    def _estimate(self, state: State) -> Vector:
        """Least-squares multipliers; 0 where they are huge."""
        if not self.m:
            return np.zeros(0)
        right = -(state.gradient - state.lower + state.upper)
        J = state.jacobian
        if not finite(J) or not np.isfinite(right).all():
            return np.zeros(self.m)
        if isinstance(J, np.ndarray):
            A = np.zeros((self.m, self.n + len(self.slack)))
            A[:, : self.n] = J
            A[self.slack, self.n + np.arange(len(self.slack))] = 1.0
            y = np.asarray(np.linalg.lstsq(A.T, right, rcond=None)[0], dtype=np.float64)
        else:
            solver = self.damped(state, np.zeros(len(right)), 1.0, _LOOSENED)
            if solver is None:
                return np.zeros(self.m)
            y = solver(-right, np.zeros(self.m))[1]
        return y if np.abs(y).max(initial=0.0) <= _LARGE_MULTIPLIER else np.zeros(self.m)

    # ------------------------------------------------------------------------------------------- loop
    def run(self, x: Vector, y: Vector | None) -> InteriorResult:
        """Newton steps until the KKT conditions hold."""
        options = self.options
        state = self._first(x, y)
        if not (np.isfinite(state.f) and np.isfinite(state.h).all()):
            return self._end(state, "limit", 0, "the start has no finite value")
        self.largest, still = 1e4 * max(1.0, self.violation(state.h)), 0
        for k in range(options.iterations):
            error = self._error(state, 0.0)
            if self.record is not None:
                c = state.h.copy()
                c[self.slack] -= state.v[self.n :]
                self.record(k, state.f, c, state.y, error, self.mu)
            if error <= options.tolerance:
                return self._end(state, "converged", k)
            if options.watchful and self._growing(error, state.y):
                return self._end(state, "growing", k, "multipliers grow without bound")
            if state.f < UNBOUNDED and self.violation(state.h) <= NEAR_BEST:
                return self._end(state, "unbounded", k, "the objective falls without bound")
            self._lower_barrier(state)
            new = self._step(state)
            if new is None and np.abs(state.y).max(initial=0.0) > _LARGE_MULTIPLIER:
                state.y = self._estimate(state)  # a nearly singular system may have made them huge
                new = self._step(state)
            if new is None:
                if error <= NEAR_BEST:
                    return self._end(state, "converged", k, "to rounding")
                found = self._restore(state)
                if isinstance(found, str):
                    return self._end(state, found, k, _WORDS[found])
                new = found
            still = still + 1 if _length(new.v - state.v, state.v) < _STILL else 0
            if still == _STILLS and error <= NEAR_BEST:
                return self._end(new, "converged", k + 1, "to rounding")
            state = new
        return self._end(state, "limit", options.iterations, f"{options.iterations} Newton steps")

    def _end(self, state: State, ending: Any, iterations: int, message: str = "") -> InteriorResult:
        y = np.where(self.problem.equal, state.y, np.maximum(state.y, 0.0))
        x = np.clip(state.v[: self.n], self.problem.low, self.problem.high)
        return InteriorResult(x, y, ending, self._error(state, 0.0), iterations, message)

    def _lower_barrier(self, state: State) -> None:
        least = 0.1 * self.options.tolerance
        while self.mu > least and self._error(state, self.mu) <= _TARGET * self.mu:
            self.mu = max(least, min(_CENTER * self.mu, self.mu**_POWER))
            self.filter = []

    def _growing(self, error: float, y: Vector) -> bool:
        """Whether multipliers have grown for some steps at which the conditions nearly held."""
        size = float(np.abs(y).max(initial=0.0))
        if error > NEAR_BEST or size < _GROWN or (self.trend and size <= self.trend[-1][1]):
            self.trend = []
        self.trend.append((error, size))
        return len(self.trend) > _CRAWL and error >= 0.1 * self.trend[-1 - _CRAWL][0]

    @staticmethod
    def violation(h: Vector) -> float:
        return float(np.abs(h).sum())

    # ------------------------------------------------------------------------------------- directions
    def _step(self, state: State) -> State | None:
        """The next point; None where no step is acceptable."""
        curvature = self.problem.hessian(state.v[: self.n], state.y)
        if not finite(curvature):
            curvature = eye_like(state.jacobian)
        below, above = self.gaps(state.v)
        sigma = state.lower / below * self.has_low + state.upper / above * self.has_high
        solver = self._factorize(state, curvature, sigma)
        if solver is None:
            return None
        slope = self._barrier_gradient(state)
        dv, dy = solver(slope + self.pull(state, state.y), state.h)
        if not np.isfinite(dv).all():
            return None
        return self._search(state, dv, dy, slope, solver)

    def _factorize(
        self, state: State, curvature: Hessian, sigma: Vector
    ) -> Callable[[Vector, Vector], tuple[Vector, Vector]] | None:
        """A solver of the KKT system with the inertia of a minimum (algorithm IC of the paper)."""
        n, m = self.n, self.m
        shift, loosened = 0.0, _LOOSENED
        while shift <= 1e40:
            diagonal = np.full(m, loosened)
            diagonal[self.slack] += 1.0 / (sigma[n:] + shift)
            factor = kkt_factor(curvature, state.jacobian, sigma[:n] + shift, diagonal)
            if factor is not None and factor.negative == m and not factor.singular:
                self.shift = shift if shift > 0 else self.shift
                return self._solver(factor, sigma, shift)
            if factor is not None and (factor.singular or factor.negative < m) and loosened == _LOOSENED:
                loosened = 1e-8 + 1e-6 * self.mu**0.25
                continue
            if shift == 0.0:
                shift = 1e-4 if self.shift == 0.0 else max(1e-20, self.shift / 3)
            else:
                shift *= 100.0 if self.shift == 0.0 else 8.0
        return None

    def damped(
        self, state: State, sigma: Vector, damping: float, loosened: float
    ) -> Callable[[Vector, Vector], tuple[Vector, Vector]] | None:
        """A solver of the system with `damping` times the identity in the place of second derivatives."""
        diagonal = np.full(self.m, loosened)
        diagonal[self.slack] += 1.0 / (sigma[self.n :] + damping)
        curvature = eye_like(state.jacobian, damping)
        factor = kkt_factor(curvature, state.jacobian, sigma[: self.n], diagonal)
        return None if factor is None or factor.singular else self._solver(factor, sigma, damping)

    def _solver(
        self, factor: Factor | RowFactor, sigma: Vector, shift: float
    ) -> Callable[[Vector, Vector], tuple[Vector, Vector]]:
        """(dual residual, h) -> (step of v, step of y); slacks are eliminated."""
        n, slack = self.n, self.slack
        weight = 1.0 / (sigma[n:] + shift)

        def solve(dual: Vector, h: Vector) -> tuple[Vector, Vector]:
            right = np.concatenate([-dual[:n], -h])
            right[n + slack] += dual[n:] * weight
            found = factor.solve(right)
            dy = found[n:]
            return np.concatenate([found[:n], -(dual[n:] + dy[slack]) * weight]), dy

        return solve

    def fraction(self, v: Vector, dv: Vector) -> float:
        """Longest step that keeps a hundredth of the distance to every bound (or mu, when larger)."""
        below, above = self.gaps(v)
        keep = max(_FRACTION, 1 - self.mu)
        down, up = self.has_low & (dv < 0), self.has_high & (dv > 0)
        longest = np.concatenate([keep * below[down], keep * above[up]])
        ratios = longest / np.maximum(np.abs(np.concatenate([dv[down], dv[up]])), longest + 1e-300)
        return float(min(1.0, ratios.min(initial=1.0)))

    # ------------------------------------------------------------------------------------ line search
    def _search(
        self,
        state: State,
        dv: Vector,
        dy: Vector,
        slope: Vector,
        solver: Callable[[Vector, Vector], tuple[Vector, Vector]],
    ) -> State | None:
        """Backtracking until the filter accepts; the first refusal is followed by corrections."""
        theta, phi = self.violation(state.h), self._barrier(state.v, state.f)
        down = float(slope @ dv)
        first = alpha = self.fraction(state.v, dv)
        tiny = _length(dv, state.v) < _STILL
        while alpha > 1e-12 * first:
            f, h = self.values(state.v + alpha * dv)
            if tiny or self._accepts(f, h, state.v + alpha * dv, theta, phi, down, alpha):
                return self._moved(state, alpha * dv, alpha, dv, dy, f, h)
            if alpha == first and np.isfinite(h).all() and self.violation(h) >= theta:
                corrected = self._correct(state, dv, slope, solver, (h, alpha, theta, phi, down))
                if corrected is not None:
                    return corrected
            alpha *= 0.5
            if alpha < 1e-8 and theta > NEAR_BEST:
                return None
        return None

    def _accepts(
        self, f: float, h: Vector, v: Vector, theta: float, phi: float, down: float, alpha: float
    ) -> bool:
        """Whether the filter takes a trial point; its present point enters the filter where it should."""
        new = self._barrier(v, f) if np.isfinite(f) and np.isfinite(h).all() else np.inf
        violation = self.violation(h)
        if not np.isfinite(new) or violation > self.largest:
            return False
        noise = 1e-14 * max(1.0, abs(phi))
        if any(violation > (1 - _FILTER) * t and new > p - _FILTER * t + noise for t, p in self.filter):
            return False
        switching = down < 0 and alpha * (-down) ** 2.3 > theta**1.1
        if switching and theta <= 1e-4 * max(1.0, self.largest * 1e-4):
            return new <= phi + _ARMIJO * alpha * down + noise
        if violation <= (1 - _FILTER) * theta or new <= phi - _FILTER * theta + (
            0.0 if theta > 1e-12 else noise
        ):
            self.filter.append((theta, phi))
            return True
        return False

    def _correct(
        self,
        state: State,
        dv: Vector,
        slope: Vector,
        solver: Callable[[Vector, Vector], tuple[Vector, Vector]],
        trial: tuple[Vector, float, float, float, float],
    ) -> State | None:
        """Second-order corrections: steps that meet the constraints at the end of the refused step."""
        h, alpha, theta, phi, down = trial
        sum_h, before = alpha * state.h + h, self.violation(h)
        for _ in range(_CORRECTIONS):
            step, dy = solver(slope + self.pull(state, state.y), sum_h)
            longest = self.fraction(state.v, step)
            f, h = self.values(state.v + longest * step)
            if self._accepts(f, h, state.v + longest * step, theta, phi, down, alpha):
                return self._moved(state, longest * step, longest, dv, dy, f, h)
            if not np.isfinite(h).all() or self.violation(h) > 0.99 * before:
                return None
            sum_h, before = longest * sum_h + h, self.violation(h)
        return None

    def _moved(
        self, state: State, step: Vector, alpha: float, dv: Vector, dy: Vector, f: float, h: Vector
    ) -> State:
        """The next state, multipliers of bounds kept near mu / distance."""
        below, above = self.gaps(state.v)
        dl = self.has_low * (self.mu / below - state.lower - state.lower / below * dv)
        du = self.has_high * (self.mu / above - state.upper + state.upper / above * dv)
        keep = max(_FRACTION, 1 - self.mu)
        z, dz = np.concatenate([state.lower, state.upper]), np.concatenate([dl, du])
        falling = dz < 0
        longest = float(min(1.0, (keep * z[falling] / -dz[falling]).min(initial=1.0)))
        v = state.v + step
        near, far = self.gaps(v)
        lower, upper = state.lower + longest * dl, state.upper + longest * du
        lower = self.has_low * np.clip(lower, self.mu / near / 1e10, 1e10 * self.mu / near)
        upper = self.has_high * np.clip(upper, self.mu / far / 1e10, 1e10 * self.mu / far)
        new = State(v, f, h, state.y + alpha * dy, lower, upper)
        self.differentiate(new)
        return new

    # ------------------------------------------------------------------------------------ restoration
    def _restore(self, state: State) -> State | Literal["infeasible", "limit"]:
        """Minimizes |h|^2 / 2 until the filter takes the point; a Levenberg-Marquardt method in bounds."""
        self.restorations += 1
        theta, phi = self.violation(state.h), self._barrier(state.v, state.f)
        if self.restorations > _RESTORATIONS:
            return "limit"
        if theta <= 1e-12:
            return "limit"
        self.filter.append((theta, phi))
        dense = isinstance(state.jacobian, np.ndarray)
        v = nearer(self, state, theta) if dense else descended(self, state, theta)
        if isinstance(v, str):
            return v
        f, h = self.values(v)
        below, above = self.gaps(v)
        lower = np.minimum(1e3, self.has_low * self.mu / below)
        upper = np.minimum(1e3, self.has_high * self.mu / above)
        new = State(v, f, h, np.zeros(self.m), lower, upper)
        self.differentiate(new)
        new.y = self._estimate(new)
        return new


def _length(step: Vector, v: Vector) -> float:
    """The largest entry of a step, relative to its decision."""
    return float(np.abs(step / (1 + np.abs(v))).max(initial=0.0))


_WORDS = {
    "infeasible": "no step reduces the violation: a point where it is least was reached",
    "limit": "no step is accepted",
}
