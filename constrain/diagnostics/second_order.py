"""Second-order conditions: the least curvature of the Lagrangian along directions that keep what is active.

Directions d with grad c_i d = 0 for active entries and d_j = 0 for coordinates at a bound. Positive curvature
along all directions that keep the strongly active entries is sufficient for a strict local minimum; negative
curvature along a direction that keeps all active ones is a way down: the point is a saddle.

Source: Nocedal & Wright, Numerical Optimization (2006), theorems 12.5 and 12.6. Large problems use Lanczos
iterations with Hessian-vector products (ARPACK).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy.sparse import linalg as sparse

from constrain.diagnostics.system import DENSE
from constrain.diagnostics.ties import fits_at_once

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from constrain.diagnostics.system import System

__all__ = ["SADDLE", "SUFFICIENT", "second_order"]

SUFFICIENT = "second order sufficient"
SADDLE = "saddle direction"
FLAT = 1e-8
"""Curvatures below this share of the largest one count as zero."""


def second_order(system: System) -> tuple[str, float]:
    """What the curvature says, and the least one.

    Returns:
        `second order sufficient`, `saddle direction`, `not decided (why)` or `not checked (why)`; the least
        curvature along directions that keep every active entry, NaN where it was not computed or there is no
        such direction.
    """
    if system.refusal:
        return f"not checked ({system.refusal})", float("nan")
    if not fits_at_once(system.evaluator):
        return "not checked (rows times decisions are too many for one graph)", float("nan")
    least, largest = _least(system, system.jacobian)
    strong = least
    if not system.strong.all():
        strong, largest = _least(system, system.jacobian[system.strong])
    room = FLAT * max(largest, 1e-300)
    if least < -room:
        return SADDLE, least
    if np.isnan(least) or strong > room:  # no direction is left, or all of them go up
        return SUFFICIENT, least
    if not system.strong.all() and least > room:
        return f"not decided ({system.weak[0]} is active without a multiplier)", least
    return "not decided (a direction without curvature)", least


def _least(system: System, jacobian: NDArray[np.float64]) -> tuple[float, float]:
    """Least curvature on the null space of the rows, NaN where it is empty; and the size of the Hessian."""
    q = _row_space(jacobian)
    room = system.size - q.shape[1]
    if room <= 0:
        return float("nan"), 1.0
    if system.size <= DENSE:
        hessian = system.hessian()
        basis = _complement(q, system.size)
        values = np.linalg.eigvalsh(basis.T @ hessian @ basis)
        return float(values[0]), float(np.abs(hessian).max(initial=0.0))
    return _lanczos(system, q)


def _row_space(jacobian: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal columns that span the rows."""
    lengths = np.linalg.norm(jacobian, axis=1)
    used = jacobian[lengths > 1e-12 * max(1.0, float(lengths.max(initial=0.0)))]
    if not used.shape[0]:
        return np.zeros((jacobian.shape[1], 0))
    u, s, _ = np.linalg.svd((used / np.linalg.norm(used, axis=1)[:, None]).T, full_matrices=False)
    return np.asarray(u[:, s > 1e-7 * max(1.0, float(s[0]))])


def _complement(q: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Orthonormal columns of the directions orthogonal to those of q."""
    if not q.shape[1]:
        return np.eye(size)
    return np.asarray(np.linalg.qr(q, mode="complete")[0])[:, q.shape[1] :]


def _lanczos(system: System, q: NDArray[np.float64]) -> tuple[float, float]:
    """Least curvature on the complement of q by Lanczos iterations, shifted q shifted out of the way."""
    times = system.product()
    size = system.size
    start = np.random.default_rng(0).normal(size=size)

    def across(v: NDArray[np.float64]) -> NDArray[np.float64]:
        flat = np.ravel(v)
        return flat - q @ (q.T @ flat)

    solve = cast("Any", sparse).eigsh
    operator = cast("Any", sparse).LinearOperator

    def inside(v: NDArray[np.float64]) -> NDArray[np.float64]:
        return across(times(across(v)))

    plain = operator((size, size), matvec=inside, dtype=np.float64)
    largest = float(np.abs(solve(plain, k=1, which="LM", tol=1e-3, v0=start, return_eigenvectors=False)[0]))
    if largest == 0.0:
        return 0.0, 0.0

    def shifted(v: NDArray[np.float64]) -> NDArray[np.float64]:
        kept = across(v)
        return inside(v) + 2 * largest * (np.ravel(v) - kept)

    lifted = operator((size, size), matvec=shifted, dtype=np.float64)
    found = solve(lifted, k=1, which="SA", tol=1e-6, v0=start, return_eigenvectors=False, maxiter=20 * size)
    return float(found[0]), largest
