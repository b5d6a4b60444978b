"""The last digits: Newton's method on the constraints and bounds that are active at an approximate solution.

An interior method ends where every product of a multiplier and a distance is small, not zero; a first-order
method ends where its steps were too short. When the active set is right, the KKT conditions are a square
system of equations, and Newton's method on it doubles the digits with every step (Nocedal & Wright 2006,
section 18.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy.linalg import lstsq as _least_squares  # pyright: ignore[reportUnknownVariableType]  # untyped
from scipy.optimize import nnls as _nonnegative  # pyright: ignore[reportUnknownVariableType]  # untyped

from constrain.solvers.dense import factorized
from constrain.solvers.newton import projected_gradient
from constrain.solvers.systems import finite, kkt_factor, pulled

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from constrain.solvers.interior import Smooth
    from constrain.solvers.systems import Hessian, Jacobian

    Vector = NDArray[np.float64]

__all__ = ["finish", "kkt_error", "least_multipliers"]

_ENOUGH = 1e-14
_ROUNDING = 1e-11
"""Error below which a step that does not halve it is the last one."""
_HUGE = 1e3
"""Largest multiplier, of a problem with gradients of about 1, that needs no second look."""
_LOOSE = 1e-10
"""Diagonal that makes systems with row blocks regular; the Newton steps take its effect back."""
_NEAR = 1e-6
"""Distance to a bound below which a decision that is pushed towards it is put onto it."""


def kkt_error(problem: Smooth, x: Vector, y: Vector) -> float:
    """Largest entry of the projected gradient of the Lagrangian, the equalities, and min(y, -c)."""
    _, c = problem.values(x)
    g, J = problem.derivatives(x)
    return _error(problem, x, y, c, g + pulled(J, y))


def _error(problem: Smooth, x: Vector, y: Vector, c: Vector, d: Vector) -> float:
    if not (np.isfinite(c).all() and np.isfinite(d).all()):
        return np.inf
    off = np.where(problem.equal, c, np.minimum(y, -c))
    forces = projected_gradient(x, d, problem.low, problem.high)
    return max(float(np.abs(forces).max(initial=0.0)), float(np.abs(off).max(initial=0.0)))


def finish(problem: Smooth, x: Vector, y: Vector, *, steps: int = 30) -> tuple[Vector, Vector, float]:
    """Newton steps on the active set at (x, y); the best point seen, which may be the start.

    Args:
        problem: smooth near `x`.
        x: an approximate solution, (n,).
        y: its multipliers, (m,).
        steps: most Newton steps.

    Returns:
        Point, multipliers and the largest entry of the KKT conditions there.
    """
    best = (x, y, kkt_error(problem, x, y))
    if best[2] <= _ENOUGH:
        return best
    x, held = _snapped(problem, x, y)
    active = problem.equal | (y > -problem.values(x)[1])
    y = np.where(active, y, 0.0)
    for _ in range(steps + 1):
        _, c = problem.values(x)
        g, J = problem.derivatives(x)
        d = g + pulled(J, y)
        error = _error(problem, x, y, c, d)
        last = best[2] <= _ROUNDING and error > 0.5 * best[2]
        if error < best[2]:
            best = (x, y, error)
        if last or not np.isfinite(error) or error <= _ENOUGH:
            break
        moved = _step(problem.hessian(x, y), J, c, d, ~held, active)
        if moved is None:
            break
        x = _within(problem, x, moved[0])
        y = y + moved[1]
    x, y, error = best
    return x, np.where(problem.equal, y, np.maximum(y, 0.0)), error


def least_multipliers(problem: Smooth, x: Vector, y: Vector) -> Vector:
    """Multipliers of least length at a point whose own are huge, as where no constraint qualification holds.

    The set of multipliers is unbounded there (Gauvin 1977), and an interior method ends far out in it.

    Args:
        problem: with a gradient of about 1 at `x`.
        x: the point, (n,).
        y: its multipliers, (m,).

    Returns:
        `y`, unless multipliers of active constraints and bounds that are smaller by orders of magnitude
        balance the gradient as well.
    """
    if np.abs(y).max(initial=0.0) <= _HUGE:
        return y
    _, c = problem.values(x)
    g, J = problem.derivatives(x)
    active = np.flatnonzero(problem.equal | (c > -_NEAR))
    if not isinstance(J, np.ndarray) or not finite(J) or not np.isfinite(g).all():
        return y
    eye = np.eye(len(x))
    pushes = np.vstack([-eye[x - problem.low <= _NEAR], eye[problem.high - x <= _NEAR]])
    columns = np.vstack([J[active], -J[active[problem.equal[active]]], pushes])
    ridge = 1e-7 * np.eye(len(columns))
    solve = cast("Callable[..., Any]", _nonnegative)
    found = solve(np.vstack([columns.T, ridge]), np.concatenate([-g, np.zeros(len(columns))]))[0]
    least = np.zeros(len(y))
    least[active] = found[: len(active)]
    least[active[problem.equal[active]]] -= found[len(active) :][: int(problem.equal[active].sum())]
    smaller = np.abs(least).max(initial=0.0) <= 1e-2 * np.abs(y).max()
    balanced = kkt_error(problem, x, least) <= max(_NEAR, 10 * kkt_error(problem, x, y))
    return least if smaller and balanced else y


def _snapped(problem: Smooth, x: Vector, y: Vector) -> tuple[Vector, NDArray[np.bool_]]:
    """Decisions at bounds that they are pushed to, and which ones are held there."""
    g, J = problem.derivatives(x)
    d = g + pulled(J, y)
    below, above = x - problem.low, problem.high - x
    to_low, to_high = (below < d) & (below < _NEAR), (above < -d) & (above < _NEAR)
    moved = np.where(to_low, problem.low, np.where(to_high, problem.high, x))
    if (moved == x).all():
        return x, to_low | to_high
    g, jacobian = problem.derivatives(moved)
    d = g + pulled(jacobian, y)
    stay = ~np.isfinite(d) | (to_low & (d < 0)) | (to_high & (d > 0))  # infinite slope at the bound
    return np.where(stay, x, moved), (to_low | to_high) & ~stay


def _step(
    W: Hessian, J: Jacobian, c: Vector, d: Vector, free: NDArray[np.bool_], active: NDArray[np.bool_]
) -> tuple[Vector, Vector] | None:
    """The Newton step of decisions and multipliers; of least length where the system is singular."""
    if not isinstance(W, np.ndarray) or not isinstance(J, np.ndarray):
        return _row_step(W, J, c, d, free, active)
    n, m = int(free.sum()), int(active.sum())
    A = J[np.ix_(active, free)]
    system = np.block([[W[np.ix_(free, free)], A.T], [A, np.zeros((m, m))]])
    right = -np.concatenate([d[free], c[active]])
    if not (np.isfinite(system).all() and np.isfinite(right).all()) or not len(right):
        return None
    found = _solved(system, right)
    dx, dy = np.zeros(len(free)), np.zeros(len(active))
    dx[free], dy[active] = found[:n], found[n:]
    return dx, dy


def _row_step(
    W: Hessian, J: Jacobian, c: Vector, d: Vector, free: NDArray[np.bool_], active: NDArray[np.bool_]
) -> tuple[Vector, Vector] | None:
    """The same with a block for every row, where constraints give way a little so that it is regular."""
    held = np.where(free, _LOOSE, 1 / _LOOSE)
    factor = kkt_factor(W, J, held, np.where(active, _LOOSE, np.inf))
    if factor is None or factor.singular:
        return None
    found = factor.solve(np.concatenate([np.where(free, -d, 0.0), np.where(active, -c, 0.0)]))
    dx, dy = found[: len(d)], found[len(d) :]
    return (np.where(free, dx, 0.0), np.where(active, dy, 0.0)) if np.isfinite(found).all() else None


def _solved(system: Vector, right: Vector) -> Vector:
    """The solution of a symmetric system, of least length where it is singular."""
    factor = factorized(system)
    if factor is not None and not factor.singular:
        found = factor.solve(right)
        off = np.abs(system @ found - right).max()
        if off <= 1e-8 * np.abs(right).max() and np.abs(found).max() <= 1e8 * np.abs(right).max():
            return found
    scale = 1 / np.sqrt(np.maximum(np.abs(system).max(1), 1e-12))
    solve = cast("Callable[..., Any]", _least_squares)
    return scale * solve(scale[:, None] * system * scale, scale * right, lapack_driver="gelsy")[0]


def _within(problem: Smooth, x: Vector, dx: Vector) -> Vector:
    """The end of the step, every decision at most nine tenths of its way to a bound."""
    low, high = x - 0.9 * (x - problem.low), x + 0.9 * (problem.high - x)
    return np.clip(
        x + dx, np.where(np.isfinite(low), low, -np.inf), np.where(np.isfinite(high), high, np.inf)
    )
