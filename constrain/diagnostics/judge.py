"""Makes a `Solution` out of what a solver left: the one place where a status is decided.

raw = solver.run(...)                                      # decisions are written, nothing is judged
solution = build_solution(program, evaluator, decisions, raw, facts=Facts(...), holdout=..., tolerance=1e-6)
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from constrain._lazy import language_printing
from constrain.diagnostics.alive import Attached, evaluation_of, judge_other
from constrain.diagnostics.confidence import Judgment, judge_sample
from constrain.diagnostics.course import read_course
from constrain.diagnostics.feasibility import largest_violation
from constrain.diagnostics.kkt import CERTIFIED, kkt
from constrain.diagnostics.mixture import offered
from constrain.diagnostics.names import level_axis
from constrain.diagnostics.point import Point, align, read_point, reduce_to
from constrain.diagnostics.provenance import Facts, provenance_of
from constrain.diagnostics.refuted import refuted
from constrain.diagnostics.relaxed import cost_of, shares
from constrain.diagnostics.traps import honest_bound
from constrain.language import nodes as n
from constrain.language.types import type_of
from constrain.lowering.lower import EIGENVALUES, EPIGRAPH
from constrain.runtime.tails import set_thresholds, values_at_risk
from constrain.solution import KKT, ConstraintResult, PartResult, Solution, Status, Warn
from constrain.solution.answer import History
from constrain.solution.constraint import slack_of
from constrain.solution.records import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from constrain.lowering.program import Form, Program
    from constrain.runtime.decisions import Decisions
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.result import RawResult
    from constrain.solution.mixture import Mixture

__all__ = ["Facts", "build_solution", "judge_status", "statistical"]


# ------------------------------------------------------------------------------------------- status
def judge_status(
    record: KKT, raw: RawResult, certified_convex: bool, tolerance: float, *, feasibility: bool = False
) -> Status:
    """The status of a point, whatever the solver calls it.

    A point that is not feasible is never called solved.

    Args:
        record: KKT quantities with the solver's multipliers, or best-fit ones.
        raw: how the run ended, with a proven bound if there is one.
        certified_convex: of the problem; a proven bound needs no such certificate.
        tolerance: for scaled violations, stationarity, complementarity and the relative gap.
        feasibility: the problem asks for a point that satisfies the constraints, and for no more.
    """
    finite = math.isfinite(record.feasibility_scaled) and math.isfinite(record.stationarity)
    if raw.ending in ("diverged", "unbounded") or not finite:
        return Status.DIVERGED
    if record.feasibility_scaled > tolerance:
        if raw.ending == "infeasible":
            return Status.INFEASIBLE
        return Status.LIKELY_INFEASIBLE if raw.ending == "likely_infeasible" else Status.LIMIT
    if feasibility:
        return Status.OPTIMAL
    consistent = record.dual_feasibility >= -tolerance and record.complementarity_scaled <= tolerance
    balanced = consistent and min(record.stationarity, record.stationarity_scaled) <= tolerance
    small_gap = record.gap_kind == CERTIFIED and record.gap_scaled <= tolerance
    # A proven bound decides without gradients: at a kink (a linear loss, say) the one that autograd returns
    # need not balance. Integer problems have a bound, but no multipliers that could contradict it.
    # Those of a search for exact rates hold the events fixed, and say nothing about their surrogates.
    proven = raw.bound is not None and (raw.multipliers is None or consistent or record.surrogate)
    if small_gap and (proven or (certified_convex and balanced and not record.surrogate)):
        return Status.OPTIMAL
    if record.surrogate:  # a rate has no gradient: that of its surrogate certifies nothing
        return Status.FEASIBLE
    certain = balanced and not (record.fritz_john or record.jumps)
    return Status.STATIONARY if certain else Status.FEASIBLE


def _fixed(program: Program) -> str:
    """What multipliers hold fixed where a search over integers found the point; empty for other problems."""
    if _integers(program):
        return "with integer variables there are no prices; these hold the integers fixed"
    if any(isinstance(x, n.Apply) and x.atom == "count_nonzero" for x in program.nodes):
        return "with a count of entries that are not zero there are no prices; these hold the zeros fixed"
    return ""


def _uncertified(program: Program, status: Status, record: KKT) -> str:
    """Why multipliers are no prices of an optimum; empty where the status says that they are."""
    if fixed := _fixed(program):
        return fixed
    if status in (Status.OPTIMAL, Status.STATIONARY) and not record.surrogate:
        return _of_another_point(record)
    if not status.solved:
        return "the constraints do not hold at the point" if status is not Status.DIVERGED else "it diverged"
    if record.surrogate:
        return "gradients of rates are those of surrogates"
    if record.nonsmooth:
        return record.nonsmooth
    if record.jumps:
        return "a piece of cn.where ends at the point, and the one beyond is lower"
    if record.fritz_john:
        return "no multipliers balance the objective at the point"
    if not record.stationary:
        size = min(record.stationarity, record.stationarity_scaled)
        why = f": training steps had {record.acting}, values have not" if record.acting else ""
        return f"the point is not stationary ({size:.1e}, tolerance {record.tolerance:.0e}){why}"
    if record.dual_feasibility < -record.tolerance:
        return "a multiplier of an inequality is negative"
    return "a constraint with a multiplier has room left"


WRONG = 1e-3
"""Scaled slopes that are left by multipliers which are not those of the point."""


def _of_another_point(record: KKT) -> str:
    """Why the multipliers of an optimum are not its own, where others balance the slopes; else empty."""
    left, best = min(record.stationarity, record.stationarity_scaled), record.fit_stationarity
    readable = record.origin == "given" and not record.nonsmooth and best <= record.tolerance
    if not (readable and left > max(WRONG, 10 * record.tolerance)):
        return ""
    return (
        f"the solver's multipliers do not balance the slopes at the point ({left:.1e} is left); those in "
        f"solution.kkt().fit do ({best:.1e})"
    )


# ----------------------------------------------------------------------------------------- building
def build_solution(  # noqa: PLR0913  # one record of everything
    program: Program,
    evaluator: Evaluator,
    decisions: Decisions,
    raw: RawResult,
    *,
    facts: Facts,
    holdout: Evaluator | None = None,
    tolerance: float = 1e-6,
    seed: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Solution:
    """Judges the point that a solver wrote into the decisions.

    Args:
        program: the moment form.
        evaluator: with the training data.
        decisions: holding the point; they are only read.
        raw: how the run ended, with multipliers if there are any.
        facts: of the analysis and the router.
        holdout: an evaluator of the same program on other data (`alive.rebind` maps the samples).
        tolerance: of the judgment.
        seed: of the run, for the record.
        options: of the run, for the record.
    """
    set_thresholds(evaluator)
    point = read_point(evaluator)
    convex = facts.certified_convex
    raw, doubt, record = _checked(program, evaluator, raw, point, tolerance, convex=convex)
    train = judge_sample(evaluator, point, tolerance=tolerance)
    other = None if holdout is None else judge_other(holdout, tolerance=tolerance)
    status = _status(decisions, raw, record, point, facts, program)
    multipliers, caveat = _completed(evaluator, raw, record), _uncertified(program, status, record)
    constraints = _constraints(evaluator, point, raw, multipliers, train, other, caveat)
    texts = {name: own.text for name, own in constraints.items()}
    attached = Attached(program, evaluator, decisions, convex=convex, bound=raw.bound, texts=texts)
    mixture = offered(attached, raw, status, train.objective, tolerance, convex=convex, holdout=holdout)
    of_run = _of_run(program, raw, record, status, train, facts, mixture)
    return Solution(
        status=status,
        objective=_value(program, raw, status, train.objective),
        sense=program.problem.sense,
        constraints=constraints,
        train=evaluation_of(evaluator, train, texts),
        holdout=None if holdout is None or other is None else evaluation_of(holdout, other, texts),
        record=record,
        variables=attached.variables,
        weights=attached.weights,
        value_at_risk=values_at_risk(evaluator).get("objective"),
        hidden=attached.hidden,
        multipliers=multipliers,
        history=History(raw.history),
        warnings=(*doubt, *of_run, *statistical(constraints)),
        provenance=provenance_of(attached, holdout, raw, facts, seed, options),
        bound=None if raw.bound is None else program.sign * raw.bound,
        message=raw.message,
        live=attached,
        mixture=mixture,
    )


def _checked(
    program: Program, evaluator: Evaluator, raw: RawResult, point: Point, tolerance: float, *, convex: bool
) -> tuple[RawResult, list[Warn], KKT]:
    """The run without a bound that is contradicted (W216, W228), what was found, and the KKT conditions."""
    raw, doubt = honest_bound(program.judged, _found(evaluator, raw, point, tolerance), point, tolerance)
    record = kkt(evaluator, raw.multipliers, tolerance, convex=convex, bound=raw.bound, point=point)
    if against := refuted(evaluator, raw, record):
        doubt, raw = [*doubt, *against], replace(raw, bound=None)
        record = kkt(evaluator, raw.multipliers, tolerance, convex=convex, point=point)
    return raw, doubt, record


def _status(
    decisions: Decisions, raw: RawResult, record: KKT, point: Point, facts: Facts, program: Program
) -> Status:
    """The status of the point; `infeasible` as well where the search found no point that has a value."""
    if raw.ending == "infeasible":
        if _integers(program) and _fractional(decisions, record.tolerance):
            return Status.INFEASIBLE
        if not math.isfinite(point.objective):  # the constraints hold, where the objective has no value
            return Status.INFEASIBLE
    if math.isnan(point.objective):  # a point outside of the domain of the objective
        return Status.DIVERGED
    status = judge_status(
        record, raw, facts.certified_convex, record.tolerance, feasibility=program.feasibility
    )
    proven = raw.bound is not None or program.feasibility
    if _integers(program) and status.solved and not (status is Status.OPTIMAL and proven):
        return Status.FEASIBLE  # forces balance with the integers fixed, which says nothing about others
    return status


def _value(program: Program, raw: RawResult, status: Status, objective: float) -> float:
    """The objective: NaN where no point is feasible, infinite where it has no bound on the feasible set."""
    if status is Status.INFEASIBLE:
        return math.nan
    return -program.sign * math.inf if raw.ending == "unbounded" else objective


def _integers(program: Program) -> bool:
    return any(symbol.integer or symbol.boolean for symbol in program.variables)


def _fractional(decisions: Decisions, tolerance: float) -> bool:
    """Whether an integer variable has no integer value: its start, where the search found no point."""
    return any(
        bool(((value - value.round()).abs() > tolerance).any())
        for symbol, value in decisions.variables.items()
        if symbol.integer or symbol.boolean
    )


def _found(evaluator: Evaluator, raw: RawResult, point: Point, tolerance: float) -> RawResult:
    """The result of a feasibility problem: where the constraints hold, all multipliers and the gap are 0.

    Those of a method that moves multipliers tell how it got there, and price nothing.
    """
    program = evaluator.program
    if not program.feasibility or raw.ending == "diverged":
        return raw
    if not largest_violation(evaluator, point) <= tolerance:
        return raw
    zeros = zip(program.parts, point.residuals, strict=True)
    return replace(raw, multipliers={part.key: np.zeros(r.shape) for part, r in zeros}, bound=0.0)


def _completed(evaluator: Evaluator, raw: RawResult, record: KKT) -> dict[str, NDArray[np.float64]] | None:
    """The solver's multipliers, and those of relaxed constraints per row, which no solver has to know."""
    if raw.multipliers is None:
        return None
    found = {key: np.asarray(value, dtype=np.float64) for key, value in raw.multipliers.items()}
    own = {part.key for part in evaluator.program.parts}
    for part in evaluator.program.judged.parts:
        if part.key not in own:
            found[part.key] = record.multipliers[part.key]
    return found


