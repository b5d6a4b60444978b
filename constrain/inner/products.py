"""The optimality conditions of a large batch as a map: their matrix is applied to vectors and never made.

The matrix K of the conditions F(x, z, y) = (grad of the Lagrangian, inequalities, equalities) is symmetric,
so that a product with it is one gradient, that of F · v. Systems with it are solved by MINRES; entries are
brought to one size by a few products with random signs, whose squares average to those of the rows of K.
Where MINRES needs as many products as K has columns and K fits into memory, it is made after all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from constrain.inner.krylov import Found, Map, minres
from constrain.inner.linalg import linalg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.inner.functions import Functions

__all__ = ["Products", "Symmetric", "rows_of_length"]

_PROBES = 8
_EXACT = 1e-11
_LOOSE = 1e-9
"""What MINRES may leave before the matrix is made."""
_NUMBERS = 20_000_000
"""Most entries of the matrices of a batch that are made where MINRES does not converge."""
_RANK = 1e-13
"""Size of an eigenvalue, relative to the largest, that counts as 0."""
_LOST = 1e-6
"""What is left of a right-hand side, relative to it, from which a system counts as one without a solution."""


class Products:
    """K at a point of a batch, as `System` is with matrices.

    Args:
        functions: of the inner problem.
        point: x (B, n), z (B, m), y (B, p).
        active: (B, m) which inequalities are active.
        parameters: of the problem.
        batched: which of them have rows.
        metric: the unit matrix stands in the place of the curvature: a projection.

    Attributes:
        residual: F at the point, in its three parts.
    """

    def __init__(
        self,
        functions: Functions,
        point: tuple[Tensor, Tensor, Tensor],
        active: Tensor,
        parameters: Sequence[Tensor],
        batched: Sequence[bool],
        *,
        metric: bool = False,
    ) -> None:
        self.functions, self.active, self.metric = functions, active, metric
        self.batched = list(batched)
        self.sizes = [t.shape[1] for t in point]
        with torch.enable_grad():
            self._leaves = [t.detach().clone().requires_grad_(True) for t in point]
            conditions = _conditions(functions, self._leaves, [t.detach() for t in parameters], batched)
        self._conditions = conditions
        self.residual = tuple(t.detach() for t in conditions)
        self._scale: Tensor | None = None
        self._matrix: Tensor | None = None
        self._left: Tensor | None = None

    def split(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The parts (B, n), (B, m), (B, p) of a vector."""
        n, m, _ = self.sizes
        return v[:, :n], v[:, n : n + m], v[:, n + m :]

    # ---- products
    def whole(self, v: Tensor) -> Tensor:
        """K v with all inequalities, (B, n + m + p) of the same; with `metric`, the unit matrix on top."""
        parts = self.split(v)
        found = list(
            torch.autograd.grad(
                self._conditions, self._leaves, parts, retain_graph=True, materialize_grads=True
            )
        )
        if self.metric:
            flat = (torch.zeros_like(parts[0]), *parts[1:])
            onto = torch.autograd.grad(
                self._conditions, self._leaves, flat, retain_graph=True, materialize_grads=True
            )
            found[0] = parts[0] + onto[0]
        return torch.cat(found, 1)

    def __call__(self, v: Tensor) -> Tensor:
        """K v, with rows of the negated unit matrix for inactive inequalities."""
        n, m = self.sizes[0], self.sizes[1]
        idle = torch.where(self.active, 0.0, v[:, n : n + m])
        found = self.whole(torch.cat([v[:, :n], v[:, n : n + m] - idle, v[:, n + m :]], 1))
        found[:, n : n + m] = torch.where(self.active, found[:, n : n + m], -idle)
        return found

    # ---- systems, as of `System`
    def solve(self, dx: Tensor, dz: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """K (u, w, v) = (dx, dz of active inequalities, dy); w is 0 where inequalities are inactive.

        Args:
            dx: (B, n).
            dz: (B, m).
            dy: (B, p).
        """
        found = self._solved(torch.cat([dx, torch.where(self.active, dz, 0.0), dy], 1))
        self._left = found.error
        u, w, v = self.split(found.x)
        return u, torch.where(self.active, w, 0.0), v

    def _solved(self, rhs: Tensor) -> Found:
        if self._scale is None:
            self._scale = _equalizing(self, rhs)
        scale, size = self._scale, rhs.shape[1]
        scaled, apply = scale * rhs, _both_sides(self, self._scale)
        small = rhs.numel() * size <= _NUMBERS
        if self._matrix is None:
            found = minres(apply, scaled, tolerance=_EXACT, steps=size if small else 0)
            if not small or bool((found.error <= _LOOSE).all()):
                return Found(scale * found.x, found.error)
            self._matrix = _matrix(apply, scaled)
        x = _direct(self._matrix, scaled)
        left = linalg.vector_norm(scaled - (self._matrix @ x[..., None])[..., 0], dim=-1)
        return Found(scale * x, left / linalg.vector_norm(scaled, dim=-1).clamp_min(1e-300))

    @property
    def singular(self) -> Tensor:
        """(B,) whether a system had no solution: the last one, or one with a random right-hand side."""
        if self._left is None:
            self._left = self._solved(_random(torch.cat(self.residual, 1), 1)[0]).error
        return self._left > _LOST

    def dependent(self, moving: Tensor) -> Tensor:
        """(B,) whether multipliers are not unique in a way that parameters see, as of `System`."""
        n = self.sizes[0]
        rhs = _random(torch.cat(self.residual, 1), 1)[0]
        rhs[:, :n] = 0.0
        rhs[:, n:] *= moving
        rhs[:, n : n + self.sizes[1]] *= self.active
        return self._solved(rhs).error > _LOST

    def flat(self, own: int) -> Tensor:
        """(B,) whether the objective is flat along a feasible direction of the first `own` variables."""
        rhs = _random(torch.cat(self.residual, 1), 1)[0]
        rhs[:, own:] = 0.0
        return self._solved(rhs).error > _LOST


def _conditions(
    functions: Functions, point: Sequence[Tensor], parameters: Sequence[Tensor], batched: Sequence[bool]
) -> tuple[Tensor, ...]:
    """F at a point, with a graph to it."""
    x, z, y = point
    value, below, equal = functions.batch(functions.everything, batched)(x, *parameters)
    lagrangian = value.sum() + (z * below).sum() + (y * equal).sum()
    (slope,) = torch.autograd.grad(lagrangian, x, create_graph=True)
    # sums with zero: a part that does not depend on the point has a graph all the same
    return slope + 0.0 * x, below + 0.0 * z, equal + 0.0 * y


def _random(like: Tensor, count: int) -> list[Tensor]:
    """Vectors of signs, the same ones in every call."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randint(0, 2, like.shape, generator=generator) for _ in range(count)]
    return [(2 * d - 1).to(like) for d in draws]


def rows_of_length(apply: Map, like: Tensor) -> Tensor:
    """Estimates of the norms of the rows of a matrix: of its products with random signs, the mean square."""
    found = [apply(r).square() for r in _random(like, _PROBES)]
    return torch.stack(found).mean(0).sqrt()


def _equalizing(apply: Map, like: Tensor) -> Tensor:
    """d such that the rows of the matrix d K d have norms of about one (Ruiz 2001)."""
    d = torch.ones_like(like)
    for _ in range(2):
        size = rows_of_length(_both_sides(apply, d), like)
        d = d / torch.where(size > 1e-12 * size.amax(-1, keepdim=True), size, 1.0).sqrt()
    return d


def _both_sides(apply: Map, d: Tensor) -> Map:
    return lambda v: d * apply(d * v)


def _matrix(apply: Map, like: Tensor) -> Tensor:
    """The symmetric matrices (B, n, n) of a map, column by column."""
    unit = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
    columns = torch.stack([apply(column.expand_as(like)) for column in unit], -1)
    return (columns + columns.mT) / 2


def _direct(matrix: Tensor, rhs: Tensor) -> Tensor:
    """Solutions (B, n) by a factorization, and of least norm where a matrix is singular."""
    x = linalg.solve_ex(matrix, rhs[..., None])[0][..., 0]
    left = linalg.vector_norm(rhs - (matrix @ x[..., None])[..., 0], dim=-1)
    failed = ~(left <= _LOOSE * linalg.vector_norm(rhs, dim=-1))
    if bool(failed.any()):
        values, vectors = linalg.eigh(matrix[failed])
        kept = values.abs() > _RANK * values.abs().amax(-1, keepdim=True)
        along = (vectors.mT @ rhs[failed][..., None])[..., 0]
        along = torch.where(kept, along / torch.where(kept, values, 1.0), 0.0)
        x = x.clone()
        x[failed] = (vectors @ along[..., None])[..., 0]
    return x


class Symmetric(torch.autograd.Function):
    """K^-1 g as a function of g, the point and the parameters, for derivatives of derivatives."""

    @staticmethod
    def forward(ctx: Any, products: Products, g: Tensor, *points: Tensor) -> Tensor:  # noqa: D102
        found = torch.cat(products.solve(*products.split(g)), 1)
        ctx.products = products
        ctx.save_for_backward(found, *points)
        return found

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:  # noqa: D102
        products: Products = ctx.products
        saved: Sequence[Tensor] = ctx.saved_tensors
        s, *points = saved
        t = torch.cat(products.solve(*products.split(upstream[0])), 1)
        with torch.enable_grad():  # -d(t · K s) in the point and the parameters
            own = [p.detach().requires_grad_(p.requires_grad) for p in points]
            place = [p.requires_grad_(True) for p in own[:3]]
            parts = _conditions(products.functions, place, own[3:], products.batched)
            pulled = torch.autograd.grad(
                parts, place, products.split(s), create_graph=True, materialize_grads=True
            )
            total = (torch.cat(pulled, 1) * t).sum()
            wanted = [p for p in own if p.requires_grad]
            found = iter(torch.autograd.grad(-total, wanted, materialize_grads=True, allow_unused=True))
        return (None, t, *(next(found) if p.requires_grad else None for p in own))
