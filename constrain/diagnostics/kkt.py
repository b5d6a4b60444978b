"""First-order optimality conditions at any point.

Multipliers are those of whoever produced the point, or best-fit ones. Everything is a function of the
compiled program and the decisions, not of a solver. Values are exact and on the full data; gradients are
exact too, up to the surrogates of rates, of which the record says so. Conventions: the program minimizes,
L = f + sum_i multiplier_i * residual_i, residual <= 0 or == 0 (docs/concepts/signs.md).

Source: Nocedal & Wright, Numerical Optimization (2006), chapter 12.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from constrain.diagnostics.feasibility import scales_of, values_of
from constrain.diagnostics.fit import Balance, best_fit, bounded_fit, fit_with_slopes, projected
from constrain.diagnostics.jacobian import (
    Entry,
    Gradients,
    Qualification,
    at_bounds,
    choose,
    curved,
    gradients,
    inside,
    qualify,
)
from constrain.diagnostics.noise import BATCHES, boundless, gradient_noise
from constrain.diagnostics.point import Point, align, read_point, user_objective
from constrain.diagnostics.regularity import alone, mangasarian_fromovitz
from constrain.diagnostics.relaxed import judged, row_prices
from constrain.diagnostics.sandwich import multiplier_errors
from constrain.diagnostics.second_order import second_order
from constrain.diagnostics.system import System
from constrain.diagnostics.ties import find_ties, no_ties
from constrain.diagnostics.traps import recognize
from constrain.errors import ModelingWarning
from constrain.lowering.lower import EPIGRAPH
from constrain.solution.records import KKT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from constrain.diagnostics.feasibility import Values
    from constrain.diagnostics.relaxed import Priced
    from constrain.diagnostics.ties import Ties
    from constrain.runtime.evaluator import Evaluator
    from constrain.solution.noise import GradientNoise

__all__ = ["CERTIFIED", "ESTIMATE", "Descent", "descent", "kkt", "system_at"]

NOTHING = 1e-9
"""Forces below this are rounding: nothing pulls."""

CERTIFIED = "certified"
ESTIMATE = "estimate, not a bound"


def kkt(
    evaluator: Evaluator,
    multipliers: Mapping[str, Any] | None = None,
    tolerance: float = 1e-6,
    *,
    convex: bool = False,
    bound: float | None = None,
    point: Point | None = None,
    order: int = 1,
    batches: int | None = None,
) -> KKT:
    """Judges the current decisions.

    Args:
        evaluator: the program with the data of the judgment.
        multipliers: per `Part.key`, in the shape of the residual (for constraints per row: of all rows, or of
            the selected ones); None to use best-fit ones.
        tolerance: below which a residual counts as zero.
        convex: the problem is certified convex.
        bound: proven lower bound of the program's optimal value.
        point: values at the decisions, if they are known already.
        order: 2 for curvature and standard errors of multipliers as well.
        batches: for an estimate of |grad L|^2 from so many batches; by default where a population has no end.
    """
    view = judged(evaluator)
    point = read_point(evaluator) if point is None else point
    with warnings.catch_warnings():  # W220: the slopes of optimal values with kinks are chosen here
        warnings.filterwarnings("ignore", r"\[W220\]", ModelingWarning)
        forces = _balance(view, point, multipliers, tolerance, convex=convex)
    values = values_of(view, point, forces.multipliers, forces.scales)
    pull = _stationarity(evaluator, forces)
    gap = values.total + pull.short if bound is None else abs(point.objective - bound)
    holds = values.scaled <= tolerance and values.dual >= -tolerance
    certified = holds and (bound is not None or (convex and min(pull.absolute, pull.scaled) <= tolerance))
    record = _record(view, point, forces, values, pull, gap, certified, tolerance)
    record = replace(record, noise=_noise(view, forces, batches))
    if order < 2:
        return record
    system = _system(evaluator, view, forces, record)
    verdict, curvature = second_order(system)
    errors, reason = multiplier_errors(system)
    return replace(
        record, second_order=verdict, curvature=curvature, standard_errors=errors, no_errors=reason
    )


def _noise(view: Evaluator, forces: _Forces, batches: int | None) -> GradientNoise | None:
    """What batches say about the gradient; None where it is not asked for, at kinks, and without a batch."""
    wanted = (BATCHES if boundless(view) else 0) if batches is None else batches
    if not wanted or len(forces.ties.lower) or forces.ties.note or not view.jobs:
        return None
    if any(job.parts and view.populations[job.data].boundless for job in view.jobs):
        return None  # multipliers belong to the points of the quadrature
    return gradient_noise(view, forces.multipliers, forces.free, batches=wanted)


def system_at(evaluator: Evaluator, multipliers: Mapping[str, Any] | None, tolerance: float = 1e-6) -> System:
    """The KKT system at the current decisions, with these multipliers or best-fit ones."""
    view, point = judged(evaluator), read_point(evaluator)
    forces = _balance(view, point, multipliers, tolerance)
    record = kkt(evaluator, multipliers, tolerance, point=point)
    return _system(evaluator, view, forces, record)


@dataclass(frozen=True)
class Descent:
    """What is left of the objective's slopes at a point.

    Attributes:
        direction: (decisions,) in which the objective falls and no active constraint gets worse, to first
            order.
        prices: per part of the judged program the best-fit multipliers, NaN where they were not fitted.
    """

    direction: NDArray[np.float64]
    prices: list[NDArray[np.float64]]


def descent(evaluator: Evaluator, tolerance: float) -> Descent:
    """The steepest of the directions that keep what is active, at the current decisions."""
    forces = _balance(judged(evaluator), read_point(evaluator), None, tolerance)
    return Descent(-forces.left, forces.fit)


def _system(evaluator: Evaluator, view: Evaluator, forces: _Forces, record: KKT) -> System:
    """The system of the entries that bind, in the numbering of the program that solvers see."""
    numbers = {part.key: i for i, part in enumerate(evaluator.program.parts)}
    keys = [part.key for part in view.program.parts]
    kept = [k for k, e in enumerate(forces.entries) if e.binding]
    reason = _first_order_only(evaluator, view, forces, record)
    if any(keys[forces.entries[k].part] not in numbers for k in kept):
        reason = reason or "a relaxed row sits at the kink of its cost"
        kept = []
    found = zip(keys, forces.multipliers, forces.scales, strict=True)
    full = {key: np.zeros(scale.shape) if m is None else m for key, m, scale in found}
    entries = [replace(forces.entries[k], part=numbers[keys[forces.entries[k].part]]) for k in kept]
    slopes = forces.gradients.lagrangian(forces.entries)
    rows = forces.gradients.rows[kept]
    own = {key: full[key] for key in numbers}
    return System(evaluator, own, entries, rows, forces.free, slopes, reason)


def _first_order_only(evaluator: Evaluator, view: Evaluator, forces: _Forces, record: KKT) -> str:
    """Why nothing of second order can be said at a point; empty where it can."""
    if record.surrogate:
        return "gradients of rates are those of surrogates"
    if not (record.feasible and record.stationary):
        return "the point is not a KKT point within the tolerance"
    if evaluator.dtype != torch.float64:
        return "the point was computed in single precision"
    if forces.truncated:
        return f"{forces.truncated} active rows were left out"
    ties = [forces.ties, find_ties(view, forces.entries), find_ties(evaluator, [])]
    notes = [t.note for t in ties if t.note]
    if notes:
        return notes[0]
    return "the point sits at a kink" if any(len(t.lower) for t in ties) else ""


def _record(
    view: Evaluator,
    point: Point,
    forces: _Forces,
    values: Values,
    pull: _Stationarity,
    gap: float,
    certified: bool,
    tolerance: float,
) -> KKT:
    """The record of everything that was found."""
    independence = _independence(view, forces)
    magnitude = 1 + abs(user_objective(view, point))
    balanced = min(pull.absolute, pull.scaled) <= tolerance
    record = KKT(
        stationarity=pull.absolute,
        stationarity_scaled=pull.scaled,
        blocks=pull.blocks,
        force_balance=pull.balance,
        feasibility=values.violations.get(values.worst, 0.0),
        feasibility_scaled=values.scaled,
        worst=values.worst,
        violations=values.violations,
        dual_feasibility=values.dual,
        complementarity=values.complementarity,
        complementarity_scaled=values.complementarity / magnitude,
        products=values.products,
        gap=gap,
        gap_scaled=gap / magnitude,
        gap_kind=CERTIFIED if certified else ESTIMATE,
        multipliers=_keyed(view, forces.multipliers),
        origin=forces.origin,
        fit=_keyed(view, forces.fit),
        fit_stationarity=forces.fit_stationarity,
        fit_distance=_distance(forces),
        singular_values=independence.singular_values,
        rank=independence.rank,
        active=independence.active,
        dependent=independence.dependent_labels,
        vanishing=independence.vanishing_labels,
        truncated=forces.truncated,
        strict_complementarity=values.strict,
        surrogate=view.program.has_rates,
        warnings=(),
        tolerance=tolerance,
        kinks=forces.ties.count,
        jumps=forces.ties.jumps,
        nonsmooth="" if certified and balanced else forces.ties.note,  # a slope that balances was found
        acting=view.modes.words(view),
        qualified=mangasarian_fromovitz(
            forces.entries, forces.gradients.rows, forces.at_lower, forces.at_upper, independence
        ),
        fritz_john=forces.alone,
    )
    found = recognize(view, point, independence, forces.entries, record)
    return replace(record, warnings=tuple(found))


# ---------------------------------------------------------------------------------------- gradients
@dataclass
class _Forces:
    """Gradients at the point and the multipliers that balance them.

    Attributes:
        entries: scalar constraints whose gradients were formed.
        gradients: of the objective and the entries.
        folded: the same in few coordinates.
        multipliers: per part, as judged; None where there are none.
        origin: `given`, `best fit` or `none`.
        fit: per part the best-fit multipliers, NaN where they were not fitted.
        left: (decisions,) the gradient that remains with them.
        at_lower: (decisions,) coordinates at their lower bound.
        at_upper: (decisions,) coordinates at their upper bound.
        ties: kinks at the point, none where the gradients that autograd returns balance already.
        truncated: active entries left out.
        scales: per part the unit of each entry: the one the user gave, else 1 + |bound|.
        alone: weights of gradients that balance without the objective, where no multipliers exist.
    """

    entries: list[Entry]
    gradients: Gradients
    folded: Balance
    multipliers: list[NDArray[np.float64] | None]
    origin: str
    fit: list[NDArray[np.float64]]
    left: NDArray[np.float64]
    at_lower: NDArray[np.bool_]
    at_upper: NDArray[np.bool_]
    ties: Ties
    truncated: int
    scales: list[NDArray[np.float64]]
    alone: dict[str, float]

    @property
    def free(self) -> NDArray[np.bool_]:
        """Coordinates off their bounds."""
        return ~(self.at_lower | self.at_upper)

    @property
    def fit_stationarity(self) -> float:
        """Largest entry of the gradient that remains with the best-fit multipliers."""
        return float(np.max(np.abs(self.left), initial=0.0))


def _keyed(
    evaluator: Evaluator, values: Sequence[NDArray[np.float64] | None]
) -> dict[str, NDArray[np.float64]]:
    """Values per part, by key; parts without any are left out."""
    parts = evaluator.program.parts
    return {part.key: value for part, value in zip(parts, values, strict=True) if value is not None}


def _independence(evaluator: Evaluator, forces: _Forces) -> Qualification:
    """Rank of the active Jacobian on the coordinates off their bounds."""
    single = evaluator.dtype != torch.float64
    bent = frozenset(curved(evaluator, forces.entries))
    return qualify(forces.entries, forces.folded.rows, forces.folded.free, bent=bent, single=single)


def _balance(
    evaluator: Evaluator,
    point: Point,
    multipliers: Mapping[str, Any] | None,
    tolerance: float,
    *,
    convex: bool = False,
) -> _Forces:
    parts = evaluator.program.parts
    scales = scales_of(evaluator, point)
    aligned: list[NDArray[np.float64] | None] = [
        align(p, multipliers, r, m) for p, r, m in zip(parts, point.residuals, point.masks, strict=True)
    ]

    near = max(1e-6, 10 * tolerance)
    own = any(m is not None for m in aligned)
    largest = [i for i, p in enumerate(parts) if own and p.constraint == EPIGRAPH and aligned[i] is None]
    for i in largest:  # whoever gave the others' does not know of these: they follow from the balance
        aligned[i] = np.zeros(point.residuals[i].shape)
    priced = row_prices(evaluator, point, aligned, [near * scale for scale in scales])
    for i, price in priced.items():
        aligned[i] = price.values
    entries, actives = choose(evaluator, point, aligned, scales, near, priced)
    found = gradients(evaluator, entries, aligned)
    at_lower, at_upper = at_bounds(evaluator.decisions)
    found = inside(evaluator, entries, aligned, found, at_lower & ~at_upper, at_upper & ~at_lower)
    folded, fitted, rest = _best(found, entries, at_lower, at_upper)
    pull = projected(found.lagrangian(entries), at_lower, at_upper) if own else rest
    ties = no_ties(evaluator, entries)
    unbalanced = max(float(np.max(np.abs(x), initial=0.0)) for x in (rest, pull)) > 0.1 * tolerance
    if unbalanced or not convex:
        seen = find_ties(evaluator, entries)
        ties = replace(ties, jumps=seen.jumps)
        if seen.shift.any():  # autograd's slopes are those of no side
            found = seen.joined(found)
            folded, fitted, rest = _best(found, entries, at_lower, at_upper)
        if unbalanced or seen.shift.any():
            ties = seen
            fitted, rest = fit_with_slopes(found, entries, ties, (fitted, rest), at_lower, at_upper)
    ends, smooth = (at_lower, at_upper), not (len(ties.lower) or ties.note or evaluator.program.has_rates)
    none = alone(evaluator, entries, found, ends, (fitted, rest), tolerance) if smooth else None
    if none is not None:
        fitted, rest = none.fitted, none.rest
    fit = _scatter(entries, fitted, actives, priced)
    origin = "given" if own or len(priced) == len(parts) > 0 else "best fit" if entries else "none"
    if origin == "best fit":
        entries = [replace(e, multiplier=float(x)) for e, x in zip(entries, fitted, strict=True)]
        aligned = [np.nan_to_num(f) for f in fit]
    else:
        entries = _determined(found, entries, priced, largest, at_lower, at_upper)
        for e in entries:
            values = priced[e.part].values if e.part in priced else aligned[e.part]
            if (e.part in priced or e.part in largest) and values is not None:
                values.reshape(-1)[e.index] = e.multiplier
    truncated = sum(int(active.sum()) for active in actives) - sum(e.active for e in entries)
    return _Forces(
        entries, found, folded, aligned, origin, fit, rest, at_lower, at_upper, ties, truncated, scales,
        {} if none is None else none.weights,
    )  # fmt: skip


def _best(
    found: Gradients, entries: Sequence[Entry], at_lower: NDArray[np.bool_], at_upper: NDArray[np.bool_]
) -> tuple[Balance, NDArray[np.float64], NDArray[np.float64]]:
    """The forces in few coordinates, best-fit multipliers of active entries, and what remains with them."""
    active, fitted = np.array([e.active for e in entries], dtype=bool), np.zeros(len(entries))
    base = found.objective + found.rest
    folded = Balance(base, found.rows, at_lower, at_upper).folded()
    fitted[active], _ = _fitted(folded, entries, active)
    return folded, fitted, projected(base + fitted @ found.rows, at_lower, at_upper)


def _fitted(
    forces: Balance, entries: Sequence[Entry], chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Best-fit multipliers of some entries against a force, and what remains of it."""
    equality = np.array([e.equality for e in entries], dtype=bool)
    caps = np.array([e.cap for e in entries], dtype=np.float64)
    return best_fit(
        forces.gradient, forces.rows[chosen], equality[chosen], forces.at_lower, forces.at_upper, caps[chosen]
    )


