"""Standard errors of any outer function of moments, by the delta method with centered influence functions.

A moment is m = mean_i w_i g_i with weights w that are shares counted on the same sample, so that the
influence of row i is w_i (g_i - m_A), centered at the mean of its own group: uncentered, intervals of group
differences came out almost three times too wide. The influence on phi(m) is the sum over moments of
d phi / d m times that.

Source: van der Vaart, Asymptotic Statistics (1998), chapters 3 and 20.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from constrain.diagnostics.point import array_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.language.data import Data
    from constrain.runtime.binding import Stratum
    from constrain.runtime.compiled import Job
    from constrain.runtime.evaluator import Evaluator

__all__ = ["ENTRIES", "Gram", "Grams", "Spread", "influences", "jacobian_of", "spread", "spread_of"]

ENTRIES = 400
"""Entries of one function whose standard error is computed: the most urgent ones; the others are NaN."""

SCALARS = 256
"""Scalars whose slopes are held at once; of more, rows that share all levels are summed first."""

LARGEST_GRAM = 4_000_000
"""Most numbers that are held for these sums."""

DENSE = 10
"""Where a scalar depends on less than one of so many cells, only these are looked at."""

BLOCK = 4_000_000
"""Largest number of influences held at a time."""


@dataclass(frozen=True)
class Spread:
    """Standard errors of the entries of one function.

    Attributes:
        error: of the function's shape; 0 where no data enters, NaN where it was not computed.
        smallest: rows of the smallest group that enters each entry; 0 where no data does, -1 where such a
            group has no rows (its average does not exist), NaN where it was not computed.
    """

    error: NDArray[np.float64]
    smallest: NDArray[np.float64]


def spread(
    evaluator: Evaluator,
    moments: Sequence[Tensor],
    functions: Sequence[Tensor],
    urgency: Sequence[NDArray[np.float64]],
    grams: Grams | None = None,
) -> list[Spread]:
    """Standard errors of functions of moments.

    Args:
        evaluator: the program with the sample.
        moments: leaves that require gradients, exact, float64.
        functions: tensors of any shape, computed from these leaves.
        urgency: per function an array of its shape; of more than `ENTRIES` entries, the largest are computed.
        grams: sums of products of the rows' integrands, if they were made already.
    """
    places = [_chosen(u) for u in urgency]
    if not moments or not functions:
        return [_certain(f.shape, place) for f, place in zip(functions, places, strict=True)]
    scalars = [f.reshape(-1)[k] for f, place in zip(functions, places, strict=True) for k in place]
    grams = grams or Grams(evaluator, moments, len(scalars))
    blocks = [scalars[first : first + SCALARS] for first in range(0, len(scalars), SCALARS)]
    found = [_variance(evaluator, moments, jacobian_of(moments, own), len(own), grams) for own in blocks]
    variance, smallest = (np.concatenate([*own, np.zeros(0)]) for own in zip(*found, strict=True))
    result: list[Spread] = []
    start = 0
    for f, place in zip(functions, places, strict=True):
        own = spread_of(*(x[start : start + len(place)] for x in (variance, smallest)))
        error, least = np.full(f.numel(), np.nan), np.full(f.numel(), np.nan)
        error[place], least[place] = own.error, own.smallest
        result.append(Spread(error.reshape(f.shape), least.reshape(f.shape)))
        start += len(place)
    return result


def spread_of(variance: NDArray[np.float64], smallest: NDArray[np.float64]) -> Spread:
    """Standard errors out of squares, corrected for the mean; rows are infinite where no data enters."""
    count = np.where(np.isfinite(smallest), smallest, 0.0)
    correction = np.where(count > 1, count / np.maximum(count - 1, 1), 1.0)
    least = np.where(np.isnan(smallest), np.nan, np.where(smallest == 0, -1.0, count))
    return Spread(np.sqrt(variance * correction), least)


def _certain(shape: Sequence[int], places: Sequence[int]) -> Spread:
    """What no data enters."""
    error = np.full(math.prod(shape), np.nan)
    error[places] = 0.0
    return Spread(error.reshape(shape), error.copy().reshape(shape))


def _chosen(urgency: NDArray[np.float64]) -> list[int]:
    if urgency.size <= ENTRIES:
        return list(range(urgency.size))
    return sorted(np.argpartition(-urgency.ravel(), ENTRIES)[:ENTRIES].tolist())


def jacobian_of(moments: Sequence[Tensor], scalars: Sequence[Tensor]) -> list[Tensor]:
    """Per moment d scalar / d moment, of shape (scalars, *moment)."""
    rows: list[list[Tensor]] = [[] for _ in moments]
    for scalar in scalars:
        found: Sequence[Tensor | None] = [None] * len(moments)
        if moments and scalar.requires_grad:
            found = torch.autograd.grad(scalar, list(moments), retain_graph=True, allow_unused=True)
        for row, m, g in zip(rows, moments, found, strict=True):
            row.append(torch.zeros_like(m) if g is None else g)
    return [
        torch.stack(row) if row else m.new_zeros((0, *m.shape)) for row, m in zip(rows, moments, strict=True)
    ]


def _variance(
    evaluator: Evaluator, moments: Sequence[Tensor], jacobian: Sequence[Tensor], count: int, grams: Grams
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Squared standard error per scalar, and rows of its smallest group (infinite without data).

    A slope of NaN next to others that are finite comes from another entry's 0/0 (an absent level) and counts
    as 0; a scalar with no other slope has none, and its error is unknown.
    """
    variance, smallest = np.zeros(count), np.full(count, np.inf)
    undefined = np.zeros(count, dtype=bool)
    for job in evaluator.jobs:
        population = evaluator.populations[job.data]
        if not population.sampled:
            continue
        pieces = _pieces(evaluator, job, moments, jacobian, count)
        for i, piece in pieces:
            undefined |= array_of(jacobian[i].reshape(count, -1).isnan().any(-1)) > 0
            used = array_of((piece.slopes != 0).any(-1)) > 0
            rows = array_of(piece.stratum.counts).reshape(-1)
            smallest = np.minimum(smallest, np.where(used, rows, np.inf).min(axis=1))
        moving = [piece for _, piece in pieces if piece.slopes.any()]
        if moving:
            gram = grams.of(job)
            squares = _squares(evaluator, job, moving, count) if gram is None else gram.squares(pieces)
            variance += squares / population.rows**2
    undefined &= np.isinf(smallest)
    return np.where(undefined, np.nan, variance), np.where(undefined, np.nan, smallest)


