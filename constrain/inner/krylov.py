"""Linear systems on a batch without their matrices: GMRES for general maps, MINRES for symmetric ones.

A map takes (B, n) to (B, n), one system per row. All rows move together; those that are solved stand still.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Tensor

from constrain.inner.linalg import linalg

__all__ = ["Found", "Map", "gmres", "minres", "ritz_values"]

Map: TypeAlias = Callable[[Tensor], Tensor]
"""A linear map of rows (B, n) -> (B, n)."""

_TINY = 1e-300
_GROWTH = 1e4


@dataclass(frozen=True)
class Found:
    """Solutions of a batch of linear systems.

    Attributes:
        x: (B, n).
        error: (B,) norm of what is left of the right-hand side, relative to it.
    """

    x: Tensor
    error: Tensor


def _norm(rows: Tensor) -> Tensor:
    return cast("Tensor", linalg.vector_norm(rows, dim=-1))


# ----------------------------------------------------------------------------------------------- Arnoldi
def _arnoldi(apply: Map, start: Tensor, steps: int, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bases Q (B, k, n), projections H (B, k + 1, k), and coefficients y (B, k) of the least residual.

    Args:
        apply: the map.
        start: (B, n) first direction, which H is a projection with respect to.
        steps: largest k.
        target: (B,) residual norm that is small enough.
    """
    size = _norm(start)
    basis = [start / size.clamp_min(_TINY)[:, None]]
    H = start.new_zeros(len(start), steps + 1, steps)
    y = start.new_zeros(len(start), 0)
    for j in range(steps):
        Q = torch.stack(basis, 1)
        w = apply(basis[j])
        length = _norm(w)
        for _ in range(2):  # once more for orthogonality to rounding
            along = (Q @ w[..., None])[..., 0]
            w = w - (along[:, None] @ Q)[:, 0]
            H[:, : j + 1, j] += along
        rest = _norm(w)
        over = rest <= 1e-14 * length  # the space is invariant: the row is solved
        H[:, j + 1, j] = torch.where(over, 0.0, rest)
        idle = _norm(basis[j]) == 0
        H[:, j, j] = torch.where(idle, 1.0, H[:, j, j])
        basis.append(torch.where(over[:, None], 0.0, w / rest.clamp_min(_TINY)[:, None]))
        y, left = _least(H[:, : j + 2, : j + 1], size)
        if bool((left <= target).all()):
            break
    k = y.shape[1]
    return torch.stack(basis[:k], 1), H[:, : k + 1, :k], y


