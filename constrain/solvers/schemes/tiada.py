"""TiAda: step sizes of both sides from the gradients seen, with no ratio of steps to tune.

Li, Yang and He (2023), "TiAda: a time-scale adaptive algorithm for nonconvex minimax optimization", ICLR:

    v_x += |g_x|^2,  v_y += |g_y|^2,   x -= lr max(v_x, v_y)^-alpha g_x,   y += rate v_y^-beta g_y

with alpha > beta: whatever the ratio of the first steps, the decisions become the slower side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from constrain.runtime.ascent import Paced
from constrain.runtime.batches import masked
from constrain.runtime.limits import FRACTION, POSITIVE, check_limits
from constrain.solvers.schemes.protocol import Scheme, State, need_duals, refuse_functions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from constrain.runtime.estimates import Estimate
    from constrain.solvers.primal_dual import Training

__all__ = ["TiAda"]


@dataclass(frozen=True)
class TiAda(Scheme):
    """Descent-ascent whose two steps shrink with the gradients seen.

    Gradients of the decisions are measured in units of the first one, residuals in spreads of a row's
    contribution, so that the rule has no unit but that of the decisions.

    The usual optimizer of this scheme is SGD. Other optimizers get gradients with the step size as a factor,
    which those that divide by the size of the gradient, like Adam, mostly remove again.

    Attributes:
        lr: length of the first step of the decisions, in their unit, for the usual optimizer.
        alpha: power of the decisions' rule, in (0, 1).
        beta: power of the multipliers' rule, in (0, alpha).
    """

    lr: float = 0.3
    alpha: float = 0.6
    beta: float = 0.4

    def __post_init__(self) -> None:
        """Refuses options that make no sense (E141)."""
        check_limits(self, lr=POSITIVE, alpha=FRACTION, beta=FRACTION)

    gain: ClassVar[float | None] = 0.0
    rate: ClassVar[float | None] = 0.3
    recordable: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """For the report."""
        return "TiAda"

    def optimizer(self, tensors: Sequence[Tensor], lr: float) -> torch.optim.Optimizer:
        """SGD."""
        del lr
        return torch.optim.SGD(tensors, lr=self.lr)

    def init(self, run: Training) -> State:
        """The two sums of squares.

        Raises:
            ModelingError: E208 with another rule for the multipliers, or a model that gives them.
        """
        need_duals(run, self.name, "plain")
        refuse_functions(run, self.name)
        run.lagrangian.use(Paced())
        zero = run.lagrangian.one.new_zeros(())
        return {"first": zero, "decisions": zero.clone(), "multipliers": zero.clone()}

    def step(self, run: Training, state: State) -> State:
        """One step of both."""
        lagrangian = run.lagrangian
        batch = run.draw()
        estimate = lagrangian.evaluate(batch)
        run.gradient_of(lagrangian.value(estimate))
        gradients = [t.grad for t in run.tensors if t.grad is not None]
        with torch.no_grad():
            first, decisions, multipliers = (state[key] for key in ("first", "decisions", "multipliers"))
            square = torch.stack([g.square().sum() for g in gradients]).sum().to(first)
            first.copy_(torch.where(first > 0, first, square))
            decisions.add_(square / first.clamp(min=torch.finfo(first.dtype).tiny))
            if not run.resting:
                multipliers.add_(_squares(run, estimate))
            slower = torch.maximum(decisions, multipliers)
            factor = slower.clamp(min=1.0) ** -self.alpha / first.clamp(min=1e-24).sqrt()
            for gradient in gradients:
                gradient.mul_(factor.to(gradient.dtype))
            lagrangian.past["pace"].copy_(multipliers.clamp(min=1.0) ** -self.beta)
        run.descend()
        run.ascend()
        return state


def _squares(run: Training, estimate: Estimate) -> Tensor:
    """Squares of the residuals in spreads of a row's contribution, of rows their mean; 0 of those at rest."""
    lagrangian = run.lagrangian
    residual = estimate.exact_terms[1:]
    moving = (lagrangian.values > 0) | (residual > 0) | torch.isneginf(lagrangian.low)
    total = (residual * lagrangian.scales / lagrangian.units * moving).square().sum()
    for i, (_, exact, mask) in estimate.rows.items():
        scaled = masked(exact, mask) / lagrangian.row_spreads[i]
        equal = lagrangian.parts[i].kind == "=="
        total = total + (scaled if equal else scaled.clamp(min=0)).square().mean()
    return total
