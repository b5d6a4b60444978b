"""Points without multipliers: where gradients of constraints balance each other, and none the objective.

At an optimum a combination of gradients vanishes, w0 grad f + sum_i w_i grad c_i = 0, with weights that are
not all zero and >= 0 for the objective and inequalities (John 1948). Where w0 > 0, w / w0 are multipliers.
Where all such combinations have w0 = 0 there are none, and no constraint qualification holds: a cusp
(1 - a)^3 >= b >= 0, circles that touch, a square that must be 0. Multipliers of iterates that approach such
a point balance the objective better and better, and grow without bound (Andreani, Martinez & Svaiter 2010,
"A new sequential optimality condition for constrained optimization and algorithmic consequences").
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy.optimize import nnls as _nonnegative  # pyright: ignore[reportUnknownVariableType]  # untyped

from constrain.solvers.active import kkt_error, least_multipliers

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from constrain.solvers.interior import InteriorResult, Smooth

    Vector = NDArray[np.float64]
    Mask = NDArray[np.bool_]

__all__ = ["NOTHING", "FritzJohn", "at_limit", "fritz_john"]

NOTHING = 1e-6
"""Length of a combination of gradients of length 1 that counts as zero."""
_MOST = 250_000
"""Entries of the matrix of gradients up to which a combination is looked for."""
_NEAR = 1e-6
"""Distance to a bound below which a decision is put onto it."""
_STEPS, _SHORT = 200, 1e-9
"""Most steps to a limit, and the relative length of the last one: steps shrink by a constant factor only."""
_FEASIBLE = 1e-9
_FAR = 0.1
"""Distance to a limit, relative to 1 + |x|, beyond which the iterates were not near it."""


@dataclass(frozen=True)
class FritzJohn:
    """Weights of gradients whose combination is nearly zero, without the objective; sizes add up to 1.

    Attributes:
        rows: (constraints,) weights; >= 0 for inequalities.
        lower: (decisions,) weights >= 0 of -1 times the unit vectors of decisions at their lower bound.
        upper: (decisions,) weights >= 0 of the unit vectors of decisions at their upper bound.
        residual: length of the combination.
    """

    rows: Vector
    lower: Vector
    upper: Vector
    residual: float


def fritz_john(
    gradients: Vector, equality: Mask, at_lower: Mask, at_upper: Mask, vanishing: Mask | None = None
) -> FritzJohn | None:
    """The combination of active gradients and bounds that is nearest to zero.

    One gradient that vanishes is one, and so is a dependence of the equalities' gradients. Else, without
    what equalities may add, it is the point of least length of the convex hull of the inequalities'
    gradients, by nonnegative least squares (Lawson & Hanson 1974, chapter 23). Weights are found for
    gradients of length 1.

    Args:
        gradients: (constraints, decisions) of equalities and active inequalities.
        equality: (constraints,).
        at_lower: (decisions,) which are at their lower bound.
        at_upper: (decisions,) which are at their upper bound; where they are at both they cannot move.
        vanishing: (constraints,) whose gradient counts as zero; None: those of length up to 1e-6.

    Returns:
        The weights; None where nothing is active, and where there are too many gradients.
    """
    lengths = np.linalg.norm(gradients, axis=1)
    small = lengths <= NOTHING * max(1.0, float(lengths.max(initial=0.0)))
    gone = small if vanishing is None else vanishing
    if gone.any():
        least = np.flatnonzero(gone)[np.argmin(lengths[gone])]
        none = np.zeros(gradients.shape[1])
        return FritzJohn(1.0 * (np.arange(len(lengths)) == least), none, none, float(lengths[least]))
    movable = ~(at_lower & at_upper)
    n, m = int(movable.sum()), len(lengths)
    low, high = np.flatnonzero(at_lower[movable]), np.flatnonzero(at_upper[movable])
    if not n or not m or n * (m + len(low) + len(high)) > _MOST:
        return None
    eye = np.eye(n)
    hull = np.vstack([gradients[:, movable] / lengths[:, None], -eye[low], eye[high]])
    free = np.concatenate([equality, np.zeros(len(low) + len(high), dtype=bool)])
    weights = _nearest_to_zero(hull, free)
    weights[:m] /= lengths
    weights /= np.abs(weights).sum()
    lower, upper, places = np.zeros(len(movable)), np.zeros(len(movable)), np.flatnonzero(movable)
    lower[places[low]], upper[places[high]] = weights[m : m + len(low)], weights[m + len(low) :]
    left = (weights[:m] @ gradients - lower + upper)[movable]
    return FritzJohn(weights[:m], lower, upper, float(np.linalg.norm(left)))


def _nearest_to_zero(rows: Vector, free: Mask) -> Vector:
    """Weights whose sizes add up to 1, of any sign where `free`, with which rows add up to least."""
    weights, basis = np.zeros(len(rows)), np.zeros((0, rows.shape[1]))
    if free.any():
        left, s, right = np.linalg.svd(rows[free], full_matrices=True)
        rank = int((s > NOTHING * s[0]).sum())
        if rank < int(free.sum()) or free.all():
            weights[free] = left[:, -1]
            return weights / np.abs(weights).sum()
        basis = right[:rank]
    others = rows[~free] - rows[~free] @ basis.T @ basis
    solve = cast("Callable[..., Any]", _nonnegative)
    found = solve(np.vstack([others.T, np.ones(len(others))]), np.append(np.zeros(rows.shape[1]), 1.0))[0]
    weights[~free] = found
    if free.any():
        weights[free] = -np.linalg.lstsq(rows[free].T, found @ rows[~free], rcond=None)[0]
    return weights / np.abs(weights).sum()


def at_limit(problem: Smooth, found: InteriorResult) -> InteriorResult | None:
    """The limit of iterates whose multipliers grow; None where no such point is near.

    Newton steps of least length on what is active, which converge linearly where gradients vanish or become
    parallel. The point counts where a combination of active gradients is zero without the objective.

    Args:
        problem: with gradients of about 1.
        found: a run that ended for this reason.

    Returns:
        The point, `converged` where some multipliers balance the objective there, else with this ending.
    """
    x, y = found.x, found.y
    _, c = problem.values(x)
    active = problem.equal | (y > -c)
    at_lower, at_upper = x - problem.low <= _NEAR, problem.high - x <= _NEAR
    point = np.where(at_lower, problem.low, np.where(at_upper, problem.high, x))
    free = ~(at_lower | at_upper)
    last = np.inf
    for _ in range(_STEPS):
        _, c = problem.values(point)
        J = problem.derivatives(point)[1]
        if not isinstance(J, np.ndarray) or not (np.isfinite(c).all() and np.isfinite(J).all()):
            return None
        step = np.zeros(len(point))
        step[free] = np.linalg.lstsq(J[np.ix_(active, free)], -c[active], rcond=1e-13)[0]
        length = float(np.abs(step / (1 + np.abs(point))).max(initial=0.0))
        if length >= last:  # rounding
            break
        last, point = length, np.clip(point + step, problem.low, problem.high)
        if length <= _SHORT:
            break
    if not _unqualified(problem, x, point):
        return None
    prices = least_multipliers(problem, point, y)
    if kkt_error(problem, point, prices) <= NOTHING:
        return replace(found, x=point, y=prices, ending="converged")
    grown = f"{np.abs(y).max():.1e} when gradients balance to {found.error:.0e}"
    message = f"multipliers grow without bound ({grown}): the point is their limit, where there are none"
    return replace(found, x=point, message=message)


def _unqualified(problem: Smooth, x: Vector, point: Vector) -> bool:
    """Whether a point is feasible, near `x`, and has active gradients that balance without the objective."""
    _, c = problem.values(point)
    J = problem.derivatives(point)[1]
    violation = np.where(problem.equal, np.abs(c), c).max(initial=0.0)
    if violation > _FEASIBLE or (np.abs(point - x) > _FAR * (1 + np.abs(x))).any():
        return False
    active = problem.equal | (c >= -_NEAR)
    at_lower, at_upper = point - problem.low <= _NEAR, problem.high - point <= _NEAR
    found = fritz_john(np.asarray(J)[active], problem.equal[active], at_lower, at_upper)
    return found is not None and found.residual <= NOTHING
