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

from constrain.runtime.largest import Largest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.lowering.program import Part
    from constrain.runtime.estimates import Estimate, Estimator

__all__ = ["FASTER", "LEAST_PACE", "SLOWER", "Scale", "Scales"]

LEAST_SPREAD = 0.1
"""Least spread of an entry that steps are scaled by, in units of its constraint's."""
FASTER = 1.2
"""What a step grows by when an exact residual has kept its sign."""
SLOWER = 0.8
"""What it shrinks by when the sign has changed."""
LEAST_PACE = 0.5
"""Least part of its measured scale that a step shrinks to."""


@dataclass(frozen=True)
class Scale:
    """The steps of one part.

    Attributes:
        steps: (entries,) step of each entry; one number for a constraint per row.
        largest: the step that any entry may come to.
        spread: standard deviation of one row's contribution, over all entries: the unit of violations.
        quietest: that of the entry with the least.
    """

    steps: Tensor
    largest: float
    spread: float
    quietest: float


@dataclass
class _Block:
    """Parts whose entries are scaled together, like those of one vector.

    Attributes:
        parts: their positions.
        factors: what each residual is divided by, so that all have one unit.
        slope: largest gradient so far, at most halved between calls.
        units: (entries,) spread of each entry so far.
        widest: largest spread over all entries so far.
    """

    parts: list[int]
    factors: list[float]
    slope: float = 0.0
    units: Tensor | None = None
    widest: float = 0.0


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
        self._blocks: list[_Block] | None = None

    def measure(self, generator: torch.Generator | None, rows: int, batches: int) -> list[Scale]:
        """One scale per part, on a sample of the data.

        The gradient of a block is that of one random combination of its entries; the spread is measured
        between small batches. Of |grad f| the largest seen so far is used: it vanishes at an unconstrained
        optimum, multipliers do not. |grad c| and the spreads at most halve from one call to the next: they
        vanish where a rate's surrogate saturates, or an event holds for all rows.
        """
        populations = self.evaluator.populations
        sample = {data.name: p.some(min(rows, p.rows), generator) for data, p in populations.items()}
        estimate = self.estimator(sample)
        if self._blocks is None:
            self._blocks = self._joined()
        self._objective = max(self._objective, self._norm(self._minimized(estimate)))
        least = min((p.rows for p in populations.values()), default=rows)
        gradients = self._gradients(self._blocks, estimate, generator)
        spreads = self._spreads(self._blocks, min(rows, least), batches, generator)
        found: dict[int, Scale] = {}
        for block, gradient, (spread, rounding) in zip(self._blocks, gradients, spreads, strict=True):
            found.update(self._scaled(block, gradient, spread, rounding))
        return [found[i] for i in range(len(self.parts))]

    def _minimized(self, estimate: Estimate) -> Tensor:
        """The objective; of one with largest values the terms of each with equal weights."""
        scalar = estimate.primal.objective
        residuals = estimate.primal.residuals
        for group in Largest(self.evaluator).groups:
            cases = [r.reshape(-1) for i in group if (r := residuals[i]) is not None]
            scalar = scalar + torch.cat(cases).mean()
        return scalar

    def _joined(self) -> list[_Block]:
        """Scalar constraints on the levels of one average are a block, as if they had been written as one."""
        groups: dict[object, list[tuple[int, int, float]]] = {}
        for i, entry in self.estimator.single_averages().items():
            groups.setdefault((entry.moment, entry.value > 0, self.parts[i].kind), []).append(
                (i, entry.column, abs(entry.value))
            )
        joined = [g for g in groups.values() if len(g) > 1 and len({column for _, column, _ in g}) == len(g)]
        blocks = [_Block([i for i, _, _ in g], [factor for _, _, factor in g]) for g in joined]
        taken = {i for block in blocks for i in block.parts}
        return blocks + [_Block([i], [1.0]) for i in range(len(self.parts)) if i not in taken]

    def _scaled(self, block: _Block, gradient: float, spread: Tensor, rounding: float) -> dict[int, Scale]:
        objective = self._objective or 1.0
        block.slope = max(block.slope / 2, gradient)
        slope = block.slope if block.slope > torch.finfo(torch.float32).tiny else 1.0
        units = _units(spread, rounding, slope)
        units = block.units = units if block.units is None else torch.maximum(units, block.units / 2)
        pooled = float(units.square().mean().sqrt())
        units = units.clamp(min=LEAST_SPREAD * pooled)
        first = block.parts[0]
        if (
            self.parts[first].rows is not None
        ):  # where every row is active, residuals and their spread go to zero
            pooled = max(pooled, LEAST_SPREAD * block.widest)
            block.widest = max(pooled, block.widest)
            step = objective / (slope * pooled)
            return {first: Scale(units.new_tensor([step]), step, self._unit(first, pooled), pooled)}
        quietest = float(units.min())
        largest = objective / (slope * quietest)
        steps = objective * quietest / (slope * units.square())
        if len(block.parts) == 1:
            return {first: Scale(steps, largest, self._unit(first, pooled), quietest)}
        return {
            i: Scale(
                steps[k : k + 1] / factor**2,
                largest / factor**2,
                self._unit(i, pooled * factor),
                quietest * factor,
            )
            for k, (i, factor) in enumerate(zip(block.parts, block.factors, strict=True))
        }

    def _unit(self, i: int, pooled: float) -> float:
        """The unit of violations: the user's, or what was measured."""
        given = self.parts[i].scale
        return pooled if given is None else given

    def _norm(self, scalar: Tensor) -> float:
        """Length of a gradient."""
        if not scalar.requires_grad:
            return 0.0
        found = torch.autograd.grad(
            scalar, self.tensors, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return sum(float(g.double().square().sum()) for g in found) ** 0.5

    def _gradients(
        self, blocks: Sequence[_Block], estimate: Estimate, generator: torch.Generator | None
    ) -> list[float]:
        """Norms of the gradients of a random combination of every block's entries."""
        residuals = estimate.primal.residuals
        norms: list[float] = []
        for block in blocks:
            own = [
                estimate.rows[i][0] if self.parts[i].rows is not None else residuals[i] for i in block.parts
            ]
            entries = torch.cat(
                [r.reshape(-1) / f for r, f in zip(own, block.factors, strict=True) if r is not None]
            )
            signs = torch.randint(2, tuple(entries.shape), generator=generator).to(entries) * 2 - 1
            norms.append(self._norm((signs * entries).sum() / max(entries.numel(), 1) ** 0.5))
        return norms

    @torch.no_grad()
    def _spreads(
        self, blocks: Sequence[_Block], rows: int, batches: int, generator: torch.Generator | None
    ) -> list[tuple[Tensor, float]]:
        """Per block the spread of a row's contribution to each entry, and what of it may be rounding."""
        size = max(rows // batches, 2)
        found: list[list[Tensor]] = [[] for _ in self.parts]
        for _ in range(batches):
            sample = {d.name: p.some(size, generator) for d, p in self.evaluator.populations.items()}
            estimate = self.estimator(sample)
            residuals = estimate.exact.residuals
            for i, part in enumerate(self.parts):
                value = estimate.rows[i][1] if part.rows is not None else residuals[i]
                assert value is not None  # one of the two exists
                found[i].append(value.double())
        result: list[tuple[Tensor, float]] = []
        rounding = torch.finfo(torch.promote_types(self.evaluator.dtype, torch.float32)).eps ** 0.5
        for block in blocks:
            if self.parts[block.parts[0]].rows is not None:
                values = torch.cat(found[block.parts[0]])
                spread = values.std()
            else:
                own = zip(block.parts, block.factors, strict=True)
                values = torch.cat([torch.stack(found[i]).reshape(batches, -1) / f for i, f in own], 1)
                spread = values.std(0) * size**0.5
            result.append((spread.reshape(-1), rounding * float(values.abs().mean())))
        return result


def _units(spread: Tensor, rounding: float, slope: float) -> Tensor:
    """What residuals are measured in, per entry.

    Where rows do not differ there is no spread but rounding: the unit is then the length of the gradient.
    """
    least = max(rounding, torch.finfo(torch.float32).eps * slope)
    return torch.where(spread > least, spread, torch.full_like(spread, slope))
