"""Starts for deterministic methods: into the domain of the functions, and off points without a gradient.

A method that follows derivatives cannot leave a point at which a violated constraint has a gradient of zero
(|x|^2 == 1 at 0), and cannot begin where a function is not finite (log x at 0). Both are cured by a small
move. Moves are drawn from a seeded generator, so that a run repeats itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from constrain.errors import ModelingError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    Vector = NDArray[np.float64]

__all__ = ["MOVE", "RETRIES", "identities", "inside_domain", "nearby", "pushed", "stuck"]

MOVE = 0.1
"""Size of a move off a point without a gradient, relative to 1, to the point and to its bounds."""
RETRIES = 3
"""Starts that are tried before a violation without a gradient counts as the least one."""
_SPREADS = (1e-3, 1e-2, 0.1, 1.0, 10.0)
_DRAWS = 8
_FLAT = 1e-8
_VIOLATED = 1e-8


def nearby(x: Vector, low: Vector, high: Vector, direction: Vector, spread: float = MOVE) -> Vector:
    """The point moved along a direction, inside of the bounds.

    Args:
        x: a point, (n,).
        low: lower bounds, -inf where there are none.
        high: upper bounds.
        direction: (n,), entries of about 1.
        spread: length of the move, relative to the larger of 1 and |x|, and at most to the bounds' distance.
    """
    size = spread * np.minimum(np.maximum(1.0, np.abs(x)), high - low)
    return np.clip(x + size * direction, low, high)


def pushed(x: Vector, low: Vector, high: Vector) -> Vector:
    """The point with a distance of 1e-2 to its bounds, as interior methods begin."""
    width = np.minimum(1.0, high - low)
    return np.clip(x, low + 1e-2 * width, high - 1e-2 * width)


def stuck(equal: NDArray[np.bool_], c: Vector, norms: Vector, flat: float = _FLAT) -> bool:
    """Whether some violated constraint has a gradient of zero.

    Args:
        equal: which constraints are equalities, (m,).
        c: residuals, (m,).
        norms: lengths of their gradients, (m,).
        flat: length, relative to the larger of 1 and the residual, below which a gradient is none.
    """
    violated = np.where(equal, np.abs(c), c) > _VIOLATED
    return bool((violated & (norms <= flat * np.maximum(1.0, np.abs(c)))).any())


def identities(tensors: Sequence[Tensor]) -> Vector | None:
    """Identities in the places of square matrices and zeros elsewhere, flat; None without such matrices."""
    pieces: list[Vector] = []
    for t in tensors:
        matrix = t.dim() == 2 and t.shape[0] == t.shape[1]
        pieces.append((np.eye(t.shape[0]) if matrix else np.zeros(t.shape)).reshape(-1))
    return np.concatenate(pieces) if any(piece.any() for piece in pieces) else None


def inside_domain(
    finite: Callable[[Vector], bool], x: Vector, low: Vector, high: Vector, inward: Vector | None = None
) -> Vector:
    """The start, or a point near it at which objective and constraints are finite.

    Tried are points a little inside of the bounds, a step inward, then moves of growing length: all
    coordinates up (as logarithms and roots want), all down, and random ones.

    Args:
        finite: whether values and gradients at a point are.
        x: the start, (n,).
        low: lower bounds.
        high: upper bounds.
        inward: a direction to try first: that of `identities`, for functions of definite matrices.

    Raises:
        ModelingError: E199 where no such point is found.
    """
    if finite(x):
        return x
    rng = np.random.default_rng(0)
    ones = np.ones_like(x)
    if inward is not None and finite(moved := nearby(x, low, high, inward, 1.0)):
        return moved
    directions = [ones, -ones, *(rng.normal(size=len(x)) for _ in range(_DRAWS))]
    for spread in _SPREADS:
        for direction in directions:
            moved = nearby(x, low, high, direction, spread)
            if finite(moved):
                return moved
    raise ModelingError(
        "E199",
        "the objective or a constraint, or a gradient of them, is not finite at the start, nor at points "
        "near it: a logarithm, root or quotient outside of its domain",
        fix="x.value = ..., a point at which all functions are defined; or Variable(..., nonneg=True)",
    )