def _least(H: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """y with H y closest to size times the first unit vector, and the distance."""
    Q, triangle = cast("tuple[Tensor, Tensor]", linalg.qr(H))
    diagonal = triangle.diagonal(dim1=-2, dim2=-1)
    flat = diagonal.abs() <= 1e-14 * diagonal.abs().amax(-1, keepdim=True)
    safe = triangle + torch.diag_embed(torch.where(flat, 1.0, 0.0).to(H.dtype))
    rhs = torch.where(flat, 0.0, size[:, None] * Q[:, 0])[..., None]
    y: Tensor = linalg.solve_triangular(safe, rhs, upper=True)
    left = (H @ y)[..., 0]
    left[:, 0] -= size
    return y[..., 0], _norm(left)


def gmres(apply: Map, rhs: Tensor, *, tolerance: float = 1e-12, memory: int = 60, rounds: int = 10) -> Found:
    """Solves apply(x) = rhs (Saad and Schultz 1986), restarted.

    Args:
        apply: a linear map.
        rhs: (B, n).
        tolerance: of the residual, relative to rhs.
        memory: directions kept per round.
        rounds: restarts.
    """
    scale = _norm(rhs)
    x = torch.zeros_like(rhs)
    left = rhs
    error = torch.where(scale > 0, 1.0, 0.0).to(rhs.dtype)
    for _ in range(rounds):
        Q, _, y = _arnoldi(apply, left, min(memory, rhs.shape[1]), 0.5 * tolerance * scale)
        new = x + (y[:, None] @ Q)[:, 0]
        rest = rhs - apply(new)
        now = _norm(rest) / scale.clamp_min(_TINY)
        better = now < error
        x, left = torch.where(better[:, None], new, x), torch.where(better[:, None], rest, left)
        stalled = ~(now < 0.5 * error)
        error = torch.where(better, now, error)
        if bool(((error <= tolerance) | stalled).all()):
            break
    return Found(x, error)


def ritz_values(apply: Map, start: Tensor, steps: int = 30) -> Tensor:
    """(B, k) estimates of the outer eigenvalues of a map: those of its projection on a Krylov space."""
    never = start.new_full((len(start),), -1.0)
    Q, H, _ = _arnoldi(apply, start, min(steps, start.shape[1]), never)
    square = H[:, :-1] * (_norm(Q) > 0)[:, None]  # without the directions after an invariant space
    return cast("Tensor", linalg.eigvals(square))


# ------------------------------------------------------------------------------------------------ MINRES
def minres(apply: Map, rhs: Tensor, *, tolerance: float = 1e-12, steps: int = 0) -> Found:
    """Solves apply(x) = rhs with a symmetric map, which may be indefinite (Paige and Saunders 1975).

    Of a singular map the solution of least norm is found where there is one.

    Args:
        apply: a symmetric linear map.
        rhs: (B, n).
        tolerance: of the residual, relative to rhs.
        steps: at most so many in all; five times n when 0.
    """
    scale = _norm(rhs)
    x, left = torch.zeros_like(rhs), rhs
    error = torch.where(scale > 0, 1.0, 0.0).to(rhs.dtype)
    budget = steps or 5 * rhs.shape[1] + 50
    while budget > 0:
        moved, used = _lanczos(apply, left, tolerance * scale, budget)
        budget -= used
        new = x + moved
        rest = rhs - apply(new)
        now = _norm(rest) / scale.clamp_min(_TINY)
        better = now < error
        x, left = torch.where(better[:, None], new, x), torch.where(better[:, None], rest, left)
        stalled = ~(now < 0.1 * error)  # rounding in the recurrence: a new start from the rest removes it
        error = torch.where(better, now, error)
        if bool(((error <= tolerance) | stalled).all()):
            break
    return Found(x, error)


def _lanczos(apply: Map, rhs: Tensor, target: Tensor, limit: int) -> tuple[Tensor, int]:
    """One run of MINRES from zero: the step, and the number of products."""
    beta = _norm(rhs)
    v = rhs / beta.clamp_min(_TINY)[:, None]
    before = torch.zeros_like(v)
    x, d, d_old = torch.zeros_like(v), torch.zeros_like(v), torch.zeros_like(v)
    phi = beta
    c, c_old = torch.ones_like(beta), torch.ones_like(beta)
    s, s_old = torch.zeros_like(beta), torch.zeros_like(beta)
    link = torch.zeros_like(beta)
    size = torch.zeros_like(beta)
    count = 0
    active = phi.abs() > target
    kept, smallest = x, torch.full_like(beta, torch.inf)
    while count < limit and bool(active.any()):
        count += 1
        w = apply(v) - link[:, None] * before
        alpha = (w * v).sum(-1)
        w = w - alpha[:, None] * v
        ahead = _norm(w)
        # the last column of the triangular factor, by the two last rotations and a new one
        far, near = s_old * link, c_old * link
        near, middle = c * near + s * alpha, c * alpha - s * near
        size = torch.maximum(size, torch.hypot(alpha, ahead))
        gamma = torch.hypot(middle, ahead)
        flat = gamma <= 1e-15 * size
        # where no solution exists, the image of the residual becomes small, and then rounding takes over
        image = phi.abs() * torch.hypot(middle, c * ahead)
        least = image < smallest
        smallest = torch.where(least & active, image, smallest)
        kept = torch.where((least & active)[:, None], x, kept)
        active = active & (image <= _GROWTH * smallest)
        c_new = torch.where(flat, 1.0, middle / gamma.clamp_min(_TINY))
        s_new = torch.where(flat, 0.0, ahead / gamma.clamp_min(_TINY))
        new = (v - near[:, None] * d - far[:, None] * d_old) / gamma.clamp_min(_TINY)[:, None]
        moves = active & ~flat
        x = torch.where(moves[:, None], x + (c_new * phi)[:, None] * new, x)
        phi = torch.where(moves, -s_new * phi, phi)
        d_old, d = d, new
        c_old, c, s_old, s = c, c_new, s, s_new
        over = ahead <= 1e-15 * size
        before, v = v, torch.where(over[:, None], 0.0, w / ahead.clamp_min(_TINY)[:, None])
        link = ahead
        active = active & ~flat & ~over & (phi.abs() > target)
    return torch.where((phi.abs() <= target)[:, None], x, kept), count
