"""Fixed points z = F(z) of a batch of maps: Anderson's acceleration, and Newton's method where it fails.

Anderson's acceleration keeps the last steps and combines them so that the change is smallest (Walker and Ni,
SIAM Journal on Numerical Analysis 49 (2011) 1715). Newton's method finds fixed points that no iteration of F
would reach.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from constrain.inner.linalg import linalg

__all__ = ["Step", "anderson", "change", "newton"]

Step: TypeAlias = Callable[[Tensor], Tensor]
"""A map of rows (B, n) -> (B, n)."""

_MEMORY = 6
_HALVINGS = 12


def change(z: Tensor, after: Tensor) -> Tensor:
    """(B,) largest entry of F(z) - z relative to the size of z, infinite where F is not defined."""
    found = (after - z).abs().amax(-1) / (1 + z.abs().amax(-1))
    return torch.where(torch.isfinite(found), found, torch.inf)


def anderson(step: Step, start: Tensor, *, tolerance: float, limit: int) -> tuple[Tensor, Tensor]:
    """Points of least change, (B, n), and their change, (B,).

    Args:
        step: F.
        start: (B, n).
        tolerance: of the change.
        limit: largest number of evaluations of F.
    """
    z = best = start
    error = start.new_full((len(start),), torch.inf)
    moves: list[Tensor] = []  # of z and of F(z) - z between evaluations
    turns: list[Tensor] = []
    last: tuple[Tensor, Tensor] | None = None
    for _ in range(limit):
        after = step(z)
        now = change(z, after)
        better = now < error
        best = torch.where(better[:, None], z, best)
        lost = now > 10 * error  # such a row goes on from its best point, without a memory
        error = torch.where(better, now, error)
        if bool((error <= tolerance).all()):
            break
        rest = after - z
        if last is not None:
            keep = (~lost)[:, None].to(z.dtype)
            moves = [*(m * keep for m in moves), (z - last[0]).nan_to_num() * keep][-_MEMORY:]
            turns = [*(t * keep for t in turns), (rest - last[1]).nan_to_num() * keep][-_MEMORY:]
        last = (z, rest)
        z = torch.where(lost[:, None], best, z + rest - _combined(moves, turns, rest))
    return best, error


def _combined(moves: list[Tensor], turns: list[Tensor], rest: Tensor) -> Tensor:
    """What is taken off a plain step: the combination of earlier ones that cancels most of its change."""
    if not moves:
        return torch.zeros_like(rest)
    moved, T = torch.stack(moves, -1), torch.stack(turns, -1)
    gram = T.mT @ T
    size = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    eye = torch.eye(len(moves), dtype=rest.dtype, device=rest.device)
    safe = gram + (1e-14 * size + 1e-300) * eye
    weights: Tensor = linalg.solve(safe, T.mT @ rest.nan_to_num()[..., None])
    return ((moved + T) @ weights)[..., 0].nan_to_num()


def newton(
    step: Step,
    towards: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    *,
    tolerance: float,
    limit: int = 30,
) -> tuple[Tensor, Tensor]:
    """Points of least change by Newton's method for F(z) - z = 0 with steps halved until the change falls.

    Args:
        step: F.
        towards: (z, F(z) - z) -> the step of Newton's method, (B, n).
        start: (B, n).
        tolerance: of the change.
        limit: largest number of steps.
    """
    z, after = start, step(start)
    error = change(z, after)
    for _ in range(limit):
        if bool((error <= tolerance).all()):
            break
        direction = towards(z, after - z).nan_to_num()
        norm = _norm(after - z)
        length = torch.ones_like(error)
        moved = torch.zeros_like(error, dtype=torch.bool)
        for _ in range(_HALVINGS):
            trial = torch.where(moved[:, None], z, z + length[:, None] * direction)
            image = torch.where(moved[:, None], after, step(trial))
            falls = ~moved & (_norm(image - trial) < (1 - 1e-4 * length) * norm)
            z, after = _chosen(falls, trial, z), _chosen(falls, image, after)
            moved = moved | falls
            if bool((moved | (error <= tolerance)).all()):
                break
            length = torch.where(moved, length, 0.5 * length)
        error = change(z, after)
        if not bool(moved.any()):
            break
    return z, error


def _norm(rows: Tensor) -> Tensor:
    found: Tensor = linalg.vector_norm(rows, dim=-1)
    return torch.where(torch.isfinite(found), found, torch.inf)


def _chosen(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(rows[:, None], new, old)
