"""Intervals and verdicts: what a sample says about a constraint beyond that sample.

Intervals are two-sided, by the delta method with Student's quantiles of the smallest group; plain rates get
Wilson's interval or an exact one (`binomial.py`), differences of two of them over different rows Newcombe's
(`rates.py`), and averages of rows in a known range, on request, one for every sample size (`bernstein.py`). A
verdict compares with the bound, corrected for the number of verdicts by Holm's step-down method: `holds`,
`violated`, or `undecided`. For an equality an interval that covers the bound proves nothing: the word is
`compatible`.

Source: Holm (1979), Scand. J. Statist. 6; for influence functions see `influence.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import special

from constrain.diagnostics.bernstein import bounded_interval, checked_ranges
from constrain.diagnostics.binomial import rate_deviates, rate_interval
from constrain.diagnostics.influence import Spread
from constrain.diagnostics.names import level_axis
from constrain.diagnostics.point import Point, array_of, bound_scale, read_point, reduce_to, user_objective
from constrain.diagnostics.rates import maybe_pair, rate_pair
from constrain.diagnostics.relaxed import cost_of, judged, shares
from constrain.diagnostics.units import Spreads, absent, spreads_of, units_of, values_at
from constrain.language import nodes as n
from constrain.language.picked import place_of
from constrain.language.types import type_of
from constrain.lowering.lower import EPIGRAPH
from constrain.solution.constraint import labels_of, violation_of
from constrain.solution.records import Estimate, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.diagnostics.units import Missing, Unit, Values
    from constrain.lowering.program import Form
    from constrain.runtime.evaluator import Evaluator

__all__ = ["Judgment", "judge_sample", "step_down"]

Correction = Literal["holm", "bonferroni", "none"]


@dataclass(frozen=True)
class Judgment:
    """What one sample says.

    Attributes:
        objective: value in the user's sense.
        lower: lower end of its interval.
        upper: upper end.
        estimates: per constraint of the user.
    """

    objective: float
    lower: float
    upper: float
    estimates: dict[str, Estimate]


def step_down(
    p_values: NDArray[np.float64], level: float, correction: Correction = "holm"
) -> NDArray[np.bool_]:
    """Which hypotheses are rejected when the chance of any false rejection is to stay below `level`."""
    count = int(np.isfinite(p_values).sum())
    if correction == "none":
        return p_values <= level
    if correction == "bonferroni":
        return p_values <= level / max(1, count)
    order = np.argsort(p_values)  # NaN last
    rejected = np.zeros(p_values.shape, dtype=bool)
    for rank, k in enumerate(order[:count]):
        if p_values[k] > level / (count - rank):
            break
        rejected[k] = True
    return rejected


@dataclass
class _Tested:
    """A constraint before the verdicts: statistics per entry of the constraint as written.

    Of a family of constraints, which have one entry each, statistics per constraint.

    Attributes:
        unit: the constraint, or the family.
        value: (entries as written).
        bounds: one or two arrays.
        lower: of the interval of the value.
        upper: of the interval.
        ratio: worst residual in standard errors; NaN where it is unknown or there is no data.
        smallest: rows of the smallest group per entry, 0 without data.
        freedom: degrees of freedom of the ratio.
        settled: where no data enters, so that the exact value decides.
        unknown: where no standard error was computed (blocks of very many levels), or the value is absent.
        absent: where a group that enters has no rows, or the value is NaN for another reason.
    """

    unit: Unit
    value: NDArray[np.float64]
    bounds: tuple[NDArray[np.float64], ...]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    ratio: NDArray[np.float64]
    smallest: NDArray[np.int64]
    freedom: NDArray[np.float64]
    settled: NDArray[np.bool_]
    unknown: NDArray[np.bool_]
    absent: NDArray[np.bool_]


def judge_sample(
    evaluator: Evaluator,
    point: Point | None = None,
    *,
    tolerance: float = 1e-6,
    confidence: float = 0.95,
    correction: Correction = "holm",
    bounded: Mapping[str, tuple[float, float]] | None = None,
) -> Judgment:
    """Intervals and verdicts of every constraint on the sample of an evaluator.

    Args:
        evaluator: the program with the sample: training data or a hold-out.
        point: exact values there, if they are known.
        tolerance: violations up to tolerance * (1 + |bound|) are none where no sampling error is concerned.
        confidence: two-sided level of the intervals.
        correction: for the number of verdicts, one per level of each constraint of the user.
        bounded: by constraint the range of every row's value; these get empirical Bernstein intervals.

    Raises:
        ModelingError: E139, E141 for `bounded`.
    """
    bounded = checked_ranges(evaluator, bounded)
    point = read_point(evaluator) if point is None else point
    view = judged(evaluator)
    program = view.program
    moments = [m.clone().requires_grad_(True) for m in point.moments]
    units, values = units_of(program), values_at(view, moments)
    whole, added = _with_costs(evaluator, view, point, moments, units, values)
    missing = absent(view, moments, values)
    spreads = _without(missing, spreads_of(view, point, moments, whole, values, units))
    tested: list[_Tested] = []
    objective = spreads.objective
    for u, unit in enumerate(units):
        if unit.form.name == EPIGRAPH:
            objective = Spread(objective.error, spreads.lefts[u].smallest)
            continue
        own = _test(view, point, unit, values, spreads, u, missing.sides[u], confidence)
        tested.append(_bounded(own, view, moments, bounded, confidence))
    estimates = _verdicts(view, tested, point, tolerance, confidence, correction)
    estimates |= _per_row(view, point, tolerance, confidence)
    value = user_objective(evaluator, point) + program.sign * added
    value = value if objective.smallest.min(initial=0.0) >= 0 else math.nan
    half = float(special.ndtri(0.5 + confidence / 2)) * float(objective.error.max(initial=0.0))
    names = program.shared.names
    ordered = {name: estimates[name] for name in names if name in estimates}
    return Judgment(value, value - half, value + half, ordered)


def _without(missing: Missing, spreads: Spreads) -> Spreads:
    """No rows where an average that does not exist enters."""
    gone = iter(missing.functions)

    def marked(own: Spread) -> Spread:
        return Spread(own.error, np.where(next(gone), -1.0, own.smallest))

    return Spreads(
        marked(spreads.objective),
        [marked(own) for own in spreads.lefts],
        [None if own is None else marked(own) for own in spreads.residuals],
    )


def _per_row(view: Evaluator, point: Point, tolerance: float, confidence: float) -> dict[str, Estimate]:
    """The estimates of constraints per row."""
    program = view.program
    if not program.per_row:
        return {}
    first = {part.constraint: i for i, part in reversed(program.per_row.items())}
    return {
        form.name: per_row(point, k, first[form.name], form, tolerance, confidence)
        for k, form in enumerate(program.forms)
        if form.rows is not None
    }


def _with_costs(
    evaluator: Evaluator,
    view: Evaluator,
    point: Point,
    moments: Sequence[Tensor],
    units: Sequence[Unit],
    values: Values,
) -> tuple[Tensor, float]:
    """The objective with what the rows of this sample pay, and how much more that is than the program counts.

    The program counts the rows of the training sample. Of the epigraph's bound the maximum itself is taken.
    """
    room = [
        own[0] - own[1] for unit, own in zip(units, values.sides, strict=True) if unit.form.name == EPIGRAPH
    ]
    base = whole = sum(room, values.objective)
    if view is not evaluator:
        counted = evaluator.roots(moments, "exact")[0]
        assert counted is not None  # every problem has an objective
        whole = sum(room, counted)
    paid = sum(_paid(view, point, form) for form in view.program.shared.singles)
    counts = float(whole.detach()) - float(base.detach())
    if abs(paid - counts) <= 1e-9 * (1 + abs(paid)):
        return whole, 0.0
    return base + (whole - base) * (paid / counts), paid - counts


def _paid(view: Evaluator, point: Point, form: Form) -> float:
    """What the rows of this sample pay for a relaxed constraint per row."""
    if form.relaxation is None or form.rows is None:
        return 0.0
    slack = np.abs(point.slack[form.name])
    return cost_of(view, form.relaxation).of(slack, shares(view, form.rows, slack.ndim))


def quantile(rows: NDArray[np.float64], confidence: float) -> NDArray[np.float64]:
    """Two-sided quantile of Student's t with rows - 1 degrees of freedom."""
    return np.asarray(special.stdtrit(np.maximum(rows - 1, 1), 0.5 + confidence / 2))


