"""Factors and inertia of dense symmetric matrices (Bunch & Kaufman 1977), by LAPACK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import lapack as _lapack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

__all__ = ["Factor", "factorized"]

_LAPACK: Any = _lapack


@dataclass(frozen=True)
class Factor:
    """Bunch-Kaufman factors of a symmetric matrix whose rows are scaled to a largest entry of about 1."""

    matrix: Vector
    scale: Vector
    factors: Vector
    pivots: NDArray[np.int32]
    negative: int
    singular: bool

    def solve(self, right: Vector) -> Vector:
        """One solve with one step of iterative refinement."""
        x = self._once(right)
        return x + self._once(right - self.matrix @ x)

    def _once(self, right: Vector) -> Vector:
        return self.scale * _LAPACK.dsytrs(self.factors, self.pivots, self.scale * right, lower=1)[0]


def factorized(system: Vector) -> Factor | None:
    """Factors and inertia; None where the matrix is not finite."""
    if not np.isfinite(system).all():
        return None
    scale = 1 / np.sqrt(np.maximum(np.abs(system).max(1, initial=0.0), 1e-150))
    factors, pivots, info = _LAPACK.dsytrf(scale[:, None] * system * scale, lower=1)
    single = pivots > 0
    diagonal = np.diag(factors)
    pairs = int((~single).sum()) // 2  # one negative and one positive eigenvalue each
    negative = int((diagonal[single] < 0).sum()) + pairs
    singular = info > 0 or bool((np.abs(diagonal[single]) <= 1e-15).any())
    return Factor(system.copy(), scale, factors, pivots, negative, singular)