def _constraints(
    evaluator: Evaluator,
    point: Point,
    raw: RawResult,
    multipliers: Mapping[str, Any] | None,
    train: Judgment,
    other: Judgment | None,
    caveat: str,
) -> dict[str, ConstraintResult]:
    program = evaluator.program.judged
    result: dict[str, ConstraintResult] = {}
    at_risk = values_at_risk(evaluator)
    texts = _texts(program)
    for k, form in enumerate(program.forms):
        if form.name == EPIGRAPH:
            continue
        estimate = train.estimates[form.name]
        indices = list(program.places.get(form.name, ()))
        columns, levels = level_axis(evaluator, form.lhs, *form.rhs)
        rows = None if form.rows is None else point.rows_of(k, indices[0])[1]
        parts, duals = _duals(program, point, multipliers, form, indices, rows, np.shape(estimate.value))
        relaxation, cost = _relaxation(evaluator, point, form, rows, np.shape(estimate.value))
        result[form.name] = ConstraintResult(
            name=form.name,
            text=texts[form.name],
            op=form.op,
            value=estimate.value,
            bound=estimate.bound,
            slack=plain(slack_of(form.op, estimate.value, estimate.bound)),
            violation=estimate.violation,
            parts=parts,
            level_columns=columns,
            levels=levels,
            rows=rows,
            train=estimate,
            holdout=None if other is None else other.estimates[form.name],
            duals=duals,
            value_at_risk=at_risk.get(form.name),
            no_duals="" if duals is not None else raw.message or f"{raw.solver} returns none",
            relaxation=relaxation,
            cost=cost,
            scale=form.scale,
            uncertified="" if duals is None else caveat,
            matrix=matrix_multiplier(form, duals),
        )
    return result


