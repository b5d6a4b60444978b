"""Multipliers of groups of which a batch has few rows, or none: what their residuals and steps are then.

The residual of such a group on a batch is noise, which the projection on nonnegative multipliers turns into
multipliers. Two parts of it are known well. The mean over the groups of a block is known from the batch; how
far a group is from that mean changes slowly, and is known from the visits of its rows so far. So multipliers
of rare entries follow the running residual, moved by the change of the block's mean (partial pooling: Gelman
and Hill, 2007, "Data analysis using regression and multilevel/hierarchical models", chapter 12).

Steps of the entries of a block are so small that all of them together are not too fast (`steps.py`). Entries
at 0 that are not violated take no part: the steps of the others are as much larger, up to what each would be
by itself. Where all take part, as where every bound is far away, they move as fast as their mean would.

What is known of an entry is as old as its last visits. Its pace may only grow while a unit of its multiplier
takes as many visits as its running residual remembers: with a faster one it would swing around its value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from constrain.runtime.steps import MANY
from constrain.runtime.visits import VISITS, visit_weight

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from constrain.runtime.estimates import Estimator
    from constrain.runtime.rows import Rows
    from constrain.runtime.steps import Block

__all__ = ["RARE", "Rare"]

RARE = 4.0
"""Expected rows in a batch below which an entry is rare."""


@dataclass(frozen=True)
class Pooled:
    """The entries of a block.

    Attributes:
        places: among all entries.
        factors: what their residuals are divided by, so that all have one unit.
        weights: of the residuals in their mean: the shares of the rows, over the factors.
    """

    places: slice | Tensor
    factors: Tensor
    weights: Tensor


class Rare:
    """The rare entries of some blocks, for batches of one size.

    Args:
        estimator: of the program's terms.
        blocks: of averages, whose entries are scaled together.
        batches: rows by sample name.
        rate: weight of a batch in the running residuals of what is not rare.

    Attributes:
        blocks: those with rare entries.
    """

    def __init__(
        self, estimator: Estimator, blocks: Sequence[Block], batches: Mapping[str, Rows], rate: float
    ) -> None:
        rarity, samples = estimator.rarity(), estimator.samples()
        self.blocks: list[Pooled] = []
        weights = torch.full_like(rarity[1:], rate)  # of a batch in the running residual of each entry
        rare, seen = torch.zeros_like(weights), torch.full_like(weights, torch.inf)
        for block in blocks:
            sample = samples[int(block.terms[0])]
            rows = batches.get(sample)
            known = rarity[block.terms]
            if rows is None or rows.whole or rows.stratified or not bool((known > 0).all()):
                continue
            shares = known.reciprocal().clamp(max=1.0)
            visits = shares * rows.count
            if not bool((visits < RARE).any()):
                continue
            places = block.terms - 1
            least = rows.count / estimator.evaluator.rows_of(sample)
            weights[places] = visit_weight(visits, least, rate)
            rare[places] = (visits < RARE).to(rare)
            seen[places] = torch.where(visits < RARE, visits, torch.inf).to(seen)
            factors = block.factors.to(shares)
            weights_of_mean = shares / block.copies.to(shares)
            weights_of_mean = weights_of_mean / (weights_of_mean.sum() * factors)
            self.blocks.append(Pooled(_as_slice(places), factors, weights_of_mean))
        self._weights, self._rare, self._visits = weights, rare, seen

    def __bool__(self) -> bool:
        """Whether any entry is rare."""
        return bool(self.blocks)

    def follow(self, running: Tensor, batch: Tensor) -> Tensor:
        """Moves running residuals, in place, by those of a batch; what the multipliers follow.

        Args:
            running: (entries,).
            batch: (entries,) residuals of the batch.
        """
        change = batch.to(running) - running
        running.addcmul_(self._weights, change)
        pooled = running.clone()
        for block in self.blocks:
            pooled[block.places] += block.factors * torch.dot(block.weights, change[block.places])
        return torch.lerp(batch.to(running), pooled, self._rare)

    def paced(self, pace: Tensor, rate: float | Tensor) -> Tensor:
        """Paces that have not grown beyond what visits can follow.

        Args:
            pace: (entries,).
            rate: dimensionless step of the multipliers, per batch.
        """
        return torch.minimum(pace, (self._visits / (VISITS * rate)).clamp(min=1.0))

    def joined(self, steps: Tensor, active: Tensor, most: Tensor, limits: Tensor) -> Tensor:
        """Steps as much larger as entries take no part, and smaller where all do.

        Args:
            steps: (entries,) that all entries can make together.
            active: (entries,) 1 where an entry takes part, else 0.
            most: (entries,) how much faster each may be by itself.
            limits: (entries,) largest steps.
        """
        taken, found = steps * active, steps.clone()
        for block in self.blocks:
            own, units = steps[block.places], block.factors.square()
            part = torch.dot(taken[block.places], units).clamp(min=torch.finfo(own.dtype).tiny)
            factor = torch.minimum(most[block.places], torch.dot(own, units) / part - (1 - 1 / MANY))
            found[block.places] = torch.minimum(own * factor, limits[block.places])
        return found


def _as_slice(places: Tensor) -> slice | Tensor:
    """Places as a slice where they follow each other, which is faster than an index."""
    first, count = int(places[0]), len(places)
    wanted = np.arange(first, first + count)
    return slice(first, first + count) if np.array_equal(places.cpu().numpy(), wanted) else places
