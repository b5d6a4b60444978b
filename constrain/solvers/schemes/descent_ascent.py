"""Gradient descent of the decisions and ascent of the multipliers: together, or one after the other.

Arrow, Hurwicz and Uzawa (1958), "Studies in linear and non-linear programming". Alternating steps see the
other side's move: on a bilinear saddle simultaneous steps spiral out, alternating ones stay on a circle
(Zhang, Wang, Lessard and Grosse, 2022, "Near-optimal local convergence of alternating gradient descent-ascent
for minimax optimization").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from constrain.solvers.schemes.protocol import Scheme, State

if TYPE_CHECKING:
    from constrain.solvers.primal_dual import Training

__all__ = ["DescentAscent"]

Order = Literal["simultaneous", "alternating", "dual-first"]


@dataclass(frozen=True)
class DescentAscent(Scheme):
    """One gradient step each.

    Attributes:
        order: `"simultaneous"`: both from the same evaluation. `"alternating"`: the decisions, then the
            multipliers from the residuals at the new decisions on the same batch, which takes a second
            evaluation. `"dual-first"`: the multipliers, then the decisions along the gradient with the new
            ones, from one evaluation.
    """

    order: Order = "simultaneous"

    recordable: ClassVar[bool] = True
    guarded: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The order of the steps."""
        return f"{self.order} descent-ascent"

    def step(self, run: Training, state: State) -> State:
        """One step of both."""
        batch = run.draw()
        if self.order == "dual-first" and not run.resting:
            estimate = run.lagrangian.evaluate(batch)
            run.ascend()
            run.gradient_of(run.lagrangian.value(estimate))
            run.descend()
            return state
        run.gradient(batch)
        run.descend()
        if self.order == "alternating" and not run.resting:
            run.look(batch)
        run.ascend()
        return state
