"""What Newton's method asks of a Jacobian and a Hessian, dense or with a block for every row."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from constrain.solvers.dense import Factor, factorized
from constrain.solvers.row_system import RowFactor, RowHessian, RowJacobian, identity

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]
    Jacobian: TypeAlias = Vector | RowJacobian
    Hessian: TypeAlias = Vector | RowHessian

__all__ = ["divided", "eye_like", "finite", "kkt_factor", "lengths", "pulled"]


def pulled(J: Jacobian, y: Vector) -> Vector:
    """The transposed Jacobian times multipliers, (n,)."""
    return J.pull(y) if isinstance(J, RowJacobian) else J.T @ y


def lengths(J: Jacobian) -> Vector:
    """Length of the gradient of every constraint, (m,)."""
    if isinstance(J, RowJacobian):
        return J.norms()
    return np.linalg.norm(J, axis=1) if len(J) else np.zeros(0)


def divided(J: Jacobian, scale: Vector) -> Jacobian:
    """Every constraint divided by its scale."""
    return J.scaled(scale) if isinstance(J, RowJacobian) else J / scale[:, None]


def finite(matrix: Jacobian | Hessian) -> bool:
    """Whether all entries are."""
    return bool(np.isfinite(matrix).all()) if isinstance(matrix, np.ndarray) else matrix.isfinite()


def eye_like(J: Jacobian, factor: float = 1.0) -> Hessian:
    """A multiple of the identity in the form that the Hessian has next to a Jacobian."""
    return identity(J.layout, factor) if isinstance(J, RowJacobian) else factor * np.eye(J.shape[1])


def kkt_factor(W: Hessian, J: Jacobian, D: Vector, C: Vector) -> Factor | RowFactor | None:
    """Factors of [[W + diag(D), J'], [J, -diag(C)]]; None where an entry is not finite.

    Args:
        W: Hessian of the Lagrangian.
        J: Jacobian of the constraints.
        D: (n,).
        C: (m,), positive.
    """
    if isinstance(J, RowJacobian):
        assert isinstance(W, RowHessian)  # they come together
        return RowFactor(W, J, D, C) if W.isfinite() and J.isfinite() else None
    assert isinstance(W, np.ndarray)
    n, m = len(D), len(C)
    system = np.zeros((n + m, n + m))
    system[:n, :n] = W
    system[np.arange(n), np.arange(n)] += D
    system[n:, :n] = J
    system[:n, n:] = J.T
    system[n + np.arange(m), n + np.arange(m)] = -C
    return factorized(system)