def _determined(
    found: Gradients,
    entries: list[Entry],
    priced: Mapping[int, Priced],
    largest: Sequence[int],
    at_lower: NDArray[np.bool_],
    at_upper: NDArray[np.bool_],
) -> list[Entry]:
    """The entries; multipliers that are open are taken from the balance of forces.

    Open are those that a kink of their cost leaves open, and those of `largest`, the parts of a largest value
    for which none were given.
    """
    open_ones = [
        (e.part in priced and bool(priced[e.part].unknown.flat[e.index])) or (e.part in largest and e.active)
        for e in entries
    ]
    chosen = np.array(open_ones, dtype=bool)
    if not chosen.any():
        return entries
    values = np.zeros(len(entries))
    forces = Balance(found.lagrangian(entries), found.rows, at_lower, at_upper)
    values[chosen], _ = _fitted(forces, entries, chosen)
    bound = [k for k, e in enumerate(entries) if e.part in largest and e.active]
    if bound:  # the slopes of a largest value are averages of those of the entries that reach it
        values[bound] /= values[bound].sum() or 1.0
    return [
        replace(e, multiplier=float(x)) if c else e for e, x, c in zip(entries, values, chosen, strict=True)
    ]


def _scatter(
    entries: Sequence[Entry],
    values: NDArray[np.float64],
    actives: Sequence[NDArray[np.bool_]],
    priced: Mapping[int, Priced],
) -> list[NDArray[np.float64]]:
    """Fitted values per part: 0 for entries off their bound, NaN for active ones that were left out."""
    result = [np.where(active, np.nan, 0.0) for active in actives]
    for i, price in priced.items():
        result[i] = np.where(price.kink, np.nan, price.values)
    for e, value in zip(entries, values, strict=True):
        result[e.part].reshape(-1)[e.index] = value
    return result


