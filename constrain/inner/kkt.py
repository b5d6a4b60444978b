"""The optimality conditions of a batch at its solution: active set, one factorization, what is not unique.

With active inequalities g_A and equalities h, a solution (x, z_A, y) solves

    grad f + g_A' z_A + h' y = 0,   g_A = 0,   h = 0

and its derivative is the solution of one linear system with the symmetric matrix K of these conditions
(implicit function theorem; Fiacco 1983, theorem 2.2.1). K is regular where the gradients of active
constraints are independent and the curvature on their null space is positive. The active set stays the same
nearby where every active inequality has a positive multiplier (strict complementarity).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from constrain.inner.linalg import linalg

__all__ = ["System", "assembled", "first", "places_of", "repaired", "system", "weak"]

WEAK = 1e-7
"""Multiplier and slack below which an inequality is called weakly active, relative to the largest ones."""
_SINGULAR = 1e-11


@dataclass
class System:
    """Factorized conditions of a batch.

    Attributes:
        index: (B, k) positions of the active inequalities, padded.
        valid: (B, k) whether a position is one.
        matrix: (B, n + k + p, n + k + p) K.
        lu: its factors.
        pivots: of the factors.
        singular: (B,) whether K has no inverse.
        size: n.
        inequalities: m.
    """

    index: Tensor
    valid: Tensor
    matrix: Tensor
    lu: Tensor
    pivots: Tensor
    singular: Tensor
    size: int
    inequalities: int

    def solve(self, dx: Tensor, dz: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """K (u, w, v) = (dx, dz of active inequalities, dy); w is 0 where inequalities are inactive.

        Rows with a singular K get the solution of least norm.

        Args:
            dx: (B, n).
            dz: (B, m).
            dy: (B, p).
        """
        k = self.index.shape[1]
        picked = dz.gather(1, self.index) * self.valid
        rhs = torch.cat([dx, picked, dy], 1)[..., None]
        found: Tensor = linalg.lu_solve(self.lu, self.pivots, rhs)
        if bool(self.singular.any()):
            rows = self.singular.nonzero()[:, 0]
            inverse: Tensor = linalg.pinv(self.matrix[rows], rtol=1e-10, hermitian=True)
            found = found.index_copy(0, rows, inverse @ rhs[rows])
        found = found[..., 0]
        w = torch.zeros_like(dz).scatter_add(1, self.index, found[:, self.size : self.size + k] * self.valid)
        return first(found, self.size), w, found[:, self.size + k :]

    def replace(self, rows: Tensor, other: System) -> None:
        """Puts the conditions of some rows, factorized with the same width, in the place of the own ones."""
        for name in ("index", "valid", "matrix", "lu", "pivots", "singular"):
            getattr(self, name).index_copy_(0, rows, getattr(other, name))

    def dependent(self, moving: Tensor) -> Tensor:
        """(B,) whether multipliers are not unique in a way that parameters see.

        Where gradients of active constraints are linearly dependent, multipliers can be moved along the
        dependence. That changes a derivative only if a constraint takes part that moves with a parameter.

        Args:
            moving: (m + p,) whether each inequality and equality depends on a parameter.
        """
        found = torch.zeros_like(self.singular)
        m = self.inequalities
        for i in places_of(self.singular):
            used = torch.cat([self.valid[i], torch.ones_like(moving[m:])])
            places = torch.cat([self.index[i], torch.arange(m, len(moving), device=moving.device)])[used]
            gradients = self.matrix[i, self.size :, : self.size][used]
            units = gradients / gradients.abs().amax(-1, keepdim=True).clamp_min(1e-300)
            if len(units):
                found[i] = bool((_null(units.mT)[moving[places]].abs() > 1e-6).any())
        return found

    def flat(self, own: int) -> Tensor:
        """(B,) whether the objective is flat along a feasible direction of the first `own` variables."""
        found = torch.zeros_like(self.singular)
        for i in places_of(self.singular):
            found[i] = bool((_null(self.matrix[i, :, : self.size])[:own].abs() > 1e-6).any())
        return found


def _null(matrix: Tensor) -> Tensor:
    """(columns, k) orthonormal basis of the null space."""
    parts: tuple[Tensor, Tensor, Tensor] = linalg.svd(matrix)
    _, values, vectors = parts
    rank = int((values > 1e-9 * values[:1].clamp_min(1e-300)).sum())
    return vectors[rank:].mT


_SPARE = 2


def system(
    curvature: Tensor, below: Tensor, equal: Tensor, active: Tensor, width: int | None = None
) -> System:
    """Factorizes the conditions of a batch.

    Args:
        curvature: (B or 1, n, n) Hessian of the Lagrangian.
        below: (B or 1, m, n) gradients of the inequalities.
        equal: (B or 1, p, n) gradients of the equalities.
        active: (B, m) which inequalities are active.
        width: room for active inequalities per row; a few more than there are when left out.
    """
    m = active.shape[1]
    k = min(m, int(active.sum(1).max()) + _SPARE if width is None else width) if m else 0
    index = active.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :k]
    valid = active.gather(1, index)
    matrix = assembled(curvature, below, equal, index, valid)
    factors: tuple[Tensor, Tensor, Tensor] = linalg.lu_factor_ex(matrix)
    lu, pivots, info = factors
    pivot = lu.diagonal(dim1=-2, dim2=-1).abs()
    smallest = pivot.amin(-1) / pivot.amax(-1).clamp_min(1e-300)
    singular = (info > 0) | ~(smallest > _SINGULAR)
    return System(index, valid, matrix, lu, pivots, singular, curvature.shape[-1], m)


def assembled(curvature: Tensor, below: Tensor, equal: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """K of a batch (B, n + k + p, n + k + p), with gradients to its parts.

    Args:
        curvature: (B or 1, n, n).
        below: (B or 1, m, n).
        equal: (B or 1, p, n).
        index: (B, k) positions of the active inequalities.
        valid: (B, k) which of them are active; the others get a row of the unit matrix, negated.
    """
    batch, k = index.shape
    n, p = curvature.shape[-1], equal.shape[-2]
    shared = below.shape[0] == 1
    rows = below[0][index] if shared else below.gather(1, index[..., None].expand(batch, k, n))
    rows = rows * valid[..., None]
    matrix = curvature.new_zeros(batch, n + k + p, n + k + p)
    matrix[:, :n, :n] = curvature
    matrix[:, n : n + k, :n] = rows
    matrix[:, :n, n : n + k] = rows.mT
    matrix[:, n + k :, :n] = equal
    matrix[:, :n, n + k :] = equal.mT
    idle = torch.where(valid, 0.0, -1.0).to(matrix.dtype)
    matrix[:, n : n + k, n : n + k] = torch.diag_embed(idle)
    return matrix


def first(t: Tensor, count: int) -> Tensor:
    """The first columns; no view of all of them, for which batched derivatives of torch have no rule."""
    return t if t.shape[1] == count else t[:, :count]


def places_of(mask: Tensor) -> list[int]:
    """Positions where a vector of truth values is True."""
    return cast("list[int]", mask.nonzero()[:, 0].tolist())


def weak(z: Tensor, slack: Tensor) -> Tensor:
    """(B, m) inequalities whose multiplier and slack are both zero: the solution has a kink there."""
    if not z.shape[1]:
        return torch.zeros_like(z, dtype=torch.bool)
    dual = WEAK * (1 + z.abs().amax(-1, keepdim=True))
    primal = WEAK * (1 + slack.abs().amax(-1, keepdim=True).clamp_max(1e3))
    return (z.abs() <= dual) & (slack.abs() <= primal)


def repaired(active: Tensor, z: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
    """The active set after one step, and the rows where nothing had to change.

    An active inequality with a negative multiplier leaves, an inactive one that is violated enters.

    Args:
        active: (B, m) so far.
        z: (B, m) multipliers of the conditions with this active set.
        slack: (B, m) at their solution.
    """
    if not z.shape[1]:
        return active, torch.ones_like(active[:, :0]).all(1)
    dual = 1e-9 * (1 + z.abs().amax(-1, keepdim=True))
    primal = 1e-9 * (1 + slack.abs().amax(-1, keepdim=True).clamp_max(1e3))
    leave, enter = active & (z < -dual), ~active & (slack < -primal)
    return (active & ~leave) | enter, ~(leave | enter).any(1)
