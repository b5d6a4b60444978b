"""Ways down from points that balance first derivatives only: saddles and maxima.

A start with a gradient of zero, such as 0 for x^4 - x^2, meets the first-order conditions as it is. Where the
Hessian of the Lagrangian has a clearly negative eigenvalue on the directions that keep the active
constraints, the point is no local minimum (Nocedal & Wright 2006, theorem 12.5), and a step along that
direction leads down, whatever its sign (McCormick 1977; More & Sorensen 1979).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy.linalg import eigh as _eigenpairs  # pyright: ignore[reportUnknownVariableType]  # untyped
from scipy.sparse.linalg import ArpackError, LinearOperator
from scipy.sparse.linalg import eigsh as _lanczos  # pyright: ignore[reportUnknownVariableType]  # untyped

from constrain.solvers.dense import factorized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from constrain.solvers.interior import Smooth

    Vector = NDArray[np.float64]

__all__ = ["ESCAPES", "SADDLE", "WayDown", "least_curvature", "points_below", "points_lower", "way_down"]

ESCAPES = 5
"""Most steps off saddles in a run."""
SADDLE = "the Lagrangian curves down along directions that keep the active constraints: a saddle or a maximum"
_CLEAR = 1e-6
"""Curvature, relative to the largest second derivative, below which it is clearly negative."""
_ACTIVE = 1e-7
_LENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)

WayDown = tuple["Vector", float]
"""A direction of negative curvature, largest entry 1, and the least curvature of all."""


def way_down(problem: Smooth, x: Vector, y: Vector) -> WayDown | None:
    """A direction that keeps the active constraints and bounds and along which the Lagrangian curves down.

    It is a random combination of all eigenvectors with such curvature, so that it leaves the point in
    each of them.

    Args:
        problem: at a point that meets the first-order conditions.
        x: the point, (n,).
        y: its multipliers, (m,).

    Returns:
        None where the curvature is not clearly negative anywhere.
    """
    _, c = problem.values(x)
    whole, bent = problem.derivatives(x)[1], problem.hessian(x, y)
    if not isinstance(whole, np.ndarray) or not isinstance(bent, np.ndarray):
        return None
    free = (x - problem.low > _ACTIVE * (1 + np.abs(x))) & (problem.high - x > _ACTIVE * (1 + np.abs(x)))
    J, H = whole[np.ix_(_active(problem, c, y), free)], bent[np.ix_(free, free)]
    largest = float(np.abs(H).max(initial=0.0))
    if not (np.isfinite(H).all() and np.isfinite(J).all()) or largest == 0.0:
        return None
    lengths = np.linalg.norm(J, axis=1)
    normal = J[lengths > 0] / lengths[lengths > 0, None]
    if _curves_up(H / largest, normal):
        return None
    basis = _kept(normal)
    values, vectors = cast("Any", _eigenpairs)(basis.T @ H @ basis)
    down = values < -_CLEAR * largest
    if not down.any():
        return None
    weights = np.random.default_rng(0).normal(size=int(down.sum()))
    direction = np.zeros(len(x))
    direction[free] = basis @ (vectors[:, down] @ weights)
    return direction / np.abs(direction).max(), float(values[0])


def _active(problem: Smooth, c: Vector, y: Vector) -> NDArray[np.bool_]:
    return problem.equal | (c > -_ACTIVE) | (y > -c)


def _curves_up(H: Vector, A: Vector) -> bool:
    """Whether H is positive on the null space of A: by the inertia of the KKT matrix, without eigenvalues."""
    m = len(A)
    factor = factorized(np.block([[H, A.T], [A, -1e-9 * np.eye(m)]]))
    return factor is not None and factor.negative == m and not factor.singular


def _kept(A: Vector) -> Vector:
    """Orthonormal columns that span the null space of A."""
    if not len(A):
        return np.eye(A.shape[1])
    _, s, rows = np.linalg.svd(A, full_matrices=True)
    return rows[int((s > 1e-8).sum()) :].T


def points_below(problem: Smooth, x: Vector, y: Vector, direction: Vector) -> Iterator[Vector]:
    """For either sign of the direction a point at which f + y c + c^2 / 2 of the active ones is lower.

    Along directions that keep the active constraints this falls with the curvature of the Lagrangian, though
    the constraints bend away to second order.

    Args:
        problem: as for `way_down`.
        x: the point, (n,).
        y: its multipliers, (m,).
        direction: of negative curvature, (n,), largest entry 1.
    """
    active = _active(problem, problem.values(x)[1], y)

    def merit(point: Vector) -> float:
        f, c = problem.values(point)
        value = f + float(y[active] @ c[active]) + 0.5 * float(c[active] @ c[active])
        return value if np.isfinite(value) else np.inf

    yield from points_lower(merit, x, direction, problem.low, problem.high)


def points_lower(
    merit: Callable[[Vector], float], x: Vector, direction: Vector, low: Vector, high: Vector
) -> Iterator[Vector]:
    """For either sign of the direction a point within the bounds at which a function is lower than at x."""
    here, size = merit(x), max(1.0, float(np.abs(x).max(initial=0.0)))
    for sign in (1.0, -1.0):
        found = _first_below(merit, here, x, _reach(x, sign * direction, size, low, high))
        if found is not None:
            yield found


def least_curvature(product: Callable[[Vector], Vector], free: NDArray[np.bool_]) -> WayDown | None:
    """A direction of clearly negative curvature, by products with the Hessian only (Lanczos 1950).

    Args:
        product: v -> H v, both (n,).
        free: which coordinates may move, (n,).

    Returns:
        The direction, largest entry 1, and its curvature; None where the least one is not clearly negative,
        or is not found in a few hundred products.
    """
    places = np.flatnonzero(free)
    if len(places) < 3:
        return None

    def within(v: Vector) -> Vector:
        whole = np.zeros(len(free))
        whole[places] = v.reshape(-1)
        return product(whole)[places]

    operator = cast("Any", LinearOperator)((len(places),) * 2, matvec=within, dtype=np.float64)
    start = np.random.default_rng(0).normal(size=len(places))
    solve = cast("Callable[..., Any]", _lanczos)
    try:
        largest = abs(float(solve(operator, k=1, which="LM", v0=start, tol=0.1, maxiter=50)[0][0]))
        values, vectors = solve(operator, k=1, which="SA", v0=start, tol=1e-3, maxiter=200)
    except ArpackError:
        return None
    if not np.isfinite(values[0]) or values[0] >= -_CLEAR * largest:
        return None
    direction = np.zeros(len(free))
    direction[places] = vectors[:, 0]
    return direction / np.abs(direction).max(), float(values[0])


def _reach(x: Vector, d: Vector, size: float, low: Vector, high: Vector) -> Vector:
    """The direction at the length that keeps a tenth of the distance to every bound."""
    room = np.where(d > 0, high - x, x - low)
    longest = np.where(d != 0, 0.9 * room / np.maximum(np.abs(d), 1e-300), np.inf)
    return d * min(size, float(longest.min(initial=np.inf)))


def _first_below(merit: Callable[[Vector], float], here: float, x: Vector, step: Vector) -> Vector | None:
    for length in _LENGTHS:
        if merit(x + length * step) < here - 1e-12 * max(1.0, abs(here)):
            return x + length * step
    return None