def _test(
    evaluator: Evaluator,
    point: Point,
    unit: Unit,
    values: Values,
    spreads: Spreads,
    u: int,
    missing: tuple[NDArray[np.bool_], ...],
    confidence: float,
) -> _Tested:
    """Interval of the left side, and the worst residual in standard errors."""
    form = unit.form
    given = point.sides[int(unit.places[0])] if unit.family is None else map(array_of, values.sides[u])
    sides = tuple(np.where(gone, np.nan, s) for s, gone in zip(given, missing, strict=True))
    shape = np.broadcast_shapes(*(s.shape for s in sides))
    rates = _rate_rows(evaluator, unit)
    value, lower, upper = (
        np.array(np.broadcast_to(x, shape))
        for x in _interval(form, sides[0], spreads.lefts[u], rates, confidence)
    )
    bounds = tuple(np.array(np.broadcast_to(s, shape)) for s in sides[1:])
    lead = any(type_of(x).levels is not None for x in (form.lhs, *form.rhs))
    ratio, smallest = np.full(shape, np.nan), np.full(shape, np.nan)
    absent = np.zeros(shape, dtype=bool)
    for gone in missing:
        absent |= gone
    for s in unit.stacks:
        stack, own, root = evaluator.program.stacks[s], spreads.residuals[s], values.residuals[s]
        if own is None or root is None:
            continue
        residual = point.residuals[int(stack.places[0])] if unit.family is None else array_of(root)
        residual = np.abs(residual) if stack.part.kind == "==" else residual
        if rates is None:
            with np.errstate(divide="ignore", invalid="ignore"):
                found = residual / own.error
        else:
            target = np.broadcast_to(bounds[0] if stack.part.side == "lower" else bounds[-1], shape)
            found = rate_deviates(residual, value, np.broadcast_to(rates, shape), target)
        found = np.where(own.smallest < 0, np.nan, found)
        gone = np.where(own.smallest < 0, 1.0, 0.0)
        absent |= reduce_to(shape, gone, lead=lead, how=np.fmax) > 0
        ratio = np.fmax(ratio, reduce_to(shape, found, lead=lead, how=np.fmax))
        rows = np.where(own.smallest == 0, np.inf, np.where(own.smallest < 0, np.nan, own.smallest))
        smallest = np.fmin(smallest, reduce_to(shape, rows, lead=lead, how=np.fmin))
    counts = np.where(np.isfinite(smallest), smallest, 0).astype(np.int64)
    freedom = np.full(shape, np.inf) if rates is not None else np.maximum(counts - 1.0, 1.0)
    settled, unknown = np.isinf(smallest) & ~absent, np.isnan(smallest) | absent
    return _Tested(unit, value, bounds, lower, upper, ratio, counts, freedom, settled, unknown, absent)