def _texts(program: Program) -> dict[str, str]:
    """Every constraint as written; those of a family have the same names in them."""
    printing, known = language_printing(), program.shared
    found = {form.name: str(printing.text(form.relation)) for form in known.singles}
    for family in known.families:
        names = printing.Names(family.relations[:1])
        own = (str(printing.text(relation, names=names)) for relation in family.relations)
        found |= zip(family.names, own, strict=True)
    return found


def matrix_multiplier(form: Form, duals: tuple[Any, Any] | None) -> NDArray[np.float64] | None:
    """Of `lambda_min(M) >= b` and `lambda_max(M) <= b`: the multiplier times the slope of the eigenvalue."""
    sides = [x for x in (form.lhs, *form.rhs) if isinstance(x, n.Apply) and x.atom in EIGENVALUES]
    slope = sides[0].option("slope") if len(sides) == 1 else None
    if slope is None or slope.value is None or duals is None or np.ndim(duals[0]):
        return None
    return float(duals[0]) * np.asarray(slope.value)


def _relaxation(
    evaluator: Evaluator,
    point: Point,
    form: Form,
    rows: NDArray[np.int64] | None,
    shape: tuple[int, ...],
) -> tuple[Any, float | None]:
    """How far it was relaxed, per entry (selected row), and what that cost; None where it must hold."""
    if form.relaxation is None:
        return None, None
    slack = np.abs(point.slack[form.name])
    share = 1.0 if form.rows is None else shares(evaluator, form.rows, slack.ndim)
    cost = cost_of(evaluator, form.relaxation).of(slack, share)
    if rows is not None:
        slack = np.broadcast_to(slack, (len(slack), *shape[1:]))[rows]
    return plain(np.array(np.broadcast_to(slack, shape))), cost