def _distance(forces: _Forces) -> float:
    if forces.origin != "given":
        return float("nan")
    pairs = [(m, f) for m, f in zip(forces.multipliers, forces.fit, strict=True) if m is not None]
    known = [own[~np.isnan(own)] for own in (np.abs(m - f) for m, f in pairs)]
    return max((float(own.max()) for own in known if own.size), default=float("nan"))


@dataclass(frozen=True)
class _Stationarity:
    """How far the forces are from balance.

    Attributes:
        absolute: largest entry of the gradient of the Lagrangian.
        scaled: the same over the sum of the forces; where nothing pulls against the objective that quotient
            says nothing (0 / 0 at a minimum), and it is at most the absolute one.
        blocks: both per block of decisions of the user.
        balance: share of the objective's pull that constraints balance; NaN where it is none.
        short: what slopes chosen near a kink, not at it, take from the bound of a convex problem.
    """

    absolute: float
    scaled: float
    blocks: dict[str, tuple[float, float]]
    balance: float
    short: float


def _stationarity(evaluator: Evaluator, forces: _Forces) -> _Stationarity:
    """The balance of forces; at kinks with the slopes that leave least."""
    g, ties = forces.gradients, forces.ties
    multipliers = np.array([e.multiplier for e in forces.entries])
    choice, residual = bounded_fit(
        g.lagrangian(forces.entries),
        ties.rows(multipliers),
        ties.limits,
        forces.at_lower,
        forces.at_upper,
        ties.held,
    )
    weights = np.abs(multipliers)
    against = float(np.max(np.abs(g.rest), initial=0.0))
    against += float(weights @ np.max(np.abs(g.rows), axis=1, initial=0.0))
    scale = float(np.max(np.abs(g.objective), initial=0.0)) + against
    alone = against <= float(np.max(np.abs(residual), initial=0.0)) or scale <= NOTHING

    def sizes(where: slice) -> tuple[float, float]:
        absolute = float(np.max(np.abs(residual[where]), initial=0.0))
        quotient = absolute / scale if scale > 0 else absolute
        return absolute, min(absolute, quotient) if alone else quotient

    hidden = {symbol.name for symbol in evaluator.program.auxiliary}
    blocks: dict[str, tuple[float, float]] = {}
    start = 0
    for block in evaluator.decisions.blocks:
        size = block.tensor.numel()
        if block.name not in hidden:
            blocks[block.name] = sizes(slice(start, start + size))
        start += size
    pull = projected(g.objective, forces.at_lower, forces.at_upper)
    total, left = float(pull @ pull), float(residual @ residual)
    share = 1 - left / total if total > 0 else (1.0 if left == 0 else math.nan)
    balance = share if share >= 0 else math.nan  # no share: the constraints pull more than the objective
    return _Stationarity(*sizes(slice(None)), blocks, balance, ties.short(multipliers, choice))
