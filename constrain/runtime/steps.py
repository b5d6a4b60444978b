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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from constrain.runtime.largest import Largest

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from constrain.lowering.program import Part
    from constrain.runtime.estimates import Estimate, Estimator

__all__ = ["FASTER", "LEAST_PACE", "SLOWER", "Block", "Scale", "Scales"]

MANY = 4.0
"""How much faster than their mean, as one constraint, the entries of a block may move together."""
SEEN = 32.0
"""Rows of a level among those that are measured from which on its own spread is taken."""
LEAST_SPREAD = 0.1
"""Least spread of an entry that steps are scaled by, in units of its constraint's."""
FASTER = 1.2
"""What a step grows by when an exact residual has kept its sign."""
SLOWER = 0.8
"""What it shrinks by when the sign has changed."""
LEAST_PACE = 0.5
"""Least part of its measured scale that a step shrinks to."""
MOST_SLOPES = 128
"""Gradients that are measured of constraints of one block that are scaled apart."""


@dataclass(frozen=True)
class Scale:
    """The steps of the parts of a block.

    Attributes:
        block: the block.
        steps: (entries,) step of each entry; one number for a constraint per row.
        largest: (entries,) the step that an entry may come to; one number for a constraint per row.
        spread: (parts,) standard deviation of one row's contribution, over all entries of a part: the unit of
            violations.
        quietest: (parts,) that of the entry with the least.
        most: how much faster than with all others an entry may be by itself.
    """

    block: Block
    steps: Tensor
    largest: Tensor
    spread: NDArray[np.float64]
    quietest: NDArray[np.float64]
    most: Tensor


@dataclass
class Block:
    """Parts whose entries are scaled together, like those of one vector; or each by itself.

    Attributes:
        keys: of the parts.
        parts: (parts,) their positions.
        first: one of them.
        given: (parts,) the units that the user gave, NaN where there is none.
        terms: (entries,) places of the entries among all terms; none of a constraint per row.
        factors: (entries,) what each residual is divided by, so that all have one unit.
        apart: whether each entry is a constraint that is scaled as if it were alone.
        slope: largest gradient so far, at most halved between calls.
        slopes: (entries,) the same of each entry, where they are apart.
        common: that of the entries' mean.
        units: (entries,) spread of each entry so far.
        widest: largest spread over all entries so far.
    """

    keys: Sequence[str]
    parts: NDArray[np.int64]
    first: Part
    given: NDArray[np.float64]
    terms: Tensor
    factors: Tensor
    apart: bool = False
    slope: float = 0.0
    slopes: Tensor | None = None
    common: float = 0.0
    units: Tensor | None = None
    widest: float = 0.0


