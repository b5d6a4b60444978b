"""Batches of quadratic programs by a primal-dual interior-point method, one factorization per iteration.

    minimize  x·P x / 2 + q·x   subject to   G x <= h,  A x == b

Mehrotra's predictor-corrector method (SIAM J. Optim. 2 (1992) 575) with the start of CVXOPT; all rows of the
batch move together, and rows that have converged stand still. Linear programs are the case P = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from constrain.inner.kkt import System, repaired, system
from constrain.inner.linalg import linalg

if TYPE_CHECKING:
    from constrain.inner.products import Products

__all__ = ["Quadratic", "Solved", "interior_point", "solve"]

ITERATIONS = 80
COARSE = 1e-5
"""Relative error from which the active set is tried: with the right one, a linear system is enough."""
FINE = 1e-11
_REPAIRS = 4


@dataclass
class Quadratic:
    """A batch of B quadratic programs; a matrix that all rows share has an axis of length one in front.

    Attributes:
        P: (B or 1, n, n), positive semidefinite.
        q: (B, n).
        G: (B or 1, m, n).
        h: (B, m).
        A: (B or 1, p, n).
        b: (B, p).
    """

    P: Tensor
    q: Tensor
    G: Tensor
    h: Tensor
    A: Tensor
    b: Tensor
    products: Tensor | None = None
    """Of shared rows of G, (m, n * n); made when needed."""
    bounds: tuple[Tensor, Tensor, Tensor] | None = None
    """Shared rows of G with one entry: where, in which column, its square; made when needed."""

    def take(self, rows: Tensor) -> Quadratic:
        """Some rows of the batch."""
        P, q, G, h, A, b = (t if t.shape[0] == 1 and len(self.q) > 1 else t[rows] for t in self.tensors)
        return Quadratic(P, q, G, h, A, b)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """P, q, G, h, A, b."""
        return self.P, self.q, self.G, self.h, self.A, self.b


@dataclass
class Solved:
    """Primal and dual points of a batch.

    Attributes:
        x: (B, n).
        z: (B, m) multipliers of inequalities, >= 0.
        y: (B, p) multipliers of equalities.
        slack: (B, m) how far inequalities are from their bound, >= 0.
        active: (B, m) whether the multiplier is larger than the slack, in the units of the scaled problem.
        ok: (B,) whether the point is within the tolerance.
        iterations: of the method.
        system: the factorized optimality conditions; None before `solve` has finished.
    """

    x: Tensor
    z: Tensor
    y: Tensor
    slack: Tensor
    active: Tensor
    ok: Tensor
    iterations: int
    system: System | Products | None = None


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """(B or 1, r, c) times (B, c)."""
    if matrix.shape[0] == 1:
        return vector @ matrix[0].mT
    return (matrix @ vector[..., None])[..., 0]


def _back(matrix: Tensor, vector: Tensor) -> Tensor:
    """The transpose of (B or 1, r, c) times (B, r)."""
    return _times(matrix.mT, vector)


_PRODUCTS = 1_000_000
"""Numbers of the products of entries of shared constraint rows that are kept for G'DG."""


def _weighted(qp: Quadratic, weight: Tensor) -> Tensor:
    """P + G'DG (B, n, n) for the weights (B, m) on the diagonal of D."""
    _, m, n = qp.G.shape
    if qp.G.shape[0] > 1:
        return qp.P + (qp.G * weight[..., None]).mT @ qp.G
    if m * n * n > _PRODUCTS:
        return _with_bounds(qp, weight)
    if qp.products is None:
        qp.products = (qp.G[0, :, :, None] * qp.G[0, :, None, :]).reshape(m, n * n)
    return qp.P + (weight @ qp.products).reshape(-1, n, n)


def _with_bounds(qp: Quadratic, weight: Tensor) -> Tensor:
    """P + G'DG for shared rows of G, of which those with one entry add to the diagonal only."""
    G = qp.G[0]
    if qp.bounds is None:
        single = (G != 0).sum(1) == 1
        column = G[single].abs().argmax(1)
        qp.bounds = single, column, G[single].square().sum(1)
    single, column, square = qp.bounds
    found = qp.P.expand(len(weight), -1, -1)
    if not bool(single.all()):
        rest = G[~single]
        found = found + (rest * weight[:, ~single, None]).mT @ rest
    diagonal = weight.new_zeros(len(weight), G.shape[1]).index_add(1, column, weight[:, single] * square)
    return found + torch.diag_embed(diagonal)


