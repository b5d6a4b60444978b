"""Best-fit multipliers of a point: those that balance the objective's gradient best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.diagnostics.jacobian import Entry, Gradients
    from constrain.diagnostics.ties import Ties

__all__ = ["Balance", "best_fit", "bounded_fit", "fit_with_slopes", "projected"]

STEPS = 30
"""Gauss-Newton steps of multipliers and slopes at kinks."""

HEAVY = 1e5
"""Weight of equations that must hold beside those that are balanced as well as possible."""

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]


def projected(gradient: Vector, at_lower: Mask, at_upper: Mask) -> Vector:
    """The part of a gradient that bounds do not explain.

    At an active lower bound a positive entry is the bound's own multiplier, at an upper bound a negative one.
    """
    result = np.where(at_lower, np.minimum(gradient, 0.0), gradient)
    return np.where(at_upper, np.maximum(result, 0.0), result)


@dataclass(frozen=True)
class Balance:
    """A gradient and the rows that may balance it.

    Attributes:
        gradient: (coordinates,).
        rows: (entries, coordinates).
        at_lower: (coordinates,) decisions at their lower bound.
        at_upper: (coordinates,) decisions at their upper bound.
    """

    gradient: Vector
    rows: NDArray[np.float64]
    at_lower: Mask
    at_upper: Mask

    @property
    def free(self) -> Mask:
        """Coordinates off their bounds."""
        return ~(self.at_lower | self.at_upper)

    def folded(self) -> Balance:
        """The same in fewer coordinates, with the same lengths and angles, on which the best fit depends.

        An orthonormal basis of the span takes the place of the free coordinates; the others stay.
        """
        free = self.free
        if int(free.sum()) <= 2 * (len(self.rows) + 1):
            return self
        vectors = np.vstack([self.rows[:, free], self.gradient[free]])
        triangle = np.asarray(np.linalg.qr(vectors.T, mode="r")).T
        whole = np.hstack([triangle, np.vstack([self.rows[:, ~free], self.gradient[~free]])])
        none = np.zeros(triangle.shape[1], dtype=bool)
        lower, upper = (np.concatenate([none, at[~free]]) for at in (self.at_lower, self.at_upper))
        return Balance(whole[-1], whole[:-1], lower, upper)


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
    bounded least squares on the coordinates that count (a semismooth Newton method). Where the multipliers
    are not unique, those of minimum norm.

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
    upper = np.full(rows.shape[0], np.inf) if caps is None else caps
    limits = (np.where(equality, -upper, 0.0), upper)
    found, rest = bounded_fit(gradient, rows, limits, at_lower, at_upper)
    free = ~(at_lower | at_upper)
    shorter = None if _independent(rows[:, free]) else _least_norm(found, rows, limits)
    return (
        (found, rest)
        if shorter is None
        else (shorter, projected(gradient + shorter @ rows, at_lower, at_upper))
    )


def _independent(rows: NDArray[np.float64]) -> bool:
    """Whether few rows are clearly linearly independent, so that multipliers are unique."""
    lengths = np.linalg.norm(rows, axis=1)
    if not len(rows) or len(rows) > rows.shape[1] or not lengths.all():
        return False
    s = np.linalg.svd(rows / lengths[:, None], compute_uv=False)
    return bool(s[-1] > 1e-6 * s[0])


def _least_norm(x: Vector, rows: NDArray[np.float64], limits: tuple[Vector, Vector]) -> Vector | None:
    """The shortest vector within the limits with the same x' rows; None where x is the only one.

    A least-distance problem, solved by nonnegative least squares.

    Source: Lawson & Hanson, Solving Least Squares Problems (1974), chapter 23.
    """
    lengths = np.linalg.norm(rows, axis=1)
    if not x.size or not lengths.all():
        return None
    scaled = rows / lengths[:, None]
    wide = scaled.shape[1] > 2 * scaled.shape[0]
    triangle = np.asarray(np.linalg.qr(scaled.T, mode="r")).T if wide else scaled
    s = np.linalg.svd(triangle, compute_uv=False)
    rank = int((s > 1e-9 * max(1.0, s[0])).sum())
    if rank == x.size:
        return None
    null = np.linalg.svd(triangle, full_matrices=True)[0][:, rank:] / lengths[:, None]
    basis = np.asarray(np.linalg.qr(null)[0])
    start = x - basis @ (basis.T @ x)
    sides = np.concatenate([basis, -basis])
    needed = np.concatenate([limits[0] - start, start - limits[1]])
    kept = np.isfinite(needed)
    if (needed[kept] <= 0).all():
        return start
    system = np.vstack([sides[kept].T, needed[kept]])
    target = np.append(np.zeros(basis.shape[1]), 1.0)
    rest = system @ cast("Any", optimize).nnls(system, target)[0] - target
    return np.clip(start - basis @ (rest[:-1] / rest[-1]), *limits)


def bounded_fit(
    gradient: Vector,
    rows: NDArray[np.float64],
    limits: tuple[Vector, Vector],
    at_lower: Mask,
    at_upper: Mask,
    held: NDArray[np.float64] | None = None,
) -> tuple[Vector, Vector]:
    """Solves min over x within its limits of |P(gradient + x' rows)|^2, as `best_fit` does.

    Args:
        gradient: (decisions,).
        rows: (entries, decisions).
        limits: least and largest x, (entries,) each.
        at_lower: (decisions,) coordinates at their lower bound.
        at_upper: (decisions,) coordinates at their upper bound.
        held: (conditions, entries) such that held x == 0, solved as heavy equations.

    Returns:
        x (entries,) and what remains of the gradient (decisions,).
    """
    if not rows.shape[0]:
        return np.zeros(0), projected(gradient, at_lower, at_upper)
    held = np.zeros((0, rows.shape[0])) if held is None else held
    lengths = np.linalg.norm(rows, axis=1)
    tied = held.any(axis=0)  # entries that move nothing take part in what is held
    usable = (lengths > 1e-12 * max(1.0, float(lengths.max()))) | tied
    lengths = np.where(tied, float(lengths.max(initial=0.0, where=tied)) or 1.0, lengths)
    scaled = rows[usable] / lengths[usable, None]
    lower, upper = (limit[usable] * lengths[usable] for limit in limits)
    together = held[:, usable] / lengths[usable]
    together *= HEAVY / np.maximum(np.abs(together).max(axis=1, keepdims=True, initial=0.0), 1e-300)
    counted = ~(at_lower | at_upper)
    start = np.clip(np.zeros(int(usable.sum())), lower, upper)
    best: tuple[float, Vector] = (np.inf, start)
    for _ in range(30):
        matrix = np.hstack([together.T, scaled[:, counted]])
        target = np.append(np.zeros(len(together)), -gradient[counted])
        solution = _bounded(matrix, target, lower, upper)
        rest = projected(gradient + solution @ scaled, at_lower, at_upper)
        size = float(rest @ rest)
        if size < best[0]:
            best = (size, solution)
        following = ~(at_lower | at_upper) | (rest != 0)
        if (following == counted).all():
            break
        counted = following
    found = np.clip(np.zeros(rows.shape[0]), *limits)
    found[usable] = best[1] / lengths[usable]
    return found, projected(gradient + found @ rows, at_lower, at_upper)


def fit_with_slopes(
    found: Gradients,
    entries: Sequence[Entry],
    ties: Ties,
    first: tuple[Vector, Vector],
    at_lower: Mask,
    at_upper: Mask,
) -> tuple[Vector, Vector]:
    """Best-fit multipliers when the slopes at kinks may be chosen as well, and what remains.

    What remains is linear in the multipliers and in the slopes, and bilinear in both where a constraint has
    a kink: Gauss-Newton steps, each a bounded least-squares problem, as long as they help.
    """
    if not len(ties.lower):
        return first
    active = np.array([e.active for e in entries], dtype=bool)
    caps = np.array([e.cap for e in entries])[active]
    least = np.where([e.equality for e in entries if e.active], -caps, 0.0)
    limits = (np.concatenate([least, ties.lower]), np.concatenate([caps, ties.upper]))
    count, best = int(active.sum()), (first[0], first[1])
    slopes = np.clip(np.zeros(len(ties.lower)), ties.lower, ties.upper)
    held = np.hstack([np.zeros((len(ties.held), count)), ties.held])
    for _ in range(STEPS):
        turned = ties.rows(best[0])
        own, others = ties.moved(slopes)
        base = found.objective + found.rest + own - slopes @ turned
        rows = np.vstack([(found.rows + others)[active], turned])
        step, _ = bounded_fit(base, rows, limits, at_lower, at_upper, held)
        fitted = best[0].copy()
        fitted[active], slopes = step[:count], step[count:]
        force = found.objective + found.rest + fitted @ found.rows
        _, rest = bounded_fit(force, ties.rows(fitted), ties.limits, at_lower, at_upper, ties.held)
        if not float(rest @ rest) < float(best[1] @ best[1]):
            break
        best = (fitted, rest)
    return best


def _bounded(rows: NDArray[np.float64], target: Vector, lower: Vector, upper: Vector) -> Vector:
    """Solves min |rows' x - target|^2 within the bounds; reduced to a small system by QR first."""
    matrix, right = rows.T, target
    if not matrix.shape[0]:
        return np.zeros(lower.size)
    if matrix.shape[0] > 2 * matrix.shape[1]:
        triangle = np.asarray(np.linalg.qr(np.column_stack([matrix, target]), mode="r"))
        matrix, right = triangle[:-1, :-1], triangle[:-1, -1]
    if not np.isfinite(lower).any() and not np.isfinite(upper).any():
        return np.asarray(np.linalg.lstsq(matrix, right, rcond=1e-12)[0], dtype=np.float64)
    found = cast("Any", optimize).lsq_linear(matrix, right, bounds=(lower, upper), method="bvls", tol=1e-14)
    return np.asarray(found.x, dtype=np.float64)