@dataclass(frozen=True)
class _Piece:
    """One moment's part in the influence.

    Attributes:
        place: position among the outputs of the sample's generated function.
        stratum: groups and weights.
        mean: (levels, entries) the moment.
        slopes: (scalars, levels, entries) d scalar / d moment.
    """

    place: int
    stratum: Stratum
    mean: Tensor
    slopes: Tensor

    def influence(self, integrand: Tensor, weight: Tensor | None, codes: Tensor | None) -> Tensor:
        """(scalars, rows) of these rows: slope * weight * (integrand - mean of the row's group)."""
        centered = _centered(integrand, self.mean, weight, codes)
        if codes is None:
            return self.slopes[:, 0, :] @ centered.T
        return (self.slopes[:, codes, :] * centered).sum(-1)


def _pieces(
    evaluator: Evaluator, job: Job, moments: Sequence[Tensor], jacobian: Sequence[Tensor], count: int
) -> list[tuple[int, _Piece]]:
    """What each moment of a sample contributes, by the moment's number."""
    population = evaluator.populations[job.data]
    pieces: list[tuple[int, _Piece]] = []
    for place, i in enumerate(job.moments):
        moment = evaluator.program.moments[i]
        stratum = population.stratum(moment.given, moment.by)
        levels = len(stratum.levels) if moment.by else 1
        slopes = jacobian[i].reshape(count, levels, -1)
        slopes = torch.where(slopes.isnan(), torch.zeros_like(slopes), slopes)
        pieces.append((i, _Piece(place, stratum, moments[i].detach().reshape(levels, -1), slopes)))
    return pieces


