"""How large the steps of multipliers are: measured on the data, so that no unit has to be given.

A step is `|grad f| / (|grad c| * spread of c)` times the residual. A change of units of a constraint or of
the objective then changes nothing. Among the entries of a block steps are in proportion to 1 / spread^2: an
entry in other units keeps its pace, and so does a rare group, whose multiplier is small like its share.

From there every entry finds its own pace: where its exact residual on the full data keeps its sign from one
pass to the next the step grows, where the sign changes it shrinks (the delta-bar-delta rule: Jacobs, 1988,
"Increased rates of convergence through learning rate adaptation", Neural Networks 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from constrain.language import nodes as n
from constrain.lowering.rules import is_share
from constrain.runtime.copies import contents, copies, same_averages
from constrain.runtime.largest import Largest

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from constrain.lowering.program import Part
    from constrain.runtime.estimates import Estimate, Estimator
    from constrain.runtime.rows import Rows

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
LEAST_SLOPE = 0.3
"""Least gradient, as a part of the objective's, of a rate among rows of which there may be none now."""
LEAST_RATE = 0.5
"""Least spread of such a rate: that of an event of which half of the rows are."""
FEW = 4
"""Gradients that are measured of a block that is scaled together."""


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
        labels: (entries,) what each depends on: entries of one label have one gradient in that unit. They are
            in an order of their own, whatever that of the constraints.
        copies: (entries,) how many constraints are the same as the one of the entry, itself included; of a
            constraint per row one number.
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
    labels: NDArray[np.int64]
    copies: Tensor
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
        self._calls = 0
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

        The gradient of a block is the longest of a combination of its entries, where these are not apart; the
        spread is measured between small batches. Of |grad f| the
        largest seen so far is used: it vanishes at an unconstrained optimum, multipliers do not. |grad c| and
        the spreads at most halve from one call to the next: they vanish where a rate's surrogate saturates,
        or an event holds for all rows.

        Nothing depends on the order of the constraints: rows are drawn sample by sample in the order of their
        names, and the signs of combinations by what the entries depend on.
        """
        sample = self._drawn(rows, generator)
        estimate = self.estimator(sample)
        blocks = self.blocks
        self._objective = max(self._objective, self._norm(self._minimized(estimate)))
        least = min((p.rows for p in self.evaluator.populations.values()), default=rows)
        spreads = self._spreads(blocks, min(rows, least), batches, generator)
        rare = self.estimator.rarity()
        found: list[Scale] = []
        for block, (spread, rounding) in zip(blocks, spreads, strict=True):
            if block.apart:
                found.append(self._scaled_apart(block, estimate, spread, rounding))
                continue
            own = spread
            if block.first.rows is None:
                own = _shrunk(spread, rare[block.terms].to(spread), block.copies.to(spread), rows)
            found.append(self._scaled(block, self._slope(block, estimate), own, rounding, estimate))
        self._calls += 1
        return found

    def _drawn(self, rows: int, generator: torch.Generator | None) -> dict[str, Rows]:
        """Random rows of every sample, at most so many as it has."""
        populations = sorted(self.evaluator.populations.items(), key=lambda item: item[0].name)
        return {data.name: p.some(min(rows, p.rows), generator) for data, p in populations}

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
        slope = block.slope or float(_sizes(block, estimate).square().mean().sqrt())
        if _of_conditions(block.first.residual):
            slope, spread = max(slope, LEAST_SLOPE * objective), spread.clamp(min=LEAST_RATE)
        units = _units(spread, rounding, spread.new_tensor(slope))
        units = block.units = units if block.units is None else torch.maximum(units, block.units / 2)
        copies = block.copies.to(units)
        pooled = float(_mean(units.square(), copies).sqrt())
        units = units.clamp(min=LEAST_SPREAD * pooled)
        if block.first.rows is not None:  # where every row is active, residuals and their spread go to zero
            pooled = max(pooled, LEAST_SPREAD * block.widest)
            block.widest = max(pooled, block.widest)
            step = objective / (slope * pooled * copies)
            return Scale(block, step, step, _given(block, pooled), np.array([pooled]), torch.ones_like(step))
        quietest = float(units.min())
        factors = block.factors.to(units)
        steps = objective * quietest / (slope * copies * units.square())
        slower = self._slower(block, steps, units, estimate)
        steps = steps * slower / factors.square()
        largest = objective / (slope * quietest) / (copies * factors.square())
        each = factors.cpu().numpy() if len(block.parts) > 1 else np.ones(1)
        most = torch.full_like(steps, 1 / slower)
        return Scale(block, steps, largest, _given(block, pooled * each), quietest * each, most)

    def _scaled_apart(self, block: Block, estimate: Estimate, spread: Tensor, rounding: Tensor) -> Scale:
        """The same for each entry as if its constraint were alone."""
        slopes = self._slopes(block, estimate, spread, rounding)
        slopes = block.slopes = slopes if block.slopes is None else torch.maximum(slopes, block.slopes / 2)
        slope = torch.where(slopes > 0, slopes, _sizes(block, estimate).to(slopes))
        units = _units(spread, rounding, slope)
        units = block.units = units if block.units is None else torch.maximum(units, block.units / 2)
        steps = (self._objective or 1.0) / (slope * units * block.copies.to(units))
        each = units.cpu().numpy()
        return Scale(block, steps, steps, _given(block, each), each, torch.ones_like(steps))

    def _slope(self, block: Block, estimate: Estimate) -> float:
        """Largest length of the gradient of a combination of a block's entries with unit weights.

        Entries that move together alike are as steep as their sum, which is what limits their steps. Of more
        than FEW entries it is that of random combinations: the root mean square of FEW.
        """
        if block.first.rows is not None:
            entries = estimate.rows[int(block.parts[0])][0].reshape(-1)
        else:
            _, first = np.unique(block.labels, return_index=True)
            entries = (estimate.terms[block.terms] / block.factors)[torch.from_numpy(first)]
        if len(entries) > FEW:
            combined = self._signs(FEW, entries) @ entries / len(entries) ** 0.5
            return math.sqrt(sum(self._norm(x) ** 2 for x in combined) / FEW)
        if not entries.requires_grad:
            return 0.0
        each = [torch.cat([g.double().reshape(-1) for g in self._gradients(x)]) for x in entries.unbind()]
        rows = torch.stack(each).cpu().numpy() if each else np.zeros((1, 1))
        return float(np.linalg.norm(rows, 2)) if np.isfinite(rows).all() else math.nan

    def _signs(self, count: int, entries: Tensor) -> Tensor:
        """(count, entries) random signs, others at every measurement, which nothing else is drawn with."""
        generator = torch.Generator().manual_seed(self._calls)
        return torch.randint(2, (count, len(entries)), generator=generator).to(entries) * 2 - 1

    def _slopes(self, block: Block, estimate: Estimate, spread: Tensor, rounding: Tensor) -> Tensor:
        """(entries,) length of the gradient of each.

        Of more than MOST_SLOPES those of random combinations are measured, of entries in units of their own
        spread; entries without any are combined among themselves. Gradients may cancel in a combination:
        none counts as shorter than their root mean square.
        """
        entries = estimate.terms[block.terms] / block.factors
        found = torch.zeros_like(spread)
        wide = (spread > rounding).cpu().numpy()
        for places, unit in ((wide, spread), (~wide, torch.ones_like(spread))):
            own = np.flatnonzero(places)
            _, first, inverse = np.unique(block.labels[own], return_index=True, return_inverse=True)
            distinct = torch.from_numpy(own[first]).to(spread.device)
            each = entries[distinct] / unit[distinct].to(entries)
            groups = (self._signs(1, each)[0] * each).tensor_split(min(max(len(each), 1), MOST_SLOPES))
            lengths = spread.new_tensor([self._norm(g.sum()) / max(len(g), 1) ** 0.5 for g in groups])
            if len(each) > MOST_SLOPES:
                lengths = lengths.clamp(min=float(lengths.square().mean().sqrt()))
            sizes = torch.tensor([len(g) for g in groups], device=spread.device)
            slopes = lengths.repeat_interleave(sizes)[torch.from_numpy(inverse.reshape(-1)).to(spread.device)]
            members = torch.from_numpy(own).to(spread.device)
            found[members] = unit[members] * slopes
        return found

    def _slower(self, block: Block, steps: Tensor, units: Tensor, estimate: Estimate) -> float:
        """What steps shrink by, so that all together are not much faster than their mean would be by itself.

        Where K entries are violated alike, K steps add up, and the largest are in proportion to the spread of
        an entry, which for K groups is the square root of K times that of all rows. The mean is that with
        weights 1 / spread^2, as the steps are: it moves by their sum.
        """
        if len(units) < 2:
            return 1.0
        weights = (units.square() * block.copies.to(units)).reciprocal()
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
        return sum(float(g.double().square().sum()) for g in self._gradients(scalar)) ** 0.5

    def _gradients(self, scalar: Tensor) -> tuple[Tensor, ...]:
        """With respect to the decisions, zeros where it does not depend on them."""
        return torch.autograd.grad(
            scalar, self.tensors, retain_graph=True, allow_unused=True, materialize_grads=True
        )

    @torch.no_grad()
    def _spreads(
        self, blocks: Sequence[Block], rows: int, batches: int, generator: torch.Generator | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Per block the spread of a row's contribution to each entry, and what of it may be rounding."""
        size = max(rows // batches, 2)
        terms: list[Tensor] = []
        per_row: dict[int, list[Tensor]] = {}
        for _ in range(batches):
            estimate = self.estimator(self._drawn(size, generator))
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
    make.copies[one.terms] = same_averages(one, equal)
    alone = np.ones(layout.size, dtype=bool)
    found: list[Block] = []
    for members in _equal(kinds):
        columns = one.columns[members]
        if len(np.unique(columns)) > 1 and one.values[members].all():
            terms = one.terms[members]
            alone[terms] = False
            found.append(make(terms, make.parts[terms], np.abs(one.values[members]), columns))
    rest: list[Block] = []
    for i, stack in enumerate(layout.stacks, start=1):
        terms = layout.places.get(i)
        if terms is None:
            rest.append(make(np.zeros(0, dtype=np.int64), stack.places, np.zeros(0), np.zeros(0, np.int64)))
            continue
        own = alone[terms]
        if own.any() or not len(own):
            parts = stack.places if stack.names is None else stack.places[own]
            apart = stack.names is not None
            labels = contents(stack) if apart else np.arange(len(terms))
            rest.append(make(terms[own], parts, np.ones(int(own.sum())), labels[own], apart=apart))
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
        copies: (terms,) number of terms with the residual of each.
        copies_of_rows: the same of constraints per row, by the position of the part.
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
        self.copies, self.copies_of_rows = np.ones(layout.size), dict[int, float]()
        for i, copied in enumerate(copies(layout.stacks), start=1):
            if i in layout.places:
                self.copies[layout.places[i]] = copied
            else:
                self.copies_of_rows[int(layout.stacks[i - 1].places[0])] = float(copied[0])
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
        labels: NDArray[np.int64],
        *,
        apart: bool = False,
    ) -> Block:
        """A block of these parts, with their terms, what they are divided by, and what they depend on."""
        copied = self.copies[terms] if len(terms) else np.array([self.copies_of_rows.get(int(parts[0]), 1.0)])
        return Block(
            [self.keys[int(i)] for i in parts],
            parts,
            self.known[int(self.stacks[parts[0]])].part,
            self.units[parts],
            torch.from_numpy(terms).to(self.device),
            torch.from_numpy(factors).to(device=self.device, dtype=self.dtype),
            labels,
            torch.from_numpy(copied).to(device=self.device, dtype=self.dtype),
            apart,
        )