def _cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The factor, and per row nonzero where there is none."""
    return cast("tuple[Tensor, Tensor]", linalg.cholesky_ex(matrix))


class _Steps:
    """Solves [[P + G'DG, A'], [A, 0]] for several right-hand sides."""

    def __init__(self, qp: Quadratic, weight: Tensor) -> None:
        batch, n = qp.q.shape
        self.matrix = _weighted(qp, weight)
        eye = torch.eye(n, dtype=qp.q.dtype, device=qp.q.device)
        size = self.matrix.diagonal(dim1=-2, dim2=-1).amax(-1).clamp_min(1.0)[:, None]
        self.qp = qp
        safe = self.matrix.clone()
        safe.diagonal(dim1=-2, dim2=-1).add_(1e-14 * size)
        self.factor, info = _cholesky(safe)
        self.dense = bool((info > 0).any())
        p = qp.b.shape[1]
        if self.dense:
            A = qp.A.expand(batch, -1, -1)
            corner = -1e-13 * torch.eye(p, dtype=eye.dtype, device=eye.device).expand(batch, p, p)
            top = torch.cat([self.matrix + 1e-13 * size[..., None] * eye, A.mT], -1)
            whole = torch.cat([top, torch.cat([A, corner], -1)], -2)
            self.lu = linalg.lu_factor_ex(whole)
        elif p:
            self.reach = torch.cholesky_solve(qp.A.mT.expand(qp.q.shape[0], -1, -1), self.factor)
            schur = qp.A @ self.reach
            small = 1e-14 * schur.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None]
            ident = torch.eye(p, dtype=eye.dtype, device=eye.device)
            self.schur, failed = _cholesky(schur + small * ident)
            if bool((failed > 0).any()):
                self.schur = _cholesky(schur + 1e6 * small * ident)[0]

    def _once(self, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        n = r.shape[1]
        if self.dense:
            found: Tensor = linalg.lu_solve(self.lu.LU, self.lu.pivots, torch.cat([r, t], 1)[..., None])
            return found[:, :n, 0], found[:, n:, 0]
        dx = torch.cholesky_solve(r[..., None], self.factor)[..., 0]
        if not t.shape[1]:
            return dx, t
        dy = torch.cholesky_solve((_times(self.qp.A, dx) - t)[..., None], self.schur)[..., 0]
        return dx - (self.reach @ dy[..., None])[..., 0], dy

    def solve(self, r: Tensor, t: Tensor, refine: int = 1) -> tuple[Tensor, Tensor]:
        """dx, dy with matrix dx + A'dy = r and A dx = t, refined."""
        dx, dy = self._once(r, t)
        for _ in range(refine):
            lost_r = r - (self.matrix @ dx[..., None])[..., 0] - _back(self.qp.A, dy)
            more = self._once(lost_r, t - _times(self.qp.A, dx))
            dx, dy = dx + more[0], dy + more[1]
        return dx, dy


def _scaled(qp: Quadratic) -> tuple[Quadratic, Tensor, Tensor, Tensor]:
    """Rows of G and A, and the objective, in units of their largest entry; the units."""
    g = _unit(qp.G.abs().amax(-1)) if qp.G.shape[1] else qp.h[:1]
    a = _unit(qp.A.abs().amax(-1)) if qp.A.shape[1] else qp.b[:1]
    f = _unit(torch.maximum(qp.q.abs().amax(-1), qp.P.abs().amax((-2, -1))))[:, None]
    scaled = Quadratic(
        qp.P / f[..., None], qp.q / f, qp.G / g[..., None], qp.h / g, qp.A / a[..., None], qp.b / a
    )
    return scaled, f, g, a


def _unit(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, torch.ones_like(size))


