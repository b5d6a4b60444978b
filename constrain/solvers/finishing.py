"""The last candidates of a training run: the average of late iterates, and iterates on the constraints.

A candidate is judged on all rows like any iterate, and kept where it is better than what was kept before.
An iterate that holds every constraint may do so by chance: noise of batches threw it far within them. So
steps onto the constraints (`correction.py`) start from the iterate that was kept, and also from the last one,
where that has the better objective.

A rate changes by whole rows. Training on batches stops some rows to one side of a bound or to the other, and
the tolerance of a run, a part of the spread of one row, is a few rows of a large sample. So bounds on rates
are held to the last row here: the step onto the constraints, whose length follows the slope of surrogates, is
searched along for the shortest part or multiple of it at which they hold exactly. Where none does, the next
step aims within the bounds by what was missed, then by twice that, and so on.

A point that holds them may lie far within a bound that has a multiplier: that was bought with the objective.
Steps down the objective lead back to the bounds, as far as everything still holds exactly. So they do where
there are constraints per row, of which a step onto those that are violated moves the others too.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from constrain.language import nodes as n
from constrain.lowering.lower import EPIGRAPH
from constrain.solvers.correction import correction, descent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from constrain.lowering.program import Part
    from constrain.runtime.evaluator import Outer
    from constrain.solvers.training import IterateJudge, Method

__all__ = ["bounds_on_rates", "finish"]

CORRECTIONS, FOR_RATES = 5, 10
"""Most steps onto the constraints from one iterate, and where there are rates."""
SHORTER, LONGER = (0.5, 0.25), (1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0)
"""Multiples of a step that are tried after 1: where that was too far, and where not enough for rates."""
HALVINGS = 4
"""Of the interval with the shortest multiple at which everything holds, where there are rates."""
ROUNDING = 1e-9
"""Violation of a bound on rates, in spreads, that is none."""
MOVED = ", moved onto its constraints,"
RETURNS, RETURNS_OF_ROWS, TRIALS = 4, 12, 7
"""Most steps from within the bounds on rates back to them, and of rows; multiples that are tried of each."""
LITTLE = 1e-3
"""Of the objective, what a step back to bounds of rows has to gain for another one."""
WORTHLESS = 1e-6
"""Of the objective, what room at bounds on rates may be worth without being used."""
RETURNED = ", moved back to its bounds"


def bounds_on_rates(parts: Sequence[Part]) -> frozenset[int]:
    """Positions of the bounds on averages of events, whose gradients are a surrogate's."""

    def rate(part: Part) -> bool:
        return any(isinstance(x, n.Indicator) and x.surrogate for x in n.postorder(part.residual))

    own = (i for i, part in enumerate(parts) if part.kind == "<=" and part.rows is None and rate(part))
    return frozenset(own)


def finish(judge: IterateJudge, method: Method) -> None:
    """Judges the last candidates; the decisions end as they were.

    Args:
        judge: of a run at its end, which has kept an iterate.
        method: that made its steps.
    """
    assert judge.kept is not None  # callers check
    decisions, end = judge.evaluator.decisions, _End(judge, method)
    last = decisions.snapshot()
    decisions.restore(judge.kept.state)
    judge.kept = replace(judge.kept, rank=end.look().rank)
    decisions.restore({**last, **judge.late_average(last)})
    end.offer(f"the average of the last {judge.late_epochs} judged iterates")
    decisions.restore(judge.kept.state)
    end.correct(judge.kept.words)
    decisions.restore(last)
    if end.promises():
        end.correct("the last iterate")
    if (end.rates or end.rowwise) and judge.kept.rank[0] < 0:
        decisions.restore(judge.kept.state)
        end.go_back(judge.kept.words)
    decisions.restore(last)


class _Point(NamedTuple):
    """The decisions as they are.

    Attributes:
        excess: largest violation beyond what is allowed, in spreads; for a bound on rates nothing is.
        violation: largest violation, in spreads.
        objective: of the program.
        allowed: violations up to this are within the tolerance.
    """

    excess: float
    violation: float
    objective: float
    allowed: float

    @property
    def rank(self) -> tuple[int, float]:
        """Their order: bounds on rates hold exactly, or with the tolerance, or something does not hold."""
        if not (math.isfinite(self.objective) and math.isfinite(self.violation)):
            return (3, math.inf)
        if self.excess == 0:
            return (-1, self.objective)
        return (0, self.objective) if self.violation <= self.allowed else (1, self.violation)


