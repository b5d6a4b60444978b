"""Exact thresholds: the quantiles and means of the current sample that statistics need besides averages.

A threshold of `CVaR` is a hidden decision that gradients move as well; those of quantiles, and the centers of
variances, are constants of the generated code. Both are set here, exactly, by one pass over the rows.

The quantile of level a is the least value q of a row with P(g <= q) >= a: the inverse of the empirical
distribution function. For its gradient the step 1[g > q] is replaced by a sigmoid of width h / 1.814 (a
logistic density of that width has the standard deviation h), with
h = 0.9 min(standard deviation, interquartile range / 1.34) n^(-1/5) (Silverman 1986, "Density Estimation for
Statistics and Data Analysis", section 3.4).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from constrain.errors import DataError
from constrain.language import nodes as n
from constrain.language.summaries import check_level

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from constrain.language.data import Data
    from constrain.lowering.program import Program, Tail
    from constrain.runtime.binding import Population
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.rows import Rows

__all__ = [
    "Sample",
    "TailNumbers",
    "follow_quantiles",
    "moving_quantiles",
    "numbers",
    "set_thresholds",
    "smooth_threshold",
    "thresholds",
    "values_at_risk",
]

LOGISTIC = 3.0**0.5 / torch.pi
"""Width of the logistic density with standard deviation one."""
ROUNDING = 1e-12
"""Relative rounding of cumulated weights that does not move a quantile."""
LEAST_WIDTH = 1e-6
"""Least width of a quantile's surrogate, relative to the largest value."""
FAR, HALVINGS = 50.0, 200
"""Widths beyond the values at which the surrogate is flat, and the most steps to a smooth quantile."""


# --------------------------------------------------------------------------------- numbers of a sample
@dataclass(frozen=True)
class Sample:
    """Values of an integrand.

    Attributes:
        values: (rows, *row) in any floating type.
        weight: (rows,) float64, 0 for rows that do not count.
        codes: (rows,) level of each row, None without levels.
        levels: number of levels; 1 without.
    """

    values: Tensor
    weight: Tensor
    codes: Tensor | None
    levels: int

    def sums(self, values: Tensor) -> Tensor:
        """Weighted sums over the rows of each level: (levels, entries) of (rows, entries)."""
        wide = self.weight[:, None]
        weighted = torch.where(wide > 0, values.double() * wide, 0.0)  # rows that do not count may be NaN
        if self.codes is None:
            return weighted.sum(0, keepdim=True)
        return weighted.new_zeros((self.levels, values.shape[1])).index_add(0, self.codes, weighted)

    @property
    def totals(self) -> Tensor:
        """(levels, 1) total weight of each level, at least a tiny number."""
        return self.sums(torch.ones_like(self.weight)[:, None]).clamp(min=torch.finfo(torch.float64).tiny)

    def of_rows(self, numbers: Tensor) -> Tensor:
        """(rows or 1, entries) of (levels, entries): what each row sees."""
        return numbers if self.codes is None else numbers[self.codes]

    def means(self) -> Tensor:
        """(levels, entries) exact means; 0 for a level without rows."""
        return self.sums(self.flat) / self.totals

    @property
    def flat(self) -> Tensor:
        """(rows, entries)."""
        return self.values.reshape(len(self.values), -1)

    def quantiles(self, level: float) -> Tensor:
        """(levels, entries) least values whose cumulated share is at least `level`; 0 for empty levels."""
        codes = self.codes if self.codes is not None else torch.zeros_like(self.weight, dtype=torch.int64)
        found: list[Tensor] = []
        for column in self.flat.unbind(1):
            order = column.argsort(stable=True)
            order = order[codes[order].argsort(stable=True)]
            found.append(self._reached(column[order], self.weight[order], codes[order], level))
        return torch.stack(found, 1)

    def _reached(self, values: Tensor, weight: Tensor, codes: Tensor, level: float) -> Tensor:
        """First of the values, sorted within levels, at which the cumulated weight reaches its target."""
        zeros = weight.new_zeros(self.levels)
        total = zeros.index_add(0, codes, weight)
        count = zeros.index_add(0, codes, torch.ones_like(weight)).long()
        start = count.cumsum(0) - count
        before = total.cumsum(0) - total
        target = (level - ROUNDING) * total - ROUNDING**1.25 * total.sum()
        reached = weight.cumsum(0) - before[codes] >= target[codes]
        short = count.new_zeros(self.levels).index_add(0, codes, (~reached).long())
        place = (start + torch.minimum(short, (count - 1).clamp(min=0))).clamp(max=len(values) - 1)
        return torch.where(total > 0, values[place].double(), zeros)


