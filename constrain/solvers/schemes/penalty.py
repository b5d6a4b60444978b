"""Penalties that grow until the violation falls: the quadratic penalty, and an augmented Lagrangian.

Courant (1943); for the rule of growth Nocedal and Wright (2006), "Numerical optimization", framework 17.1,
and Birgin and Martinez (2014), "Practical augmented Lagrangian methods", algorithm 4.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from constrain.runtime.limits import POSITIVE, WHOLE, check_limits
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
    of the multipliers, so that the penalty has no unit. At every look the largest violation, in spreads of a
    row's contribution, is compared with that of the last one. The penalty grows where the same side of the
    same constraint has stayed violated: a violation that changes sides is noise, or the swing of a penalty
    that is too large for the steps.

    The multipliers of the result are multiplier + penalty * violation: they balance the gradient of the
    objective where the penalized objective is stationary.

    Attributes:
        start: first penalty.
        factor: by which it grows.
        sufficient: share of the last violation above which it grows.
        largest: penalty that it does not exceed.
        tolerance: violation, in spreads, below which it does not grow.
        looks: at the violation, evenly over the first two thirds of the run.
        ascends: multipliers ascend as well, which makes this an augmented Lagrangian: a finite penalty is
            enough.
    """

    start: float = 2.0
    factor: float = 2.0
    sufficient: float = 0.9
    largest: float = 300.0
    tolerance: float = 1e-3
    looks: int = 15
    ascends: bool = False

    recordable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses options that make no sense (E141)."""
        check_limits(
            self,
            start=POSITIVE,
            factor=POSITIVE,
            sufficient=POSITIVE,
            largest=POSITIVE,
            tolerance=POSITIVE,
            looks=WHOLE,
        )

    @property
    def name(self) -> str:
        """For the report."""
        return "augmented Lagrangian with a growing penalty" if self.ascends else "quadratic penalty"

    def init(self, run: Training) -> State:
        """The first penalty, and no violation to compare with.

        Raises:
            ModelingError: E208 with another rule for the multipliers; without multipliers also for a model
                that gives them, relaxed averages, and a largest value in the objective.
        """
        need_duals(run, self.name, "pi")
        if not self.ascends:
            refuse_functions(run, self.name)
            refuse_games(run, self.name)
        run.lagrangian.gain = self.start
        return {"violation": 0.0, "place": "", "next": 0.0, "recovered": run.lagrangian.multipliers()}

    def step(self, run: Training, state: State) -> State:
        """Descent; multipliers move if they do."""
        run.gradient(run.draw())
        run.descend()
        run.ascend(moving=self.ascends)
        return state

    def observe(self, run: Training, state: State, residuals: Mapping[int, Tensor]) -> State:
        """The penalty grows where the violation has not fallen."""
        rows = {i: _rows(run, i) for i, part in enumerate(run.lagrangian.parts) if part.rows is not None}
        worst, place = _worst(run, {**residuals, **rows})
        state = {**state, "recovered": _recovered(run, residuals, rows)}
        if run.resting or run.steps < state["next"]:
            return state
        stays = place == state["place"] and worst > self.sufficient * state["violation"]
        if stays and worst > self.tolerance:
            run.lagrangian.gain = min(self.factor * run.lagrangian.gain, self.largest)
        later = run.steps + run.total / (1.5 * self.looks)
        over = later > run.total / 1.5
        return {**state, "violation": worst, "place": place, "next": math.inf if over else later}

    def multipliers(self, run: Training, state: State) -> dict[str, Tensor]:
        """Multiplier plus penalty times violation, after the last epoch."""
        del run
        return {key: value.clone() for key, value in state["recovered"].items()}


def _rows(run: Training, i: int) -> Tensor:
    """Exact residuals of a constraint per row, 0 for rows that it does not select."""
    values, mask = run.evaluator.row_residuals(i)
    return values if mask is None else torch.where(mask.reshape(-1, *(1,) * (values.dim() - 1)), values, 0.0)


def _worst(run: Training, residuals: Mapping[int, Tensor]) -> tuple[float, str]:
    """The largest violation, in spreads of a row's contribution; and which side of which part it is."""
    worst, place = 0.0, ""
    for i, residual in residuals.items():
        part = run.lagrangian.parts[i]
        spread = run.spreads.get(part.key, 1.0)
        for side, over in (("above", residual), ("below", -residual)):
            if over.numel() and (side == "above" or part.kind == "=="):
                size = float(over.amax()) / spread
                worst, place = max((worst, place), (size, f"{part.key} {side}"))
    return worst, place


@torch.no_grad()
def _recovered(
    run: Training, residuals: Mapping[int, Tensor], rows: Mapping[int, Tensor]
) -> dict[str, Tensor]:
    """Multiplier plus penalty times violation, by part key."""
    lagrangian = run.lagrangian
    found = lagrangian.multipliers()
    for i, part in enumerate(lagrangian.parts):
        residual = rows[i] / len(rows[i]) if i in rows else residuals[i]
        steps = lagrangian.steps(part)
        value = found[part.key] + lagrangian.gain * steps * residual.to(steps.dtype)
        found[part.key] = value.clamp(min=0) if part.kind == "<=" else value
    return found
