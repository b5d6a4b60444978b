"""Mangasarian-Fromovitz qualification: is there a direction into the feasible set, to first order?

Independent gradients (LICQ) make multipliers unique; MFCQ makes the set of multipliers bounded. It holds when
the gradients of equalities are independent and a direction d satisfies grad h d = 0, grad g d < 0 for active
inequalities and active bounds: a linear program.

Source: Nocedal & Wright, Numerical Optimization (2006), definition 12.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy import optimize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from constrain.diagnostics.jacobian import Entry, Qualification

__all__ = ["mangasarian_fromovitz"]

MOST = 5_000
"""Coordinates of the linear program; beyond, it is not solved."""


def mangasarian_fromovitz(
    entries: Sequence[Entry],
    rows: NDArray[np.float64],
    at_lower: NDArray[np.bool_],
    at_upper: NDArray[np.bool_],
    independence: Qualification,
) -> bool | None:
    """Whether the qualification holds; None where the linear program is too large.

    Args:
        entries: the chosen ones; those that bind count.
        rows: (entries, decisions) their gradients.
        at_lower: (decisions,) coordinates at their lower bound.
        at_upper: (decisions,) coordinates at their upper bound.
        independence: of the same entries; where it is complete it decides.
    """
    if independence.vanishing:
        return False
    if independence.rank == independence.active:
        return True
    used = [k for k, e in enumerate(entries) if e.binding]
    matrix = rows[used] / np.linalg.norm(rows[used], axis=1)[:, None]
    equality = np.array([entries[k].equality for k in used], dtype=bool)
    fixed = at_lower & at_upper
    first = matrix[equality][:, ~(at_lower | at_upper)]
    if equality.any() and np.linalg.matrix_rank(first, tol=1e-7) < equality.sum():
        return False
    held = (at_lower ^ at_upper) & ~fixed
    if not held.any():  # a combination of the gradients is enough
        matrix = matrix[:, ~fixed] @ matrix[:, ~fixed].T
        signs = np.zeros(matrix.shape[1])
    else:
        matrix, signs = matrix[:, ~fixed], np.where(at_lower, -1.0, np.where(at_upper, 1.0, 0.0))[~fixed]
    if matrix.shape[1] > MOST:
        return None
    return _direction(matrix, equality, signs) > 1e-7


def _direction(matrix: NDArray[np.float64], equality: NDArray[np.bool_], signs: NDArray[np.float64]) -> float:
    """The largest t with grad h d = 0, grad g d <= -t, sign_j d_j <= -t and |d_j| <= 1."""
    size = matrix.shape[1]
    bounds = np.diag(signs)[signs != 0]
    below = np.vstack([matrix[~equality], bounds])
    found = cast("Any", optimize).linprog(
        np.append(np.zeros(size), -1.0),
        A_ub=np.hstack([below, np.ones((len(below), 1))]) if len(below) else None,
        b_ub=np.zeros(len(below)) if len(below) else None,
        A_eq=np.hstack([matrix[equality], np.zeros((int(equality.sum()), 1))]) if equality.any() else None,
        b_eq=np.zeros(int(equality.sum())) if equality.any() else None,
        bounds=[(-1.0, 1.0)] * size + [(0.0, 1.0)],
        method="highs",
    )
    return float(-found.fun) if found.status == 0 else 0.0
