"""Dual descent: the decisions are minimized nearly exactly before the multipliers move once.

min_x L(x, l) is concave in l whatever the model, and the exact residuals at the minimizer are its gradient: a
step of the multipliers is one of projected ascent on it. This is Uzawa's method (1958), and the iterative
dualization by which language models are aligned under constraints (Zhang, Li, Hounie, Bastani, Ding and
Ribeiro, 2025, "Alignment of large language models with constrained learning").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from constrain.runtime.limits import NONNEGATIVE, WHOLE, check_limits
from constrain.solvers.schemes.protocol import Scheme, State, need_duals, refuse_functions

if TYPE_CHECKING:
    from torch import Tensor

    from constrain.solvers.primal_dual import Training

__all__ = ["DualDescent"]

LOOKS = 10
"""Steps between two looks at the length of the averaged gradient, which wait for the device."""
SMOOTH = 0.9
"""Memory of the averaged gradient."""
VISITS, LEAST = 40, 50
"""Steps of the multipliers in a run, and inner steps before each at least, when none are asked for."""
CHANGE = 4.0
"""Most that the length of a dual step changes by from one to the next."""


@dataclass(frozen=True)
class DualDescent(Scheme):
    """Inner minimization with the multipliers at rest, then a step of them from exact residuals on all data.

    The length of that step is the short one of Barzilai and Borwein (1988), which reads the curvature of the
    dual function off the last two visits, within a factor of 4 of the one before.

    Attributes:
        inner_steps: most steps of an inner minimization; None makes as many as give 40 steps of the
            multipliers in the run, and at least 50.
        inner_tol: an inner minimization ends when the averaged gradient is shorter than this share of the
            first gradient of the run; 0 always takes all steps.
        warm: an inner minimization starts where the last one ended; else where the run began.
    """

    inner_steps: int | None = None
    inner_tol: float = 1e-2
    warm: bool = True

    def __post_init__(self) -> None:
        """Refuses options that make no sense (E141)."""
        check_limits(self, inner_steps=WHOLE, inner_tol=NONNEGATIVE)

    gain: ClassVar[float | None] = 0.0
    rate: ClassVar[float | None] = 0.3

    @property
    def name(self) -> str:
        """For the report."""
        return "dual descent"

    def init(self, run: Training) -> State:
        """Where the run begins, the averaged gradient, and the last visit of the dual function.

        Raises:
            ModelingError: E208 with another rule for the multipliers, or a model that gives them.
        """
        need_duals(run, self.name, "plain")
        refuse_functions(run, self.name)
        return {
            "inner": 0,
            "gradient": [torch.zeros_like(t) for t in run.tensors],
            "first": 0.0,
            "length": run.rate,
            "start": [] if self.warm else [t.detach().clone() for t in run.tensors],
            "visit": None,
        }

    def step(self, run: Training, state: State) -> State:
        """One inner step; a step of the multipliers after the last one."""
        run.gradient(run.draw())
        gradients = [t.grad if t.grad is not None else torch.zeros_like(t) for t in run.tensors]
        averaged: list[Tensor] = state["gradient"]
        for mean, gradient in zip(averaged, gradients, strict=True):
            mean.lerp_(gradient, 1 - SMOOTH)
        run.descend()
        inner: int = state["inner"] + 1
        state = {**state, "inner": inner}
        if inner % LOOKS == 0 and not state["first"]:
            state["first"] = _length(averaged)
        if run.resting or not self._done(run, state):
            return state
        return self._visited(run, {**state, "inner": 0})

    def _done(self, run: Training, state: State) -> bool:
        """Whether the inner minimization ends here."""
        inner, most = state["inner"], self.inner_steps or max(LEAST, run.total // VISITS)
        if inner >= most:
            return True
        looks = self.inner_tol > 0 and inner % LOOKS == 0 and inner > LOOKS
        return looks and _length(state["gradient"]) < self.inner_tol * state["first"]

    def _visited(self, run: Training, state: State) -> State:
        """A step of the multipliers from exact residuals."""
        lagrangian, evaluator = run.lagrangian, run.evaluator
        lagrangian.refresh()
        rows = {i: evaluator.row_residuals(i) for i, p in enumerate(lagrangian.parts) if p.rows is not None}
        masked = {i: values if mask is None else values * mask for i, (values, mask) in rows.items()}
        visit = _visit(run, masked)
        length = _step_length(state["visit"], visit, state["length"])
        lagrangian.rate = length
        lagrangian.move(lagrangian.running)
        for i, residual in masked.items():
            part = lagrangian.parts[i]
            table = lagrangian.table(part)
            table.add_(residual.to(table.dtype) * (length * lagrangian.step(part)))
            if part.kind == "<=":
                table.clamp_(min=0)
        with torch.no_grad():
            for t, start in zip(run.tensors, state["start"], strict=False):
                t.copy_(start)
        return {**state, "length": length, "visit": visit}


def _length(tensors: list[Tensor]) -> float:
    return float(torch.stack([t.square().sum() for t in tensors]).sum().sqrt())


def _visit(run: Training, rows: dict[int, Tensor]) -> list[list[Tensor]]:
    """Per vector of multipliers: their values, the residuals there, and the measured scales of steps."""
    lagrangian = run.lagrangian
    found = [[lagrangian.values, lagrangian.running, lagrangian.scales * lagrangian.pace]]
    for i, residual in rows.items():
        part = lagrangian.parts[i]
        table = lagrangian.table(part)
        scale = lagrangian.step(part) / len(table)
        found.append([table / len(table), residual.to(table.dtype), scale])
    return [[x.clone() for x in triple] for triple in found]


def _step_length(before: list[list[Tensor]] | None, now: list[list[Tensor]], last: float) -> float:
    """|dl . dc| / |dc|^2 in the metric of the measured scales."""
    if before is None:
        return last
    product = square = 0.0
    for (values, residual, _), (later, after, scale) in zip(before, now, strict=True):
        change, moved = after - residual, later - values
        product -= float((moved * change).sum())
        square += float((scale * change.square()).sum())
    if not product > 0 or not square > 0:
        return CHANGE * last if product > 0 else last
    return min(max(product / square, last / CHANGE), CHANGE * last)