def _duals(
    program: Program,
    point: Point,
    multipliers: Mapping[str, Any] | None,
    form: Form,
    indices: Sequence[int],
    rows: NDArray[np.int64] | None,
    shape: tuple[int, ...],
) -> tuple[tuple[PartResult, ...], tuple[Any, Any] | None]:
    """Multipliers and shadow prices, pulled back to the constraint as written (envelope theorem)."""
    lead = rows is not None or any(type_of(x).levels is not None for x in (form.lhs, *form.rhs))
    parts: list[PartResult] = []
    total: NDArray[np.float64] = np.zeros(shape)
    price: NDArray[np.float64] = np.zeros(shape)
    complete = True
    for i in indices:
        part = program.parts[i]
        residual, given = point.residuals[i], align(part, multipliers, point.residuals[i], point.masks[i])
        if rows is not None:
            residual, given = residual[rows], None if given is None else given[rows]
        own = None if given is None else program.sign * part.rhs_sign * given
        parts.append(
            PartResult(
                part.key,
                part.side,
                part.kind,
                plain(residual),
                None if given is None else plain(given),
                None if own is None else plain(own),
            )
        )
        if given is None or own is None:
            complete = False
            continue
        total = total + reduce_to(shape, given, lead=lead)
        price = price + reduce_to(shape, own, lead=lead)
    return tuple(parts), (plain(total), plain(price)) if complete else None


def _of_run(
    program: Program,
    raw: RawResult,
    record: KKT,
    status: Status,
    train: Judgment,
    facts: Facts,
    mixture: Mixture | None,
) -> list[Warn]:
    """What the point shows, and the way to it."""
    convex, objective = facts.certified_convex, train.objective
    course = read_course(
        program, raw.history, status, objective, record.tolerance, convex=convex, mixture=mixture
    )
    return [*record.warnings, *course]


def statistical(constraints: Mapping[str, ConstraintResult]) -> list[Warn]:
    """C311: what the hold-out does not confirm."""
    found: list[Warn] = []
    for name, result in constraints.items():
        held = result.holdout
        if held is None or held.share is not None:
            continue
        if held.verdict == "violated":
            size = f"by up to {float(np.max(held.violation)):.3g}"
            half = (np.asarray(held.upper) - np.asarray(held.lower)) / 2
            needed = float(np.nanmax(np.asarray(held.violation) + half))
            found.append(
                Warn(
                    "C312",
                    "overfit-constraint",
                    f"{name}: violated on the hold-out {size}; tighten its bound by about {needed:.3g} (the "
                    "margin that would have been needed)",
                )
            )
        elif held.verdict == "undecided":
            rows = float(f"{held.rows_needed:.2g}")
            needed = f"; about {rows:,.0f} rows of its smallest group would decide it" if rows else ""
            found.append(
                Warn(
                    "C311",
                    "undecided-constraint",
                    f"{name}: the hold-out interval straddles the bound{needed}",
                )
            )
    return found
