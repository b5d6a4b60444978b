"""`solve(margin=...)`: bounds are tightened, so that constraints also hold beyond the training sample.

An active constraint sits at its bound on the training sample, and is violated beyond it about every other
time. With the margin z * SE, where SE is the delta-method standard error of its residual and z the one-sided
quantile of Student's t at level alpha / k, all k numbers that sampling error could decide hold with
probability 1 - alpha (Holm 1979: numbers with so much room that they are decided first do not count).

That covers the sampling error of the constraint at a given point. A model with many parameters fits the noise
of its training rows, so that its constraints have less room elsewhere (overfitting); that gap cannot be read
off the training rows. `margin=sample` measures it on a calibration sample, which should not be the hold-out,
and `margin="auto"` holds one back where a model has that many weights (`calibration.py`): the margin is then
gap + z * SE, with the standard error on that sample, and is measured anew after a solve. Each of these solves
starts where the first one did.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy import stats

from constrain._lazy import language_printing
from constrain.diagnostics.influence import spread
from constrain.diagnostics.judge import statistical
from constrain.diagnostics.names import level_axis
from constrain.diagnostics.point import read_point, reduce_to
from constrain.driver.calibration import HeldBack, hold_back, remembered
from constrain.driver.setup import lowered
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.data import Data, suggest
from constrain.language.expr import Constraint, Expr
from constrain.language.problem import Problem
from constrain.language.relations import unwrapped
from constrain.language.types import type_of
from constrain.runtime.tails import thresholds
from constrain.solution.constraint import slack_of
from constrain.solution.records import plain
from constrain.solution.tightening import Tightening

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from numpy.typing import NDArray

    from constrain.diagnostics.alive import Attached
    from constrain.lowering.program import Form
    from constrain.runtime.evaluator import Evaluator
    from constrain.solution import Solution

__all__ = ["solve_with_margin"]

ROUNDS = 3
"""Most solves with tighter bounds that follow a calibration sample: trained on, a model fits more noise."""
CONFIDENCE = 0.95
"""With which all constraints hold, as far as sampling error is concerned."""


@dataclass(frozen=True)
class _Plan:
    """Margins, and how they came about; fields as in `Tightening`.

    Margins have the shape of the constraint as written: a number, or one per level.
    """

    margins: dict[str, NDArray[np.float64]]
    errors: dict[str, NDArray[np.float64]]
    gaps: dict[str, NDArray[np.float64]]
    level: float
    counted: int
    confidence: float
    skipped: dict[str, str]
    enough: bool = False
    """Whether the point at which it was measured holds all constraints beyond sampling error already."""


def solve_with_margin(
    problem: Problem,
    margin: Any,
    once: Callable[[Problem, Any, Any], Solution],
    start: Any,
    *,
    seed: int = 0,
    holdout: Data | Mapping[str, Data] | None,
    data: Data | Mapping[str, Data] | None,
    params: Mapping[str, Any] | None,
) -> Solution:
    """Solves, tightens the bounds, and solves again from there; judged against the bounds as written.

    Args:
        problem: as written.
        margin: `"auto"`, numbers by the name of the constraint, or a calibration sample.
        once: solves a problem from a start, on the data as given or on some of their rows.
        start: of the first solve.
        seed: of the choice of rows that are held back.
        holdout: as in `solve`.
        data: as in `solve`.
        params: as in `solve`.

    Raises:
        ModelingError: E139 (no such constraint), E141 (no margin), E198 (a constraint that takes none).
    """
    plan = _given(problem, margin)
    apart = HeldBack() if plan is not None or isinstance(margin, Data) else hold_back(problem, data, seed)
    rows = data if apart.training is None else apart.training
    calibration = margin if isinstance(margin, Data) else apart.calibration
    restart = remembered(lowered(problem, rows))
    first = once(problem, start, rows)
    attached = cast("Attached", first.live)
    if calibration is None:
        plan = _automatic(problem, attached, None, attached.point) if plan is None else plan
        found = once(_tightened(problem, attached, plan), first, rows)
    else:
        plan = _automatic(problem, attached, calibration, attached.point)
        restart()
        found = once(_tightened(problem, attached, plan), start, rows)
        for _ in range(ROUNDS - 1):
            again = _automatic(problem, attached, calibration, cast("Attached", found.live).point)
            if again.enough:
                break
            plan = again
            restart()
            found = once(_tightened(problem, attached, plan), start, rows)
    result = _as_written(problem, found, first, plan, apart, holdout=holdout, data=rows, params=params)
    if apart.warning is not None:
        result.warnings = (*result.warnings, apart.warning)
    return result


# ------------------------------------------------------------------------------------ what was asked for
def _given(problem: Problem, margin: Any) -> _Plan | None:
    """The plan of margins by name; None where they have to be measured."""
    if isinstance(margin, Data) or (isinstance(margin, str) and margin == "auto"):
        reasons = [_refusal(relation) for relation in problem.constraints.values()]
        if all(reasons):
            name = next(iter(problem.constraints), None)
            if name is None:
                raise ModelingError("E198", "the problem has no constraint to give a margin to")
            raise _refused(name, problem.constraints[name])
        return None
    if not isinstance(margin, Mapping):
        raise ModelingError(
            "E141",
            f"margin={margin!r} is neither 'auto', nor margins by name, nor a sample",
            fix='margin="auto", or {"recall": 0.01}',
        )
    margins: dict[str, NDArray[np.float64]] = {}
    named = cast("Mapping[str, Any]", margin)
    for name, value in named.items():
        if name not in problem.constraints:
            known = problem.constraints
            raise ModelingError("E139", f"there is no constraint {name!r}{suggest(name, known)}")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf:
            raise ModelingError(
                "E141", f"margin[{name!r}]={value!r} is no number >= 0", fix=f"{{{name!r}: 0.01}}"
            )
        if _refusal(problem.constraints[name]):
            raise _refused(name, problem.constraints[name])
        margins[name] = np.asarray(float(value))
    return _Plan(margins, {}, {}, 0.0, 0, 0.0, {})


def _refusal(relation: n.Node) -> str:
    """Why a constraint takes no margin; empty where it does."""
    inner, relaxed, _ = unwrapped(relation)
    if relaxed is not None:
        return "it may give way"
    if isinstance(inner, n.ForAll):
        return "one constraint per row"
    if isinstance(inner, n.Comparison) and inner.op == "==":
        return "an equality"
    return ""


def _refused(name: str, relation: n.Node) -> ModelingError:
    reason = _refusal(relation)
    inner = unwrapped(relation)[0]
    if reason == "an equality":
        what = "is an equality: tightened it has no solution"
        assert isinstance(inner, n.Comparison)  # narrows the type
        sides = (str(language_printing().source(side, limit=50)) for side in (inner.lhs, inner.rhs))
        fix = "a tolerance, which can be tightened: abs({} - {}) <= 0.02".format(*sides)
    elif reason == "one constraint per row":
        what = "is one constraint per row, and says nothing about rows that are not there"
        fix = "a share of the rows, P(...) >= 0.99, or a tail, cn.CVaR(..., 0.99) <= b"
    else:
        what = "may give way at a cost, so that a margin says nothing"
        fix = "the constraint without .relax(cost=...)"
    return ModelingError("E198", f"the constraint {name!r} {what}", at=relation.loc, fix=fix)


# ------------------------------------------------------------------------------------ measured margins
def _automatic(
    problem: Problem,
    attached: Attached,
    calibration: Data | Mapping[str, Data] | None,
    state: Mapping[str, Any],
) -> _Plan:
    """Margins from standard errors of residuals, and with a calibration sample from the gap to it.

    Args:
        problem: as written.
        attached: the first solution.
        calibration: the sample, or None.
        state: the decisions at which they are measured.
    """
    skipped = {name: why for name, relation in problem.constraints.items() if (why := _refusal(relation))}
    places = {form.name: k for k, form in enumerate(attached.program.forms)}
    chosen = {name: places[name] for name in problem.constraints if name not in skipped}
    with _decided(attached, state):
        here = {name: _measured(attached.evaluator, k) for name, k in chosen.items()}
        there = here if calibration is None else _elsewhere(attached, calibration, chosen)
    ratios = np.concatenate([m.ratio.ravel() for m in here.values()])
    level, counted = _shared_level(ratios[np.isfinite(ratios)], 1 - CONFIDENCE)
    margins: dict[str, NDArray[np.float64]] = {}
    gaps: dict[str, NDArray[np.float64]] = {}
    enough = True
    for name, found in there.items():
        if not np.isfinite(found.error).any():
            skipped[name] = "no sample enters"
            continue
        gap = np.nan_to_num(found.residual - here[name].residual)  # a group may have no rows there
        noise = stats.t.ppf(1 - level, np.maximum(found.rows - 1, 1)) * found.error
        margins[name] = np.maximum(0.0, gap) + np.nan_to_num(noise)  # more room there is chance
        enough = enough and bool((np.nan_to_num(found.residual + noise, nan=0.0) <= 0.0).all())
        if calibration is not None:
            gaps[name] = gap
    errors = {name: there[name].error for name in margins}
    return _Plan(margins, errors, gaps, level, counted, CONFIDENCE, skipped, enough)


@contextmanager
def _decided(attached: Attached, state: Mapping[str, Any]) -> Generator[None]:
    """Runs a block with other decisions."""
    now = attached.decisions.snapshot()
    try:
        with attached.decisions.precision(attached.evaluator.dtype):
            attached.decisions.restore(state)
            yield
    finally:
        attached.decisions.restore(now)


@dataclass(frozen=True)
class _Measured:
    """A constraint on a sample; arrays of the shape of the constraint as written.

    Attributes:
        error: standard error of the residual, the largest of its sides; NaN where no sample enters.
        ratio: its room in standard errors.
        residual: the largest of its sides.
        rows: of the smallest group that enters.
    """

    error: NDArray[np.float64]
    ratio: NDArray[np.float64]
    residual: NDArray[np.float64]
    rows: NDArray[np.float64]


def _measured(evaluator: Evaluator, k: int) -> _Measured:
    program = evaluator.program
    form = program.forms[k]
    point = read_point(evaluator)
    moments = [m.requires_grad_(True) for m in evaluator.moments("exact")]
    own = list(program.places.get(form.name, ()))
    residuals = evaluator.outer(moments, "exact").residuals
    functions = [r for i in own if (r := residuals[i]) is not None]
    spreads = spread(evaluator, moments, functions, [point.residuals[i] for i in own])
    shape = np.broadcast_shapes(*(side.shape for side in point.sides[k]))
    lead = any(type_of(x).levels is not None for x in (form.lhs, *form.rhs))
    error, ratio, most = (np.full(shape, np.nan) for _ in range(3))
    rows = np.full(shape, np.nan)
    for i, found in zip(own, spreads, strict=True):
        entering = np.where(found.smallest > 0, found.error, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            room = -point.residuals[i] / entering
        error = np.fmax(error, reduce_to(shape, entering, lead=lead, how=np.fmax))
        ratio = np.fmin(ratio, reduce_to(shape, room, lead=lead, how=np.fmin))
        most = np.fmax(most, reduce_to(shape, point.residuals[i], lead=lead, how=np.fmax))
        counts = np.where(found.smallest > 0, found.smallest, np.nan)
        rows = np.fmin(rows, reduce_to(shape, counts, lead=lead, how=np.fmin))
    return _Measured(error, ratio, most, np.nan_to_num(rows, nan=1.0))


def _shared_level(ratios: NDArray[np.float64], alpha: float) -> tuple[float, int]:
    """One-sided level of the numbers that are not decided before them, and how many these are (Holm)."""
    p_values = np.sort(stats.norm.sf(ratios))
    left = len(p_values)
    for p in p_values.tolist():
        if p > alpha / left or left == 1:
            break
        left -= 1
    return alpha / max(1, left), left


def _elsewhere(
    attached: Attached, sample: Data | Mapping[str, Data], chosen: Mapping[str, int]
) -> dict[str, _Measured]:
    """The constraints at the same point on another sample."""
    evaluator = attached.on(sample)
    with thresholds(evaluator):
        return {name: _measured(evaluator, k) for name, k in chosen.items()}


# ------------------------------------------------------------------------------------ tighter bounds
def _tightened(problem: Problem, attached: Attached, plan: _Plan) -> Problem:
    """The problem with moved bounds, under the same names."""
    constraints = dict(problem.constraints)
    for form in attached.program.forms:
        if form.name in plan.margins:
            size = _number(attached, form, plan.margins[form.name])
            constraints[form.name] = _moved(form.name, problem.constraints[form.name], size, plan)
    return Problem(problem.sense, problem.objective, constraints)


def _number(attached: Attached, form: Form, margin: NDArray[np.float64]) -> Any:
    """A margin as an expression: a number, an array, or one number per level."""
    if margin.ndim == 0:
        return float(margin)
    leveled = next((x for x in (form.lhs, *form.rhs) if type_of(x).levels is not None), None)
    if leveled is None:
        return margin
    if margin.ndim > 1 or np.ptp(margin) == 0:
        return float(margin.max())
    level = type_of(leveled).levels
    assert level is not None  # chosen so
    columns = [n.Column(level.data, name) for name in level.columns]
    _, names = level_axis(attached.evaluator, form.lhs, *form.rhs)
    total: Any = 0.0
    for value, own in zip(margin.tolist(), names, strict=True):
        parts = cast("tuple[Any, ...]", own) if isinstance(own, tuple) else (own,)
        event: Any = None
        for column, part in zip(columns, parts, strict=True):
            is_it = Expr(column) == part
            event = is_it if event is None else event & is_it
        total = total + value * _share(event, columns)
    return total


def _share(event: Any, columns: list[n.Column]) -> Expr:
    """1 at the level of this event and 0 at the others: the rate of a level within each level."""
    return Expr(n.Rate(event.node, None, tuple(columns), None))


def _moved(name: str, relation: n.Node, size: Any, plan: _Plan) -> n.Node:
    """A constraint with its bound (or both bounds) moved inwards."""
    inner, _, scaled = unwrapped(relation)
    if isinstance(inner, n.Between):
        low, high = Expr(inner.lower) + size, Expr(inner.upper) - size
        _leaves_room(name, inner.upper, inner.lower, 2.0, relation, plan)
        moved: n.Node = n.Between(low.node, inner.arg, high.node, loc=inner.loc)
    else:
        assert isinstance(inner, n.Comparison)  # `_refusal` has seen to it
        if isinstance(inner.lhs, n.Apply) and inner.lhs.atom == "abs" and inner.op == "<=":
            _leaves_room(name, inner.rhs, n.Constant(0.0), 1.0, relation, plan)
        right = Expr(inner.rhs)
        bound = right - size if inner.op == "<=" else right + size
        moved = n.Comparison(inner.op, inner.lhs, bound.node, loc=inner.loc)
    if scaled is None:
        return moved
    return Constraint(moved).scale(scaled.scale).node


def _leaves_room(
    name: str, upper: n.Node, lower: n.Node, factor: float, relation: n.Node, plan: _Plan
) -> None:
    """Refuses a margin that leaves nothing of a range (E198)."""
    if not isinstance(upper, n.Constant) or not isinstance(lower, n.Constant):
        return
    room = float(upper.value) - float(lower.value)
    largest = factor * float(plan.margins[name].max(initial=0.0))
    if largest < room:
        return
    more = (largest / room) ** 2
    fix = f"a wider tolerance, or more than {more:.1f} times as many rows" if plan.errors else "a smaller one"
    raise ModelingError(
        "E198",
        f"a margin of {largest / factor:.3g} leaves nothing of the range {room:.3g} of {name!r}",
        at=relation.loc,
        fix=fix,
    )


# ------------------------------------------------------------------------------------ the result
def _as_written(
    problem: Problem,
    found: Solution,
    first: Solution,
    plan: _Plan,
    apart: HeldBack,
    *,
    holdout: Data | Mapping[str, Data] | None,
    data: Data | Mapping[str, Data] | None,
    params: Mapping[str, Any] | None,
) -> Solution:
    """The tightened solution with its constraints, estimates and verdicts against the bounds as written."""
    train = problem.evaluate(data, params=params)
    other = None if holdout is None else problem.evaluate(holdout, params=params)
    constraints = dict(found.constraints)
    for name, result in found.constraints.items():
        estimate = train.estimates[name]
        if name not in plan.margins:
            continue
        constraints[name] = replace(
            result,
            text=first[name].text,
            bound=estimate.bound,
            slack=plain(slack_of(result.op, estimate.value, cast("Any", estimate.bound))),
            violation=estimate.violation,
            train=estimate,
            holdout=None if other is None else other.estimates[name],
        )
    codes = ("C311", "C312")
    warnings = (*(w for w in found.warnings if w.code not in codes), *statistical(constraints))
    sign = -1.0 if problem.sense == "maximize" else 1.0
    return replace(
        found,
        constraints=constraints,
        train=train,
        holdout=other,
        warnings=warnings,
        provenance=replace(found.provenance, source=first.provenance.source, latex=first.provenance.latex),
        live=_Written(cast("Attached", first.live), cast("Attached", found.live)),
        tightening=Tightening(
            margins={name: plain(m) for name, m in plan.margins.items()},
            errors={name: plain(e) for name, e in plan.errors.items()},
            gaps={name: plain(g) for name, g in plan.gaps.items()},
            level=plan.level,
            counted=plan.counted,
            confidence=plan.confidence,
            objective=first.objective,
            price=sign * (found.objective - first.objective),
            expected=_expected(first, plan),
            skipped=plan.skipped,
            held_back=apart.rows,
        ),
    )


class _Written:
    """What is behind the result: judged as written, while its multipliers are those of the tighter bounds."""

    def __init__(self, written: Attached, tightened: Attached) -> None:
        self._written = copy.copy(written)
        self._written.point = tightened.point
        self.problem = written.problem
        self.kkt = tightened.kkt
        self.sensitivity = tightened.sensitivity
        self.slope = tightened.slope
        self.evaluate = self._written.evaluate
        self.infeasibility = self._written.infeasibility


def _expected(first: Solution, plan: _Plan) -> float:
    """The price that the multipliers of the first solve predict: multiplier times margin."""
    total = 0.0
    for name, margin in plan.margins.items():
        result = first[name]
        if not result.has_duals:
            return math.nan
        total += float(np.sum(np.asarray(result.multiplier) * margin))
    return total