@dataclass(frozen=True)
class TailNumbers:
    """The numbers of a tail, each (levels, entries) in float64; None where its kind has none.

    Attributes:
        threshold: exact quantile, or mean.
        spread: standard deviation of the values.
        shares: shares above the quantile, exact and of the surrogate.
        density: slope of the surrogate share in the threshold, negated.
        width: of the surrogate.
    """

    threshold: Tensor
    spread: Tensor
    shares: tuple[Tensor, Tensor] | None = None
    density: Tensor | None = None
    width: Tensor | None = None


def numbers(sample: Sample, kind: str, level: float | None) -> TailNumbers:
    """The numbers of a tail of this kind (`Tail.kind`) and level."""
    means = sample.means()
    centered = sample.flat.double() - sample.of_rows(means)
    spread = (sample.sums(centered.square()) / sample.totals).sqrt()
    if level is None:
        return TailNumbers(means, spread)
    threshold = sample.quantiles(level).to(sample.values.dtype).double()
    if kind == "CVaR":
        return TailNumbers(threshold, spread)
    width = _width(sample, spread)
    margin = (sample.flat.double() - sample.of_rows(threshold)) / sample.of_rows(width)
    soft = torch.sigmoid(margin)
    shares = tuple(sample.sums(x) / sample.totals for x in ((margin > 0).double(), soft))
    slope = sample.sums(soft * (1 - soft)) / sample.totals / width
    return TailNumbers(threshold, spread, (shares[0], shares[1]), slope.clamp(min=1e-300), width)


def _width(sample: Sample, spread: Tensor) -> Tensor:
    """Width of the surrogate of a quantile: Silverman's rule, per level and entry."""
    middle = (sample.quantiles(0.75) - sample.quantiles(0.25)) / 1.34
    robust = _apart(sample, torch.where(middle > 0, torch.minimum(spread, middle), spread))
    squares = Sample(sample.values, sample.weight.square(), sample.codes, sample.levels).totals
    rows = (sample.totals.square() / squares).clamp(min=1.0)
    return (LOGISTIC * 0.9 * robust * rows**-0.2).clamp(min=LEAST_WIDTH * float(sample.flat.abs().amax()))


def _apart(sample: Sample, spread: Tensor) -> Tensor:
    """A spread, or the size of the values where they are all the same (one where they are 0)."""
    largest = sample.flat.abs().amax().double()
    return torch.where(spread > 0, spread, torch.where(largest > 0, largest, torch.ones_like(largest)))


# ------------------------------------------------------------------------------------------ evaluation
@torch.no_grad()
def set_thresholds(evaluator: Evaluator, *, decisions: bool = True) -> None:
    """Sets every threshold and center to its exact value on the sample of an evaluator, at its decisions.

    Args:
        evaluator: a program with data.
        decisions: also the hidden decisions, which all evaluators of a program share.

    Raises:
        DataError: E152 when the sample has more levels than the one that the problem was written with.
        ModelingError: E150 when the level of a quantile is a parameter outside of (0, 1).
    """
    if evaluator.device.type == "meta":
        return
    for data in dict.fromkeys(tail.data for tail in evaluator.program.tails):
        tails = [tail for tail in evaluator.program.tails if tail.data is data]
        for tail, sample in zip(tails, _samples(evaluator, data, tails), strict=True):
            found = numbers(sample, tail.kind, _level(evaluator, tail))
            if isinstance(tail.threshold, n.VariableSymbol):
                unit = None if tail.scale is None else evaluator.held(tail.scale)
                assert unit is not None  # made so for hidden decisions
                if decisions:
                    spread = _apart(sample, found.spread)
                    _write(unit, spread, tail)
                    _write(evaluator.decisions.variables[tail.threshold], found.threshold / spread, tail)
                continue
            for symbol, value in _pairs(tail, tail.threshold, found):
                target = None if symbol is None else evaluator.held(symbol)
                if target is not None and value is not None:
                    _write(target, value, tail)


