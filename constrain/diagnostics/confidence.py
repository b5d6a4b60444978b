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
from constrain.diagnostics.influence import Spread, spread
from constrain.diagnostics.names import level_axis
from constrain.diagnostics.point import Point, array_of, bound_scale, read_point, reduce_to, user_objective
from constrain.diagnostics.rates import rate_pair
from constrain.diagnostics.relaxed import cost_of, judged, shares
from constrain.language import nodes as n
from constrain.language.picked import place_of
from constrain.language.types import type_of
from constrain.lowering.lower import EPIGRAPH
from constrain.solution.constraint import labels_of, slack_of, violation_of
from constrain.solution.records import Estimate, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.lowering.program import Form
    from constrain.runtime.evaluator import Evaluator, Outer

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

    Attributes:
        form: the constraint.
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
        labels: names of the entries.
    """

    form: Form
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
    labels: tuple[str, ...]


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
    outer = view.outer(moments, "exact")
    sides = view.sides_at(moments)
    forms = [(k, form) for k, form in enumerate(program.forms) if form.rows is None]
    whole, added = _with_costs(evaluator, view, point, moments, outer, sides)
    missing = _absent(view, moments, outer, sides)
    functions = [whole, *(_left(sides[k]) for k, _ in forms)]
    functions += [r for r in outer.residuals if r is not None]
    spreads = [
        Spread(s.error, np.where(gone, -1.0, s.smallest))
        for s, gone in zip(
            spread(evaluator, moments, functions, _urgencies(view, point, forms)),
            missing.functions,
            strict=True,
        )
    ]
    lefts, residuals = spreads[1 : 1 + len(forms)], iter(spreads[1 + len(forms) :])
    by_part = [next(residuals) if part.rows is None else None for part in program.parts]
    tested: list[_Tested] = []
    objective = spreads[0]
    for (k, form), left in zip(forms, lefts, strict=True):
        if form.name == EPIGRAPH:
            objective = Spread(objective.error, left.smallest)
            continue
        own = _test(view, point, k, form, left, by_part, missing.sides[k], confidence)
        tested.append(_bounded(own, view, moments, k, bounded, confidence))
    estimates = _verdicts(tested, point, tolerance, confidence, correction)
    estimates |= _per_row(view, point, tolerance, confidence)
    value = user_objective(evaluator, point) + program.sign * added
    value = value if objective.smallest.min(initial=0.0) >= 0 else math.nan
    half = float(special.ndtri(0.5 + confidence / 2)) * float(objective.error.max(initial=0.0))
    ordered = {f.name: estimates[f.name] for f in program.forms if f.name in estimates}
    return Judgment(value, value - half, value + half, ordered)


def _urgencies(view: Evaluator, point: Point, forms: Sequence[tuple[int, Form]]) -> list[NDArray[np.float64]]:
    """How urgent the standard error of each entry is: of the objective, the left sides, and the residuals."""
    residuals = zip(view.program.parts, point.residuals, strict=True)
    return [
        np.zeros(()),
        *(_urgency(form, point.sides[k]) for k, form in forms),
        *(np.abs(r) if part.kind == "==" else r for part, r in residuals if part.rows is None),
    ]


def _per_row(view: Evaluator, point: Point, tolerance: float, confidence: float) -> dict[str, Estimate]:
    """The estimates of constraints per row."""
    program = view.program
    first = {part.constraint: i for i, part in reversed(list(enumerate(program.parts)))}
    return {
        form.name: per_row(point, k, first[form.name], form, tolerance, confidence)
        for k, form in enumerate(program.forms)
        if form.rows is not None
    }


_PROBES = (0.5, 1e6, -1e6)
"""Values put in the place of averages that do not exist: what changes with them does not exist either."""


@dataclass(frozen=True)
class _Missing:
    """Where an average that does not exist enters.

    Attributes:
        functions: for the objective, the left sides, and the residuals of parts that are not per row.
        sides: per form for each of its sides; empty for constraints per row.
    """

    functions: list[NDArray[np.bool_]]
    sides: list[tuple[NDArray[np.bool_], ...]]


def _absent(
    evaluator: Evaluator,
    moments: Sequence[Tensor],
    outer: Outer,
    sides: Sequence[tuple[Tensor, ...] | None],
) -> _Missing:
    """Which values depend on an average over a group without rows, or are NaN already.

    Slopes do not tell: that of a square is 0 where the average that does not exist is stored as 0.
    """
    empty: dict[int, Tensor] = {}
    for job in evaluator.jobs:
        population = evaluator.populations[job.data]
        for i in job.moments:
            moment = evaluator.program.moments[i]
            counts = population.stratum(moment.given, moment.by).counts
            if bool((counts == 0).any()):
                lead = (-1, *(1 for _ in range(moments[i].dim() - 1))) if moment.by else ()
                empty[i] = (counts == 0).reshape(lead)

    def read(
        outer: Outer, sides: Sequence[tuple[Tensor, ...] | None]
    ) -> tuple[list[NDArray[np.float64]], list[tuple[NDArray[np.float64], ...]]]:
        arrays = [tuple(array_of(s) for s in found or ()) for found in sides]
        functions = [array_of(outer.objective), *(found[0] for found in arrays if found)]
        functions += [array_of(r) for r in outer.residuals if r is not None]
        return functions, arrays

    functions, arrays = read(outer, sides)
    gone = [np.isnan(f) for f in functions]
    gone_sides = [tuple(np.isnan(s) for s in found) for found in arrays]
    for fill in _PROBES if empty else ():
        filled = [m.detach() for m in moments]
        for i, where in empty.items():
            filled[i] = filled[i].masked_fill(where, fill)
        others, other_sides = read(evaluator.outer(filled, "exact"), evaluator.sides_at(filled))
        gone = [g | (f != o) for g, f, o in zip(gone, functions, others, strict=True)]
        gone_sides = [
            tuple(g | (s != o) for g, s, o in zip(*found, strict=True))
            for found in zip(gone_sides, arrays, other_sides, strict=True)
        ]
    return _Missing(gone, gone_sides)


def _objective(evaluator: Evaluator, outer: Outer, sides: Sequence[tuple[Tensor, ...] | None]) -> Tensor:
    """The objective with the costs of relaxing; the maximum itself in the place of the epigraph's bound."""
    total = outer.objective
    for form, own in zip(evaluator.program.forms, sides, strict=True):
        if form.name == EPIGRAPH and own is not None:
            total = total + own[0] - own[1]
    return total


