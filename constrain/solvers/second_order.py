"""Newton's method on the KKT system with exact derivatives: `method="newton"`, for small smooth problems.

Objective, constraints, their Jacobian and the Hessian of the Lagrangian come from the compiled program on all
rows; the steps are those of the primal-dual interior point of `interior.py`. Objective and constraints are
divided by their gradient norms, at the start and again at the end when these have changed, so that the run
does not depend on the units of the problem.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from constrain.runtime.derivatives import hessian, linearize
from constrain.runtime.result import Ending, RawResult
from constrain.solvers.active import finish, least_multipliers
from constrain.solvers.fritz_john import at_limit
from constrain.solvers.interior import InteriorPoint, InteriorResult, interior_point
from constrain.solvers.kinks import PREFIX, smoothed
from constrain.solvers.records import entries_of
from constrain.solvers.saddles import ESCAPES, SADDLE, points_below, way_down
from constrain.solvers.scores import Scores, scores_of
from constrain.solvers.starts import MOVE, RETRIES, identities, inside_domain, nearby, pushed, stuck
from constrain.solvers.systems import divided, finite, lengths, pulled
from constrain.solvers.threads import threads_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.runtime.derivatives import RowTerm
    from constrain.runtime.evaluator import Evaluator, Outer
    from constrain.solvers.kinks import Kink
    from constrain.solvers.progress import Progress
    from constrain.solvers.systems import Hessian, Jacobian

    Vector = NDArray[np.float64]

__all__ = ["MANY_ROWS", "Late", "Newton", "Scaled", "usable"]

_RESCALE = 10.0
"""Change of a gradient norm between start and end after which a run is repeated in the new units."""
_ROUNDS = 4
_FAR, _CLOSE = 1e3, 1e-3
"""Size of a decision, relative to the start, that has strayed, and the barrier that keeps it near."""
_BELOW = 1e-3
"""First barrier parameter of a run that starts below a saddle."""
_FEASIBLE = 1e-6
"""Violation up to which a point that is kept at a limit counts as feasible."""
_NEGLIGIBLE = 1e-7
"""Slope of the scaled Lagrangian in a decision without bounds that is rounding; curvature, likewise."""
MANY_ROWS = 300
"""Rows with constraints above which these are eliminated row by row."""
_WARM = 1e-6
"""First barrier parameter of a run that starts at a solution of the same problem."""


@dataclass(frozen=True)
class Newton:
    """Options of the primal-dual Newton method.

    Attributes:
        tolerance: largest entry of the KKT conditions of the scaled problem at which it stops.
        iterations: most Newton steps.
        barrier: first barrier parameter; None: 0.1, or 1e-6 with multipliers to start from.
    """

    tolerance: float = 1e-9
    iterations: int = 500
    barrier: float | None = None

    name = "newton"
    minibatch = False

    def solve(
        self,
        evaluator: Evaluator,
        *,
        progress: Progress,
        multipliers: Mapping[str, Any] | None = None,
        time_limit: float | None = None,
    ) -> RawResult:
        """Runs from the current decisions (and multipliers, by part key)."""
        with threads_for(evaluator):
            return _Run(self, evaluator, progress, time_limit).run(multipliers)


class Late(Exception):  # a signal
    """The time limit has passed."""


class Scaled:
    """The problem in flat vectors, divided by scales; rows and decisions that cannot move are left out."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.parts = list(evaluator.program.parts)
        self.selected, self.shapes = self._layout()
        low, high = evaluator.decisions.bounds()
        self.free = low < high
        self.whole = np.where(self.free, evaluator.decisions.get(), low)
        self.low, self.high = low[self.free], high[self.free]
        self.f_scale = 1.0
        self.deadline = np.inf
        self.scores: Scores | None = None
        self._last: tuple[Vector, Vector, Jacobian] | None = None
        self._index()

    def _index(self) -> None:
        """What follows from the entries that are selected."""
        self._last = None
        sizes = [int(s.sum()) for s in self.selected]
        kinds = [part.kind == "==" for part in self.parts]
        self.equal = np.repeat(np.asarray(kinds, dtype=bool), sizes)
        self.ends = np.cumsum([0, *sizes])
        self.kept = np.concatenate([np.zeros(0, bool), *(s.reshape(-1) for s in self.selected)])
        self.c_scale = np.ones(len(self.equal))

    def prepare(self) -> None:
        """Finds the scores of rows, through which derivatives are cheap."""
        self.scores = scores_of(self.evaluator, self.on_time)

    def merge(self, x: Vector) -> None:
        """Leaves out constraints that are multiples of others: their values and gradients at two points are.

        What is left has all of the multiplier. Without it, a copy would push twice in the barrier, and might
        lead to another local optimum.
        """
        near = np.clip(x + 1e-3 * np.random.default_rng(0).normal(size=len(x)), self.low, self.high)
        prints = [np.zeros((len(self.equal), 0)), self.equal[:, None] * 1.0]
        for point in (x, near):
            gradients = self.linearized(point)[1]
            assert isinstance(gradients, np.ndarray)  # no row blocks here
            norms = np.asarray([usable(norm) for norm in np.linalg.norm(gradients, axis=1)])[:, None]
            prints += [gradients / norms, self.raw()[1][:, None] / norms]
        rows = np.concatenate(prints, 1)
        if not np.isfinite(rows).all() or not len(rows):
            return
        first = np.unique(rows.round(10), axis=0, return_index=True)[1]
        if len(first) == len(rows):
            return
        unique = np.zeros(len(rows), dtype=bool)
        unique[first] = True
        for k, chosen in enumerate(self.selected):
            chosen[chosen] = unique[self.ends[k] : self.ends[k + 1]]
        self._index()

    def _layout(self) -> tuple[list[NDArray[np.bool_]], list[tuple[int, ...]]]:
        """Per part, which entries of its residual count, and the residual's shape."""
        outer = self.evaluator.full("primal")
        selected: list[NDArray[np.bool_]] = []
        for i, residual in enumerate(outer.residuals):
            if residual is not None:
                selected.append(np.ones(tuple(residual.shape), dtype=bool))
                continue
            rows, mask = self.evaluator.row_residuals(i, "primal")
            chosen = np.ones(tuple(rows.shape), dtype=bool)
            if mask is not None:
                own = mask.cpu().numpy().astype(bool)
                chosen &= own.reshape(-1, *(1 for _ in range(chosen.ndim - 1)))
            selected.append(chosen)
        return selected, [s.shape for s in selected]

    # ---- points
    def on_time(self) -> None:
        """Raises `Late` after the deadline."""
        if time.perf_counter() > self.deadline:
            raise Late

    def place(self, x: Vector) -> None:
        """Writes the free decisions."""
        self.on_time()
        self.whole[self.free] = x
        self.evaluator.decisions.set(self.whole)

    def raw(self) -> tuple[float, Vector]:
        """Objective and residuals at the current decisions, unscaled."""
        outer = self.evaluator.full("primal") if self.scores is None else self.scores.values()
        pieces: list[Vector] = []
        for i, (residual, chosen) in enumerate(zip(outer.residuals, self.selected, strict=True)):
            found = self.evaluator.row_residuals(i, "primal")[0] if residual is None else residual
            pieces.append(_array(found)[chosen])
        return float(outer.objective), np.concatenate([np.zeros(0), *pieces])

    def values(self, x: Vector) -> tuple[float, Vector]:
        """F and c, scaled."""
        self.place(x)
        f, c = self.raw()
        return f / self.f_scale, c / self.c_scale

    def linearized(self, x: Vector) -> tuple[Vector, Jacobian]:
        """Gradient of f and Jacobian of c, unscaled; the last ones are kept."""
        self.place(x)
        if self._last is None or not np.array_equal(self._last[0], x):
            self._last = (x.copy(), *self._differentiated())
        return self._last[1:]

    def _differentiated(self) -> tuple[Vector, Jacobian]:
        """The same at the decisions as they are."""
        scores = self.scores
        found = linearize(self.evaluator, self.on_time) if scores is None else scores.linearize()
        return _array(found.gradient)[self.free], _array(found.jacobian)[np.ix_(self.kept, self.free)]

    def derivatives(self, x: Vector) -> tuple[Vector, Jacobian]:
        """Gradient of f and Jacobian of c, scaled."""
        gradient, jacobian = self.linearized(x)
        return gradient / self.f_scale, divided(jacobian, self.c_scale)

    def hessian(self, x: Vector, y: Vector) -> Hessian:
        """Hessian of the scaled Lagrangian."""
        self.place(x)
        has_rows = any(part.rows is not None for part in self.parts)
        lagrangian, per_row = self.lagrangian(y)
        term = per_row if has_rows else None
        if self.scores is None:
            found = hessian(self.evaluator, lagrangian, term, check=self.on_time)
        else:
            found = self.scores.hessian(lagrangian, term, self.on_time)
        return _array(found)[np.ix_(self.free, self.free)]

    def lagrangian(self, y: Vector) -> tuple[Callable[[Outer], Tensor], RowTerm]:
        """The scaled Lagrangian as a function of outer values, and what constraints per row add to it."""
        weights = self._spread(y / self.c_scale)

        def total(outer: Outer) -> Tensor:
            found = outer.objective / self.f_scale
            for residual, weight in zip(outer.residuals, weights, strict=True):
                if residual is not None:
                    found = found + (residual * weight.to(residual)).sum()
            return found

        def per_row(i: int, residual: Tensor, index: Tensor | slice) -> Tensor:
            return (residual * weights[i].to(residual)[index]).sum()

        return total, per_row

    def _spread(self, flat: Vector) -> list[Tensor]:
        """One tensor per part out of a flat vector over the entries that count."""
        found: list[Tensor] = []
        for k, chosen in enumerate(self.selected):
            piece = np.zeros(chosen.shape)
            piece[chosen] = flat[self.ends[k] : self.ends[k + 1]]
            found.append(torch.as_tensor(piece))
        return found

    def violation(self, c: Vector) -> float:
        """The largest violation among residuals, in their units."""
        return float(np.where(self.equal, np.abs(c), c).max(initial=0.0))

    def lower_bound(self, x: Vector, y: Vector) -> float | None:
        """A bound of the optimal value of a convex problem, from any multipliers (weak duality).

        With the slopes r of the Lagrangian at x, f is at least L(x, y) + sum_j min over the bounds of
        r_j (z_j - x_j) at every feasible z.

        Args:
            x: a point, (n,).
            y: multipliers of the scaled problem, (m,); those of inequalities are >= 0.

        Returns:
            In the units of the problem as written; None where a slope of a decision without bounds makes it
            minus infinity.
        """
        f, c = self.values(x)
        gradient, jacobian = self.derivatives(x)
        r = gradient + pulled(jacobian, y)
        ends = np.where(r > 0, self.low, self.high)
        closed = np.isfinite(ends)
        if not np.isfinite(r).all() or np.abs(r[~closed]).max(initial=0.0) > _NEGLIGIBLE:
            return None
        return (f + float(y @ c) + float(r[closed] @ (ends[closed] - x[closed]))) * self.f_scale

    # ---- scales
    def measure(self, x: Vector) -> tuple[float, Vector]:
        """Gradient norms of objective and constraints (residuals where these are 0), or the user's units."""
        gradient, jacobian = self.linearized(x)
        norms = lengths(jacobian)
        norms = np.where(norms > 0, norms, np.abs(self.raw()[1]))
        for k, part in enumerate(self.parts):
            if part.scale is not None:
                norms[self.ends[k] : self.ends[k + 1]] = part.scale
        return usable(np.linalg.norm(gradient)), np.asarray([usable(norm) for norm in norms])

    def pack(self, multipliers: Mapping[str, Any]) -> Vector:
        """Multipliers by part key as a flat vector of the scaled problem."""
        flat = np.zeros(len(self.equal))
        for k, (part, chosen) in enumerate(zip(self.parts, self.selected, strict=True)):
            if part.key in multipliers:
                given = np.asarray(multipliers[part.key], dtype=np.float64).reshape(chosen.shape)
                flat[self.ends[k] : self.ends[k + 1]] = given[chosen]
        return flat * self.c_scale / self.f_scale

    def unpack(self, y: Vector) -> dict[str, NDArray[Any]]:
        """Multipliers by part key, of the problem as written."""
        pieces = self._spread(y * self.f_scale / self.c_scale)
        return {part.key: piece.numpy() for part, piece in zip(self.parts, pieces, strict=True)}


