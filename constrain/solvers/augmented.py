"""Augmented Lagrangian on the full data with exact gradients, inner problems by Newton or L-BFGS-B.

Powell (1969), Hestenes (1969), Rockafellar (1973); safeguards after Birgin & Martinez (2014). With r the
residual of a part divided by its gradient norm and f the objective divided by its own,

    A(theta) = f + sum_eq (y r + rho/2 r^2) + sum_ineq (max(0, y + rho r)^2 - y^2) / (2 rho)

is minimized over the decisions (bounds kept exactly), then y <- y + rho r, clipped at 0 for inequalities.
Rows of constraints per row are treated alike. Division by gradient norms makes the run independent of the
units of the objective and of every constraint; where the user gave a unit (`.scale(s)`), that one is used.

A constraint per row relaxed at a cost with a kink, h(z) = a z + b/2 z^2 with a > 0, stays a constraint
here: minimized over its slack, its term of A is that above less max(0, |y + rho r| - a)^2 / (2 (b + rho)),
which is smooth, and its multiplier is capped accordingly.

Rates: the inner problem uses the surrogate, shifted by the difference to the exact rate at the last outer
iterate, so that at convergence the exact rate meets its bound. Quantiles that decisions move are smooth ones
in the inner problem, of the level at which they are exact at the last outer iterate.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import scipy
import torch
from scipy.optimize import minimize as _minimize  # pyright: ignore[reportUnknownVariableType]  # untyped
from torch import Tensor

from constrain.runtime.derivatives import curvature
from constrain.runtime.multipliers import part_shapes
from constrain.runtime.result import Ending, RawResult
from constrain.runtime.slacks import Slacks
from constrain.runtime.tails import follow_quantiles, moving_quantiles
from constrain.solvers.escapes import NO_CLOSER, Escapes
from constrain.solvers.gradient_norms import gradient_norms
from constrain.solvers.kinks import kinks_left
from constrain.solvers.newton import projected_gradient, projected_newton, truncated_newton
from constrain.solvers.progress import Watched
from constrain.solvers.records import entries_of
from constrain.solvers.row_costs import row_costs, row_relaxations
from constrain.solvers.state import evaluator_state, restore, restore_evaluator, state
from constrain.solvers.threads import threads_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from constrain.lowering.program import Part
    from constrain.runtime.evaluator import Evaluator, Outer
    from constrain.solvers.progress import Progress

__all__ = ["AugmentedLagrangian"]

SETTLED = 5
"""Inner problems solved to tolerance after which a feasible point is taken: rates jump across bounds."""
STALL_TOLERANCE = 1e-5
STATIONARY_VIOLATION = 1e-2
"""Slope of half the squared scaled violation, relative to the violation, at which it is at its least."""
STALLED = 4
"""Inner problems in a row that bring a feasible point no closer to balance, after which it is taken."""
FEASIBLE = 1e-6
"""Violation up to which a point that is kept at a limit counts as feasible."""
SECOND_ORDER_SIZE = 1_000
SECOND_ORDER_NUMBERS = 10_000_000
"""Most decisions, and decisions times rows, for which a dense Hessian is formed."""


@dataclass(frozen=True)
class AugmentedLagrangian:
    """Options of the full-data augmented Lagrangian.

    Attributes:
        tolerance: scaled stationarity, feasibility and complementarity at which it stops.
        outer: most multiplier updates.
        inner: most L-BFGS-B iterations per inner problem.
        memory: stored L-BFGS pairs.
        penalty: first penalty on the scaled problem; None chooses it from objective and violation.
        growth: factor of the penalty when the violation falls too slowly.
        decrease: fraction to which the violation must fall for the penalty to stay.
        second_order: projected Newton with a dense Hessian for the inner problems, else L-BFGS-B; None
            decides by size.
        products: where no dense Hessian is formed, Newton's method by products with it and conjugate
            gradients in the place of L-BFGS-B.
        max_penalty: largest penalty; reaching it while infeasible means `likely_infeasible`.
    """

    tolerance: float = 1e-8
    outer: int = 60
    inner: int = 1000
    memory: int = 40
    penalty: float | None = None
    growth: float = 5.0
    decrease: float = 0.25
    max_penalty: float = 1e9
    second_order: bool | None = None
    products: bool = False

    name = "augmented"
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


UNBOUNDED = -1e11
"""Scaled objective (plus penalties) below which the run calls a problem unbounded, relative to its start."""


class _Stop(Exception):  # a signal
    """The time limit passed inside the inner solver."""


class _Falling(Exception):  # a signal
    """The merit fell below `UNBOUNDED` inside the inner solver."""


@dataclass
class _Point:
    """A full evaluation: objective, exact residuals, scaled quantities."""

    objective: float
    residuals: list[Tensor]
    violation: float
    scaled_violation: float
    complementarity: float


@dataclass
class _Place:
    """Where the outer loop is; `tolerance` is that of the next inner problem."""

    best: float  # least scaled violation, or failure of complementarity, of an inner problem
    outer: int = 0
    tolerance: float = 1e-2
    settled: int = 0  # inner problems that were solved to the tolerance of the run
    stalled: int = 0  # inner problems in a row that came no closer to balance
    balance: float = np.inf


_STORED = ("y", "shift", "f_scale", "c_scale", "norms", "rho", "magnitude", "good", "evaluations", "history")
"""Fields of a run that a checkpoint has, besides its place and the decisions."""


@dataclass
class _Run:
    options: AugmentedLagrangian
    evaluator: Evaluator
    progress: Progress
    time_limit: float | None
    start: float = field(default_factory=time.perf_counter)
    evaluations: int = 0
    history: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def __post_init__(self) -> None:
        self.original = self.evaluator
        self.costs: dict[str, tuple[Tensor, Tensor]] = {}
        if any("linear" in relaxation.cost for relaxation in row_relaxations(self.evaluator.program)):
            self.evaluator = self.original.viewed(self.original.program.judged)
        self.parts: list[Part] = list(self.evaluator.program.parts)
        self.shapes = part_shapes(self.evaluator)
        if self.evaluator is not self.original:
            self.costs = row_costs(self.evaluator, self.shapes)
        self.dtype = torch.float64
        self.y = [torch.zeros(shape, dtype=self.dtype, device=self.evaluator.device) for shape in self.shapes]
        self.shift: list[Tensor | float] = [0.0 for _ in self.parts]
        rows = max([p.rows for p in self.evaluator.populations.values()], default=1)
        size = self.evaluator.decisions.size
        streamed = any(p.data.streamed for p in self.evaluator.populations.values())
        auto = size <= SECOND_ORDER_SIZE and size * rows <= SECOND_ORDER_NUMBERS and not streamed
        self.second_order = auto if self.options.second_order is None else self.options.second_order
        self.f_scale = 1.0
        self.c_scale = [1.0 for _ in self.parts]
        self.rho = 1.0
        self.magnitude = 1.0
        self.norms = [1.0 for _ in self.parts]
        self.exact = not (self.evaluator.program.has_rates or self.costs)
        self.quantiles = moving_quantiles(self.evaluator.program)
        self.good: tuple[float, Tensor] | None = None
        self.level, self.worst, self.costly = np.inf, 0.0, 0.0
        self.begun = self.escaping = False
        self.checkpoints = self.progress.checkpoints if isinstance(self.progress, Watched) else None
        self.place = _Place(np.inf)

    # ------------------------------------------------------------------------------------- evaluation
    def residuals(self, mode: str) -> tuple[float, list[Tensor]]:
        """Objective and all residuals on the full data."""
        outer = self.evaluator.full(mode)
        found: list[Tensor] = []
        for i, residual in enumerate(outer.residuals):
            found.append((self._rows(i, mode) if residual is None else residual).to(self.dtype))
        return float(outer.objective.detach()), found

    def _rows(self, i: int, mode: str) -> Tensor:
        """Residuals of a constraint per row; 0 for rows that it does not select."""
        rows, mask = self.evaluator.row_residuals(i, mode)
        return rows if mask is None else torch.where(_widen(mask, rows), rows, 0.0)

    def point(self) -> _Point:
        """Values at the current decisions."""
        objective, residuals = self.residuals("exact")
        violation = scaled = complementarity = 0.0
        for part, r, y, scale in zip(self.parts, residuals, self.y, self.c_scale, strict=True):
            if part.key in self.costs:
                objective += self._relaxed(part, r)
                step = self._multiplier(part, y + r / scale, 1.0, scale) - y
                complementarity = max(complementarity, float(step.abs().amax()) if r.numel() else 0.0)
                continue
            worst = float((r.abs() if part.kind == "==" else r.clamp(min=0)).amax()) if r.numel() else 0.0
            violation = max(violation, worst)
            scaled = max(scaled, worst / scale)
            if part.kind == "<=" and r.numel():
                complementarity = max(complementarity, float(torch.minimum(y, -r / scale).abs().amax()))
        return _Point(objective, residuals, violation, scaled, complementarity)

    def merit(self, flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """A(theta) and its gradient, exact on the full data."""
        self._check_time()
        self._go_to(flat)
        self.evaluations += 1
        has_rows = any(part.rows is not None for part in self.parts)
        self.worst = 0.0
        value, gradient = self.evaluator.pull([self._outer_term], self._row_term if has_rows else None)[0]
        if self.exact and self.worst <= FEASIBLE and (self.good is None or self.level < self.good[0]):
            self.good = self.level, torch.tensor(flat)
        flat_gradient = np.concatenate([g.detach().cpu().double().numpy().reshape(-1) for g in gradient])
        if not (np.isfinite(value) and np.isfinite(flat_gradient).all()):
            return 1e300, np.zeros_like(flat_gradient)
        if value < UNBOUNDED * self.magnitude:
            raise _Falling
        return value, flat_gradient

    def _go_to(self, flat: NDArray[np.float64]) -> None:
        """Moves the decisions, and the quantiles that follow them in the inner problem."""
        self.evaluator.decisions.set(flat)
        follow_quantiles(self.evaluator, self.quantiles)

    def _check_time(self, ahead: float = 0.0) -> None:
        if self.time_limit is not None and time.perf_counter() + ahead - self.start > self.time_limit:
            raise _Stop

    def _outer_term(self, outer: Outer) -> Tensor:
        self.level = float(outer.objective.detach())
        total = outer.objective.to(self.dtype) / self.f_scale
        for i, residual in enumerate(outer.residuals):
            if residual is not None:
                total = total + self._augmented(i, residual.to(self.dtype), self.y[i])
        return total

    def _row_term(self, i: int, residual: Tensor, index: Tensor | slice) -> Tensor:
        return self._augmented(i, residual.to(self.dtype), self.y[i][index], index)

    def _augmented(self, i: int, residual: Tensor, y: Tensor, index: Tensor | slice = slice(None)) -> Tensor:
        scaled = residual / self.c_scale[i] + self.shift[i]
        part = self.parts[i]
        off = residual.detach().abs() if part.kind == "==" else residual.detach()
        self.worst = max(self.worst, float(off.amax()) if off.numel() else 0.0)
        moved = y + self.rho * scaled
        reached = moved.abs() if part.kind == "==" else moved.clamp(min=0)
        total = (reached.square() - y.square()).sum() / (2 * self.rho)
        if part.key not in self.costs:
            return total
        cap, curvature = self._cost(part, self.c_scale[i], index)
        return total - ((reached - cap).clamp(min=0).square() / (2 * (curvature + self.rho))).sum()

    # ------------------------------------------------------------------------------------- relaxations
    def _cost(self, part: Part, scale: float, index: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """h'(0) and h'' of some rows of a relaxed part, on the scaled problem."""
        linear, squared = (weight[index] for weight in self.costs[part.key])
        return linear * scale / self.f_scale, squared * scale**2 / self.f_scale

    def _relaxed(self, part: Part, residual: Tensor) -> float:
        """What relaxing a part costs at these residuals."""
        linear, squared = self.costs[part.key]
        z = residual.abs() if part.kind == "==" else residual.clamp(min=0)
        return float((linear * z + 0.5 * squared * z.square()).sum())

    def _multiplier(self, part: Part, moved: Tensor, rho: float, scale: float) -> Tensor:
        """The multiplier after a step to `moved` = y + rho r, on the scaled problem."""
        reached = moved if part.kind == "==" else moved.clamp(min=0)
        if part.key not in self.costs:
            return reached
        cap, curvature = self._cost(part, scale)
        return reached - reached.sign() * (reached.abs() - cap).clamp(min=0) * rho / (curvature + rho)

    # ------------------------------------------------------------------------------------------ setup
    def calibrate(self) -> None:
        """Scales by gradient norms at the start."""
        own, *self.norms = gradient_norms(self.evaluator, self.y)
        self.f_scale = _usable(own)
        self.c_scale = [  # a gradient of 0 says nothing about units: those of the residual do
            part.scale or _usable(norm or self._size(i))
            for i, (part, norm) in enumerate(zip(self.parts, self.norms, strict=True))
        ]

    def _size(self, i: int) -> float:
        """Root mean square of the residuals of a part."""
        found = self.evaluator.full("primal").residuals[i]
        if found is None:
            found = self.evaluator.row_residuals(i, "primal")[0]
        return float(found.detach().double().square().mean().sqrt()) if found.numel() else 0.0

    def first_penalty(self, point: _Point) -> float:
        """2 |f| / |r|^2 on the scaled problem, within [0.1, 1000] (Birgin & Martinez 2014, section 12.4)."""
        if self.options.penalty is not None:
            return self.options.penalty
        square = sum(
            float((r / s if p.kind == "==" else (r / s).clamp(min=0)).square().sum())
            for p, r, s in zip(self.parts, point.residuals, self.c_scale, strict=True)
        )
        return min(max(2 * max(1.0, abs(point.objective) / self.f_scale) / max(square, 1e-12), 0.1), 1e3)

    # ------------------------------------------------------------------------------------------- loop
    def run(self, multipliers: Mapping[str, Any] | None) -> RawResult:
        """The outer loop."""
        self.evaluator.refresh_scales()
        (escapes := Escapes(self)).begin()
        for i, part in enumerate(self.parts):
            if multipliers and part.key in multipliers:
                given = torch.as_tensor(multipliers[part.key]).to(self.y[i])
                self.y[i] = given.reshape(self.y[i].shape) * self.c_scale[i] / self.f_scale
        ending: Ending = "limit"
        message = ""
        kept = self.evaluator.decisions.get()
        try:
            if self.checkpoints is not None:
                self.checkpoints.listen()
            ending, message = self.loop()
            self.escaping = True  # short, and it repeats itself: a run that is continued starts it again
            ending, message = escapes.after(ending, message)
        except _Stop:
            ending, message = "limit", "time limit"
        except KeyboardInterrupt:
            ending, message = "interrupted", "stopped by the user; the last point is returned"
        finally:
            if self.checkpoints is not None:
                self.checkpoints.close()
        if ending in ("limit", "interrupted") and self.good is not None and self.point().violation > FEASIBLE:
            self.evaluator.decisions.set(self.good[1].numpy())
        if not np.isfinite(self.evaluator.decisions.get()).all():
            self.evaluator.decisions.set(kept)
            ending, message = "diverged", "non-finite decisions; the start is returned"
        if self.original is not self.evaluator or self.quantiles:
            self.original.refresh_scales(decisions=False)
        slacks = Slacks(self.original)
        if slacks.tensors:
            slacks.settle(self.original.full("exact").residuals)
        found = self.multipliers()
        inner = f"L-BFGS-B, scipy {scipy.__version__}"
        if self.second_order or self.options.products:
            inner = f"{'projected' if self.second_order else 'truncated'} Newton"
        solver = f"augmented Lagrangian ({inner})"
        seconds = time.perf_counter() - self.start
        return RawResult(ending, found, solver, seconds, self.evaluations, self.history, message=message)

    def multipliers(self) -> dict[str, NDArray[Any]]:
        """By part key, of the problem as written."""
        known = zip(self.parts, self.y, self.c_scale, strict=True)
        return {part.key: (y * self.f_scale / scale).cpu().numpy() for part, y, scale in known}

    # ------------------------------------------------------------------------------------------- loop
    def loop(self) -> tuple[Ending, str]:
        options, decisions = self.options, self.evaluator.decisions
        low, high = decisions.bounds()
        point = self.point()
        self.rho = self.first_penalty(point)
        self.magnitude = max(1.0, abs(point.objective) / self.f_scale)
        place = self.place = _Place(point.scaled_violation)
        self._resume()
        for outer in range(place.outer, options.outer):
            place.outer = outer
            self._store()
            self._shift()
            place.tolerance = max(0.1 * options.tolerance, place.tolerance)
            start = decisions.get()
            try:
                x, gradient = self._minimize(low, high, place.tolerance)
            except _Falling:
                if self.rho < options.max_penalty and self.point().scaled_violation > options.tolerance:
                    self.rho = min(100 * self.rho, options.max_penalty)  # the penalty may be what was weak
                    decisions.set(start)
                    self.evaluator.refresh_scales(decisions=False)
                    continue
                return "unbounded", "the objective falls without bound"
            self._go_to(x)
            stationarity = float(np.abs(projected_gradient(x, gradient, low, high)).max(initial=0.0))
            inner = self._update()
            if self.evaluator.program.has_rates or self.evaluator.program.tails:
                self.evaluator.refresh_scales(decisions=False)  # thresholds are minimized over, too
            point = self.point()
            self._record(outer, point, stationarity)
            worst = max(point.scaled_violation, point.complementarity)
            if stationarity <= max(options.tolerance, place.tolerance) and worst <= options.tolerance:
                if place.tolerance <= options.tolerance:
                    return "converged", ""
                place.tolerance = 0.1 * options.tolerance
                continue
            place.settled += int(max(stationarity, inner) <= options.tolerance)
            if place.settled >= SETTLED and point.scaled_violation <= options.tolerance:
                return "converged", "up to the steps in which rates move"
            place.stalled = place.stalled + 1 if max(stationarity, inner) > 0.5 * place.balance else 0
            place.balance = min(place.balance, max(stationarity, inner))
            if place.stalled >= STALLED and place.tolerance <= stationarity and worst <= STALL_TOLERANCE:
                kinks = kinks_left(self.evaluator.program) is not None
                why = "it jumps at kinks" if kinks else "the inner method reaches no more digits"
                return "limit", f"{NO_CLOSER}: {why}"
            solved = stationarity <= 10 * place.tolerance or place.stalled >= STALLED
            if solved and inner > max(options.decrease * place.best, options.tolerance):
                self.rho = min(self.rho * options.growth, options.max_penalty)
                if self.rho >= options.max_penalty and point.scaled_violation > 1e3 * options.tolerance:
                    return self._infeasible(point, low, high)
            place.best = min(place.best, inner)
            place.tolerance *= 0.2
        return "limit", f"{options.outer} multiplier updates"

    def _state(self) -> dict[str, Any]:
        """Copies of everything that the next inner problem depends on."""
        fields = {name: getattr(self, name) for name in _STORED}
        views = [evaluator_state(evaluator) for evaluator in (self.evaluator, self.original)]
        seconds = time.perf_counter() - self.start
        return {"seconds": seconds, "fields": state(fields, self.place), "views": views}

    def _store(self) -> None:
        if self.checkpoints is not None and not self.escaping and self.checkpoints.due(self.evaluations):
            self.checkpoints.save(self.evaluations, self._state)

    def _resume(self) -> None:
        """Goes on from a checkpoint, at the start of an inner problem."""
        stored = None if self.checkpoints is None else self.checkpoints.resumed
        if stored is None or self.begun:
            return
        self.begun = True
        fields = {name: getattr(self, name) for name in _STORED}
        restore(stored["fields"], fields, self.place)
        vars(self).update(fields)
        for evaluator, view in zip((self.original, self.evaluator), stored["views"][::-1], strict=True):
            restore_evaluator(view, evaluator)
        self.start = time.perf_counter() - stored["seconds"]

    def _infeasible(
        self, point: _Point, low: NDArray[np.float64], high: NDArray[np.float64]
    ) -> tuple[Ending, str]:
        """The verdict at the largest penalty: infeasible only where nothing reduces the violation.

        The sum of squared violations has no descent there; at kinks its gradient may not show it, and inner
        problems that did not converge show nothing.
        """
        self.rho, rho = 1.0, self.rho
        y, self.y, scale, self.f_scale = self.y, [torch.zeros_like(y) for y in self.y], self.f_scale, 1e300
        flat = self.evaluator.decisions.get()
        _, gradient = self.merit(flat)
        self.rho, self.y, self.f_scale = rho, y, scale
        slope = float(np.abs(projected_gradient(flat, gradient, low, high)).max(initial=0.0))
        if slope <= STATIONARY_VIOLATION * point.scaled_violation:
            return "likely_infeasible", "the penalty reached its limit while the violation stays"
        return "limit", "the penalty reached its limit, but inner problems did not converge"

    def _minimize(
        self, low: NDArray[np.float64], high: NDArray[np.float64], tolerance: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """One inner problem: projected Newton where a dense Hessian is cheap, else L-BFGS-B."""
        flat = self.evaluator.decisions.get()
        steps = min(self.options.inner, 200)
        if self.second_order:
            newton = projected_newton(
                self.merit, self.hessian, flat, low, high, tolerance=tolerance, iterations=steps
            )
            return newton.x, newton.gradient
        if self.options.products:
            newton = truncated_newton(
                self.merit, self.curvature, flat, low, high, tolerance=tolerance, iterations=steps
            )
            return newton.x, newton.gradient
        solve = cast("Callable[..., Any]", _minimize)
        result = solve(
            self.merit, flat, jac=True, method="L-BFGS-B", bounds=list(zip(low, high, strict=True)),
            options={"maxiter": self.options.inner, "maxfun": 2 * self.options.inner,
                     "maxcor": self.options.memory, "ftol": 0.0, "gtol": tolerance, "maxls": 50},
        )  # fmt: skip
        return result.x, result.jac

    def curvature(self, flat: NDArray[np.float64]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
        """Products with the Hessian of A(theta)."""
        self._check_time()
        self._go_to(flat)
        has_rows = any(part.rows is not None for part in self.parts)
        product = curvature(self.evaluator, self._outer_term, self._row_term if has_rows else None)

        def times(v: NDArray[np.float64]) -> NDArray[np.float64]:
            self._check_time()
            return product(torch.as_tensor(v)).detach().cpu().double().numpy()

        return times

    def hessian(self, flat: NDArray[np.float64]) -> NDArray[np.float64]:
        """Hessian of A(theta); not begun where the last one took longer than what is left."""
        self._check_time(self.costly)
        begin = time.perf_counter()
        self._go_to(flat)
        has_rows = any(part.rows is not None for part in self.parts)
        found = self.evaluator.hessian(self._outer_term, self._row_term if has_rows else None)
        self.costly = time.perf_counter() - begin
        return found.detach().cpu().double().numpy()

    def _shift(self) -> None:
        """Exact minus surrogate residual at the current point, in scaled units."""
        if not self.evaluator.program.has_rates:
            return
        exact, primal = self.residuals("exact")[1], self.residuals("primal")[1]
        self.shift = [(a - b) / s for a, b, s in zip(exact, primal, self.c_scale, strict=True)]

    def _update(self) -> float:
        """Y <- y + rho r from the residuals of the inner problem, whose gradients these multipliers balance.

        Of rates they are the surrogates', shifted to be exact where the inner problem began; the shift of the
        next inner problem takes up what has changed since.

        Returns:
            The largest violation of the inner problem, scaled, or failure of complementarity in it.
        """
        _, residuals = self.residuals("primal")
        worst = 0.0
        for i, part in enumerate(self.parts):
            scaled = residuals[i] / self.c_scale[i] + self.shift[i]
            self.y[i] = self._multiplier(part, self.y[i] + self.rho * scaled, self.rho, self.c_scale[i])
            if part.key in self.costs:
                off = self._multiplier(part, self.y[i] + scaled, 1.0, self.c_scale[i]) - self.y[i]
            else:
                slack = torch.minimum(self.y[i], -scaled)
                off = scaled if part.kind == "==" else torch.maximum(scaled, slack)
            worst = max(worst, float(off.abs().amax()) if off.numel() else 0.0)
        return worst

    def _record(self, outer: int, point: _Point, stationarity: float) -> None:
        row: dict[str, Any] = {
            "step": self.evaluations,
            "epoch": outer + 1,
            "objective": self.evaluator.program.sign * point.objective,
            "violation": point.violation,
            "stationarity": stationarity,
            "penalty": self.rho,
        }
        for i, part in enumerate(self.parts):
            price = (self.y[i] * self.f_scale / self.c_scale[i]).cpu().numpy()
            row |= entries_of(part.key, point.residuals[i].cpu().numpy(), price)
        self.history.append(row)
        self.progress.update(outer + 1, self.options.outer, row)


def _usable(norm: float) -> float:
    """A norm to divide by, or 1."""
    return norm if 1e-8 < norm < 1e8 else 1.0


def _widen(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(-1, *(1 for _ in range(like.dim() - 1)))
