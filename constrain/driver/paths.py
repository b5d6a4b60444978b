"""A problem along a parameter, and two objectives against each other, by warm-started solves."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from constrain._lazy import language, language_printing
from constrain.driver.exports import evaluate
from constrain.driver.run import solve
from constrain.errors import ModelingError
from constrain.language.data import suggest
from constrain.runtime.binding import as_array
from constrain.solution.paths import ParametricPath, ParetoFront
from constrain.solution.records import Status

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from numpy.typing import NDArray

    from constrain.language import nodes as n
    from constrain.language.problem import Problem
    from constrain.solution import Solution

__all__ = ["pareto", "path"]


def path(
    problem: Problem,
    parameter: Any,
    values: Sequence[float],
    *,
    method: Any = "auto",
    params: Mapping[str, Any] | None = None,
    start: Solution | Mapping[str, Any] | None = None,
    **options: Any,
) -> ParametricPath:
    """Solves a problem for values of a parameter, each solve starting where the one before it ended.

    Models and variables are left as they were.

    Args:
        problem: with the parameter.
        parameter: a `Parameter` without a shape, or its name.
        values: at least two different numbers, in any order.
        method: as in `solve`.
        params: values of other parameters by name.
        start: as in `solve`, of the first solve.
        options: as in `solve`; `progress` is off unless it is asked for.

    Raises:
        ModelingError: E127 for an unknown parameter, E141 for values or a parameter that make no path, and
            those of `solve`.
    """
    symbol = _scalar(problem, parameter)
    places = _places(values)
    settings: dict[str, Any] = {"progress": False, **options}
    found: dict[float, Solution] = {}
    now = (params or {}).get(symbol.name, symbol.value)
    downward = now is not None and abs(places[-1] - float(now)) < abs(places[0] - float(now))
    with _kept(problem):
        for value in reversed(places) if downward else places:
            given = {**(params or {}), symbol.name: value}
            solution = solve(problem, method, params=given, start=_duals(start), **settings)
            found[value] = start = solution
    return _record(symbol.name, places, [found[value] for value in places])


def pareto(
    problem: Problem, second: Any, *, count: int = 9, method: Any = "auto", **options: Any
) -> ParetoFront:
    """The trade-off of two objectives: the best value of the problem's own for bounds on a second one.

    The bounds go in equal steps from the best value that the second objective can have to the value that it
    has where the first one alone is optimized. The first of these ends is left out: there the bound leaves no
    room, and it need not have a multiplier. Models and variables are left as they were.

    Args:
        problem: the first objective, with its constraints.
        second: an expression to be minimized, or `cn.minimize(e)`, `cn.maximize(e)`.
        count: points of the front, at least 2.
        method: as in `solve`.
        options: as in `solve`.

    Raises:
        ModelingError: E141 when there are not two objectives, and those of `solve`.

    Source: Miettinen, Nonlinear Multiobjective Optimization (1998), section 3.2, the epsilon-constraint
    method, whose multipliers are the slopes of the front.
    """
    other = _other(problem, second)
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ModelingError("E141", f"count={count!r} is not a whole number >= 2", fix="count=9")
    settings: dict[str, Any] = {"progress": False, **options}
    values: dict[str, Any] = {k: settings[k] for k in ("data", "params") if k in settings}
    with _kept(problem):
        first = solve(problem, method, **settings)
        beside = evaluate(other, **values).objective
        best = solve(other, method, **settings)
        alone = evaluate(problem, **values).objective
    away, room = best.objective, beside - best.objective
    name = _fresh("second", problem.constraints)
    bound = _fresh("second_bound", [symbol.name for symbol in problem.parameters])
    expr = language("expr").Expr(other.objective)
    limit = language("symbols").Parameter(bound, beside)
    bounded = problem.subject_to(**{name: expr >= limit if other.sense == "maximize" else expr <= limit})
    places = [away + room * k / count for k in range(1, count + 1)]
    if abs(room) <= 10 * first.record.tolerance * (1 + abs(beside)):
        places = [beside]
    texts = [str(language_printing().text(p.objective)) for p in (problem, other)]
    swept = _sweep(bounded, bound, sorted(places), method, settings)
    seconds = np.array([float(np.asarray(s[name].value)) for s in swept])
    return ParetoFront(
        first=texts[0],
        second=texts[1],
        path=_record(bound, sorted(places), swept),
        seconds=seconds,
        ends=((first.objective, beside), (alone, away)),
        senses=(problem.sense, other.sense),
    )


def _sweep(
    problem: Problem, bound: str, places: Sequence[float], method: Any, settings: Mapping[str, Any]
) -> list[Solution]:
    found: list[Solution] = []
    given: dict[str, Any] = dict(settings)
    fixed: dict[str, Any] = dict(given.pop("params", None) or {})
    with _kept(problem):
        for value in places:
            start = _duals(found[-1]) if found else None
            found.append(solve(problem, method, params={**fixed, bound: value}, start=start, **given))
    return found


# ---------------------------------------------------------------------------------------------- pieces
def _scalar(problem: Problem, parameter: Any) -> n.ParameterSymbol:
    name = str(getattr(parameter, "name", parameter))
    symbols = {symbol.name: symbol for symbol in problem.parameters}
    if name not in symbols:
        raise ModelingError("E127", f"no Parameter is named {name!r}{suggest(name, symbols)}")
    if symbols[name].shape != ():
        raise ModelingError(
            "E141",
            f"a path follows one number, and Parameter {name!r} has shape {symbols[name].shape}",
            fix=f"{name}[0] as a Parameter of its own",
        )
    return symbols[name]


def _places(values: Any) -> list[float]:
    """Different finite numbers in increasing order."""
    array = as_array(values)
    if array.ndim != 1 or array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise ModelingError(
            "E141", "the values of a path are finite numbers", fix="values=[0.01, 0.02, 0.05]"
        )
    found = sorted(set(array.astype(np.float64).tolist()))
    if len(found) < 2:
        raise ModelingError("E141", "a path needs two different values", fix="values=[0.01, 0.02, 0.05]")
    return found


def _other(problem: Problem, second: Any) -> Problem:
    """The problem of the second objective under the same constraints."""
    kind = type(problem)
    own = second if isinstance(second, kind) else language("problem").minimize(second)
    if "find" in (problem.sense, own.sense):
        raise ModelingError("E141", "a trade-off needs two objectives", fix="cn.minimize(...) for each")
    if own.constraints:
        raise ModelingError(
            "E141",
            "the second objective of a trade-off has no constraints of its own",
            fix="problem.subject_to(...), then problem.pareto(expression)",
        )
    return kind(own.sense, own.objective, problem.constraints)


def _fresh(wanted: str, taken: Any) -> str:
    names = set(taken)
    return next(name for name in (wanted, *(f"{wanted}_{k}" for k in range(1, 100))) if name not in names)


def _duals(start: Solution | Mapping[str, Any] | None) -> Any:
    """Multipliers to start from; none when they are missing or not finite."""
    given: Any = getattr(start, "multipliers", start)
    if given is None or not all(np.isfinite(as_array(v)).all() for v in given.values()):
        return None
    return given


@contextmanager
def _kept(problem: Problem) -> Generator[None]:
    """Leaves variables and models of a problem as they are."""
    values = {symbol: symbol.value for symbol in problem.variables}
    states = [(m.module, {k: t.clone() for k, t in m.module.state_dict().items()}) for m in problem.models]
    try:
        yield
    finally:
        for symbol, value in values.items():
            symbol.value = value
        for module, state in states:
            module.load_state_dict(state)


def _record(name: str, places: Sequence[float], solutions: Sequence[Solution]) -> ParametricPath:
    known = [_entries(s) for s in solutions]
    labels = list(dict.fromkeys(label for entries in known for label in entries))

    def column(place: int) -> dict[str, NDArray[np.float64]]:
        return {
            label: np.array([entries.get(label, (math.nan, math.nan))[place] for entries in known])
            for label in labels
        }

    return ParametricPath(
        parameter=name,
        values=np.array(places),
        objectives=np.array([s.objective for s in solutions]),
        slopes=np.array([_slope(s, name) for s in solutions]),
        statuses=tuple(s.status.value for s in solutions),
        violations=np.array([s.record.feasibility for s in solutions]),
        multipliers=column(1),
        entries=column(0),
        sense=solutions[0].sense,
        tolerance=solutions[0].record.tolerance,
    )


def _slope(solution: Solution, name: str) -> float:
    """d(optimal value)/d(parameter) by the envelope theorem; NaN where multipliers are no prices."""
    certified = solution.status in (Status.OPTIMAL, Status.STATIONARY)
    priced = all(not solution[c].uncertified for c in solution.names)
    if not certified or not priced or solution.live is None:
        return math.nan
    return solution.live.slope(name, solution.multipliers)


def _entries(s: Solution) -> dict[str, tuple[float, float]]:
    """Per entry its value and its multiplier; of a constraint per row the share violated and the sum."""
    found: dict[str, tuple[float, float]] = {}
    for name in s.names:
        c = s[name]
        if c.rows is not None:
            found[name] = (c.share_violated, float(np.sum(c.multiplier)) if c.has_duals else math.nan)
            continue
        values = np.ravel(np.asarray(c.value, dtype=np.float64))
        duals = np.ravel(np.asarray(c.multiplier)) if c.has_duals else np.full(values.shape, math.nan)
        found |= dict(zip(c.labels, zip(values.tolist(), duals.tolist(), strict=True), strict=True))
    return found