def _given(block: Block, measured: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """The units of violations: the user's, or what was measured."""
    return np.where(np.isnan(block.given), measured, block.given)


def _sizes(block: Block, estimate: Estimate) -> Tensor:
    """(entries,) absolute residuals, in the place of gradients that are 0 where a run starts."""
    if block.first.rows is not None:
        entries = estimate.rows[int(block.parts[0])][1].reshape(-1)
    else:
        entries = estimate.exact_terms[block.terms] / block.factors
    return torch.where(entries == 0, 1.0, entries.abs())


def _mean(values: Tensor, copies: Tensor) -> Tensor:
    """The mean, in which copies of a constraint count once together."""
    return (values / copies).sum() / copies.reciprocal().sum()


def _shrunk(spread: Tensor, rare: Tensor, copies: Tensor, rows: int) -> Tensor:
    """Spreads of entries, of which those of rare levels are mostly those of the whole block.

    A level with share p has the spread of its rows / sqrt(p). Where few rows of it are among those that are
    measured, its own is 0, or far too large: then that of the rows of all levels is taken, over sqrt(p).

    Args:
        spread: (entries,) measured.
        rare: (entries,) 1 / p; 0 where it is not known.
        copies: (entries,) how often each constraint is there.
        rows: number of rows that are measured.
    """
    known = rare > 0
    if not bool((rare * SEEN > rows).any()):
        return spread
    squares = spread.square()
    prior = rare * (_mean(squares[known], copies[known]) / _mean(rare[known], copies[known]))
    own = torch.where(known, (rows / (SEEN * rare)).clamp(max=1.0), 1.0)
    return torch.lerp(prior, squares, own).sqrt()


def _of_conditions(residual: n.Node) -> bool:
    """Whether a residual has rates among rows that follow the decisions, P(A | B).

    While B holds nowhere, such a rate is 0 on every batch, and nothing that is measured of it is its size.
    """
    return any(
        isinstance(x, n.Apply) and x.atom == "div" and is_share(x.args[0]) and is_share(x.args[1])
        for x in n.postorder(residual)
    )


def _units(spread: Tensor, rounding: Tensor, slope: Tensor) -> Tensor:
    """What residuals are measured in, per entry.

    Where rows do not differ there is no spread but rounding: the unit is then the length of the gradient.
    """
    least = torch.maximum(rounding, torch.finfo(torch.float32).eps * slope)
    return torch.where(spread > least, spread, slope)
