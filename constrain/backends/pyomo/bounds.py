"""A proven bound of a convex program, from any multipliers (weak duality)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from constrain.backends.pyomo.package import derivatives, identify_variables, pyo
from constrain.backends.pyomo.term import Term

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from constrain.backends.pyomo.term import Space

__all__ = ["lower_bound"]

NEGLIGIBLE = 1e-7
"""A reduced cost of an unbounded variable below this, relative to the largest cost, is rounding."""


def _tangent(item: Any, x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """The value and the slope of a term at x, where the variables of the model are."""
    slope = np.zeros(len(x))
    if not isinstance(item, Term):
        return float(item), slope
    value = item.constant
    for i, factor in item.linear.items():
        value += factor * x[i]
        slope[i] += factor
    for (i, j), factor in item.quadratic.items():
        value += factor * x[i] * x[j]
        slope[i] += factor * x[j]
        slope[j] += factor * x[i]
    if item.rest is not None:
        value += float(pyo.value(item.rest))
        place = {id(v): k for k, v in enumerate(item.space.variables)}
        used: list[Any] = list(identify_variables(item.rest))
        for v, own in zip(used, derivatives.differentiate(item.rest, wrt_list=used), strict=True):
            slope[place[id(v)]] += float(own)
    return value, slope


def lower_bound(
    space: Space,
    objective: Any,
    constraints: Sequence[tuple[Any, Any]],
    duals: Mapping[Any, float],
    x: NDArray[np.float64],
) -> float | None:
    """A lower bound of a convex objective under convex inequalities, affine equalities and bounds.

    For every feasible y and multipliers m (>= 0 for `<=`) of the residuals g, with the reduced costs
    r = slope of f at x + sum m_i * slope of g_i:

        f(y) >= f(x) + sum m_i g_i(x) + sum_j min over the bounds of r_j (y_j - x_j)

    Args:
        space: of the variables.
        objective: f.
        constraints: residuals with their Pyomo constraints.
        duals: of the Pyomo constraints, in Pyomo's sign.
        x: values of the variables, which the model has, too.

    Returns:
        The bound, None where a reduced cost of an unbounded variable makes it minus infinity.
    """
    total, cost = _tangent(objective, x)
    reduced = cost.copy()
    for term, constraint in constraints:
        if constraint is None or not isinstance(term, Term):
            continue
        multiplier = -duals.get(constraint, 0.0)
        if not constraint.equality:
            multiplier = max(multiplier, 0.0)
        if multiplier:
            value, slope = _tangent(term, x)
            total += multiplier * value
            reduced += multiplier * slope
    lower, upper = np.asarray(space.lower), np.asarray(space.upper)
    ends = np.where(reduced > 0, lower, upper)
    open_end = ~np.isfinite(ends)
    scale = 1.0 + float(np.abs(cost).max(initial=0.0))
    if np.abs(reduced[open_end]).max(initial=0.0) > NEGLIGIBLE * scale:
        return None
    closed = ~open_end
    return total + float(reduced[closed] @ (ends[closed] - x[closed]))
