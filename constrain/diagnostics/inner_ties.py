"""Kinks of optimal values of inner problems: their slopes are those of all multipliers and solutions.

The value v(theta) of a convex inner problem has the gradient of its Lagrangian in theta, at a solution x and
multipliers (z, y). Where these are not unique there is one gradient for each, and the judge may choose among
them. Multipliers of a solution x form a polyhedron:

    z >= 0 on constraints without room, 0 on the others;   grad f(x) + G' z + A' y = 0

and so do the solutions of a linear or quadratic program, with its multipliers held:

    G dx <= room,   G dx = 0 where z > 0,   A dx = 0,   P dx = 0

The gradient is linear in each of the two: a multiplier weighs the gradient of its constraint in theta, an
entry of dx that of the same entry of grad_x L. Where neither is unique, the change is that of one plus that
of the other, without their product.

Source: Fiacco, Introduction to Sensitivity and Stability Analysis in Nonlinear Programming (1983), chapter 2;
Gol'shtein, Theory of Convex Programming (1972), for the slopes of the value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import grad

from constrain.diagnostics.places import NEAR, Bundle, Place
from constrain.diagnostics.point import array_of

if TYPE_CHECKING:
    from torch import Tensor

    from constrain.inner.watching import Valued

__all__ = ["of_value"]

Matrix = NDArray[np.float64]

UNIT = 1e-9
"""Singular values of rows of length 1 below which they depend on each other."""


def of_value(seen: Valued) -> tuple[list[Bundle], str]:
    """The slopes that may be chosen in each row of a batch; else why they are not resolved."""
    inner, solved = seen.inner, seen.solved
    if inner.structure.integer or not inner.structure.facts.convex or inner.large:
        if solved.system is None or not bool(solved.system.singular.any()):
            return [], ""
        what = "is too large to tell which there are" if inner.large else "is not convex"
        return [], f"multipliers are not unique of an inner problem that {what}"
    found = _Conditions.of(seen)
    return [*_multipliers(seen, found), *_solutions(seen, found)], ""


@dataclass(frozen=True)
class _Conditions:
    """The optimality conditions of a batch at its solutions.

    Attributes:
        slopes: (B, m + p, n) gradients of inequalities, then of equalities.
        room: (B, m) of inequalities, 0 where they count as active.
        short: (B, m) of inequalities, as it is.
        z: (B, m) multipliers, 0 where they count as none.
        equalities: p.
        curvature: (B, n, n) Hessian of the Lagrangian.
    """

    slopes: Matrix
    room: Matrix
    short: Matrix
    z: Matrix
    equalities: int
    curvature: Matrix

    @classmethod
    def of(cls, seen: Valued) -> _Conditions:
        functions, solved = seen.inner.functions, seen.solved
        fixed = [t.detach() for t in seen.parameters]
        x, z, y = solved.x.detach(), solved.z.detach(), solved.y.detach()
        with torch.no_grad():
            below, equal = functions.slopes(seen.batched)(x, *fixed)
            bend: Any = functions.curvature(seen.batched)
            curvature = array_of(bend(x, z, y, *fixed))
        slopes = torch.cat([below.expand(len(x), -1, -1), equal.expand(len(x), -1, -1)], 1)
        room, weight = array_of(solved.slack.abs()), array_of(z)
        unit = NEAR * (1 + np.minimum(room.max(axis=1, keepdims=True, initial=0.0), 1e3))
        price = NEAR * (1 + weight.max(axis=1, keepdims=True, initial=0.0))
        return cls(
            array_of(slopes),
            np.where(room <= unit, 0.0, room),
            room,
            np.where(weight <= price, 0.0, weight),
            equal.shape[-2],
            np.broadcast_to(curvature, (len(x), *curvature.shape[-2:])),
        )


def _multipliers(seen: Valued, found: _Conditions) -> list[Bundle]:
    """Per row the multipliers that are not unique, as changes of those that the solver found."""
    functions, rows = seen.inner.functions, range(len(found.room))
    equal = np.ones(found.equalities, dtype=bool)
    moving = array_of(functions.moving) > 0
    chosen = [np.flatnonzero(np.append(found.room[i] == 0.0, equal)) for i in rows]
    free = [own[_loose(found.slopes[i, own].T)] for i, own in zip(rows, chosen, strict=True)]
    kinked = [i for i in rows if moving[free[i]].any()]
    if not kinked:
        return []
    x = seen.solved.x.detach()
    argument = torch.cat(functions.batch(functions.residuals, seen.batched)(x, *seen.parameters), 1)
    width, m = argument.shape[1], found.room.shape[1]
    bundles: list[Bundle] = []
    for i in kinked:
        least = [-float(found.z[i, j]) if j < m else -np.inf for j in free[i].tolist()]
        places = [
            Place(argument, i * width + j, low, np.inf, room=float(found.short[i, j]) if j < m else 0.0)
            for j, low in zip(free[i].tolist(), least, strict=True)
        ]
        bundles.append(Bundle(seen.value, i, tuple(places), _basis(found.slopes[i, free[i]].T)))
    return bundles


def _solutions(seen: Valued, found: _Conditions) -> list[Bundle]:
    """Per row of a linear or quadratic program the solutions that are not unique, as changes of one.

    Numbers are those of dx, and how the room of the constraints without a multiplier changes.
    """
    if seen.inner.structure.kind != "quadratic":
        return []
    rows, m = range(len(found.room)), found.room.shape[1]
    stiff = [np.append(found.z[i] > 0.0, np.ones(found.equalities, dtype=bool)) for i in rows]
    kept = [np.vstack([found.curvature[i], found.slopes[i, stiff[i]]]) for i in rows]
    kinked = [i for i in rows if len(_loose(kept[i]))]
    if not kinked:
        return []
    argument = _pulls(seen)
    bundles: list[Bundle] = []
    n = argument.shape[1]
    for i in kinked:
        loose = np.flatnonzero(~stiff[i][:m])
        entries = [Place(argument, i * n + k, -np.inf, np.inf) for k in range(n)]
        rooms = [Place(None, 0, -float(found.room[i, j]), np.inf) for j in loose.tolist()]
        fixed = np.hstack([_basis(kept[i]), np.zeros((len(_basis(kept[i])), len(loose)))])
        moved = np.hstack([found.slopes[i, loose], np.eye(len(loose))])
        bundles.append(Bundle(seen.value, i, (*entries, *rooms), np.vstack([fixed, moved])))
    return bundles


def _pulls(seen: Valued) -> Tensor:
    """(B, n) gradient of the Lagrangian in x, as a function of the parameters."""
    functions, solved = seen.inner.functions, seen.solved
    pull: Any = functions.batch(grad(functions.lagrangian), seen.batched, 3)
    points = (solved.x.detach(), solved.z.detach(), solved.y.detach())
    return cast("Tensor", pull(*points, *seen.parameters))


def _loose(matrix: Matrix) -> NDArray[np.int64]:
    """Columns that take part in a linear dependence of the columns."""
    if not matrix.shape[1]:
        return np.zeros(0, dtype=np.int64)
    scaled = matrix / np.maximum(np.linalg.norm(matrix, axis=0), 1e-300)
    _, values, vectors = np.linalg.svd(scaled)
    null = vectors[int((values > UNIT * max(1.0, float(values.max(initial=0.0)))).sum()) :]
    return np.flatnonzero(np.abs(null).max(axis=0, initial=0.0) > NEAR)


def _basis(matrix: Matrix) -> Matrix:
    """(rank, columns) orthonormal rows that vanish where the matrix times a vector does."""
    _, values, vectors = np.linalg.svd(matrix, full_matrices=False)
    return vectors[values > UNIT * max(float(values.max(initial=0.0)), 1e-300)]
