"""What relaxing came to at a point: the slack of every entry, its cost and its marginal cost.

Slacks of deterministic constraints are hidden decisions. Those of constraints per row were eliminated and are
max(c, 0), with c the residual as written; the multiplier of a row is h'(z), which the cost determines but for
z = 0 where h has a kink there (a linear term): any value up to h'(0) is possible then, and the balance of
gradients, or the solver, says which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from constrain.language import nodes as n
from constrain.lowering.relaxation import rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from constrain.diagnostics.point import Point
    from constrain.language.data import Data
    from constrain.lowering.program import Form, Relaxation
    from constrain.runtime.evaluator import Evaluator

__all__ = [
    "Cost",
    "Priced",
    "as_written",
    "cost_of",
    "decided",
    "judged",
    "loosened",
    "row_prices",
    "row_slack",
    "shares",
]


def judged(evaluator: Evaluator) -> Evaluator:
    """The evaluator of `Program.judged`, in which relaxed constraints per row are constraints."""
    program = evaluator.program.judged
    return evaluator if program is evaluator.program else evaluator.viewed(program)


@dataclass(frozen=True)
class Cost:
    """h(z) = linear * z + squared / 2 * z**2.

    Attributes:
        linear: weight of the linear term, 0 without one.
        squared: weight of the squared term, 0 without one.
    """

    linear: float
    squared: float

    def of(self, z: NDArray[np.float64], share: NDArray[np.float64] | float = 1.0) -> float:
        """The cost of these slacks together, each with its share."""
        return float(np.sum(share * (self.linear * z + 0.5 * self.squared * z * z)))

    def marginal(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """h'(z) where z > 0, else 0."""
        return np.where(z > 0, self.linear + self.squared * z, 0.0)


def cost_of(evaluator: Evaluator, relaxation: Relaxation) -> Cost:
    """The cost with the current values of its weights."""
    found = {"linear": 0.0, "squared": 0.0}
    for kind, weight in zip(relaxation.cost, relaxation.weights, strict=True):
        found[kind] += evaluator.constant(weight)
    return Cost(**found)


def decided(evaluator: Evaluator, relaxation: Relaxation) -> NDArray[np.float64]:
    """The slack of a deterministic constraint per entry; of an equality, with its sign."""
    tensors = [evaluator.decisions.variables[symbol] for symbol in relaxation.slacks]
    arrays = [np.asarray(t.detach().cpu().double().numpy(), dtype=np.float64) for t in tensors]
    return arrays[0] - arrays[1] if len(arrays) == 2 else arrays[0]


def row_slack(
    op: str, residuals: Sequence[NDArray[np.float64]], mask: NDArray[np.bool_] | None
) -> NDArray[np.float64]:
    """The slack of a constraint per row: max(c, 0), c itself for an equality; 0 for rows not selected."""
    worst = residuals[0]
    for other in residuals[1:]:
        worst = np.maximum(worst, other)
    slack = worst if op == "==" else np.maximum(worst, 0.0)
    if mask is not None:
        slack = np.where(mask.reshape(-1, *(1 for _ in range(slack.ndim - 1))), slack, 0.0)
    return slack


def loosened(
    op: str, rhs: Sequence[NDArray[np.float64]], slack: NDArray[np.float64]
) -> tuple[NDArray[np.float64], ...]:
    """The bounds that count: those as written, moved by the slack."""
    if op == "between":
        return rhs[0] - slack, rhs[1] + slack
    return (rhs[0] - slack if op == ">=" else rhs[0] + slack,)


def as_written(
    form: Form, bounds: Sequence[NDArray[np.float64]], slack: NDArray[np.float64]
) -> tuple[NDArray[np.float64], ...]:
    """The bounds as written, of those that count at this slack."""
    assert form.relaxation is not None  # callers check
    moved = loosened(form.op, bounds, -slack)
    exact = [float(x.value) if isinstance(x, n.Constant) else None for x in form.relaxation.rhs]
    return tuple(b if e is None else np.full(b.shape, e) for b, e in zip(moved, exact, strict=True))


# -------------------------------------------------------------------------------------- multipliers
@dataclass(frozen=True)
class Priced:
    """Multipliers of a relaxed constraint per row, one part of it.

    Attributes:
        values: h'(z) with the sign of the part; 0 where nobody knows it.
        kink: where z = 0 and any value up to the cap is possible.
        unknown: where it is, and no solver said which.
        cap: h'(0), per entry.
    """

    values: NDArray[np.float64]
    kink: NDArray[np.bool_]
    unknown: NDArray[np.bool_]
    cap: NDArray[np.float64]


def shares(evaluator: Evaluator, data: Data, dimensions: int) -> NDArray[np.float64] | float:
    """How much each row counts in the cost of a relaxed constraint per row.

    1 for the rows of a sample, whose costs are added up; the weight of a point of a continuous population,
    over which they are averaged.

    Args:
        evaluator: with the data.
        data: the population.
        dimensions: axes of the residual, the rows first.
    """
    if rows_of(data) is not None:
        return 1.0
    population = evaluator.populations[data]
    weight = np.ones(population.rows)
    if population.base is not None:
        weight = np.asarray(population.base.detach().cpu().double().numpy(), dtype=np.float64)
    return (weight / weight.sum()).reshape(-1, *(1 for _ in range(dimensions - 1)))


def row_prices(
    view: Evaluator,
    point: Point,
    given: Sequence[NDArray[np.float64] | None],
    near: Sequence[NDArray[np.float64]],
) -> Mapping[int, Priced]:
    """By part the multipliers of the relaxed constraints per row.

    Args:
        view: the evaluator of the judged program.
        point: values there.
        given: per part the multipliers of a solver, None without.
        near: per part the residual of each entry that counts as 0.
    """
    forms = {form.name: form for form in view.program.forms if form.rows is not None}
    found: dict[int, Priced] = {}
    for i, part in enumerate(view.program.parts):
        relaxation = forms[part.constraint].relaxation if part.constraint in forms else None
        if relaxation is None or part.rows is None:
            continue
        cost, slack = cost_of(view, relaxation), point.slack[part.constraint]
        size = np.abs(slack)
        own, mask = point.residuals[i], point.masks[i]
        sign = np.sign(slack) if part.kind == "==" else (own >= 0.0).astype(np.float64)
        selected = np.ones(own.shape, dtype=bool)
        if mask is not None:
            selected &= mask.reshape(-1, *(1 for _ in range(own.ndim - 1)))
        share = shares(view, part.rows, own.ndim)
        cap = np.broadcast_to(cost.linear * share, own.shape)
        values = np.where(selected, sign * cost.marginal(size) * share, 0.0)
        kink = selected & (np.abs(own + slack) <= near[i]) & (size <= near[i]) & (cost.linear > 0)
        solver = given[i]
        if solver is not None:
            least = -cap if part.kind == "==" else 0.0
            values = np.where(kink, np.clip(solver, least, cap), values)
        else:
            values = np.where(kink, 0.0, values)
        unknown = kink if solver is None else np.zeros_like(kink)
        found[i] = Priced(values, kink, unknown, cap)
    return found