def moving_quantiles(program: Program) -> tuple[Tail, ...]:
    """The quantiles of a program whose surrogate occurs in it: those that decisions move."""
    pinned = {x.primal for x in n.postorder(*program.roots) if isinstance(x, n.Pinned)}
    return tuple(t for t in program.tails if t.shares is not None and t.shares[1] in pinned)


@torch.no_grad()
def follow_quantiles(evaluator: Evaluator, tails: Sequence[Tail]) -> None:
    """Moves thresholds to the smooth quantiles at the present decisions: exact where they were last set.

    With the width h and the surrogate share p held, the smooth quantile t solves mean(sigmoid((g - t) / h))
    = p. It is defined everywhere, while a quantile's model with a held threshold is good only near it, and
    its gradient is that of the model with threshold and density at t (implicit function theorem).

    Args:
        evaluator: a program with data, whose thresholds `set_thresholds` has set before.
        tails: of the program, from `moving_quantiles`.
    """
    for data in dict.fromkeys(tail.data for tail in tails):
        own = [tail for tail in tails if tail.data is data]
        for tail, sample in zip(own, _samples(evaluator, data, own), strict=True):
            shares, density, width = tail.shares, tail.density, tail.width
            assert shares is not None  # made so for quantiles
            assert density is not None
            assert width is not None
            assert isinstance(tail.threshold, n.ArraySymbol)
            held = [evaluator.held(symbol) for symbol in (tail.threshold, density, shares[1], width)]
            t, slope, *given = (x for x in held if x is not None)
            count = sample.levels
            start, share, unit = ((x[:count] if tail.by else x).reshape(count, -1) for x in (t, *given))
            threshold, found = smooth_threshold(sample, share.double(), unit.double(), start.double())
            _write(t, threshold, tail)
            _write(slope, found, tail)