def _bounded(
    tested: _Tested,
    view: Evaluator,
    moments: Sequence[Tensor],
    bounded: Mapping[str, tuple[float, float]],
    confidence: float,
) -> _Tested:
    """The same with an interval for every sample size where a range was given; of two rates Newcombe's."""
    unit = tested.unit
    pairs = maybe_pair(unit.form)
    found = replace(tested, **{key: np.array(getattr(tested, key)) for key in ("lower", "upper", "ratio")})
    freedom = np.array(tested.freedom)
    places: list[int] = unit.places.tolist()
    for m, (name, k) in enumerate(zip(unit.names, places, strict=True)):
        limits = bounded.get(name)
        pair = rate_pair(view, view.program.forms[k], moments) if limits is None and pairs else None
        where = ... if unit.family is None else m
        if limits is not None:
            own = bounded_interval(view, moments, k, limits, confidence)
            lower, upper, ratio = own.lower, own.upper, own.ratio
        elif pair is not None:
            lower, upper = pair.interval(float(special.ndtri(0.5 + confidence / 2)))
            ratio = pair.ratio(unit.form.op, [float(b[where]) for b in tested.bounds])
        else:
            continue
        found.lower[where] = np.where(tested.absent[where], np.nan, lower)
        found.upper[where] = np.where(tested.absent[where], np.nan, upper)
        found.ratio[where] = np.where(tested.unknown[where], np.nan, ratio)
        freedom[where] = np.inf
    return replace(found, freedom=freedom)


def _interval(
    form: Form,
    value: NDArray[np.float64],
    spread: Spread,
    rates: NDArray[np.float64] | None,
    confidence: float,
) -> tuple[NDArray[np.float64], ...]:
    """The value of the left side with its interval; all NaN where a group that enters has no rows."""
    half = spread.error
    if (spread.smallest > 0).any():  # data enters
        half = np.where(spread.smallest > 0, quantile(spread.smallest, confidence) * half, half)
    lower, upper = value - half, value + half
    if rates is not None:
        lower, upper = rate_interval(value, rates, confidence)
    elif isinstance(form.lhs, n.Apply) and form.lhs.atom == "abs":
        lower = np.maximum(0.0, lower)
    absent = spread.smallest < 0
    return tuple(np.where(absent, np.nan, x) for x in (value, lower, upper))