@dataclass(frozen=True)
class Gram:
    """Sums of products of the rows' centered integrands, by cells of rows that share all levels.

    The influence of a row is the product of its centered integrands with slopes that its cell has in common,
    so that the sum of its squares over all rows is a quadratic form in each cell.

    Attributes:
        codes: per moment of the sample the level of each cell; None without levels.
        columns: per moment of the sample its entries among those of all.
        sums: (cells, entries, entries), over the entries of all moments.
    """

    codes: list[Tensor | None]
    columns: list[slice]
    sums: Tensor

    def squares(self, pieces: Sequence[tuple[int, _Piece]]) -> NDArray[np.float64]:
        """Sum over rows of the squared influence, per scalar."""
        cells = len(self.sums)
        slopes = [
            piece.slopes.expand(-1, cells, -1) if codes is None else piece.slopes[:, codes, :]
            for (_, piece), codes in zip(pieces, self.codes, strict=True)
        ]
        each = torch.cat(slopes, -1)
        found = (each != 0).any(-1).nonzero()
        if len(found) * DENSE > each.shape[0] * each.shape[1]:
            return array_of(torch.einsum("sci,cij,scj->s", each, self.sums, each).clamp(min=0))
        scalar, cell = found.unbind(1)  # most scalars depend on few levels
        own = each[scalar, cell]
        squares = torch.einsum("ni,nij,nj->n", own, self.sums[cell], own)
        return array_of(squares.new_zeros(len(each)).index_add_(0, scalar, squares).clamp(min=0))