def interior_point(problem: Quadratic, *, tolerance: float = FINE) -> Solved:
    """Solves the batch.

    Args:
        problem: the batch.
        tolerance: of the residuals and of complementarity, relative to the data.

    Returns:
        The points; `ok` is False for rows that did not get within 1e-7 (or the tolerance, if that is larger),
        such as infeasible and unbounded ones.
    """
    qp, f, g, a = _scaled(problem)
    batch, m = qp.h.shape
    p = qp.b.shape[1]
    start = _Steps(qp, torch.ones_like(qp.h))
    x, y = start.solve(-qp.q + _back(qp.G, qp.h), qp.b)
    s = qp.h - _times(qp.G, x)
    if not m:
        error = _errors(qp, x, s, s, y)
        return Solved(x, s, y * f / a, s, s > 0, error <= 1e-8, 1)
    z = _positive(-s)
    s = _positive(s)
    active = torch.ones(batch, dtype=torch.bool, device=x.device)
    best = _errors(qp, x, s, z, y)
    steps = 0
    stalled = torch.zeros_like(best)
    point = (x, s, z, y)
    while steps < ITERATIONS:
        steps += 1
        x, s, z, y = _step(qp, x, s, z, y, active, refine=int(tolerance < COARSE))
        error = _errors(qp, x, s, z, y)
        better = error < best
        keep = better[:, None]
        point = tuple(torch.where(keep, new, old) for new, old in zip((x, s, z, y), point, strict=True))
        stalled = torch.where(error < 0.9 * best, torch.zeros_like(stalled), stalled + 1)
        best = torch.where(better, error, best)
        active = active & (best > tolerance) & (stalled < 12) & torch.isfinite(error)
        if not bool(active.any()):
            break
    x, s, z, y = point
    units = y * f / a if p else y
    return Solved(x, z * f / g, units, s * g, z > s, best <= max(tolerance, 1e-7), steps)


def _positive(v: Tensor) -> Tensor:
    """Shifted so that the smallest entry of every row is positive."""
    least = v.amin(-1, keepdim=True)
    return torch.where(least <= 1e-8, v - least + 1.0, v)


def _errors(qp: Quadratic, x: Tensor, s: Tensor, z: Tensor, y: Tensor) -> Tensor:
    """(B,) largest residual of the optimality conditions, relative to the data."""
    stationary = _times(qp.P, x) + qp.q + _back(qp.G, z) + _back(qp.A, y)
    parts = [_largest(stationary) / (1 + _largest(qp.q))]
    if qp.h.shape[1]:
        scale = 1 + _largest(qp.h) + _largest(x)
        parts.append(_largest(_times(qp.G, x) + s - qp.h) / scale)
        gap = (s * z).sum(-1)
        parts.append(gap / (1 + (x * qp.q).sum(-1).abs()))
    if qp.b.shape[1]:
        parts.append(_largest(_times(qp.A, x) - qp.b) / (1 + _largest(qp.b) + _largest(x)))
    return torch.stack(parts).amax(0)


def _largest(v: Tensor) -> Tensor:
    return v.abs().amax(-1)


def _length(v: Tensor, dv: Tensor) -> Tensor:
    """(B, 1) the longest step in [0, 1] that keeps v >= 0."""
    ratio = torch.where(dv < 0, -v / dv, torch.full_like(v, torch.inf))
    return ratio.amin(-1, keepdim=True).clamp_max(1.0)


