"""A proven bound of a convex program, from any multipliers (weak duality)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from constrain.backends.pyomo.term import Term

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from constrain.backends.pyomo.term import Space

__all__ = ["lower_bound", "value_of"]

NEGLIGIBLE = 1e-7
"""A reduced cost of an unbounded variable below this, relative to the largest cost, is rounding."""


def value_of(item: Any, x: NDArray[np.float64]) -> float:
    """The value of a polynomial term."""
    if not isinstance(item, Term):
        return float(item)
    total = item.constant + sum(f * x[i] for i, f in item.linear.items())
    return float(total + sum(f * x[i] * x[j] for (i, j), f in item.quadratic.items()))


def _slope(item: Any, x: NDArray[np.float64]) -> NDArray[np.float64]:
    found = np.zeros(len(x))
    if isinstance(item, Term):
        for i, factor in item.linear.items():
            found[i] += factor
        for (i, j), factor in item.quadratic.items():
            found[i] += factor * x[j]
            found[j] += factor * x[i]
    return found


def lower_bound(
    space: Space,
    objective: Any,
    constraints: Sequence[tuple[Any, Any]],
    duals: Mapping[Any, float],
    x: NDArray[np.float64],
) -> float | None:
    """A lower bound of a convex quadratic objective under affine constraints and bounds.

    For every feasible y and multipliers m (>= 0 for `<=`) of the residuals g, with the reduced costs
    r = slope of f at x + sum m_i * slope of g_i:

        f(y) >= f(x) + sum m_i g_i(x) + sum_j min over the bounds of r_j (y_j - x_j)

    Args:
        space: of the variables.
        objective: f.
        constraints: residuals with their Pyomo constraints.
        duals: of the Pyomo constraints, in Pyomo's sign.
        x: values of the variables.

    Returns:
        The bound, None where a reduced cost of an unbounded variable makes it minus infinity.
    """
    cost = _slope(objective, x)
    total, reduced = value_of(objective, x), cost.copy()
    for term, constraint in constraints:
        if constraint is None or not isinstance(term, Term):
            continue
        multiplier = -duals.get(constraint, 0.0)
        if not constraint.equality:
            multiplier = max(multiplier, 0.0)
        if multiplier:
            total += multiplier * value_of(term, x)
            for i, factor in term.linear.items():
                reduced[i] += multiplier * factor
    lower, upper = np.asarray(space.lower), np.asarray(space.upper)
    ends = np.where(reduced > 0, lower, upper)
    open_end = ~np.isfinite(ends)
    scale = 1.0 + float(np.abs(cost).max(initial=0.0))
    if np.abs(reduced[open_end]).max(initial=0.0) > NEGLIGIBLE * scale:
        return None
    closed = ~open_end
    return total + float(reduced[closed] @ (ends[closed] - x[closed]))
