"""Offers a mixture of a run's iterates where it beats each of them, and judges mixtures on any data.

Averages of a mixture are the weighted means of those of its members, so its residuals are known exactly. Its
standard errors are at most the weighted means of those of its members (the norm of a sum is at most the sum
of the norms), and these are reported.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from constrain.diagnostics.alive import evaluation_of, host, judge_other
from constrain.diagnostics.confidence import Judgment, overall, step_down
from constrain.diagnostics.point import Point, bound_scale, read_point, reduce_to
from constrain.language.types import type_of
from constrain.lowering.lower import EPIGRAPH
from constrain.solution.mixture import Mixture
from constrain.solution.records import Estimate, plain
from constrain.solvers.mixtures import NOTHING, best_weights

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from numpy.typing import NDArray

    from constrain.diagnostics.alive import Attached
    from constrain.language.data import Data
    from constrain.lowering.program import Form, Program
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.result import RawResult
    from constrain.solution.answer import Evaluation
    from constrain.solution.records import Status
    from constrain.solvers.mixtures import Candidates

__all__ = ["Members", "judge_mixture", "offered"]

CLEAR = 0.05
"""Least improvement of the objective, as a share of it."""


class Members:
    """The problem behind a mixture."""

    def __init__(self, attached: Attached) -> None:
        self.attached = attached

    @contextmanager
    def at(self, state: Mapping[str, Any]) -> Generator[None]:
        """A block with models, in evaluation mode, and variables at these decisions."""
        with self.attached.at(state), self.attached.evaluator.modes.evaluation():
            yield

    def evaluate_mixture(self, mixture: Mixture, data: Data | Mapping[str, Data]) -> Evaluation:
        """Statistics of the mixture on other data."""
        attached = self.attached
        with attached.at(mixture.members[0]):
            other = attached.on(data)
        judged = judge_mixture(attached, other, mixture.members, mixture.weights)
        return evaluation_of(other, judged, attached.texts)


def offered(
    attached: Attached,
    raw: RawResult,
    status: Status,
    objective: float,
    tolerance: float,
    *,
    convex: bool,
    holdout: Evaluator | None,
) -> Mixture | None:
    """The best mixture of the iterates that a run kept, where it is clearly better than a single decision.

    Args:
        attached: the problem at the solution.
        raw: of the run, with candidates.
        status: of the solution.
        objective: of the solution, in the user's sense.
        tolerance: of the judgment.
        convex: the problem is certified convex: the average of decisions is better than drawing one.
        holdout: an evaluator of the same program on other data.
    """
    found: Candidates | None = raw.candidates
    if found is None or found.mixing is None or convex or len(found.kept) < 2:
        return None
    kept = found.kept
    weights, holds = best_weights(kept, found.mixing)
    chosen = np.flatnonzero(weights > NOTHING)
    if not holds or len(chosen) < 2:
        return None
    members = [kept[k] for k in chosen]
    states = tuple({name: host(t) for name, t in member.state.items()} for member in members)
    own = tuple(float(w) for w in weights[chosen])
    train = judge_mixture(attached, attached.evaluator, states, own, tolerance)
    better = attached.program.sign * (objective - train.objective)
    spread = float(np.std([candidate.objective for candidate in kept]))
    if status.solved and not better > max(CLEAR * abs(objective), 0.25 * spread, 100 * tolerance):
        return None
    other = None if holdout is None else judge_mixture(attached, holdout, states, own, tolerance)
    return Mixture(
        weights=own,
        epochs=tuple(member.epoch for member in members),
        members=states,
        train=evaluation_of(attached.evaluator, train, attached.texts),
        holdout=None if holdout is None or other is None else evaluation_of(holdout, other, attached.texts),
        single=objective if status.solved else math.nan,
        live=Members(attached),
    )


# --------------------------------------------------------------------------------------------- judgment
@dataclass(frozen=True)
class _Member:
    """One member on some data."""

    weight: float
    point: Point
    judged: Judgment


def judge_mixture(
    attached: Attached,
    evaluator: Evaluator,
    members: Sequence[Mapping[str, NDArray[Any]]],
    weights: Sequence[float],
    tolerance: float = 1e-6,
    confidence: float = 0.95,
) -> Judgment:
    """Intervals and verdicts of a mixture.

    Args:
        attached: the problem; its decisions are those of the members in turn, and come back.
        evaluator: the program with the sample.
        members: decisions by name.
        weights: of the members.
        tolerance: violations up to tolerance * (1 + |bound|) are none where no data enters.
        confidence: two-sided level of the intervals.
    """
    found: list[_Member] = []
    for weight, state in zip(weights, members, strict=True):
        with attached.at(state):
            judged = judge_other(evaluator, tolerance=tolerance, confidence=confidence)
            found.append(_Member(weight, read_point(evaluator), judged))
    program = evaluator.program
    tested = [_test(program, form, found, tolerance) for form in program.forms if form.name != EPIGRAPH]
    estimates = _verdicts(tested, found[0], confidence)
    value = program.sign * _objective(program, found)
    half = sum(m.weight * (m.judged.upper - m.judged.lower) / 2 for m in found)
    return Judgment(value, value - half, value + half, estimates)


def _mean(values: Sequence[Any], members: Sequence[_Member]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.zeros(())
    for value, member in zip(values, members, strict=True):
        total = total + member.weight * np.asarray(value, dtype=np.float64)
    return total


def _objective(program: Program, members: Sequence[_Member]) -> float:
    """Of the program; where a largest value is minimized, the largest of the mixed values."""
    value = float(_mean([m.point.objective for m in members], members))
    over = [
        float(_mean([m.point.residuals[i] for m in members], members).max(initial=-math.inf))
        for i, part in enumerate(program.parts)
        if part.constraint == EPIGRAPH
    ]
    return value + max(over) if over else value


@dataclass(frozen=True)
class _Tested:
    """A constraint of the mixture, per entry as written, before the verdicts.

    Attributes:
        form: the constraint.
        value: of the left side.
        bound: as written.
        half: half of the interval of the value.
        over: the worst residual, |residual| of an equality.
        exact: whether the violation is above the tolerance.
    """

    form: Form
    value: NDArray[np.float64]
    bound: Any
    half: NDArray[np.float64]
    over: NDArray[np.float64]
    exact: NDArray[np.bool_]


def _test(program: Program, form: Form, members: Sequence[_Member], tolerance: float) -> _Tested:
    estimates = [m.judged.estimates[form.name] for m in members]
    shape = np.shape(estimates[0].value)
    lead = any(type_of(x).levels is not None for x in (form.lhs, *form.rhs))
    own = list(program.places.get(form.name, ()))
    residuals = {i: _mean([m.point.residuals[i] for m in members], members) for i in own}
    sign = program.parts[own[0]].rhs_sign
    same = [residuals[i] for i in own if program.parts[i].rhs_sign == sign]
    worst = _largest(shape, same, lead=lead)
    bounds = [e.bound if isinstance(e.bound, tuple) else (e.bound,) for e in estimates]
    mixed = tuple(_mean([b[k] for b in bounds], members) for k in range(len(bounds[0])))
    near = mixed[-1] if sign < 0 else mixed[0]  # the bound that these parts compare with
    value = np.array(np.broadcast_to(near - worst / sign, shape))
    sizes = [np.abs(r) if program.parts[i].kind == "==" else r for i, r in residuals.items()]
    over = _largest(shape, sizes, lead=lead)
    unit = bound_scale((value, *mixed), shape, form.scale)
    bound = tuple(map(plain, mixed)) if form.op == "between" else plain(mixed[0])
    half = np.broadcast_to(_mean([np.asarray(e.half_width) for e in estimates], members), shape)
    return _Tested(form, value, bound, np.array(half), over, over > tolerance * unit)


def _largest(shape: tuple[int, ...], residuals: Sequence[NDArray[np.float64]], *, lead: bool) -> Any:
    """The largest residual per entry of the constraint as written."""
    found = np.full(shape, -np.inf)
    for residual in residuals:
        found = np.fmax(found, reduce_to(shape, residual, lead=lead, how=np.fmax))
    return found


def _verdicts(tested: Sequence[_Tested], first: _Member, confidence: float) -> dict[str, Estimate]:
    """Verdicts, corrected for their number over all constraints (Holm)."""
    deviate = float(stats.norm.ppf(0.5 + confidence / 2))
    pieces: list[NDArray[np.float64]] = []
    for t in tested:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = t.over * deviate / t.half
        pieces.append(np.where(t.half > 0, 2 * stats.norm.sf(np.abs(ratio)), np.nan))
    flat = np.concatenate([np.zeros(0), *(p.reshape(-1) for p in pieces)])
    rejected = step_down(flat, 1 - confidence)
    found: dict[str, Estimate] = {}
    start = 0
    for t in tested:
        own = rejected[start : start + t.value.size].reshape(t.value.shape)
        start += t.value.size
        columns = (own, t.over, t.half, t.exact)
        words = [_word(t.form.op, *row) for row in zip(*(c.ravel().tolist() for c in columns), strict=True)]
        known = first.judged.estimates[t.form.name]
        found[t.form.name] = Estimate(
            value=plain(t.value),
            bound=t.bound,
            violation=plain(np.maximum(t.over, 0.0)),
            lower=plain(t.value - t.half),
            upper=plain(t.value + t.half),
            verdict=overall(words),
            verdicts=tuple(words),
            smallest=known.smallest,
            confidence=confidence,
            labels=known.labels,
        )
    return found


def _word(op: str, rejected: bool, over: float, half: float, exact: bool) -> str:
    if math.isnan(half) or math.isnan(over):
        return "not judged"
    if half == 0:
        return "violated" if exact else "holds"
    if rejected:
        return "violated" if op == "==" or over > 0 else "holds"
    return "compatible" if op == "==" else "undecided"