def _step(
    qp: Quadratic, x: Tensor, s: Tensor, z: Tensor, y: Tensor, active: Tensor, *, refine: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One predictor-corrector step of the rows that are active."""
    m = s.shape[1]
    rx = _times(qp.P, x) + qp.q + _back(qp.G, z) + _back(qp.A, y)
    rs = _times(qp.G, x) + s - qp.h
    ry = _times(qp.A, x) - qp.b
    mu = (s * z).sum(-1, keepdim=True) / m
    weight = (z / s).clamp(1e-16, 1e16)
    steps = _Steps(qp, torch.where(active[:, None], weight, torch.ones_like(weight)))

    def direction(rc: Tensor, refine: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dx, dy = steps.solve(-rx - _back(qp.G, (z * rs - rc) / s), -ry, refine)
        ds = -rs - _times(qp.G, dx)
        return dx, ds, (-rc - z * ds) / s, dy

    _, ds, dz, _ = direction(s * z, 0)
    ahead = torch.minimum(_length(s, ds), _length(z, dz))
    reached = ((s + ahead * ds) * (z + ahead * dz)).sum(-1, keepdim=True) / m
    centering = (reached / mu).clamp(0.0, 1.0) ** 3
    dx, ds, dz, dy = direction(s * z + ds * dz - centering * mu, refine)
    length = (0.995 * torch.minimum(_length(s, ds), _length(z, dz))).clamp_max(1.0)
    length = torch.where(active[:, None], length, torch.zeros_like(length))
    moved = [
        torch.where(active[:, None], v + length * dv, v) for v, dv in ((x, dx), (s, ds), (z, dz), (y, dy))
    ]
    return moved[0], moved[1].clamp_min(1e-300), moved[2].clamp_min(1e-300), moved[3]


# ------------------------------------------------------------------------------------------ active set
def solve(qp: Quadratic) -> Solved:
    """Solves the batch to the precision of a linear system wherever the optimality conditions are regular.

    The interior-point method runs to a coarse tolerance; where its active set passes the test (multipliers
    and slacks >= 0) the optimality conditions with it are solved. Other rows run to the fine tolerance.
    """
    found = _without_equalities(qp, COARSE) or interior_point(qp, tolerance=COARSE)
    exact = _with_active_set(qp, found)
    rest = ((~exact).nonzero()[:, 0]) if not bool(exact.all()) else None
    if rest is not None:
        fine = interior_point(qp.take(rest), tolerance=FINE)
        for name in ("x", "z", "y", "slack", "active", "ok"):
            setattr(found, name, getattr(found, name).index_copy(0, rest, getattr(fine, name)))
        found.iterations += fine.iterations
        _with_active_set(qp, found)
    return found


def _without_equalities(qp: Quadratic, tolerance: float) -> Solved | None:
    """The batch over the null space of equalities that all rows share; None where they depend on others."""
    p = qp.b.shape[1]
    if not p or qp.A.shape[0] > 1 or p >= qp.q.shape[1]:
        return None
    basis, triangle = cast("tuple[Tensor, Tensor]", linalg.qr(qp.A[0].mT, mode="complete"))
    pivot = triangle.diagonal().abs()
    if float(pivot.min()) <= 1e-10 * float(pivot.max()):
        return None
    upper = triangle[:p]
    range_, null = basis[:, :p], basis[:, p:]
    base = _solved_triangle(upper.mT, qp.b, upper=False) @ range_.mT
    reduced = Quadratic(
        null.mT @ qp.P @ null,
        (qp.q + _times(qp.P, base)) @ null,
        qp.G @ null,
        qp.h - _times(qp.G, base),
        qp.A[:, :0, p:],
        qp.b[:, :0],
    )
    found = interior_point(reduced, tolerance=tolerance)
    found.x = base + found.x @ null.mT
    slope = _times(qp.P, found.x) + qp.q + _back(qp.G, found.z)
    found.y = -_solved_triangle(upper, slope @ range_, upper=True)
    return found


def _solved_triangle(matrix: Tensor, rows: Tensor, *, upper: bool) -> Tensor:
    """Rows t with matrix t = row, for each of the rows."""
    return cast("Tensor", linalg.solve_triangular(matrix, rows.mT, upper=upper)).mT


def _with_active_set(qp: Quadratic, found: Solved) -> Tensor:
    """Replaces the points by the solutions for their active sets where these pass the test; tells where."""
    conditions = system(qp.P, qp.G, qp.A, found.active)
    width = conditions.index.shape[1]
    exact, active = _tested(qp, found, conditions, found.active, None)
    for _ in range(_REPAIRS):
        rows = (~exact & ~conditions.singular).nonzero()[:, 0]
        if not len(rows) or int(active[rows].sum(1).amax() if active.shape[1] else 0) > width:
            break
        part = qp.take(rows)
        own = system(part.P, part.G, part.A, active[rows], width)
        good, repair = _tested(part, found, own, active[rows], rows)
        conditions.replace(rows, own)
        exact, active = exact.index_copy(0, rows, good), active.index_copy(0, rows, repair)
    left = (~exact).nonzero()[:, 0]
    if len(left):
        part = qp.take(left)
        if int(found.active[left].sum(1).amax() if active.shape[1] else 0) <= width:
            conditions.replace(left, system(part.P, part.G, part.A, found.active[left], width))
        else:
            conditions = system(qp.P, qp.G, qp.A, found.active)
    found.ok = found.ok | exact
    found.system = conditions
    return exact


def _tested(
    qp: Quadratic, found: Solved, conditions: System, active: Tensor, rows: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The solutions of the conditions, put into `found` where they are optimal: where, and a better guess."""
    x, z, y = conditions.solve(-qp.q, qp.h, qp.b)
    slack = qp.h - _times(qp.G, x)
    repair, same = repaired(active, z, slack)
    stationary = _times(qp.P, x) + qp.q + _back(qp.G, z) + _back(qp.A, y)
    error = _largest(stationary) / (1 + _largest(qp.q))  # where there is no inverse there may be no solution
    if active.shape[1]:
        error = torch.maximum(error, _largest(torch.where(active, slack, torch.zeros_like(slack))))
    good = same & (~conditions.singular | (error <= 1e-9)) & torch.isfinite(x).all(1)
    new = {"x": x, "z": z.clamp_min(0), "y": y, "slack": slack, "active": active}
    for name, value in new.items():
        old = getattr(found, name)
        kept = _chosen(good, value, old if rows is None else old[rows])
        setattr(found, name, kept if rows is None else old.index_copy(0, rows, kept))
    return good, repair


def _chosen(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(rows[:, None], new, old)
