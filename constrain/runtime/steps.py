"""How large the steps of multipliers are: measured on the data, so that no unit has to be given.

A step is `|grad f| / (|grad c| * spread of c)` times the residual. A change of units of a constraint or of
the objective then changes nothing. Among the entries of a block steps are in proportion to 1 / spread^2: an
entry in other units keeps its pace, and so does a rare group, whose multiplier is small like its share.

From there every entry finds its own pace: where its exact residual on the full data keeps its sign from one
pass to the next the step grows, where the sign changes it shrinks (the delta-bar-delta rule: Jacobs, 1988,
"Increased rates of convergence through learning rate adaptation", Neural Networks 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.lowering.program import Part
    from constrain.runtime.estimates import Estimate, Estimator

__all__ = ["FASTER", "LEAST_PACE", "SLOWER", "Scale", "Scales"]

LEAST_SPREAD = 0.1
"""Least spread of an entry that steps are scaled by, in units of its constraint's."""
FASTER = 1.3
"""What a step grows by when an exact residual has kept its sign."""
SLOWER = 0.5
"""What it shrinks by when the sign has changed."""
LEAST_PACE = 0.05
"""Least part of its measured scale that a step shrinks to."""


@dataclass(frozen=True)
class Scale:
    """The steps of one part.

    Attributes:
        steps: (entries,) step of each entry; one number for a constraint per row.
        largest: the step that any entry may come to.
        spread: standard deviation of one row's contribution, over all entries: the unit of violations.
    """

    steps: Tensor
    largest: float
    spread: float


class Scales:
    """Measures the scales of the steps, and remembers what was measured before.

    Args:
        estimator: of the program's terms.
        parts: of the program.
        tensors: the decisions whose gradients count.
    """

    def __init__(self, estimator: Estimator, parts: Sequence[Part], tensors: Sequence[Tensor]) -> None:
        self.estimator = estimator
        self.evaluator = estimator.evaluator
        self.parts = list(parts)
        self.tensors = list(tensors)
        self._objective = 0.0
        self._slopes = [0.0] * len(self.parts)
        self._units: list[Tensor | None] = [None] * len(self.parts)
        self._widest = [0.0] * len(self.parts)

    def measure(self, generator: torch.Generator | None, rows: int, batches: int) -> list[Scale]:
        """One scale per part, on a sample of the data.

        The gradient of a block is that of one random combination of its entries; the spread is measured
        between small batches. Of |grad f| the largest seen so far is used: it vanishes at an unconstrained
        optimum, multipliers do not. |grad c| and the spreads at most halve from one call to the next: they
        vanish where a rate's surrogate saturates, or an event holds for all rows.
        """
        populations = self.evaluator.populations
        sample = {data.name: p.some(min(rows, p.rows), generator) for data, p in populations.items()}
        gradients = self._gradients(self.estimator(sample), generator)
        least = min((p.rows for p in populations.values()), default=rows)
        spreads = self._spreads(min(rows, least), batches, generator)
        self._objective = max(self._objective, gradients[0])
        return [self._scale(i, gradients[i + 1], *spreads[i]) for i in range(len(self.parts))]

    def _scale(self, i: int, gradient: float, spread: Tensor, rounding: float) -> Scale:
        objective = self._objective or 1.0
        self._slopes[i] = max(self._slopes[i] / 2, gradient)
        slope = self._slopes[i] if self._slopes[i] > torch.finfo(torch.float32).tiny else 1.0
        units = _units(spread, rounding, slope)
        before = self._units[i]
        units = self._units[i] = units if before is None else torch.maximum(units, before / 2)
        pooled = float(units.square().mean().sqrt())
        units = units.clamp(min=LEAST_SPREAD * pooled)
        if self.parts[i].rows is not None:  # where every row is active, residuals and their spread go to zero
            pooled = max(pooled, LEAST_SPREAD * self._widest[i])
            self._widest[i] = max(pooled, self._widest[i])
            step = objective / (slope * pooled)
            return Scale(units.new_tensor([step]), step, self._unit(i, pooled))
        largest = objective / (slope * float(units.min()))
        return Scale(objective * units.min() / (slope * units.square()), largest, self._unit(i, pooled))

    def _unit(self, i: int, pooled: float) -> float:
        """The unit of violations: the user's, or what was measured."""
        given = self.parts[i].scale
        return pooled if given is None else given

    def _gradients(self, estimate: Estimate, generator: torch.Generator | None) -> list[float]:
        """Norms of the gradients of the objective and of a random combination of every part's entries."""
        scalars: list[Tensor] = [estimate.primal.objective]
        for i, part in enumerate(self.parts):
            residual = estimate.rows[i][0] if part.rows is not None else estimate.primal.residuals[i]
            assert residual is not None  # one of the two exists
            signs = torch.randint(2, tuple(residual.shape), generator=generator).to(residual) * 2 - 1
            scalars.append((signs * residual).sum() / max(residual.numel(), 1) ** 0.5)
        norms: list[float] = []
        for scalar in scalars:
            squares = 0.0
            if scalar.requires_grad:
                found = torch.autograd.grad(
                    scalar, self.tensors, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                squares = sum(float(g.double().square().sum()) for g in found)
            norms.append(squares**0.5)
        return norms

    @torch.no_grad()
    def _spreads(
        self, rows: int, batches: int, generator: torch.Generator | None
    ) -> list[tuple[Tensor, float]]:
        """Per part the spread of a row's contribution to each entry, and what of it may be rounding."""
        size = max(rows // batches, 2)
        found: list[list[Tensor]] = [[] for _ in self.parts]
        for _ in range(batches):
            sample = {d.name: p.some(size, generator) for d, p in self.evaluator.populations.items()}
            estimate = self.estimator(sample)
            for i, part in enumerate(self.parts):
                value = estimate.rows[i][1] if part.rows is not None else estimate.exact.residuals[i]
                assert value is not None  # one of the two exists
                found[i].append(value.double())
        result: list[tuple[Tensor, float]] = []
        rounding = torch.finfo(torch.promote_types(self.evaluator.dtype, torch.float32)).eps ** 0.5
        for i, part in enumerate(self.parts):
            values = torch.cat(found[i]) if part.rows is not None else torch.stack(found[i])
            spread = values.std() if part.rows is not None else values.std(0) * size**0.5
            result.append((spread.reshape(-1), rounding * float(values.abs().mean())))
        return result


def _units(spread: Tensor, rounding: float, slope: float) -> Tensor:
    """What residuals are measured in, per entry.

    Where rows do not differ there is no spread but rounding: the unit is then the length of the gradient.
    """
    least = max(rounding, torch.finfo(torch.float32).eps * slope)
    return torch.where(spread > least, spread, torch.full_like(spread, slope))
