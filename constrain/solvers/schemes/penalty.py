"""Penalties that grow until the violation falls: the quadratic penalty, and an augmented Lagrangian.

Courant (1943); for the rule of growth Nocedal and Wright (2006), "Numerical optimization", framework 17.1,
and Birgin and Martinez (2014), "Practical augmented Lagrangian methods", algorithm 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from constrain.solvers.schemes.protocol import Scheme, State, need_duals, refuse_functions, refuse_games

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from constrain.solvers.primal_dual import Training

__all__ = ["Penalty"]


@dataclass(frozen=True)
class Penalty(Scheme):
    """Descent on f + penalty / 2 * violation^2, with a penalty that grows where the violation stays.

    The gradient sees penalty * step * running residual in the place of a multiplier, with the measured `step`
    of the multipliers, so that the penalty has no unit. After every epoch the largest violation, in spreads
    of a row's contribution, is compared with the least one so far.

    The multipliers of the result are penalty * violation: they balance the gradient of the objective where
    the penalized objective is stationary.

    Attributes:
        start: first penalty.
        factor: by which it grows.
        sufficient: share of the last violation above which it grows.
        largest: penalty that it does not exceed.
        tolerance: violation, in spreads, below which it does not grow.
        ascends: multipliers ascend as well, which makes this an augmented Lagrangian: a finite penalty is
            enough.
    """

    start: float = 1.0
    factor: float = 1.5
    sufficient: float = 0.9
    largest: float = 300.0
    tolerance: float = 1e-3
    ascends: bool = False

    @property
    def name(self) -> str:
        """For the report."""
        return "augmented Lagrangian with a growing penalty" if self.ascends else "quadratic penalty"

    def init(self, run: Training) -> State:
        """The first penalty, and no violation to compare with.

        Raises:
            ModelingError: E188 with another rule for the multipliers; without multipliers also for a model
                that gives them, relaxed averages, and a largest value in the objective.
        """
        need_duals(run, self.name, "pi")
        if not self.ascends:
            refuse_functions(run, self.name)
            refuse_games(run, self.name)
        run.lagrangian.gain = self.start
        return {"violation": float("inf"), "recovered": run.lagrangian.multipliers()}

    def step(self, run: Training, state: State) -> State:
        """Descent; multipliers move if they do."""
        run.gradient(run.draw())
        run.descend()
        run.ascend(moving=self.ascends)
        return state

    def observe(self, run: Training, state: State, residuals: Mapping[int, Tensor]) -> State:
        """The penalty grows where the violation has not fallen."""
        rows = {i: _rows(run, i) for i, part in enumerate(run.lagrangian.parts) if part.rows is not None}
        worst = _worst(run, {**residuals, **rows})
        if not run.resting and worst > max(self.tolerance, self.sufficient * state["violation"]):
            run.lagrangian.gain = min(self.factor * run.lagrangian.gain, self.largest)
        recovered = run.lagrangian.multipliers() if self.ascends else _recovered(run, residuals, rows)
        return {"violation": min(worst, state["violation"]), "recovered": recovered}

    def multipliers(self, run: Training, state: State) -> dict[str, Tensor]:
        """Penalty times violation after the last epoch."""
        if self.ascends:
            return run.lagrangian.multipliers()
        return {key: value.clone() for key, value in state["recovered"].items()}


def _rows(run: Training, i: int) -> Tensor:
    """Exact residuals of a constraint per row, 0 for rows that it does not select."""
    values, mask = run.evaluator.row_residuals(i)
    return values if mask is None else torch.where(mask.reshape(-1, *(1,) * (values.dim() - 1)), values, 0.0)


def _worst(run: Training, residuals: Mapping[int, Tensor]) -> float:
    """The largest violation, in spreads of a row's contribution."""
    worst = 0.0
    for i, residual in residuals.items():
        part = run.lagrangian.parts[i]
        over = residual.abs() if part.kind == "==" else residual.clamp(min=0)
        if over.numel():
            worst = max(worst, float(over.amax()) / run.spreads.get(part.key, 1.0))
    return worst


@torch.no_grad()
def _recovered(
    run: Training, residuals: Mapping[int, Tensor], rows: Mapping[int, Tensor]
) -> dict[str, Tensor]:
    """Penalty times violation, by part key."""
    lagrangian, found = run.lagrangian, dict[str, "Tensor"]()
    for i, part in enumerate(lagrangian.parts):
        residual = rows[i] / len(rows[i]) if i in rows else residuals[i]
        steps = lagrangian.steps(part)
        value = lagrangian.gain * steps * residual.to(steps.dtype)
        found[part.key] = value.clamp(min=0) if part.kind == "<=" else value
    return found