class Scales:
    """Measures the scales of the steps, and remembers what was measured before.

    Args:
        estimator: of the program's terms.
        tensors: the decisions whose gradients count.
    """

    def __init__(self, estimator: Estimator, tensors: Sequence[Tensor]) -> None:
        self.estimator = estimator
        self.evaluator = estimator.evaluator
        self.tensors = list(tensors)
        self._objective = 0.0
        self._blocks: list[Block] | None = None

    @property
    def blocks(self) -> list[Block]:
        """All parts, in blocks."""
        if self._blocks is None:
            self._blocks = _joined(self.estimator)
        return self._blocks

    def together(self, without: Collection[int]) -> list[Block]:
        """The blocks of several averages that are scaled together, but for those of some parts."""
        own = (b for b in self.blocks if b.first.rows is None and not b.apart and len(b.terms) > 1)
        return [b for b in own if int(b.parts[0]) not in without]

    def measure(self, generator: torch.Generator | None, rows: int, batches: int) -> list[Scale]:
        """The scales of all parts, block by block, on a sample of the data.

        The gradient of a block is that of one random combination of its entries, where these are not apart;
        the spread is measured between small batches. Of |grad f| the largest seen so far is used: it vanishes
        at an unconstrained optimum, multipliers do not. |grad c| and the spreads at most halve from one call
        to the next: they vanish where a rate's surrogate saturates, or an event holds for all rows.
        """
        populations = self.evaluator.populations
        sample = {data.name: p.some(min(rows, p.rows), generator) for data, p in populations.items()}
        estimate = self.estimator(sample)
        blocks = self.blocks
        self._objective = max(self._objective, self._norm(self._minimized(estimate)))
        least = min((p.rows for p in populations.values()), default=rows)
        signed = [self._signed(block, estimate, generator) for block in blocks]
        spreads = self._spreads(blocks, min(rows, least), batches, generator)
        rare = self.estimator.rarity()
        found: list[Scale] = []
        for block, entries, (spread, rounding) in zip(blocks, signed, spreads, strict=True):
            if block.apart:
                found.append(self._scaled_apart(block, entries, spread, rounding))
                continue
            own = spread
            if block.first.rows is None:
                own = _shrunk(spread, (rare[block.terms] / block.factors.square()).to(spread), rows)
            gradient = self._norm(entries.sum() / max(entries.numel(), 1) ** 0.5)
            found.append(self._scaled(block, gradient, own, rounding, estimate))
        return found

    def _minimized(self, estimate: Estimate) -> Tensor:
        """The objective; of one with largest values the terms of each with equal weights."""
        scalar, groups = estimate.terms[0], Largest(self.evaluator).groups
        residuals = estimate.primal.residuals if groups else []
        for group in groups:
            cases = [r.reshape(-1) for i in group if (r := residuals[i]) is not None]
            scalar = scalar + torch.cat(cases).mean()
        return scalar

    def _scaled(
        self, block: Block, gradient: float, spread: Tensor, rounding: Tensor, estimate: Estimate
    ) -> Scale:
        objective = self._objective or 1.0
        block.slope = max(block.slope / 2, gradient)
        slope = block.slope if block.slope > torch.finfo(torch.float32).tiny else 1.0
        units = _units(spread, rounding, spread.new_tensor(slope))
        units = block.units = units if block.units is None else torch.maximum(units, block.units / 2)
        pooled = float(units.square().mean().sqrt())
        units = units.clamp(min=LEAST_SPREAD * pooled)
        if block.first.rows is not None:  # where every row is active, residuals and their spread go to zero
            pooled = max(pooled, LEAST_SPREAD * block.widest)
            block.widest = max(pooled, block.widest)
            step = units.new_tensor([objective / (slope * pooled)])
            return Scale(block, step, step, _given(block, pooled), np.array([pooled]), torch.ones_like(step))
        quietest = float(units.min())
        factors = block.factors.to(units)
        steps = objective * quietest / (slope * units.square())
        slower = self._slower(block, steps, units, estimate)
        steps = steps * slower / factors.square()
        largest = objective / (slope * quietest) / factors.square()
        each = factors.cpu().numpy() if len(block.parts) > 1 else np.ones(1)
        most = torch.full_like(steps, 1 / slower)
        return Scale(block, steps, largest, _given(block, pooled * each), quietest * each, most)

    def _scaled_apart(self, block: Block, entries: Tensor, spread: Tensor, rounding: Tensor) -> Scale:
        """The same for each entry as if its constraint were alone."""
        slopes = self._slopes(entries, spread, rounding)
        slopes = block.slopes = slopes if block.slopes is None else torch.maximum(slopes, block.slopes / 2)
        slope = torch.where(slopes > torch.finfo(torch.float32).tiny, slopes, 1.0)
        units = _units(spread, rounding, slope)
        units = block.units = units if block.units is None else torch.maximum(units, block.units / 2)
        steps = (self._objective or 1.0) / (slope * units)
        each = units.cpu().numpy()
        return Scale(block, steps, steps, _given(block, each), each, torch.ones_like(steps))

    def _slopes(self, entries: Tensor, spread: Tensor, rounding: Tensor) -> Tensor:
        """(entries,) length of the gradient of each.

        Of more than MOST_SLOPES those of random combinations are measured, of entries in units of their own
        spread; entries without any are combined among themselves. Gradients may cancel in a combination:
        none counts as shorter than their root mean square.
        """
        found = torch.zeros_like(spread)
        wide = spread > rounding
        for places, unit in ((wide, spread), (~wide, torch.ones_like(spread))):
            own = places.nonzero().reshape(-1)
            groups = own.tensor_split(min(max(len(own), 1), MOST_SLOPES))
            signed = [(entries[g] / unit[g].to(entries)).sum() / max(len(g), 1) ** 0.5 for g in groups]
            lengths = spread.new_tensor([self._norm(x) for x in signed])
            if len(own) > MOST_SLOPES:
                lengths = lengths.clamp(min=float(lengths.square().mean().sqrt()))
            each = lengths.repeat_interleave(torch.tensor([len(g) for g in groups], device=spread.device))
            found[own] = unit[own] * each
        return found

    def _slower(self, block: Block, steps: Tensor, units: Tensor, estimate: Estimate) -> float:
        """What steps shrink by, so that all together are not much faster than their mean would be by itself.

        Where K entries are violated alike, K steps add up, and the largest are in proportion to the spread of
        an entry, which for K groups is the square root of K times that of all rows. The mean is that with
        weights 1 / spread^2, as the steps are: it moves by their sum.
        """
        if len(units) < 2:
            return 1.0
        weights = units.square().reciprocal()
        spread = float(weights.sum()) ** -0.5
        entries = estimate.terms[block.terms] / block.factors
        mean = self._norm(torch.dot((weights / weights.sum()).to(entries), entries))
        block.common = max(block.common / 2, mean)
        together = block.common * spread * float(steps.sum()) / (self._objective or 1.0)
        return min(1.0, MANY / together) if together > 0 else 1.0

    def _norm(self, scalar: Tensor) -> float:
        """Length of a gradient."""
        if not scalar.requires_grad:
            return 0.0
        found = torch.autograd.grad(
            scalar, self.tensors, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return sum(float(g.double().square().sum()) for g in found) ** 0.5

    def _signed(self, block: Block, estimate: Estimate, generator: torch.Generator | None) -> Tensor:
        """The entries of a block with random signs."""
        if block.first.rows is not None:
            entries = estimate.rows[int(block.parts[0])][0].reshape(-1)
        else:
            entries = estimate.terms[block.terms] / block.factors
        signs = torch.randint(2, tuple(entries.shape), generator=generator).to(entries) * 2 - 1
        return signs * entries

    @torch.no_grad()
    def _spreads(
        self, blocks: Sequence[Block], rows: int, batches: int, generator: torch.Generator | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Per block the spread of a row's contribution to each entry, and what of it may be rounding."""
        size = max(rows // batches, 2)
        terms: list[Tensor] = []
        per_row: dict[int, list[Tensor]] = {}
        for _ in range(batches):
            sample = {d.name: p.some(size, generator) for d, p in self.evaluator.populations.items()}
            estimate = self.estimator(sample)
            terms.append(estimate.exact_terms.double())
            for i, (_, exact, _) in estimate.rows.items():
                per_row.setdefault(i, []).append(exact.double())
        result: list[tuple[Tensor, Tensor]] = []
        every = torch.stack(terms)
        rounding = torch.finfo(torch.promote_types(self.evaluator.dtype, torch.float32)).eps ** 0.5
        for block in blocks:
            if block.first.rows is not None:
                values = torch.cat(per_row[int(block.parts[0])])
                spread = values.std()
            else:
                values = every[:, block.terms] / block.factors
                spread = values.std(0) * size**0.5
            sizes = values.abs()
            result.append((spread.reshape(-1), rounding * (sizes.mean(0) if block.apart else sizes.mean())))
        return result


def _joined(estimator: Estimator) -> list[Block]:
    """Scalar constraints on the levels of one average are a block, as if they had been written as one.

    So are the entries of every other part. The others of a family are different averages, and functions of
    several: they are evaluated as one vector, but each is scaled as if it were alone.
    """
    layout, one = estimator.layout, estimator.single_averages()
    equal = np.array([stack.part.kind == "==" for stack in layout.stacks], dtype=bool)[one.stacks]
    kinds = np.stack([one.moments, one.values > 0, equal], axis=1)
    make = _Maker(estimator)
    alone = np.ones(layout.size, dtype=bool)
    found: list[Block] = []
    for members in _equal(kinds):
        if len(members) > 1 and len(np.unique(one.columns[members])) == len(members):
            terms = one.terms[members]
            alone[terms] = False
            found.append(make(terms, make.parts[terms], np.abs(one.values[members])))
    rest: list[Block] = []
    for i, stack in enumerate(layout.stacks, start=1):
        terms = layout.places.get(i)
        if terms is None:
            rest.append(make(np.zeros(0, dtype=np.int64), stack.places, np.zeros(0)))
            continue
        own = alone[terms]
        if own.any() or not len(own):
            parts = stack.places if stack.names is None else stack.places[own]
            apart = stack.names is not None
            rest.append(make(terms[own], parts, np.ones(int(own.sum())), apart=apart))
    return found + sorted(rest, key=lambda block: int(block.parts[0]))


def _equal(rows: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Positions of equal rows, those of one kind together, in the order of the first of each."""
    if not len(rows):
        return []
    _, kinds = np.unique(rows, axis=0, return_inverse=True)
    kinds = kinds.reshape(-1)  # a column in numpy 2.0
    order = np.argsort(kinds, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(kinds[order])) + 1)
    return sorted(groups, key=lambda group: int(group[0]))


class _Maker:
    """Makes blocks.

    Attributes:
        parts: (terms,) position of the part of each term, -1 for the objective.
    """

    def __init__(self, estimator: Estimator) -> None:
        layout = estimator.layout
        self.device = estimator.evaluator.device
        self.dtype = torch.promote_types(estimator.evaluator.dtype, torch.float32)
        count = sum(len(stack.places) for stack in layout.stacks)
        self.parts = np.full(layout.size, -1)
        self.keys: list[str] = [""] * count
        self.units = np.full(count, np.nan)
        self.stacks = np.zeros(count, dtype=np.int64)
        self.known = layout.stacks
        for i, stack in enumerate(layout.stacks):
            if i + 1 in layout.places:
                self.parts[layout.places[i + 1]] = stack.places
            for place, key in zip(stack.places, stack.keys, strict=True):
                self.keys[int(place)] = key
            self.stacks[stack.places] = i
            if stack.part.scale is not None:
                self.units[stack.places] = stack.part.scale

    def __call__(
        self,
        terms: NDArray[np.int64],
        parts: NDArray[np.int64],
        factors: NDArray[np.float64],
        *,
        apart: bool = False,
    ) -> Block:
        """A block of these parts, with their terms and what they are divided by."""
        return Block(
            [self.keys[int(i)] for i in parts],
            parts,
            self.known[int(self.stacks[parts[0]])].part,
            self.units[parts],
            torch.from_numpy(terms).to(self.device),
            torch.from_numpy(factors).to(device=self.device, dtype=self.dtype),
            apart,
        )


def _given(block: Block, measured: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """The units of violations: the user's, or what was measured."""
    return np.where(np.isnan(block.given), measured, block.given)


def _shrunk(spread: Tensor, rare: Tensor, rows: int) -> Tensor:
    """Spreads of entries, of which those of rare levels are mostly those of the whole block.

    A level with share p has the spread of its rows / sqrt(p). Where few rows of it are among those that are
    measured, its own is 0, or far too large: then that of the rows of all levels is taken, over sqrt(p).

    Args:
        spread: (entries,) measured.
        rare: (entries,) 1 / p, times the square of the factor of the average; 0 where it is not known.
        rows: number of rows that are measured.
    """
    known = rare > 0
    if not bool((rare * SEEN > rows).any()):
        return spread
    squares = spread.square()
    prior = rare * (squares[known].sum() / rare[known].sum())
    own = torch.where(known, (rows / (SEEN * rare)).clamp(max=1.0), 1.0)
    return torch.lerp(prior, squares, own).sqrt()


def _units(spread: Tensor, rounding: Tensor, slope: Tensor) -> Tensor:
    """What residuals are measured in, per entry.

    Where rows do not differ there is no spread but rounding: the unit is then the length of the gradient.
    """
    least = torch.maximum(rounding, torch.finfo(torch.float32).eps * slope)
    return torch.where(spread > least, spread, slope)