def _with_costs(
    evaluator: Evaluator,
    view: Evaluator,
    point: Point,
    moments: Sequence[Tensor],
    outer: Outer,
    sides: Sequence[tuple[Tensor, ...] | None],
) -> tuple[Tensor, float]:
    """The objective with what the rows of this sample pay, and how much more that is than the program counts.

    The program counts the rows of the training sample.
    """
    base = whole = _objective(view, outer, sides)
    if view is not evaluator:
        whole = _objective(evaluator, evaluator.outer(moments, "exact"), sides)
    paid = sum(_paid(view, point, form) for form in view.program.forms)
    counted = float(whole.detach()) - float(base.detach())
    if abs(paid - counted) <= 1e-9 * (1 + abs(paid)):
        return whole, 0.0
    return base + (whole - base) * (paid / counted), paid - counted


def _paid(view: Evaluator, point: Point, form: Form) -> float:
    """What the rows of this sample pay for a relaxed constraint per row."""
    if form.relaxation is None or form.rows is None:
        return 0.0
    slack = np.abs(point.slack[form.name])
    return cost_of(view, form.relaxation).of(slack, shares(view, form.rows, slack.ndim))


def _left(sides: tuple[Tensor, ...] | None) -> Tensor:
    if sides is None:
        raise TypeError("a constraint per row has no sides over moments")
    return sides[0]


