"""Dual values of cones from the multiplier of the inequality that describes them.

A cone is one convex inequality per element here, and its multiplier is a number m. The dual vector is m times
the negative slope of the inequality, which lies in the dual cone:

    |x| <= t                  m (1, -x / |x|)                   for (t, x)
    y exp(x / y) <= z, as x + y log(y / z) <= 0:
                              m (-1, -1 - log(y / z), y / z)    for (x, y, z)

Source: Boyd & Vandenberghe, Convex Optimization (2004), section 5.9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TIP", "exponential", "second_order"]

TIP = 1e-9
"""A vector this short, relative to 1, has no direction."""


def second_order(multiplier: Any, x: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Dual vectors (cones, 1 + n) of |x| <= t.

    Args:
        multiplier: (cones,).
        x: (cones, n).

    Returns:
        None where a cone with a multiplier is at its tip: any vector that is not longer will do.
    """
    m = np.asarray(multiplier, dtype=np.float64).reshape(-1)
    length = np.linalg.norm(x, axis=1)
    tip = length <= TIP
    if np.any(tip & (m > TIP)):
        return None
    direction = np.where(tip[:, None], 0.0, x / np.where(tip, 1.0, length)[:, None])
    return m[:, None] * np.concatenate([np.ones((len(m), 1)), -direction], axis=1)


def exponential(multiplier: Any, y: NDArray[np.float64], z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Dual vectors (cones, 3) of x + y log(y / z) <= 0; all arguments (cones,)."""
    m = np.asarray(multiplier, dtype=np.float64).reshape(-1)
    share = np.where(m > 0, y, 1.0) / np.where(m > 0, z, 1.0)
    return m[:, None] * np.stack([-np.ones(len(m)), -1.0 - np.log(share), share], axis=1)
