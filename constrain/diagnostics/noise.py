"""|grad L|^2 from independent batches: a U-statistic, its standard error, and the noise of one batch.

For populations that cannot be read in full. With averages m known (a full pass, or quadrature), the gradient
of the Lagrangian is sum_j (d L / d m_j) grad m_j, and the one of a batch, with the batch's grad m_j, is
unbiased. Its square is not: E|g_A|^2 = |grad L|^2 + tr(S)/B. The product of two different batches is:
E<g_A, g_B> = |grad L|^2.

Source: Hoeffding, A class of statistics with asymptotically normal distribution, Ann. Math. Statist. 1948.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from constrain.diagnostics.point import array_of
from constrain.errors import ModelingError
from constrain.solution.noise import CRITICAL, GradientNoise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.runtime.compiled import Job
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.rows import Rows

__all__ = ["BATCHES", "ROWS", "boundless", "gradient_noise", "squared_mean"]

BATCHES = 32
"""Batches where a population has no end."""

ROWS = 512
"""Rows of a batch."""

MEMORY = 20_000_000
"""Largest number of gradient entries that are held: fewer batches, down to 8, where decisions are many."""


def boundless(evaluator: Evaluator) -> bool:
    """Whether some population is a distribution, of which no pass reads all."""
    return any(population.boundless for population in evaluator.populations.values())


def gradient_noise(
    evaluator: Evaluator,
    multipliers: Sequence[NDArray[np.float64] | None],
    free: NDArray[np.bool_],
    *,
    batches: int = BATCHES,
    rows: int = ROWS,
    seed: int = 0,
) -> GradientNoise:
    """Estimates |grad L|^2 on the coordinates off their bounds.

    Batches are draws from a distribution, and draws with repetition from a sample (of a stream: from the rows
    that were kept). Grids are read in full.

    Args:
        evaluator: of the judged program, at the point.
        multipliers: per part, in the shape of its residual.
        free: (decisions,) coordinates that count.
        batches: number of batches, at least 8.
        rows: per batch.
        seed: of the draws.

    Raises:
        ModelingError: E141 for fewer than 8 batches.
    """
    if batches < 8:
        raise ModelingError("E141", f"batches={batches} is too few", fix="batches=32; at least 8")
    tensors = evaluator.decisions.tensors
    leaves = [m.requires_grad_(True) for m in evaluator.moments("primal")]
    scalar = _lagrangian(evaluator, leaves, multipliers)
    pulled: Any = torch.autograd.grad(scalar, [*leaves, *tensors], allow_unused=True)
    found: list[Tensor | None] = list(pulled)
    slopes = found[: len(leaves)]
    drawn = [job for job in evaluator.jobs if _is_drawn(evaluator, job)]
    own = zip(tensors, found[len(leaves) :], strict=True)
    base = np.concatenate([np.zeros(t.numel()) if g is None else _flat(g) for t, g in own])
    for job in evaluator.jobs:
        if job not in drawn:
            for chunk in evaluator.populations[job.data].chunks(evaluator.chunk):
                base += _gradient(evaluator, job, slopes, multipliers, chunk, whole=True)
    generator = torch.Generator().manual_seed(seed)
    count = min(batches, max(8, MEMORY // max(1, base.size)))
    least = min([rows, *(p.rows for p in evaluator.populations.values() if not p.boundless)])
    table: NDArray[np.float64] = np.empty((count, int(free.sum())))
    for k in range(count):
        gradient = base.copy()
        for job in drawn:
            some = evaluator.populations[job.data].some(least, generator)
            gradient += _gradient(evaluator, job, slopes, multipliers, some, whole=False)
        table[k] = gradient[free]
    squared, error, still = squared_mean(table)
    floor = max(0.0, float(np.square(table).sum()) / count - squared)
    return GradientNoise(squared, error, math.sqrt(CRITICAL * still), floor, count, least)


def squared_mean(table: NDArray[np.float64]) -> tuple[float, float, float]:
    """|E g|^2 from independent g_1, ..., g_K, and the standard error of that estimate.

    With h_kl = <g_k, g_l>, the estimate U is the mean of h over pairs, and by Hoeffding's decomposition
    Var U = (4 (K - 2) z1 + 2 z2) / (K (K - 1)), z1 and z2 the covariance of pairs that share one and both:
    z1 = m' S m and z2 = tr S^2 + 2 m' S m, with mean m and covariance S of the g_k.

    Args:
        table: (K, coordinates), K at least 4.

    Returns:
        U, its standard error, and the one it would have if E g were 0.
    """
    count = len(table)
    h = table @ table.T
    np.fill_diagonal(h, 0.0)
    total, squares = float(h.sum()), float((h**2).sum())
    shared = float((h.sum(axis=1) ** 2).sum()) - squares
    apart = total**2 - 4 * shared - 2 * squares
    pairs = count * (count - 1)
    triples, fours = pairs * (count - 2), pairs * (count - 2) * (count - 3)
    first = max(0.0, shared / triples - apart / fours)
    second = max(0.0, squares / pairs - apart / fours)
    variance = (4 * (count - 2) * first + 2 * second) / pairs
    return total / pairs, math.sqrt(variance), math.sqrt(2 * max(0.0, second - 2 * first) / pairs)


def _lagrangian(
    evaluator: Evaluator, moments: Sequence[Tensor], multipliers: Sequence[NDArray[np.float64] | None]
) -> Tensor:
    """Objective and weighted residuals as a function of averages; constraints per row are left out."""
    outer = evaluator.outer(moments, "primal")
    total = outer.objective + sum((m.sum() * 0 for m in moments), torch.zeros_like(outer.objective))
    for residual, weight in zip(outer.residuals, multipliers, strict=True):
        if residual is not None and weight is not None and weight.any():
            total = total + (residual * torch.as_tensor(weight).to(residual)).sum()
    return total


def _is_drawn(evaluator: Evaluator, job: Job) -> bool:
    population = evaluator.populations[job.data]
    return population.sampled or population.boundless


def _gradient(
    evaluator: Evaluator,
    job: Job,
    slopes: Sequence[Tensor | None],
    multipliers: Sequence[NDArray[np.float64] | None],
    rows: Rows,
    *,
    whole: bool,
) -> NDArray[np.float64]:
    """What some rows of a sample add to the gradient: as a part of all rows, or in their place."""
    tensors, population = evaluator.decisions.tensors, evaluator.populations[job.data]
    values = evaluator.rows(job, rows, "primal")
    total = torch.zeros((), dtype=torch.float64, device=evaluator.device)
    for place, i in enumerate(job.moments):
        slope = slopes[i]
        if slope is not None and values[place].requires_grad:
            part = evaluator.reduce(i, values[place], rows, population.rows if whole else rows.count)
            total = total + (part * slope.to(part)).sum()
    scale = 1.0 if whole else population.rows / rows.count
    for place, i in enumerate(job.parts):
        weight = multipliers[i]
        if weight is None or not weight.any():
            continue
        residual = values[len(job.moments) + place]
        mask = values[len(values) - len(job.parts) + place]
        own = torch.as_tensor(_picked(weight, rows)).to(residual)
        if mask is not None:
            own = own * mask.reshape(-1, *(1 for _ in range(residual.dim() - 1))).to(own)
        total = total + scale * (torch.nan_to_num(residual) * own).sum()
    if not total.requires_grad:
        return np.zeros(evaluator.decisions.size)
    found = torch.autograd.grad(total, tensors, allow_unused=True, materialize_grads=True)
    return np.concatenate([_flat(g) for g in found])


def _picked(weight: NDArray[np.float64], rows: Rows) -> NDArray[np.float64]:
    """Multipliers of some rows, which have positions: constraints per row need them."""
    if isinstance(rows.index, slice):
        return weight[rows.index]
    assert rows.index is not None  # of samples without positions, constraints per row are refused
    return np.take(weight, rows.index.cpu().numpy(), axis=0)


def _flat(t: Tensor) -> NDArray[np.float64]:
    return array_of(t).reshape(-1)
