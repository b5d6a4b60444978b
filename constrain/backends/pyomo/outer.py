"""Mixed-integer programs that are convex but for the integers, by outer approximation.

A master problem (mixed-integer linear) has the affine constraints and a tangent of everything curved at each
point that was visited; its value bounds the optimum from below. Fixing its integers leaves a convex program,
whose value bounds it from above and whose solution is the next point for tangents.

Source: Duran & Grossmann, "An outer-approximation algorithm for a class of mixed-integer nonlinear programs"
(1986); Fletcher & Leyffer, "Solving mixed integer nonlinear programs by outer approximation" (1994).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyomo.common.collections import ComponentMap

from constrain.backends.pyomo.engines import LINEAR, Outcome, nonlinear_engine, run
from constrain.backends.pyomo.package import derivatives, identify_variables, pyo
from constrain.backends.pyomo.term import Term, named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from constrain.backends.pyomo.build import Built

__all__ = ["GAP", "OuterResult", "outer_approximation", "solve_fixed"]

FEASIBLE = 1e-7
"""A constraint holds within this."""
GAP = 1e-7
"""Relative gap between the two bounds at which the search stops."""


@dataclass
class OuterResult:
    """How the search ended.

    Attributes:
        outcome: of the best convex program with fixed integers; its bound is that of the search.
        integers: values of the discrete variables there.
        steps: master problems that were solved.
    """

    outcome: Outcome
    integers: list[float]
    steps: int


class _Fixed:
    """A model whose discrete variables are constants within the block.

    They are real numbers there, too: HiGHS has no duals of a program with fixed integers.
    """

    def __init__(self, built: Built, integers: list[float]) -> None:
        self._discrete, self._integers = built.discrete, integers
        self._domains = [v.domain for v in built.discrete]

    def __enter__(self) -> None:
        for variable, value in zip(self._discrete, self._integers, strict=True):
            variable.domain = pyo.Reals
            variable.fix(round(value))

    def __exit__(self, *_: object) -> None:
        for variable, domain in zip(self._discrete, self._domains, strict=True):
            variable.domain = domain
            variable.unfix()


class _Master:
    """The master problem, within the same Pyomo model: what is curved is switched off while it is solved."""

    def __init__(self, built: Built) -> None:
        self._model = built.model
        own = built.objective
        self._level = isinstance(own, Term) and own.degree not in (0, 1)
        pairs = [(row.term, row.constraint) for row in built.rows] + list(built.auxiliary)
        self._curved = [
            c for t, c in pairs if c is not None and isinstance(t, Term) and t.degree not in (0, 1)
        ]
        outer = pyo.Block(concrete=True)
        outer.level = pyo.Var()
        outer.cuts = pyo.ConstraintList()
        outer.objective = pyo.Objective(expr=outer.level)
        self._block = named(self._model, "outer", outer)
        outer.deactivate()

    def tangents(self, values: Any) -> None:
        """Adds the tangents at a point."""
        _set(values)
        if self._level:
            self._tangent(self._model.objective.expr, self._block.level)
        for constraint in self._curved:
            self._tangent(constraint.body, constraint.upper)

    def _tangent(self, expression: Any, limit: Any) -> None:
        value = pyo.value(expression, exception=False)
        if value is None or not math.isfinite(value):
            return
        used: list[Any] = list(identify_variables(expression, include_fixed=False))
        slopes = derivatives.differentiate(expression, wrt_list=used)
        moved = sum(float(slope) * (v - v.value) for v, slope in zip(used, slopes, strict=True))
        self._block.cuts.add(value + moved <= limit)

    def solve(self, time_limit: float | None) -> Outcome:
        """A point that satisfies everything affine and all tangents, and the value below the optimum."""
        self._switched(curved=False)
        try:
            return run(LINEAR, self._model, time_limit=time_limit)
        finally:
            self._switched(curved=True)

    def _switched(self, *, curved: bool) -> None:
        for component in self._changed():
            component.activate() if curved else component.deactivate()
        self._block.deactivate() if curved else self._block.activate()
        if not curved and not self._level:
            self._block.objective.deactivate()

    def _changed(self) -> Iterator[Any]:
        yield from self._curved
        if self._level:
            yield self._model.objective


def outer_approximation(
    built: Built, engine: str, *, time_limit: float | None = None, limit: int = 200
) -> OuterResult:
    """Solves a mixed-integer program that is convex but for the integers.

    Args:
        built: the model.
        engine: solver of the convex programs with fixed integers.
        time_limit: in seconds, of all steps together.
        limit: most master problems.
    """
    started = time.perf_counter()
    master = _Master(built)
    master.tangents(_relaxed(built, engine))
    best: Outcome | None = None
    integers: list[float] = []
    lower, message = -math.inf, "outer approximation stopped at its limit of steps"
    steps = 0
    for steps in range(1, limit + 1):  # counted for the report
        left = None if time_limit is None else time_limit - (time.perf_counter() - started)
        if left is not None and left <= 0:
            message = "the solver reached its limit of time"
            break
        found = master.solve(left)
        if found.ending != "converged":
            if best is None:
                return OuterResult(found, [], steps)
            if found.ending == "infeasible":  # cut off by rounding: nothing better is left
                lower = _value(best)
            break
        lower = max(lower, found.bound if found.bound is not None else -math.inf)
        master.tangents(found.values)
        proposed = [float(round(found.values.get(v, v.value or 0.0))) for v in built.discrete]
        tried = solve_fixed(built, engine, proposed)
        if tried.ending == "converged":
            master.tangents(tried.values)
        if tried.ending == "converged" and (best is None or _value(tried) < _value(best)):
            best, integers = tried, proposed
        if best is not None and _value(best) - lower <= GAP * (1.0 + abs(_value(best))):
            break
    if best is None:
        return OuterResult(Outcome("limit", message), [], steps)
    closed = _value(best) - lower <= GAP * (1.0 + abs(_value(best)))
    words = "outer approximation closed the gap" if closed else message
    final = Outcome("converged" if closed else "limit", words, best.values, best.duals, lower)
    return OuterResult(final, integers, steps)


def _relaxed(built: Built, engine: str) -> Any:
    """The solution without integrality, whose tangents start the search; else a point within the bounds."""
    domains = [v.domain for v in built.discrete]
    bounds = [(v.lb, v.ub) for v in built.discrete]
    for variable, (low, high) in zip(built.discrete, bounds, strict=True):
        variable.domain = pyo.Reals
        variable.setlb(low)
        variable.setub(high)
    try:
        found = _continuous(engine, built.model)
    finally:
        for variable, domain in zip(built.discrete, domains, strict=True):
            variable.domain = domain
    if found.ending == "converged":
        return found.values
    space = built.space
    return ComponentMap(
        (v, min(max(v.value or 0.0, low), high))
        for v, low, high in zip(space.variables, space.lower, space.upper, strict=True)
    )


def _continuous(engine: str, model: Any) -> Outcome:
    """A program without integers; where HiGHS fails in a quadratic one, a nonlinear solver takes it."""
    found = run(engine, model)
    other = nonlinear_engine() if found.ending == "error" and engine == LINEAR else None
    return found if other is None else run(other, model)


def solve_fixed(built: Built, engine: str, integers: list[float]) -> Outcome:
    """The program with its integers fixed; its bound is the value of its objective.

    The values hold the fixed variables, too. A program in which nothing is left to choose is evaluated.
    """
    with _Fixed(built, integers):
        if all(v.fixed for v in built.space.variables):
            held = all(_holds(c) for c in built.model.component_data_objects(pyo.Constraint, active=True))
            words = "the integers decide everything"
            outcome = Outcome("converged" if held else "infeasible", words, duals={})
        else:
            outcome = _continuous(engine, built.model)
    if outcome.ending != "converged":
        return outcome
    values = ComponentMap(outcome.values)
    values.update(zip(built.discrete, integers, strict=True))
    _set(values)
    value = float(pyo.value(built.model.objective.expr))
    return Outcome(outcome.ending, outcome.message, values, outcome.duals, value)


def _holds(constraint: Any) -> bool:
    return min(constraint.lslack(), constraint.uslack()) >= -FEASIBLE


def _set(values: Any) -> None:
    for variable, value in values.items():
        variable.set_value(value, skip_validation=True)


def _value(outcome: Outcome) -> float:
    assert outcome.bound is not None  # set by solve_fixed
    return outcome.bound
