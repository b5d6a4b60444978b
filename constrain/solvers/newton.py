"""Projected Newton method for smooth minimization within bounds (Bertsekas 1982), dense and small.

Coordinates at a bound whose gradient points outward are held; the others take a regularized Newton step along
the projection arc with Armijo backtracking. A coordinate moves at most nine tenths of its distance to a bound
in one step, so that functions with infinite slope at the bound (entropy, powers, logarithms) stay inside of
their domain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy.linalg import LinAlgError
from scipy.linalg import cho_factor as _factorize  # pyright: ignore[reportUnknownVariableType]  # untyped
from scipy.linalg import cho_solve as _substitute  # pyright: ignore[reportUnknownVariableType]  # untyped

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["NewtonResult", "projected_gradient", "projected_newton", "truncated_newton"]

_NEAR = 1e-10
_IDLE = 10
"""Steps in a row that promise less than rounding shows, after which there is nothing to gain."""
_MOST_PRODUCTS = 400
"""Conjugate-gradient steps per Newton step."""
_STALLED = 25
_LEAST_GAIN = 1e-12
"""Steps that together gain no more than this part of the value: the gradient jumps at kinks."""


@dataclass(frozen=True)
class NewtonResult:
    """End of a run: point, gradient, iterations and whether the projected gradient met its tolerance."""

    x: NDArray[np.float64]
    gradient: NDArray[np.float64]
    iterations: int
    converged: bool


def projected_gradient(
    x: NDArray[np.float64], gradient: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.float64]:
    """X - P(x - g): zero exactly at first-order points of a problem with bounds.

    Written without the difference x - g, in which a gradient next to a very large x would be lost.
    """
    return np.clip(gradient, x - high, x - low)


def projected_newton(
    value: Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]],
    hessian: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    x: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    *,
    tolerance: float,
    iterations: int,
) -> NewtonResult:
    """Minimizes from `x`.

    Args:
        value: objective and gradient at a point.
        hessian: dense Hessian at a point.
        x: start, (n,).
        low: lower bounds, -inf where there are none.
        high: upper bounds, +inf where there are none.
        tolerance: largest entry of the projected gradient at which it stops.
        iterations: most Newton steps.
    """
    x = np.clip(x, low, high)
    f, g = value(x)
    damping = 0.0
    curvature: NDArray[np.float64] | None = None
    idle = taken = 0
    values = [f]
    for k in range(iterations):
        taken = k + 1
        if np.abs(projected_gradient(x, g, low, high)).max(initial=0.0) <= tolerance:
            return NewtonResult(x, g, k, True)
        if not np.isfinite(g).all():  # the end of a domain, such as 0 of a square root
            break
        held = ((x - low <= _NEAR) & (g > 0)) | ((high - x <= _NEAR) & (g < 0))
        if curvature is None:
            curvature = hessian(x)
            if not np.isfinite(curvature).all():  # a kink, such as that of a norm at 0: a gradient step
                curvature = np.eye(len(x))
        direction, damping = _direction(curvature, g, ~held, damping)
        step = _search(value, x, f, g, direction, held, low, high)
        hopeless = -float(g @ direction) <= 1e-14 * max(1.0, abs(f))
        idle = idle + 1 if hopeless else 0
        if idle > _IDLE:
            break
        if step is None:
            if damping > 1e12 or hopeless:
                break
            damping = max(10 * damping, 1e-6 * float(np.abs(g).max()) + 1e-12)
            continue
        (x, f, g), alpha = step
        values.append(f)
        if len(values) > _STALLED and values[-_STALLED] - f <= _LEAST_GAIN * max(1.0, abs(f)):
            break
        curvature = None
        # a short step says that the model was trusted too far: along flat directions, as of linear programs
        damping = 0.1 * damping if alpha > 0.1 else max(10 * damping, 1e-8)
    done = bool(np.abs(projected_gradient(x, g, low, high)).max(initial=0.0) <= tolerance)
    return NewtonResult(x, g, taken, done)


def truncated_newton(
    value: Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]],
    curvature: Callable[[NDArray[np.float64]], Callable[[NDArray[np.float64]], NDArray[np.float64]]],
    x: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    *,
    tolerance: float,
    iterations: int,
) -> NewtonResult:
    """The same without a matrix: directions by conjugate gradients (Nash & Sofer 1990), for many coordinates.

    Args:
        value: objective and gradient at a point.
        curvature: at a point, the function v -> H v.
        x: start, (n,).
        low: lower bounds, -inf where there are none.
        high: upper bounds, +inf where there are none.
        tolerance: largest entry of the projected gradient at which it stops.
        iterations: most Newton steps.
    """
    x = np.clip(x, low, high)
    f, g = value(x)
    values = [f]
    for k in range(iterations):
        if np.abs(projected_gradient(x, g, low, high)).max(initial=0.0) <= tolerance:
            return NewtonResult(x, g, k, True)
        if not np.isfinite(g).all():  # the end of a domain, such as 0 of a square root
            break
        held = ((x - low <= _NEAR) & (g > 0)) | ((high - x <= _NEAR) & (g < 0))
        step = _search(value, x, f, g, _conjugate(curvature(x), g, ~held), held, low, high)
        if step is None:
            step = _search(value, x, f, g, np.where(held, 0.0, -g), held, low, high)
        if step is None:
            break
        x, f, g = step[0]
        values.append(f)
        if len(values) > _STALLED and values[-_STALLED] - f <= _LEAST_GAIN * max(1.0, abs(f)):
            break
    done = bool(np.abs(projected_gradient(x, g, low, high)).max(initial=0.0) <= tolerance)
    return NewtonResult(x, g, len(values) - 1, done)


def _conjugate(
    product: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    g: NDArray[np.float64],
    free: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """An inexact Newton direction of the free coordinates, up to the first curvature that is not positive."""
    right = np.where(free, -g, 0.0)
    size = float(np.linalg.norm(right))
    direction, left = np.zeros_like(g), right
    along = right
    for _ in range(min(_MOST_PRODUCTS, 2 * len(g))):
        bent = np.where(free, product(along), 0.0)
        curved, square = float(along @ bent), float(left @ left)
        if not np.isfinite(curved) or curved <= 1e-14 * float(along @ along):
            return direction if direction.any() else right
        alpha = square / curved
        direction = direction + alpha * along
        left = left - alpha * bent
        if float(np.linalg.norm(left)) <= min(0.1, size) * size:
            break
        along = left + float(left @ left) / square * along
    return direction


def _direction(
    hessian: NDArray[np.float64], g: NDArray[np.float64], free: NDArray[np.bool_], damping: float
) -> tuple[NDArray[np.float64], float]:
    """The regularized Newton direction of the free coordinates; the damping grows until it factorizes.

    The matrix is scaled to a unit diagonal first: curvatures may differ by many orders (1/p for entropies).
    """
    direction = np.zeros_like(g)
    if not free.any():
        return direction, damping
    h = hessian[np.ix_(free, free)]
    largest = float(np.abs(h).max())
    curvature = np.maximum(np.abs(np.diag(h)), 1e-12 * largest) if largest > 0 else np.ones(len(h))
    diagonal = np.sqrt(curvature)
    scaled = h / diagonal[:, None] / diagonal[None, :]
    extra = damping
    factorize = cast("Callable[..., Any]", _factorize)
    while True:
        try:
            factor = factorize(scaled + extra * np.eye(len(scaled)), lower=True)
            break
        except LinAlgError:
            extra = max(10 * extra, 1e-10)
    direction[free] = -_substitute(factor, g[free] / diagonal) / diagonal
    return direction, extra


def _move(
    x: NDArray[np.float64],
    step: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Projection arc with nine tenths to the bound; onto the bound when already next to it."""
    to_low, to_high = x - low, high - x
    moved = np.where(step < -0.9 * to_low, np.where(to_low > 10 * _NEAR, x - 0.9 * to_low, low), x + step)
    return np.where(step > 0.9 * to_high, np.where(to_high > 10 * _NEAR, x + 0.9 * to_high, high), moved)


def _search(
    value: Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]],
    x: NDArray[np.float64],
    f: float,
    g: NDArray[np.float64],
    direction: NDArray[np.float64],
    held: NDArray[np.bool_],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> tuple[tuple[NDArray[np.float64], float, NDArray[np.float64]], float] | None:
    """Armijo backtracking along the arc: new point and step length; None when no step makes progress."""
    alpha = 1.0
    noise = 1e-14 * max(1.0, abs(f))
    while alpha > 1e-5:
        moved = _move(x, alpha * direction, low, high)
        moved = np.where(held, np.where(g > 0, low, high), moved)
        f_new, g_new = value(moved)
        back = ((moved == low) & (x > low) & (g_new < 0)) | ((moved == high) & (x < high) & (g_new > 0))
        if back.any():  # the slope turned on the last stretch: infinite slope at the bound, stay inside
            moved = np.where(back, x + 0.9 * (moved - x), moved)
            f_new, g_new = value(moved)
        expected = float(g @ (moved - x))
        if np.isfinite(f_new) and f_new <= f + 1e-4 * expected + noise:
            return (moved, f_new, g_new), alpha
        alpha *= 0.4
    return None
