"""Starts and restarts of the augmented Lagrangian: into the domain, off flat violations, off saddles.

Only problems of variables without rates are moved: where weights of a model begin is its own affair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from constrain.solvers.saddles import (
    ESCAPES,
    SADDLE,
    least_curvature,
    points_below,
    points_lower,
    way_down,
)
from constrain.solvers.second_order import Scaled
from constrain.solvers.starts import MOVE, RETRIES, identities, inside_domain, nearby, pushed, stuck

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.lowering.program import Part
    from constrain.runtime.evaluator import Evaluator, Outer
    from constrain.runtime.result import Ending

    class Run(Protocol):
        """What a run of the augmented Lagrangian offers."""

        evaluator: Evaluator
        parts: list[Part]
        y: list[Tensor]
        norms: list[float]
        history: list[dict[str, Any]]
        exact: bool
        second_order: bool

        def calibrate(self) -> None:
            """Measures scales and gradient norms."""
            ...

        def residuals(self, mode: str) -> tuple[float, list[Tensor]]:
            """Objective and residuals."""
            ...

        def multipliers(self) -> dict[str, NDArray[Any]]:
            """By part key, of the problem as written."""
            ...

        def merit(self, flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            """The augmented Lagrangian and its gradient."""
            ...

        def curvature(
            self, flat: NDArray[np.float64]
        ) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
            """Products with its Hessian."""
            ...

        def loop(self) -> tuple[Ending, str]:
            """Multiplier updates from the current point to the end."""
            ...


__all__ = ["NO_CLOSER", "Escapes"]

_MOST_ENTRIES = 2_000
"""Most entries of constraints for which the Jacobian is formed."""
_MOST_DECISIONS = 100_000
"""Most decisions for which a saddle is looked for by products."""
NO_CLOSER = "the gradient comes no closer to balance"
"""What the message of a run begins with that ended next to a point where gradients balance."""
_HELD = 1e-7
"""Distance to a bound below which a decision is held there."""


class Escapes:
    """What is done before and after the loop of a run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.decisions = run.evaluator.decisions
        models = run.evaluator.program.models
        self.movable = run.exact and all(model.frozen for model in models)

    def begin(self) -> None:
        """Moves the start into the domain, and off points where a violated constraint has no gradient."""
        if self.movable:
            x = self.decisions.get()
            try:
                inward = identities(self.decisions.tensors)
                x = inside_domain(self._finite, x, *self.decisions.bounds(), inward)
            finally:
                self.decisions.set(x)
        self.run.calibrate()
        for k in range(RETRIES):
            if not self._stuck():
                break
            self._move(k)

    def _finite(self, flat: NDArray[np.float64]) -> bool:
        """Whether the problem and its gradients are finite a little inside of the bounds."""
        self.decisions.set(pushed(flat, *self.decisions.bounds()))

        def total(outer: Outer) -> Tensor:
            return sum((r.sum() for r in outer.residuals if r is not None), outer.objective)

        value, gradient = self.run.evaluator.pull([total], lambda _i, residual, _index: residual.sum())[0]
        return bool(np.isfinite(value)) and all(bool(g.isfinite().all()) for g in gradient)

    def _stuck(self, flat: float = 1e-8) -> bool:
        if not self.movable or not self.run.parts:
            return False
        worst = [(r.abs() if p.kind == "==" else r).amax() if r.numel() else torch.zeros(())
                 for p, r in zip(self.run.parts, self.run.residuals("primal")[1], strict=True)]  # fmt: skip
        c = np.array([float(w) for w in worst])
        return stuck(np.zeros(len(c), bool), c, np.array(self.run.norms), flat)

    def _move(self, seed: int) -> None:
        """A seeded move of all decisions; multipliers begin at 0 again."""
        x = self.decisions.get()
        direction = np.random.default_rng(seed).normal(size=len(x))
        self.decisions.set(nearby(x, *self.decisions.bounds(), direction, MOVE * 3**seed))
        self.run.calibrate()

    def after(self, ending: Ending, message: str) -> tuple[Ending, str]:
        """Further runs where the first one ended at a flat violation or a saddle."""
        return self._off_saddles(*self._unstuck(ending, message))

    def _unstuck(self, ending: Ending, message: str) -> tuple[Ending, str]:
        """Runs from other starts where a violation stays at a point at which its gradient is zero."""
        for k in range(RETRIES):
            if ending != "likely_infeasible" or not self.movable:
                break
            self.run.calibrate()
            if not self._stuck(1e-5):
                break
            self.run.y = [torch.zeros_like(y) for y in self.run.y]
            self._move(k + 1)
            ending, message = self.run.loop()
        return ending, message

    def _off_saddles(self, ending: Ending, message: str) -> tuple[Ending, str]:
        """Runs from below saddles: by a dense Hessian where that is affordable, else by products with it."""
        entries = sum(y.numel() for y in self.run.y)
        if not self.movable or any(d.streamed for d in self.run.evaluator.program.populations):
            return ending, message
        if not self.run.second_order or entries > _MOST_ENTRIES:
            return self._by_products(ending, message)
        for _ in range(ESCAPES):
            if not _balanced(ending, message):
                break
            problem = Scaled(self.run.evaluator)
            x = problem.whole[problem.free].copy()
            problem.f_scale, problem.c_scale = problem.measure(x)
            y = problem.pack(self.run.multipliers())
            way = way_down(problem, x, y)
            if way is None:
                problem.place(x)
                break
            starts = list(points_below(problem, x, y, way[0]))
            problem.place(x)
            below = self._below(starts, problem.place)
            if below is None:
                problem.place(x)
                self.run.history[-1]["curvature"] = way[1]
                return ending, SADDLE
            ending, message = below
        return ending, message

    def _by_products(self, ending: Ending, message: str) -> tuple[Ending, str]:
        """The same with the least eigenvalue of the merit's Hessian, which Lanczos' method finds."""
        low, high = self.decisions.bounds()
        for _ in range(ESCAPES):
            x = self.decisions.get()
            if not _balanced(ending, message) or len(x) > _MOST_DECISIONS:
                break
            free = (x - low > _HELD) & (high - x > _HELD)
            found = least_curvature(self.run.curvature(x), free)
            if found is None:
                break
            direction, curvature = found
            starts = list(points_lower(lambda z: self.run.merit(z)[0], x, direction, low, high))
            self.decisions.set(x)
            below = self._below(starts, self.decisions.set)
            if below is None:
                self.decisions.set(x)
                self.run.history[-1]["curvature"] = curvature
                return ending, SADDLE
            ending, message = below
        return ending, message

    def _below(
        self, starts: list[NDArray[np.float64]], place: Callable[[NDArray[np.float64]], None]
    ) -> tuple[Ending, str] | None:
        """How a run from one of the starts ended, if lower than here."""
        kept, level = [y.clone() for y in self.run.y], self.run.residuals("exact")[0]
        rows = len(self.run.history)
        for start in starts:
            place(start)
            ending, message = self.run.loop()
            lower = self.run.residuals("exact")[0] < level - 1e-9 * max(1.0, abs(level))
            if ending == "unbounded" or (ending == "converged" and lower):
                return ending, message
            self.run.y = [y.clone() for y in kept]
            del self.run.history[rows:]
        return None


def _balanced(ending: Ending, message: str) -> bool:
    """Whether a run ended where gradients balance, or next to such a point: steps stall at saddles."""
    return ending == "converged" or (ending == "limit" and message.startswith(NO_CLOSER))