def _rate_rows(evaluator: Evaluator, unit: Unit) -> NDArray[np.float64] | None:
    """Rows of a plain rate P(A | B, by) against a bound without data, at least 1; else None."""
    form = unit.form
    moment, place = place_of(form.lhs) or (form.lhs, ...)
    picks = None if unit.family is None else unit.family.picks.get(form.lhs)
    if picks is not None:
        moment, place = picks.whole, picks.places
    if not isinstance(moment, n.Moment) or not isinstance(moment.integrand, n.Indicator):
        return None
    if any(n.mentions(side, n.Moment) for side in form.rhs):
        return None
    counts = array_of(evaluator.populations[moment.data].stratum(moment.given, moment.by).counts)[place]
    return np.maximum(1.0, counts) if type_of(moment).shape == () else None


def _verdicts(
    evaluator: Evaluator,
    tested: Sequence[_Tested],
    point: Point,
    tolerance: float,
    confidence: float,
    correction: Correction,
) -> dict[str, Estimate]:
    """Verdicts, corrected for their number over all constraints."""
    pieces = [_p_values(t) for t in tested]
    rejected = step_down(
        np.concatenate([p.ravel() for p in pieces]) if pieces else np.zeros(0), 1 - confidence, correction
    )
    count = max(1, sum(int(np.isfinite(p).sum()) for p in pieces))
    result: dict[str, Estimate] = {}
    start = 0
    for t, p in zip(tested, pieces, strict=True):
        own = rejected[start : start + p.size].reshape(p.shape)
        start += p.size
        form = t.unit.form
        violation = violation_of(form.op, t.value, t.bounds if form.op == "between" else t.bounds[0])
        unit = bound_scale((t.value, *t.bounds), t.value.shape, form.scale)
        columns = (own, t.ratio, t.settled, t.unknown, violation > tolerance * unit)
        words = [_word(form.op, *entry) for entry in zip(*(c.ravel().tolist() for c in columns), strict=True)]
        needed = _rows_needed(t, words, count, confidence)
        if t.unit.family is None:
            loose = _loose(t, point, tolerance * unit)
            result[form.name] = _estimate(evaluator, t, point, violation, words, needed, loose, confidence)
        else:
            result |= _members(t, violation, words, needed, confidence)
    return result


def _loose(t: _Tested, point: Point, room: NDArray[np.float64]) -> NDArray[np.bool_] | None:
    """Which entries gave way; None where the constraint must hold as written."""
    slack = point.slack.get(t.unit.form.name)
    return None if slack is None else np.broadcast_to(np.abs(slack), t.value.shape) > room


def _estimate(
    evaluator: Evaluator,
    t: _Tested,
    point: Point,
    violation: NDArray[np.float64],
    words: list[str],
    needed: Sequence[int],
    loose: NDArray[np.bool_] | None,
    confidence: float,
) -> Estimate:
    """What is said about one constraint."""
    form = t.unit.form
    given = [np.broadcast_to(b, t.value.shape) for b in point.written.get(form.name, t.bounds)]
    if loose is not None:
        words = [_loosened(word, own) for word, own in zip(words, loose.ravel().tolist(), strict=True)]
    counted = t.smallest[~t.settled & ~t.unknown]
    return Estimate(
        value=plain(t.value),
        bound=tuple(plain(b) for b in given) if form.op == "between" else plain(given[0]),  # type: ignore[arg-type]
        violation=plain(violation),
        lower=plain(t.lower),
        upper=plain(t.upper),
        verdict=overall(words, complete=not t.absent.any()),
        verdicts=tuple(words),
        smallest=int(counted.min()) if counted.size else 0,
        rows_needed=max(needed, default=0),
        confidence=confidence,
        labels=tuple(labels_of(form.name, *level_axis(evaluator, form.lhs, *form.rhs), t.value.shape)),
        relaxed=None if loose is None else float(np.mean(loose)),
    )