def _urgency(form: Form, sides: tuple[NDArray[np.float64], ...]) -> NDArray[np.float64]:
    """How little room each entry of the left side has, where the bounds have its shape."""
    bounds = [s if s.shape in ((), sides[0].shape) else np.zeros(()) for s in sides[1:]]
    if form.op == "==":
        return np.abs(sides[0] - bounds[0])
    return -slack_of(form.op, sides[0], bounds if form.op == "between" else bounds[0])


def quantile(rows: NDArray[np.float64], confidence: float) -> NDArray[np.float64]:
    """Two-sided quantile of Student's t with rows - 1 degrees of freedom."""
    return np.asarray(special.stdtrit(np.maximum(rows - 1, 1), 0.5 + confidence / 2))


def _test(
    evaluator: Evaluator,
    point: Point,
    k: int,
    form: Form,
    left: Spread,
    by_part: Sequence[Spread | None],
    missing: tuple[NDArray[np.bool_], ...],
    confidence: float,
) -> _Tested:
    """Interval of the left side, and the worst residual in standard errors."""
    sides = tuple(np.where(gone, np.nan, s) for s, gone in zip(point.sides[k], missing, strict=True))
    shape = np.broadcast_shapes(*(s.shape for s in sides))
    rates = _rate_rows(evaluator, form)
    value, lower, upper = (
        np.array(np.broadcast_to(x, shape)) for x in _interval(form, sides[0], left, rates, confidence)
    )
    bounds = tuple(np.array(np.broadcast_to(s, shape)) for s in sides[1:])
    lead = any(type_of(x).levels is not None for x in (form.lhs, *form.rhs))
    ratio, smallest = np.full(shape, np.nan), np.full(shape, np.nan)
    absent = np.zeros(shape, dtype=bool)
    for gone in missing:
        absent |= gone
    for i in evaluator.program.places.get(form.name, ()):
        part, own = evaluator.program.parts[i], by_part[i]
        if own is None:
            continue
        residual = np.abs(point.residuals[i]) if part.kind == "==" else point.residuals[i]
        if rates is None:
            with np.errstate(divide="ignore", invalid="ignore"):
                found = residual / own.error
        else:
            target = np.broadcast_to(bounds[0] if part.side == "lower" else bounds[-1], shape)
            found = rate_deviates(residual, value, np.broadcast_to(rates, shape), target)
        found = np.where(own.smallest < 0, np.nan, found)
        gone = np.where(own.smallest < 0, 1.0, 0.0)
        absent |= reduce_to(shape, gone, lead=lead, how=np.fmax) > 0
        ratio = np.fmax(ratio, reduce_to(shape, found, lead=lead, how=np.fmax))
        rows = np.where(own.smallest == 0, np.inf, np.where(own.smallest < 0, np.nan, own.smallest))
        smallest = np.fmin(smallest, reduce_to(shape, rows, lead=lead, how=np.fmin))
    counts = np.where(np.isfinite(smallest), smallest, 0).astype(np.int64)
    freedom = np.full(shape, np.inf) if rates is not None else np.maximum(counts - 1.0, 1.0)
    labels = tuple(labels_of(form.name, *level_axis(evaluator, form.lhs, *form.rhs), shape))
    settled, unknown = np.isinf(smallest) & ~absent, np.isnan(smallest) | absent
    return _Tested(
        form, value, bounds, lower, upper, ratio, counts, freedom, settled, unknown, absent, labels
    )  # fmt: skip


def _bounded(
    tested: _Tested,
    view: Evaluator,
    moments: Sequence[Tensor],
    k: int,
    bounded: Mapping[str, tuple[float, float]],
    confidence: float,
) -> _Tested:
    """The same with an interval for every sample size where a range was given; of two rates Newcombe's."""
    limits = bounded.get(tested.form.name)
    pair = rate_pair(view, tested.form, moments) if limits is None else None
    if limits is not None:
        found = bounded_interval(view, moments, k, limits, confidence)
        lower, upper, ratio = found.lower, found.upper, found.ratio
    elif pair is not None:
        ends = pair.interval(float(special.ndtri(0.5 + confidence / 2)))
        lower, upper = (np.full(tested.value.shape, end) for end in ends)
        ratio = np.full(lower.shape, pair.ratio(tested.form.op, [float(b) for b in tested.bounds]))
    else:
        return tested
    lower, upper = (np.where(tested.absent, np.nan, x) for x in (lower, upper))
    ratio = np.where(tested.unknown, np.nan, ratio)
    return replace(tested, lower=lower, upper=upper, ratio=ratio, freedom=np.full(ratio.shape, np.inf))


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