class Grams:
    """The sums of products of every sample, where many scalars make them worth a pass over the rows.

    Args:
        evaluator: the program with the sample.
        moments: exact.
        count: of all scalars.
    """

    def __init__(self, evaluator: Evaluator, moments: Sequence[Tensor], count: int) -> None:
        self.evaluator = evaluator
        self.moments = moments
        self.many = count > SCALARS
        self._found: dict[Data, Gram | None] = {}

    def of(self, job: Job) -> Gram | None:
        """Those of a sample; None where the influence of each row is cheaper."""
        if not self.many or self.evaluator.populations[job.data].data.streamed:
            return None
        if job.data not in self._found:
            self._found[job.data] = self._made(job)
        return self._found[job.data]

    @torch.no_grad()
    def _made(self, job: Job) -> Gram | None:
        evaluator, population = self.evaluator, self.evaluator.populations[job.data]
        strata = [population.strata[key] for key in job.strata]
        stratum_of = {place: k for k, own in enumerate(job.strata.values()) for place in own}
        of_moment = [stratum_of[place] for place in range(len(job.moments))]
        chunks = list(population.chunks(evaluator.chunk))
        conditions = [[population.conditions(stratum, rows) for stratum in strata] for rows in chunks]
        leveled = [k for k in range(len(strata)) if conditions[0][k][1] is not None]
        rows = sum(own.count for own in chunks)
        cells, cell = torch.zeros((1, 0), dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
        if leveled:
            known = [[c for own in conditions if (c := own[k][1]) is not None] for k in leveled]
            joint = torch.stack([torch.cat(own) for own in known], 1)
            cells, cell = cast("tuple[Tensor, Tensor]", torch.unique(joint, dim=0, return_inverse=True))
        means = [self.moments[i].detach().double() for i in job.moments]
        wide = [m[0].numel() if of_moment[p] in leveled else m.numel() for p, m in enumerate(means)]
        if len(cells) * sum(wide) ** 2 > LARGEST_GRAM:
            return None
        sums = torch.zeros((len(cells), sum(wide), sum(wide)), dtype=torch.float64, device=evaluator.device)
        start = 0
        for own, held in zip(chunks, conditions, strict=True):
            values = evaluator.rows(job, own, "exact")
            columns: list[Tensor] = []
            for place, mean in enumerate(means):
                weight, codes = held[of_moment[place]]
                columns.append(_centered(values[place], mean.reshape(-1, wide[place]), weight, codes))
            z = torch.cat(columns, 1)
            sums.index_add_(0, cell[start : start + own.count].to(z.device), z[:, :, None] * z[:, None, :])
            start += own.count
        codes = [cells[:, leveled.index(k)] if k in leveled else None for k in of_moment]
        ends = np.cumsum(wide).tolist()
        return Gram(codes, [slice(end - size, end) for end, size in zip(ends, wide, strict=True)], sums)


def _centered(integrand: Tensor, mean: Tensor, weight: Tensor | None, codes: Tensor | None) -> Tensor:
    """(rows, entries): weight * (integrand - mean of the row's group)."""
    g = integrand.double().reshape(integrand.shape[0], -1)
    centered = g - (mean if codes is None else mean[codes])
    if weight is None:
        return centered
    wide = weight.double()[:, None]
    return torch.where(wide > 0, centered * wide, torch.zeros_like(centered))


def influences(
    evaluator: Evaluator, scalars: Callable[[Sequence[Tensor]], Sequence[Tensor]]
) -> list[tuple[Data, NDArray[np.float64]]]:
    """Per sample the influence of every row on some scalars.

    With n rows, the squared standard error of a scalar is the sum over samples of sum_i influence_i^2 / n^2.

    Args:
        evaluator: the program with the sample, at its decisions.
        scalars: functions of the exact moments.

    Returns:
        Samples with arrays (scalars, rows); samples without sampling error are left out.
    """
    moments = [m.requires_grad_(True) for m in evaluator.moments("exact")]
    found = scalars(moments)
    jacobian = jacobian_of(moments, found)
    result: list[tuple[Data, NDArray[np.float64]]] = []
    for job in evaluator.jobs:
        population = evaluator.populations[job.data]
        if not population.sampled:
            continue
        pieces = [piece for _, piece in _pieces(evaluator, job, moments, jacobian, len(found))]
        blocks = [np.zeros((len(found), 0))]
        with torch.no_grad():
            for rows in population.chunks(evaluator.chunk):
                values = evaluator.rows(job, rows, "exact")
                total = torch.zeros((len(found), rows.count), dtype=torch.float64, device=evaluator.device)
                for piece in pieces:
                    weight, codes = population.conditions(piece.stratum, rows)
                    total = total + piece.influence(values[piece.place], weight, codes)
                blocks.append(array_of(total))
        result.append((job.data, np.concatenate(blocks, axis=1)))
    return result


def _squares(evaluator: Evaluator, job: Any, pieces: Sequence[_Piece], count: int) -> NDArray[np.float64]:
    """Sum over rows of the squared influence, per scalar; streamed."""
    population = evaluator.populations[job.data]
    total = torch.zeros(count, dtype=torch.float64, device=evaluator.device)
    width = max(piece.mean.shape[1] for piece in pieces)
    step = max(1, BLOCK // (count * width))
    with torch.no_grad():
        for rows in population.chunks(evaluator.chunk):
            values = evaluator.rows(job, rows, "exact")
            conditions = [population.conditions(piece.stratum, rows) for piece in pieces]
            for first in range(0, rows.count, step):
                here = slice(first, min(first + step, rows.count))
                influence = torch.zeros((), dtype=torch.float64, device=evaluator.device)
                for piece, (weight, codes) in zip(pieces, conditions, strict=True):
                    influence = influence + piece.influence(
                        values[piece.place][here],
                        None if weight is None else weight[here],
                        None if codes is None else codes[here],
                    )
                total += influence.square().sum(1)
    return array_of(total)
