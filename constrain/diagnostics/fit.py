"""Best-fit multipliers of a point: those that balance the objective's gradient best."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

__all__ = ["best_fit", "projected"]

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]


def projected(gradient: Vector, at_lower: Mask, at_upper: Mask) -> Vector:
    """The part of a gradient that bounds do not explain.

    At an active lower bound a positive entry is the bound's own multiplier, at an upper bound a negative one.
    """
    result = np.where(at_lower, np.minimum(gradient, 0.0), gradient)
    return np.where(at_upper, np.maximum(result, 0.0), result)


def best_fit(
    gradient: Vector,
    rows: NDArray[np.float64],
    equality: Mask,
    at_lower: Mask,
    at_upper: Mask,
    caps: Vector | None = None,
) -> tuple[Vector, Vector]:
    """Solves min over multipliers of |P(grad f + J' multipliers)|^2, nonnegative for inequalities.

    P drops what active bounds explain, which makes the problem piecewise quadratic; it is solved by repeated
    bounded least squares on the coordinates that count (a semismooth Newton method). Minimum-norm where the
    multipliers are not unique and equalities alone are concerned.

    Args:
        gradient: (decisions,) of the objective.
        rows: (entries, decisions) gradients of active constraints.
        equality: (entries,) whether the multiplier is free.
        at_lower: (decisions,) coordinates at their lower bound.
        at_upper: (decisions,) coordinates at their upper bound.
        caps: (entries,) largest size of each multiplier, infinite where there is none.

    Returns:
        Multipliers (entries,) and the remaining gradient (decisions,).
    """
    if not rows.shape[0]:
        return np.zeros(0), projected(gradient, at_lower, at_upper)
    lengths = np.linalg.norm(rows, axis=1)
    usable = lengths > 1e-12 * max(1.0, float(lengths.max()))
    scaled = rows[usable] / lengths[usable, None]
    upper = np.full(int(usable.sum()), np.inf) if caps is None else caps[usable] * lengths[usable]
    lower = np.where(equality[usable], -upper, 0.0)
    counted = ~(at_lower | at_upper)
    best: tuple[float, Vector] = (np.inf, np.zeros(int(usable.sum())))
    for _ in range(30):
        solution = _bounded(scaled[:, counted], -gradient[counted], lower, upper)
        rest = projected(gradient + solution @ scaled, at_lower, at_upper)
        size = float(rest @ rest)
        if size < best[0]:
            best = (size, solution)
        following = ~(at_lower | at_upper) | (rest != 0)
        if (following == counted).all():
            break
        counted = following
    multipliers = np.zeros(rows.shape[0])
    multipliers[usable] = best[1] / lengths[usable]
    return multipliers, projected(gradient + multipliers @ rows, at_lower, at_upper)


def _bounded(rows: NDArray[np.float64], target: Vector, lower: Vector, upper: Vector) -> Vector:
    """Solves min |rows' x - target|^2 within the bounds; reduced to a small system by QR first."""
    matrix, right = rows.T, target
    if not matrix.shape[0]:
        return np.zeros(lower.size)
    if matrix.shape[0] > 2 * matrix.shape[1]:
        q, matrix = np.linalg.qr(matrix)
        right = q.T @ target
    if not np.isfinite(lower).any() and not np.isfinite(upper).any():
        return np.asarray(np.linalg.lstsq(matrix, right, rcond=1e-12)[0], dtype=np.float64)
    found = cast("Any", optimize).lsq_linear(matrix, right, bounds=(lower, upper), method="bvls", tol=1e-14)
    return np.asarray(found.x, dtype=np.float64)