def _rate_rows(evaluator: Evaluator, form: Form) -> NDArray[np.float64] | None:
    """Rows of a plain rate P(A | B, by) against a bound without data, at least 1; else None."""
    moment, place = place_of(form.lhs) or (form.lhs, ...)
    if not isinstance(moment, n.Moment) or not isinstance(moment.integrand, n.Indicator):
        return None
    if any(n.mentions(side, n.Moment) for side in form.rhs):
        return None
    counts = array_of(evaluator.populations[moment.data].stratum(moment.given, moment.by).counts)[place]
    return np.maximum(1.0, counts) if type_of(moment).shape == () else None


def _verdicts(
    tested: Sequence[_Tested], point: Point, tolerance: float, confidence: float, correction: Correction
) -> dict[str, Estimate]:
    """Verdicts, corrected for their number over all constraints."""
    pieces = [_p_values(t) for t in tested]
    rejected = step_down(
        np.concatenate([p.ravel() for p in pieces]) if pieces else np.zeros(0), 1 - confidence, correction
    )
    count = sum(int(np.isfinite(p).sum()) for p in pieces)
    result: dict[str, Estimate] = {}
    start = 0
    for t, p in zip(tested, pieces, strict=True):
        own = rejected[start : start + p.size].reshape(p.shape)
        start += p.size
        violation = violation_of(t.form.op, t.value, t.bounds if t.form.op == "between" else t.bounds[0])
        unit = bound_scale((t.value, *t.bounds), t.value.shape, t.form.scale)
        exact = violation > tolerance * unit
        columns = (own, t.ratio, t.settled, t.unknown, exact)
        words = [
            _word(t.form.op, *entry) for entry in zip(*(c.ravel().tolist() for c in columns), strict=True)
        ]
        slack = point.slack.get(t.form.name)
        given = [np.broadcast_to(b, t.value.shape) for b in point.written.get(t.form.name, t.bounds)]
        bound: Any = tuple(plain(b) for b in given) if t.form.op == "between" else plain(given[0])
        loose = None if slack is None else np.broadcast_to(np.abs(slack), t.value.shape) > tolerance * unit
        if loose is not None:
            words = [_loosened(word, own) for word, own in zip(words, loose.ravel().tolist(), strict=True)]
        counted = t.smallest[~t.settled & ~t.unknown]
        result[t.form.name] = Estimate(
            value=plain(t.value),
            bound=bound,
            violation=plain(violation),
            lower=plain(t.lower),
            upper=plain(t.upper),
            verdict=overall(words, complete=not t.absent.any()),
            verdicts=tuple(words),
            smallest=int(counted.min()) if counted.size else 0,
            rows_needed=_rows_needed(t, words, max(1, count), confidence),
            confidence=confidence,
            labels=t.labels,
            relaxed=None if loose is None else float(np.mean(loose)),
        )
    return result


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


def _rows_needed(t: _Tested, words: Sequence[str], count: int, confidence: float) -> int:
    """Rows of the smallest group that would decide every undecided entry: n (z s / |slack|)^2."""
    z = float(special.ndtri(1 - (1 - confidence) / (2 * count)))
    most = 0.0
    for word, ratio, rows in zip(words, t.ratio.ravel(), t.smallest.ravel(), strict=True):
        if word == "undecided" and math.isfinite(ratio) and abs(ratio) > 1e-3:
            most = max(most, float(rows) * (z / ratio) ** 2)
    return math.ceil(most)


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
