"""Whether a better feasible point refutes a bound that a solver calls proven.

A bound f* >= b says that no feasible point has a value below b. Where the slopes at a solver's point do not
balance, a step along what is left of them is tried: a point that satisfies all constraints and lies below b
by more than the tolerance refutes the bound, whatever the problem is. Where none is found, nothing is said.

The direction is the negative rest of a nonnegative least-squares fit of multipliers, which to first order
makes no active constraint worse and lowers the objective by its square (Nocedal & Wright, Numerical
Optimization, 2006, section 12.4).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from constrain.diagnostics.feasibility import scales_of, values_of
from constrain.diagnostics.kkt import CERTIFIED, Descent, descent
from constrain.diagnostics.point import read_point
from constrain.diagnostics.relaxed import judged
from constrain.diagnostics.table import number
from constrain.runtime.tails import set_thresholds
from constrain.solution.records import Warn

if TYPE_CHECKING:
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.result import RawResult
    from constrain.solution import KKT

__all__ = ["refuted"]

CLEARLY = 10.0
"""A rest of the slopes above so many tolerances is no rounding."""
ROUNDS = 3
"""Points from which a step is tried."""
STEPS = 12
"""Lengths that are tried, each a quarter of the one before."""


def refuted(evaluator: Evaluator, raw: RawResult, record: KKT) -> list[Warn]:
    """W228 refuted-bound, where a feasible point lies below the solver's bound; decisions stay as they are.

    Args:
        evaluator: with the decisions at the solver's point.
        raw: what the solver says.
        record: of its point.
    """
    claimed = raw.bound is not None and record.gap_kind == CERTIFIED and record.gap_scaled <= record.tolerance
    readable = not (record.surrogate or record.nonsmooth or record.jumps or record.fritz_john)
    unbalanced = record.fit_stationarity > CLEARLY * record.tolerance
    program = evaluator.program
    if raw.bound is None or not (claimed and readable and unbalanced) or program.feasibility:
        return []
    value = _below(evaluator, raw.bound, record.tolerance)
    if value is None:
        return []
    proven, reached = (number(program.sign * x, 6) for x in (raw.bound, value))
    message = (
        f"{raw.solver} calls its point optimal with a proven bound of {proven}, but a feasible point next to "
        f"it reaches {reached}: neither the bound nor the word is taken; solve with another method"
    )
    return [Warn("W228", "refuted-bound", message)]


def _below(evaluator: Evaluator, bound: float, tolerance: float) -> float | None:
    """The value of a feasible point below a bound by more than the tolerance; None where none was found."""
    decisions = evaluator.decisions
    kept = decisions.snapshot()
    goal = bound - tolerance * (1 + abs(bound))
    try:
        for _ in range(ROUNDS):
            best = _along(evaluator, descent(evaluator, tolerance), goal, tolerance)
            if best is None or best < goal:
                return best
    finally:
        decisions.restore(kept)
        set_thresholds(evaluator)
    return None


def _along(evaluator: Evaluator, found: Descent, goal: float, tolerance: float) -> float | None:
    """The least value of feasible points in a direction; the decisions move there. None where none is less.

    Violations within the tolerance are paid for twice, at the prices of the fit.
    """
    decisions = evaluator.decisions
    start, (low, high) = decisions.get(), decisions.bounds()
    length = float(np.max(np.abs(found.direction), initial=0.0))
    if not length > tolerance:
        return None
    reach = max(1.0, float(np.max(np.abs(start), initial=0.0))) / length
    best, place = _cost(evaluator, found, math.inf), start
    for k in range(STEPS):
        moved = np.clip(start + reach * 0.25**k * found.direction, low, high)
        decisions.set(moved)
        set_thresholds(evaluator)
        cost = _cost(evaluator, found, tolerance)
        if cost < best:
            best, place = cost, moved
        if best < goal:
            break
    decisions.set(place)
    set_thresholds(evaluator)
    return None if place is start else best


def _cost(evaluator: Evaluator, found: Descent, tolerance: float) -> float:
    """The objective of a point and what its violations are worth; infinite where it is not feasible."""
    view, point = judged(evaluator), read_point(evaluator)
    none = [None] * len(view.program.parts)
    values = values_of(view, point, none, scales_of(view, point))
    if not (math.isfinite(point.objective) and values.scaled <= tolerance):
        return math.inf
    paid = 0.0
    for i, (part, price) in enumerate(zip(view.program.parts, found.prices, strict=True)):
        residual = point.selected(i)
        over = np.abs(residual) if part.kind == "==" else np.maximum(residual, 0.0)
        paid += float(np.sum(np.abs(np.nan_to_num(price)) * np.where(np.isfinite(over), over, 0.0)))
    return point.objective + 2 * paid