def _members(
    t: _Tested, violation: NDArray[np.float64], words: list[str], needed: Sequence[int], confidence: float
) -> dict[str, Estimate]:
    """What is said about each constraint of a family."""
    counted = np.where(t.settled | t.unknown, 0, t.smallest)
    pairs = list(zip(*(b.tolist() for b in t.bounds), strict=True))
    bounds = pairs if t.unit.form.op == "between" else [pair[0] for pair in pairs]
    columns = (t.value, violation, t.lower, t.upper, counted, t.absent)
    entries = zip(t.unit.names, bounds, words, needed, *(c.tolist() for c in columns), strict=True)
    return {
        name: Estimate(
            value, bound, violated, lower, upper, overall((word,), complete=not absent), (word,), rows, more,
            confidence=confidence, labels=(name,),
        )
        for name, bound, word, more, value, violated, lower, upper, rows, absent in entries
    }  # fmt: skip


def _loosened(word: str, relaxed: bool) -> str:
    """The word for an entry that gave way: it holds only as it was relaxed, unless not even so."""
    return word if not relaxed or word in ("violated", "not judged") else "relaxed"


def _p_values(t: _Tested) -> NDArray[np.float64]:
    """Two-sided p-value of `left side == bound` per entry; NaN where there is nothing to test."""
    if t.settled.all():
        return np.full(t.settled.shape, np.nan)
    return np.where(t.settled, np.nan, 2 * special.stdtr(t.freedom, -np.abs(t.ratio)))


def _word(op: str, rejected: bool, ratio: float, settled: bool, unknown: bool, exact: bool) -> str:
    if settled:
        return "violated" if exact else "holds"
    if rejected and (op == "==" or ratio > 0):  # even when a case of several has no rows
        return "violated"
    if unknown:
        return "not judged"
    if op == "==":
        return "compatible"
    return "holds" if rejected else "undecided"


def overall(words: Sequence[str], *, complete: bool = True) -> str:
    """The verdict on a block: the worst of its entries'.

    Args:
        words: per entry.
        complete: every entry has a value; entries not judged are then those of a very large block with more
            room than the judged ones, and do not count unless nothing was judged.
    """
    if not complete or (words and set(words) == {"not judged"}):
        return next((w for w in ("violated", "relaxed", "undecided") if w in words), "not judged")
    return next((w for w in ("violated", "relaxed", "undecided", "compatible") if w in words), "holds")


def _rows_needed(t: _Tested, words: Sequence[str], count: int, confidence: float) -> list[int]:
    """Rows of the smallest group that would decide every undecided entry: n (z s / |slack|)^2."""
    z = float(special.ndtri(1 - (1 - confidence) / (2 * count)))
    entries = zip(words, t.ratio.ravel().tolist(), t.smallest.ravel().tolist(), strict=True)
    return [
        math.ceil(rows * (z / ratio) ** 2)
        if word == "undecided" and math.isfinite(ratio) and abs(ratio) > 1e-3
        else 0
        for word, ratio, rows in entries
    ]


def per_row(point: Point, k: int, i: int, form: Form, tolerance: float, confidence: float) -> Estimate:
    """A constraint per row: values of the selected rows, and the share of them that are violated.

    A row that is exceeded at a cost is not violated; the share of those is `relaxed`.
    """
    (value, *bounds), rows = point.rows_of(k, i)
    between = form.op == "between"
    violation = violation_of(form.op, value, bounds if between else bounds[0])
    room = tolerance * bound_scale((value, *bounds), value.shape, form.scale)
    share = _any_entry(violation > room)
    relaxed: float | None = None
    slack = point.slack.get(form.name)
    if slack is not None:
        relaxed = _any_entry(np.abs(np.broadcast_to(slack, (len(slack), *value.shape[1:]))[rows]) > room)
        bounds = [_of_rows(b, value, rows) for b in point.written[form.name]]
    low, high = rate_interval(relaxed or share, max(1, len(rows)), confidence)
    word = "violated" if share > 0 else "relaxed" if relaxed else "holds"
    bound: Any = tuple(bounds) if between else bounds[0]
    return Estimate(
        value, bound, violation, float(low), float(high), word,
        smallest=len(rows), share=share, confidence=confidence, relaxed=relaxed,
    )  # fmt: skip


def _any_entry(where: NDArray[np.bool_]) -> float:
    """Share of rows with an entry of which it is true."""
    return float(np.mean(where.reshape(len(where), -1).any(axis=1))) if len(where) else 0.0


def _of_rows(
    bound: NDArray[np.float64], value: NDArray[np.float64], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """A bound as written for each selected row; it may be the same for all."""
    if bound.ndim == value.ndim and bound.shape[:1] != (1,):
        bound = bound[rows]
    return np.array(np.broadcast_to(bound, value.shape))
