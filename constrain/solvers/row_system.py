"""KKT matrices with a block of slack variables and constraints for every row of a sample.

The decisions are x, few, and for every row r of a sample u_r, very few; constraints are those of averages,
and for every row those in x and u_r alone. The matrix

    [W + D   J^T]
    [J       -C ]

with diagonal D and C is then block arrow-shaped, and eliminating the rows leaves a dense matrix of x and the
constraints of averages. In numbers: with A_r, B_r the Jacobian of the constraints of row r in x and u_r,

1.  u_r = v_r + T_r x with T_r = -(B' C^-1 B)^-1 B' C^-1 A takes the constraints' pull on x out of u_r. Where
    one bound is active, C^-1 is huge and holds the row on it, and nothing large is subtracted.
2.  The multipliers of row r are C^-1 (A x + B u), and v_r is eliminated with M_r = B' C^-1 B + W_uu.

It costs O(rows * x^2). The inertia is that of the blocks and of the matrix that is left, added (Haynsworth
1968).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from constrain.solvers.dense import factorized

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from constrain.solvers.dense import Factor

    Vector = NDArray[np.float64]
    Places = NDArray[np.int64]

__all__ = ["RowBlock", "RowFactor", "RowHessian", "RowJacobian", "RowLayout", "identity"]

_REFINEMENTS = 2


@dataclass(frozen=True)
class RowBlock:
    """The rows of one sample: where their slack variables and constraints are in the flat vectors.

    Attributes:
        u: (rows, k) places of slack variables among the decisions, -1 for those of rows that do not count.
        c: (rows, p) places of the constraints of rows among all constraints, -1 likewise.
    """

    u: Places
    c: Places


@dataclass(frozen=True)
class RowLayout:
    """Where everything is in flat vectors of n decisions and m constraints.

    Attributes:
        n: decisions.
        m: constraints.
        x: places of the decisions that are no slack variables of rows.
        d: places of the constraints that are of no row.
        blocks: the rows, by sample.
    """

    n: int
    m: int
    x: Places
    d: Places
    blocks: list[RowBlock]


@dataclass
class RowJacobian:
    """A Jacobian.

    Attributes:
        layout: of the flat vectors.
        dense: (d, x).
        across: per sample (d, rows, k): constraints of no row in slack variables.
        a: per sample (rows, p, x): constraints of rows in the other decisions.
        b: per sample (rows, p, k): constraints of rows in their slack variables.
    """

    layout: RowLayout
    dense: Vector
    across: list[Vector]
    a: list[Vector]
    b: list[Vector]

    def pull(self, y: Vector) -> Vector:
        """The transposed Jacobian times multipliers, (n,)."""
        at = self.layout
        found = np.zeros(at.n)
        found[at.x] = self.dense.T @ y[at.d]
        for block, across, a, b in zip(at.blocks, self.across, self.a, self.b, strict=True):
            own = _gather(y, block.c)
            found[at.x] += own.reshape(-1) @ a.reshape(-1, a.shape[-1])
            _scatter(found, block.u, _combined(across, y[at.d]) + _rows_times(b.transpose(0, 2, 1), own))
        return found

    def push(self, v: Vector) -> Vector:
        """The Jacobian times a step, (m,)."""
        at = self.layout
        found = np.zeros(at.m)
        found[at.d] = self.dense @ v[at.x]
        for block, across, a, b in zip(at.blocks, self.across, self.a, self.b, strict=True):
            own = _gather(v, block.u)
            found[at.d] += _flat(across) @ own.reshape(-1)
            moved = (a.reshape(-1, a.shape[-1]) @ v[at.x]).reshape(a.shape[:2])
            _scatter(found, block.c, moved + _rows_times(b, own))
        return found

    def norms(self) -> Vector:
        """Length of the gradient of every constraint, (m,)."""
        found = np.zeros(self.layout.m)
        squares = (self.dense**2).sum(1)
        for block, across, a, b in zip(self.layout.blocks, self.across, self.a, self.b, strict=True):
            squares = squares + (_flat(across) ** 2).sum(1)
            _scatter(found, block.c, np.sqrt((a**2).sum(2) + (b**2).sum(2)))
        found[self.layout.d] = np.sqrt(squares)
        return found

    def scaled(self, scale: Vector) -> RowJacobian:
        """Every constraint divided by its scale."""
        own = scale[self.layout.d]
        dense = self.dense / own[:, None]
        across = [one / own[:, None, None] for one in self.across]
        pairs = [1 / _gather(scale, block.c, 1.0)[:, :, None] for block in self.layout.blocks]
        a = [one * own for one, own in zip(self.a, pairs, strict=True)]
        b = [one * own for one, own in zip(self.b, pairs, strict=True)]
        return RowJacobian(self.layout, dense, across, a, b)

    def isfinite(self) -> bool:
        """Whether all entries are."""
        return all(bool(np.isfinite(one).all()) for one in (self.dense, *self.across, *self.a, *self.b))


@dataclass
class RowHessian:
    """Second derivatives of a Lagrangian whose slack variables of different rows do not meet.

    Attributes:
        xx: (x, x).
        ux: per sample (rows, k, x).
        uu: per sample (rows, k, k).
    """

    xx: Vector
    ux: list[Vector]
    uu: list[Vector]

    def isfinite(self) -> bool:
        """Whether all entries are."""
        return all(bool(np.isfinite(one).all()) for one in (self.xx, *self.ux, *self.uu))

    def times(self, v: Vector, at: RowLayout) -> Vector:
        """The product with a step, (n,)."""
        found = np.zeros_like(v)
        found[at.x] = self.xx @ v[at.x]
        for block, ux, uu in zip(at.blocks, self.ux, self.uu, strict=True):
            own = _gather(v, block.u)
            found[at.x] += own.reshape(-1) @ ux.reshape(-1, ux.shape[-1])
            moved = (ux.reshape(-1, ux.shape[-1]) @ v[at.x]).reshape(own.shape)
            _scatter(found, block.u, moved + _rows_times(uu, own))
        return found


def identity(at: RowLayout, factor: float) -> RowHessian:
    """The second derivatives of factor |v|^2 / 2."""
    shapes = [block.u.shape for block in at.blocks]
    uu = [np.broadcast_to(factor * np.eye(k), (rows, k, k)) for rows, k in shapes]
    return RowHessian(factor * np.eye(len(at.x)), [np.zeros((*shape, len(at.x))) for shape in shapes], uu)


@dataclass
class _Eliminated:
    """What is left of the rows of one sample."""

    weight: Vector  # (rows, p), C^-1
    turn: Vector  # (rows, k, x), T
    a: Vector  # (rows, p, x), A + B T
    ux: Vector  # (rows, k, x), the second derivatives in v and x
    uu: Vector  # (rows, k, k), those in u, with D
    inverse: Vector  # (rows, k, k), M^-1
    negative: int  # negative eigenvalues of all M


class RowFactor:
    """Factors of one matrix.

    Args:
        W: second derivatives.
        J: the Jacobian.
        D: (n,) diagonal that is added to W.
        C: (m,) diagonal of the multipliers, positive; infinite for constraints that do not count.

    Attributes:
        negative: number of negative eigenvalues.
        singular: whether the matrix is, up to rounding.
    """

    def __init__(self, W: RowHessian, J: RowJacobian, D: Vector, C: Vector) -> None:
        self.W, self.J, self.D, self.C = W, J, D, C
        self.at = at = J.layout
        n, d = len(at.x), len(at.d)
        dense, corner = J.dense.copy(), np.zeros((d, d))
        xx = W.xx + np.diag(D[at.x])
        self.rows = [self._eliminate(i) for i in range(len(at.blocks))]
        for across, row in zip(J.across, self.rows, strict=True):
            turn, own, bounds = (one.reshape(-1, n) for one in (row.turn, row.ux, row.a))
            mixed = turn.T @ (row.ux - 0.5 * _product(row.uu, row.turn)).reshape(-1, n)
            solved = _product(row.inverse, row.ux).reshape(-1, n)
            xx += mixed + mixed.T + bounds.T @ (row.weight.reshape(-1, 1) * bounds) - own.T @ solved
            dense += _flat(across) @ (turn - solved)
            corner -= _flat(across) @ _flat(np.einsum("rkl,drl->drk", row.inverse, across)).T
        self.live = live = np.isfinite(C[at.d])
        corner[np.arange(d), np.arange(d)] -= np.where(live, C[at.d], 1.0)
        dense = np.where(live[:, None], dense, 0.0)
        corner = np.where(live[:, None] & live, corner, -np.eye(d))
        system = np.block([[0.5 * (xx + xx.T), dense.T], [dense, 0.5 * (corner + corner.T)]])
        self.factor: Factor | None = factorized(system)
        self.negative = sum(int((block.c >= 0).sum()) for block in at.blocks)
        self.negative += sum(row.negative for row in self.rows)
        self.negative += 0 if self.factor is None else self.factor.negative
        self.singular = self.factor is None or self.factor.singular

    def _eliminate(self, i: int) -> _Eliminated:
        block, a, b = self.at.blocks[i], self.J.a[i], self.J.b[i]
        k = b.shape[2]
        weight = np.where(block.c >= 0, 1 / _gather(self.C, block.c, np.inf), 0.0)
        pulled = b.transpose(0, 2, 1) * weight[:, None, :]
        normal = pulled @ b
        loose = np.abs(normal).sum(2) == 0  # slack variables that no bound holds
        turn = -_solve(normal + _diagonal(np.where(loose, 1.0, 0.0)), _product(pulled, a))
        uu = self.W.uu[i] + _diagonal(np.where(block.u >= 0, _gather(self.D, block.u), 1.0))
        m = normal + uu
        negative = int((m < 0).sum()) if k == 1 else int((np.linalg.eigvalsh(m) < 0).sum())
        inverse: Any = 1 / m if k == 1 else np.linalg.inv(m)
        ux = self.W.ux[i] + _product(uu, turn)
        return _Eliminated(weight, turn, a + _product(b, turn), ux, uu, inverse, negative)

    def solve(self, right: Vector) -> Vector:
        """(n + m,) from (n + m,): one solve with steps of iterative refinement."""
        found = self._once(right)
        for _ in range(_REFINEMENTS):
            found = found + self._once(right - self._times(found))
        return found

    def _times(self, z: Vector) -> Vector:
        n = len(self.D)
        v, y = z[:n], z[n:]
        top = self.W.times(v, self.at) + self.D * v + self.J.pull(y)
        finite = np.isfinite(self.C)
        bottom = np.where(finite, self.J.push(v) - np.where(finite, self.C, 0.0) * y, y)
        return np.concatenate([top, bottom])

    def _once(self, right: Vector) -> Vector:
        at, n, size = self.at, self.at.n, len(self.at.x)
        first, second = right[:n], right[n:]
        bx, bd = first[at.x].copy(), np.where(self.live, second[at.d], 0.0)
        own: list[Vector] = []
        for block, b, across, row in zip(at.blocks, self.J.b, self.J.across, self.rows, strict=True):
            bu, br = _gather(first, block.u), row.weight * _gather(second, block.c)
            own.append(bu + _rows_times(b.transpose(0, 2, 1), br))
            solved = _rows_times(row.inverse, own[-1]).reshape(-1)
            bx += bu.reshape(-1) @ row.turn.reshape(-1, size) + br.reshape(-1) @ row.a.reshape(-1, size)
            bx -= solved @ row.ux.reshape(-1, size)
            bd -= np.where(self.live, _flat(across) @ solved, 0.0)
        assert self.factor is not None  # callers look at `singular` first
        found = self.factor.solve(np.concatenate([bx, bd]))
        x, y = found[:size], np.where(self.live, found[size:], 0.0)
        step, multipliers = np.zeros(n), np.zeros(at.m)
        step[at.x], multipliers[at.d] = x, y
        for i, (block, row) in enumerate(zip(at.blocks, self.rows, strict=True)):
            pull = (row.ux.reshape(-1, size) @ x).reshape(block.u.shape) + _combined(self.J.across[i], y)
            v = _rows_times(row.inverse, own[i] - pull)
            _scatter(step, block.u, v + (row.turn.reshape(-1, size) @ x).reshape(v.shape))
            moved = (row.a.reshape(-1, size) @ x).reshape(block.c.shape) + _rows_times(self.J.b[i], v)
            _scatter(multipliers, block.c, row.weight * (moved - _gather(second, block.c)))
        return np.concatenate([step, multipliers])


# ------------------------------------------------------------------------------------------- small parts
def _gather(flat: Vector, places: Places, missing: float = 0.0) -> Vector:
    return np.where(places >= 0, flat[places], missing) if flat.size else np.full(places.shape, missing)


def _scatter(flat: Vector, places: Places, values: Vector) -> None:
    chosen = places >= 0
    flat[places[chosen]] = values[chosen]


def _combined(across: Vector, y: Vector) -> Vector:
    """Sum over constraints of y times (rows, k)."""
    return (y @ _flat(across)).reshape(across.shape[1:])


def _product(left: Vector, right: Vector) -> Vector:
    """(rows, p, k) times (rows, k, x); NumPy is slow on stacks of tiny matrices."""
    if max(left.shape[1:]) > 3:
        return left @ right
    terms = [left[:, :, j, None] * right[:, None, j] for j in range(left.shape[2])]
    return sum(terms[1:], start=terms[0]) if terms else np.zeros((*left.shape[:2], right.shape[2]))


def _rows_times(matrices: Vector, vectors: Vector) -> Vector:
    """(rows, p, k) times (rows, k)."""
    if matrices.shape[2] == 1:
        return matrices[:, :, 0] * vectors
    return (matrices @ vectors[:, :, None])[:, :, 0]


def _flat(across: Vector) -> Vector:
    """(d, rows * k) of (d, rows, k)."""
    return across.reshape(len(across), across.shape[1] * across.shape[2])


def _diagonal(entries: Vector) -> Vector:
    return entries[:, :, None] * np.eye(entries.shape[1])


def _solve(m: Vector, right: Vector) -> Vector:
    return right / m if m.shape[1] == 1 else cast("Any", np.linalg.solve(m, right))
