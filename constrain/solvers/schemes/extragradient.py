"""Extragradient and its one-call relative, the optimistic gradient: steps that anticipate the other side's.

On a bilinear saddle, where descent-ascent spirals out or circles, both converge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from constrain.runtime.ascent import NuPI
from constrain.solvers.schemes.protocol import Scheme, State, need_duals

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from constrain.runtime.rows import Rows
    from constrain.solvers.primal_dual import Training

__all__ = ["Extragradient", "Optimistic"]


@dataclass(frozen=True)
class Extragradient(Scheme):
    """A look-ahead step of both; then, from where it began, a step along the gradients found ahead.

    x', l' = step(x, l; gradients at x, l);  x, l <- step(x, l; gradients at x', l')

    Korpelevich (1976). Both evaluations see the same batch: with two batches even a bilinear game may diverge
    (Mishchenko, Kovalev, Shulgin, Richtarik and Malitsky, 2020, "Revisiting stochastic extragradient"). An
    optimizer with moments of the gradient learns from both gradients, like ExtraAdam of Gidel, Berard,
    Vignoud, Vincent and Lacoste-Julien (2019), "A variational inequality perspective on GANs". A step takes
    two evaluations.
    """

    gain: ClassVar[float | None] = 0.0
    recordable: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """For the report."""
        return "extragradient"

    def init(self, run: Training) -> State:
        """Nothing is remembered.

        Raises:
            ModelingError: E208 with multipliers that remember residuals.
        """
        need_duals(run, self.name, "plain", "mirror")
        return {}

    def step(self, run: Training, state: State) -> State:
        """One look-ahead and one step."""
        batch = run.draw()
        run.gradient(batch)
        if run.resting:
            run.descend()
            return state
        here = _point(run, batch)
        run.descend()
        run.ascend()
        run.gradient(batch)
        _return(here)
        run.descend()
        run.ascend()
        return state


_Saved = list[tuple["Tensor", "Tensor | slice | None", "Tensor"]]


@torch.no_grad()
def _point(run: Training, batch: Mapping[str, Rows]) -> _Saved:
    """Decisions and multipliers as they are: tensors, the part of them that a step moves, and its copy."""
    lagrangian = run.lagrangian
    whole = [*run.tensors, lagrangian.values]
    found: _Saved = []
    for part in lagrangian.parts:
        if part.rows is None:
            continue
        if part.constraint in run.functions:
            whole += list(run.functions[part.constraint].module.parameters())
            continue
        table, index = lagrangian.table(part), batch[part.rows.name].index
        found.append((table, index, table.clone() if index is None else table[index].clone()))
    return found + [(t, None, t.detach().clone()) for t in whole]


@torch.no_grad()
def _return(saved: _Saved) -> None:
    """Puts a point back, in place."""
    for tensor, index, values in saved:
        if index is None:
            tensor.copy_(values)
        else:
            tensor[index] = values


@dataclass(frozen=True)
class Optimistic(Scheme):
    """Twice the step of the optimizer less the one before; multipliers along 2 e_t - e_{t-1}.

    Popov (1980). For the decisions it is the update of any optimizer that is extrapolated, not the gradient:
    with SGD the two are the same, with Adam this is the optimistic Adam of Daskalakis, Ilyas, Syrgkanis and
    Zeng (2018), "Training GANs with optimism". A step takes one evaluation.
    """

    gain: ClassVar[float | None] = 0.0
    recordable: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """For the report."""
        return "optimistic gradient"

    def init(self, run: Training) -> State:
        """The last update of the decisions.

        Raises:
            ModelingError: E208 with another rule for the multipliers.
        """
        need_duals(run, self.name, "plain")
        run.lagrangian.use(NuPI(gain=None, memory=0.0))
        return {"updates": [torch.zeros_like(t) for t in run.tensors]}

    def step(self, run: Training, state: State) -> State:
        """One step of both."""
        run.gradient(run.draw())
        before = [t.detach().clone() for t in run.tensors]
        run.optimizer.step()
        with torch.no_grad():
            for t, start, last in zip(run.tensors, before, state["updates"], strict=True):
                now = t - start
                t.add_(now - last)
                last.copy_(now)
        run.evaluator.decisions.project()
        run.ascend()
        return state