def _array(t: Tensor) -> Vector:
    return t.detach().cpu().double().numpy()


def usable(norm: Any) -> float:
    """A gradient norm as a scale: 1 where it is too small or too large to divide by."""
    return float(norm) if 1e-8 < norm < 1e8 else 1.0


@dataclass(frozen=True)
class _Good:
    """A feasible point with its multipliers, in the units that they have."""

    objective: float
    x: Vector
    y: Vector
    f_scale: float
    c_scale: Vector


@dataclass
class _Run:
    options: Newton
    evaluator: Evaluator
    progress: Progress
    time_limit: float | None

    def run(self, multipliers: Mapping[str, Any] | None) -> RawResult:
        """Interior-point runs until the scales no longer change; the last point is written."""
        start = time.perf_counter()
        self.evaluator.refresh_scales()
        self.evaluator, kinks = smoothed(self.evaluator)
        self.problem = problem = _stated(self.evaluator, kinks)
        problem.deadline = np.inf if self.time_limit is None else start + self.time_limit
        self.history: list[dict[str, Any]] = []
        self.done = 0
        self.best = problem.whole[problem.free].copy()
        self.y = np.zeros(len(problem.equal))
        self.good: _Good | None = None
        self.saddle = 0.0
        message, unqualified = "", False
        try:
            found = self._rounds(multipliers)
            ending, message = _ENDINGS[found.ending], found.message
            unqualified = found.ending == "growing"
            self.best, self.y = found.x, found.y
        except Late:
            ending, message = "limit", "time limit"
        except KeyboardInterrupt:
            ending, message = "interrupted", "stopped by the user; the last point is returned"
        problem.deadline = np.inf
        if ending in ("limit", "interrupted"):
            self._take_feasible()
        bound = problem.lower_bound(self.best, self.y) if ending == "converged" else None
        problem.place(self.best)
        prices = None if unqualified else self._multipliers()
        if self.saddle and self.history:
            self.history[-1]["curvature"] = self.saddle
        return RawResult(
            ending, prices, "primal-dual interior point (Newton)",
            time.perf_counter() - start, self.done, self.history, message=message, bound_if_convex=bound,
        )  # fmt: skip

    def _take_feasible(self) -> None:
        """The best feasible point that was seen, where the last one is not feasible."""
        problem, good = self.problem, self.good
        if good is None:
            return
        problem.place(self.best)
        violation = problem.violation(problem.raw()[1])
        if not violation <= _FEASIBLE:
            self.best, problem.f_scale, problem.c_scale, self.y = good.x, good.f_scale, good.c_scale, good.y

    def _multipliers(self) -> dict[str, NDArray[Any]]:
        """By part key, of the problem as it was given."""
        found = self.problem.unpack(self.y)
        return {key: value for key, value in found.items() if not key.startswith(PREFIX)}

    def _rounds(self, multipliers: Mapping[str, Any] | None) -> InteriorResult:
        """A run from the start, others where that ends at a violation without a gradient or at a saddle."""
        problem = self.problem
        problem.prepare()
        x = self._start(problem.whole[problem.free].copy())
        problem.merge(x)
        self.y = np.zeros(len(problem.equal))
        problem.f_scale, problem.c_scale = problem.measure(x)
        y = problem.pack(multipliers) if multipliers else None
        settings = InteriorPoint(self.options.tolerance, self.options.iterations)
        if y is not None:
            settings = replace(settings, barrier=_WARM, push=_WARM)
        if self.options.barrier is not None:
            settings = replace(settings, barrier=self.options.barrier)
        found = self._unstrayed(self._settled(x, y, settings), x, settings)
        for k in range(RETRIES):
            if found.ending not in ("infeasible", "limit") or not self._stuck(found.x, 1e-5):
                break
            scales = problem.f_scale, problem.c_scale
            again = self._settled(self._moved(found.x, k + 1), None, settings)
            if again.ending == "limit":
                problem.f_scale, problem.c_scale = scales
            else:
                found = again
        found = self._off_saddles(found)
        if found.ending == "converged":
            found = replace(found, y=least_multipliers(problem, found.x, found.y))
        return found

    def _start(self, x: Vector) -> Vector:
        """The start, or a point near it in the domain at which no violated constraint is flat."""
        problem = self.problem
        inward = identities(self.evaluator.decisions.tensors)
        inward = None if inward is None or len(inward) != len(problem.whole) else inward[problem.free]
        x = inside_domain(self._finite, x, problem.low, problem.high, inward)
        for k in range(RETRIES):
            if not self._stuck(x):
                break
            moved = self._moved(x, k)
            x = moved if self._finite(moved) else x
        return x

    def _finite(self, x: Vector) -> bool:
        """Whether the problem and its first derivatives are finite a little inside of the bounds."""
        problem = self.problem
        x = pushed(x, problem.low, problem.high)
        f, c = problem.values(x)
        if not (np.isfinite(f) and np.isfinite(c).all()):
            return False
        gradient, jacobian = problem.derivatives(x)
        return bool(np.isfinite(gradient).all() and finite(jacobian))

    def _stuck(self, x: Vector, flat: float = 1e-8) -> bool:
        c = self.problem.values(x)[1]
        norms = lengths(self.problem.derivatives(x)[1])
        return stuck(self.problem.equal, c, norms, flat)

    def _moved(self, x: Vector, seed: int) -> Vector:
        direction = np.random.default_rng(seed).normal(size=len(x))
        return nearby(x, self.problem.low, self.problem.high, direction, MOVE * 3**seed)

    def _settled(self, x: Vector, y: Vector | None, settings: InteriorPoint) -> InteriorResult:
        """One run with its last digits, repeated in new units where it has not converged in these."""
        problem = self.problem
        found = self._once(x, y, settings)
        for done in range(_ROUNDS + 1):
            if found.ending != "converged":
                break
            f_scale, c_scale = problem.measure(found.x)
            change = np.abs(np.log([f_scale / problem.f_scale, *(c_scale / problem.c_scale)])).max()
            y = found.y
            if rescaled := change > np.log(_RESCALE):
                y = found.y * (problem.f_scale / f_scale) * (c_scale / problem.c_scale)
                problem.f_scale, problem.c_scale = f_scale, c_scale
            end, prices, error = finish(problem, found.x, y)
            if not rescaled or error <= settings.tolerance or done == _ROUNDS:
                return replace(found, x=end, y=prices)
            settings = replace(settings, barrier=1e-8, push=1e-10)
            again = self._once(found.x, y, settings)
            if again.ending != "converged":
                return replace(found, x=end, y=prices)
            found = again
        return found

    def _unstrayed(self, found: InteriorResult, x: Vector, settings: InteriorPoint) -> InteriorResult:
        """A run with a smaller barrier, where that is lower and the first one drove decisions far out.

        The barrier rewards distance to a bound without end. Where the problem is flat in a decision, such as
        the rate of an exponential that has vanished, that alone decides, and the end is no optimum.
        """
        far = np.abs(found.x) > _FAR * (1 + np.abs(x))
        if found.ending != "converged" or not far.any() or settings.barrier <= _CLOSE:
            return found
        problem = self.problem
        hessian = problem.hessian(found.x, found.y)
        if not isinstance(hessian, np.ndarray) or np.abs(hessian[far]).max() > _NEGLIGIBLE:
            return found
        scales, level = (problem.f_scale, problem.c_scale), problem.values(found.x)[0] * problem.f_scale
        problem.f_scale, problem.c_scale = problem.measure(x)
        again = self._settled(x, None, replace(settings, barrier=_CLOSE))
        lower = problem.values(again.x)[0] * problem.f_scale < level
        if again.ending == "converged" and lower:
            return again
        problem.f_scale, problem.c_scale = scales
        return found

    def _off_saddles(self, found: InteriorResult) -> InteriorResult:
        """Runs from below the points that only first derivatives hold; the best one that converged."""
        problem = self.problem
        if problem.scores is not None and problem.scores.convex:
            return found
        for _ in range(ESCAPES):
            if found.ending != "converged":
                break
            way = way_down(problem, found.x, found.y)
            if way is None:
                break
            below = self._below(found, way[0])
            if below is None:
                self.saddle = way[1]
                return replace(found, message=SADDLE)
            found = below
        return found

    def _below(self, found: InteriorResult, direction: Vector) -> InteriorResult | None:
        """The end of a run from a point below a saddle, where that is lower."""
        problem = self.problem
        scales, rows = (problem.f_scale, problem.c_scale), len(self.history)
        level = problem.values(found.x)[0] * problem.f_scale
        settings = InteriorPoint(self.options.tolerance, self.options.iterations, barrier=_BELOW, push=_BELOW)
        for start in list(points_below(problem, found.x, found.y, direction)):
            new = self._settled(start, None, settings)
            if new.ending == "unbounded":
                return new
            lower = problem.values(new.x)[0] * problem.f_scale
            if new.ending == "converged" and lower < level - 1e-9 * max(1.0, abs(level)):
                return new
            problem.f_scale, problem.c_scale = scales
            del self.history[rows:]
        return None

    def _once(self, x: Vector, y: Vector | None, settings: InteriorPoint) -> InteriorResult:
        """One run; where multipliers grow it ends at their limit, and goes on where there is none."""
        self.best = x
        found = interior_point(self.problem, x, y, options=settings, record=self._record)
        if found.ending != "growing":
            return found
        limit = at_limit(self.problem, found)
        if limit is not None:
            return limit
        settings = replace(settings, barrier=_WARM, push=_WARM, watchful=False)
        return interior_point(self.problem, found.x, found.y, options=settings, record=self._record)

    def _record(self, k: int, f: float, c: Vector, y: Vector, error: float, mu: float) -> None:
        problem = self.problem
        self.best, self.y, c = problem.whole[problem.free].copy(), y.copy(), c * problem.c_scale
        row: dict[str, Any] = {
            "step": self.done,
            "epoch": self.done,
            "objective": self.evaluator.program.sign * f * problem.f_scale,
            "violation": problem.violation(c),
            "stationarity": float(error),
            "barrier": mu,
        }
        level = f * problem.f_scale
        if row["violation"] <= _FEASIBLE and (self.good is None or level < self.good.objective):
            self.good = _Good(level, self.best, self.y, problem.f_scale, problem.c_scale)
        prices = problem.unpack(y)
        for part, chosen, at in zip(problem.parts, problem.selected, problem.ends, strict=False):
            if chosen.all() and not part.key.startswith(PREFIX):
                row |= entries_of(part.key, c[at : at + chosen.size], prices[part.key])
        self.history.append(row)
        self.done += k > 0
        self.progress.update(self.done, self.options.iterations, row)


def _stated(evaluator: Evaluator, kinks: Sequence[Kink]) -> Scaled:
    """With a block for every row where rows have slack variables or many constraints, else dense."""
    program = evaluator.program
    own = sum(evaluator.populations[part.rows].rows for part in program.parts if part.rows is not None)
    if kinks or own > MANY_ROWS:
        from constrain.solvers.row_problem import RowScaled  # noqa: PLC0415  # it extends `Scaled`

        return RowScaled(evaluator, kinks)
    return Scaled(evaluator)


_ENDINGS: dict[str, Ending] = {
    "converged": "converged",
    "infeasible": "likely_infeasible",
    "unbounded": "unbounded",
    "growing": "limit",
    "limit": "limit",
}