class _End:
    """Judges candidates at the end of a run.

    Attributes:
        rates: positions of the bounds on rates.
        rowwise: whether there are constraints per row.
    """

    def __init__(self, judge: IterateJudge, method: Method) -> None:
        self.judge = judge
        self.method = method
        self.evaluator = judge.evaluator
        self.rates = bounds_on_rates(judge.parts)
        self.rowwise = any(part.rows is not None for part in judge.parts)

    def look(self) -> _Point:
        """Judges the decisions as they are."""
        objective, violations = self.judge.violations(self.method)
        allowed = self.judge.tolerance
        over = [v - (ROUNDING if i in self.rates else allowed) for i, v in enumerate(violations)]
        return _Point(max([0.0, *over]), max([0.0, *violations]), objective, allowed)

    def offer(self, words: str) -> _Point:
        """Judges them, and has them kept where they are better."""
        found = self.look()
        self.judge.keep(found.rank, words)
        return found

    def promises(self) -> bool:
        """Whether what is kept is violated, or has a worse objective than the decisions as they are."""
        kept = self.judge.kept
        return kept is None or kept.rank[0] > 0 or self.look().objective < kept.rank[1]

    def correct(self, words: str) -> None:
        """Steps onto the constraints from the decisions as they are."""
        here, margin = self.look(), 0.0
        for _ in range(FOR_RATES if self.rates else CORRECTIONS):
            move = self._step(margin) if here.excess else None
            if move is None:
                return
            found = self._search(move, here, words.removesuffix(MOVED) + MOVED)
            if found is None and not self.rates:
                return
            here = here if found is None else found
            margin = max(2 * margin, here.excess)

    def go_back(self, words: str) -> None:
        """Steps down the objective from decisions within bounds on rates or rows, while everything holds.

        The first step is as long as what the room there is worth by the multipliers of the run.
        """
        here = self.look()
        words = words.removesuffix(",") + RETURNED + (" on rates," if self.rates else ",")
        for _ in range(RETURNS if self.rates else RETURNS_OF_ROWS):
            judge = self.judge
            outer = judge.at_largest(self.evaluator.moments("exact"))
            worth = self._worth(outer)
            if not worth > WORTHLESS * max(1.0, abs(here.objective)):
                return
            with judge.slacks.settled(outer.residuals):
                move = descent(self.evaluator, self._moved(), self._units(), worth)
            found = None if move is None else self._down(move, here, words)
            little = 0.0 if self.rates else LITTLE * abs(here.objective)
            if found is None or here.objective - found.objective < little:
                return
            here = found

    def _worth(self, outer: Outer) -> float:
        """The room at bounds on rates and rows, each times its multiplier."""
        averaged, worth = self.judge.averaged(self.method), 0.0
        residuals = {i: outer.residuals[i] for i in self._units() if i in self.rates}
        rowwise = [i for i in self._units() if i in self.evaluator.program.per_row]
        residuals |= {i: residual for i, residual, _ in self.evaluator.all_row_residuals(rowwise)}
        for i, residual in residuals.items():
            price = averaged.get(self.judge.parts[i].key)
            if residual is not None and price is not None:
                room = -residual.detach().double().cpu().reshape(-1).numpy()
                worth += float((room.clip(min=0.0) * price.reshape(-1))[price.reshape(-1) != 0].sum())
        return worth

    def _down(self, move: Callable[[float], None], start: _Point, words: str) -> _Point | None:
        """Goes to the share of a step with the least objective that violates no more, or None."""
        best, low, high, share = start, 0.0, math.inf, 1.0
        for _ in range(TRIALS):
            move(share)
            point = self.look()
            most = max(start.violation, ROUNDING) if self.rates else math.inf
            holds = point.excess == 0 and point.violation <= most
            if holds and point.objective < best.objective:
                best, low = point, share
                self.judge.keep(point.rank, words)
            else:
                high = share
            share = 2 * low if math.isinf(high) else (low + high) / 2
        move(low)
        return None if best is start else best

    def _moved(self) -> list[Tensor]:
        """The decisions that steps move: without slacks and bounds at largest values, which follow."""
        judge = self.judge
        return list(judge.largest.others(judge.slacks.others(self.evaluator.decisions.tensors)))

    def _units(self) -> dict[int, float]:
        """By position of the constraints the unit of their violation; of streams those on averages."""
        return {
            i: self.method.spreads.get(part.key, 1.0)
            for i, part in enumerate(self.judge.parts)
            if part.constraint != EPIGRAPH and (part.rows is None or not part.rows.streamed)
        }

    def _step(self, margin: float) -> Callable[[float], None] | None:
        """The shortest step onto the constraints, to first order; for rates this far within, in spreads."""
        judge = self.judge
        outer = judge.at_largest(self.evaluator.moments("exact"))
        moved, units = self._moved(), self._units()
        room = {i: unit * (ROUNDING if i in self.rates else judge.tolerance) for i, unit in units.items()}
        with judge.slacks.settled(outer.residuals):
            return correction(
                self.evaluator, moved, room, units, {i: margin * units[i] for i in self.rates & set(units)}
            )

    def _search(self, move: Callable[[float], None], start: _Point, words: str) -> _Point | None:
        """Goes to the best multiple of a step; None where none is better than the start."""

        def tried(share: float) -> _Point:
            move(share)
            found[share] = self.offer(words)
            return found[share]

        found = {0.0: start}
        whole = tried(1.0).excess
        if whole > start.excess or (whole == start.excess and not self.rates):
            for shorter in SHORTER if self.rates else SHORTER[:1]:
                if tried(shorter).excess < start.excess:
                    break
        elif self.rates:
            self._longer(tried, found[1.0])
        enough = min((s for s, point in found.items() if point.excess == 0), default=0.0)
        if enough and self.rates:
            self._shorter(tried, max(s for s in found if s < enough), enough)
        best = min(found, key=lambda s: (found[s].excess, s))
        move(best)
        return found[best] if found[best].excess < start.excess else None

    @staticmethod
    def _longer(tried: Callable[[float], _Point], here: _Point) -> None:
        """Multiples up to the first at which everything holds, or at which violations are larger.

        Where the bounds are missed by less than a row, that of the next row is a multiple.
        """
        for longer in LONGER:
            if here.excess == 0:
                return
            following = tried(longer)
            if following.excess > here.excess:
                return
            here = following

    @staticmethod
    def _shorter(tried: Callable[[float], _Point], low: float, high: float) -> None:
        """Halves between a multiple that is not enough and one that is."""
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if tried(middle).excess == 0:
                high = middle
            else:
                low = middle