def smooth_threshold(sample: Sample, share: Tensor, width: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Where the surrogate share above equals `share`, and the density there: (levels, entries) each.

    Newton's method from `start`, halving where a step leaves what is known to hold the root.
    """
    flat, total = sample.flat.double(), sample.totals

    def above(t: Tensor) -> tuple[Tensor, Tensor]:
        soft = torch.sigmoid((flat - sample.of_rows(t)) / sample.of_rows(width))
        slope = sample.sums(soft * (1 - soft)) / total / width
        return sample.sums(soft) / total - share, slope.clamp(min=1e-300)

    low, high = flat.amin(0) - FAR * width, flat.amax(0) + FAR * width
    t = torch.clamp(start, low, high)
    excess, slope = above(t)
    for _ in range(HALVINGS):
        low, high = torch.where(excess > 0, t, low), torch.where(excess < 0, t, high)
        step = t + excess / slope
        moved = torch.where((step > low) & (step < high), step, (low + high) / 2)
        if bool(((moved - t).abs() <= 1e-15 * (t.abs() + width)).all()) or not bool(excess.any()):
            break
        t = moved
        excess, slope = above(t)
    return t, slope


def _level(evaluator: Evaluator, tail: Tail) -> float | None:
    """The level of a tail now, checked where it is a parameter (E150)."""
    if not isinstance(tail.level, n.Knob):
        return tail.level
    level = evaluator.constant(tail.level)
    check_level(level, f"cn.{tail.kind}", tail.level.symbol.name, tail.level.loc)
    return level


def _pairs(
    tail: Tail, threshold: n.ArraySymbol, found: TailNumbers
) -> list[tuple[n.ArraySymbol | None, Tensor | None]]:
    pairs = [(threshold, found.threshold), (tail.density, found.density), (tail.width, found.width)]
    return [*pairs, *zip(tail.shares or (), found.shares or (), strict=True)]


def _write(target: Tensor, value: Tensor, tail: Tail) -> None:
    """Copies numbers, (levels, entries), into a tensor; entries of levels that the sample lacks stay."""
    if tail.by:
        levels = value.shape[0]
        target[:levels].copy_(value.reshape(levels, *target.shape[1:]))
    else:
        target.copy_(value.reshape(target.shape))


def _samples(evaluator: Evaluator, data: Data, tails: list[Tail]) -> list[Sample]:
    """Values, weights and levels of the tails of one sample, by one pass."""
    population = evaluator.populations[data]
    function = evaluator.functions.tails(data)
    values: list[list[Tensor]] = [[] for _ in tails]
    weights: list[list[Tensor]] = [[] for _ in tails]
    codes: list[list[Tensor]] = [[] for _ in tails]
    for rows in population.chunks(evaluator.chunk):
        found = evaluator.compute(function, rows, data)
        for i, tail in enumerate(tails):
            value, event = found[2 * i], found[2 * i + 1]
            values[i].append(value)
            weights[i].append(_weights(population, rows, event))
            if tail.by:
                codes[i].append(rows.columns[_codes_name(tail)])
    result: list[Sample] = []
    for i, tail in enumerate(tails):
        count = _levels(population, tail)
        own = torch.cat(codes[i]) if tail.by else None
        result.append(Sample(torch.cat(values[i]), torch.cat(weights[i]), own, count))
    return result


def _codes_name(tail: Tail) -> str:
    return "#" + ",".join(column.name for column in tail.by)


def _levels(population: Population, tail: Tail) -> int:
    if not tail.by:
        return 1
    names = "/".join(column.name for column in tail.by)
    count, known = len(population.levels[_codes_name(tail)]), tail.threshold.shape[0]
    if count > known:
        raise DataError(
            "E152",
            f"{population.data.name}.{names} has {count} levels, and the sample that the problem was written "
            f"with has {known}: {tail.name[1:-1]} has one threshold per level",
            fix="the problem written with this sample",
        )
    return count


def _weights(population: Population, rows: Rows, event: Any) -> Tensor:
    """(rows,) weights: 0 where the condition fails, else those of the rows."""
    weight = torch.ones(rows.count, dtype=torch.float64, device=population.device)
    if event is not None:
        weight = weight * event
    if population.base is not None and rows.index is not None:
        weight = weight * population.base[rows.index]
    return weight if rows.weight is None else weight * rows.weight


def values_at_risk(evaluator: Evaluator) -> dict[str, Any]:
    """By term the current thresholds of its `CVaR`s as numbers or arrays; a tuple of them when several."""
    found: dict[str, list[Any]] = {}
    for tail in evaluator.program.tails:
        if tail.kind != "CVaR":
            continue
        if isinstance(tail.threshold, n.VariableSymbol):
            tensor, unit = evaluator.decisions.variables[tail.threshold], tail.scale
        else:
            tensor, unit = evaluator.held(tail.threshold), None
        assert tensor is not None  # generated code reads it
        value = tensor.detach().cpu().double().numpy().copy()
        scale = None if unit is None else evaluator.held(unit)
        if scale is not None:
            value = value * scale.cpu().double().numpy()
        for target in tail.targets:
            found.setdefault(target, []).append(value if value.ndim else float(value))
    return {target: own[0] if len(own) == 1 else tuple(own) for target, own in found.items()}


@contextmanager
def thresholds(evaluator: Evaluator) -> Generator[None]:
    """Runs a block with every threshold exact on this sample; hidden decisions are put back afterwards.

    For a hold-out, whose evaluator shares its decisions with that of the training data.
    """
    hidden = [t.threshold for t in evaluator.program.tails if isinstance(t.threshold, n.VariableSymbol)]
    variables = evaluator.decisions.variables
    before = {symbol: variables[symbol].detach().clone() for symbol in hidden}
    try:
        set_thresholds(evaluator)
        yield
    finally:
        with torch.no_grad():
            for symbol, value in before.items():
                variables[symbol].copy_(value)
