"""Averages over all rows: sums over the rows that count, in float64, divided by their number.

Estimates of training steps weigh rows instead (`Evaluator.reduce_all`), with weights in the precision of the
step. A rate of k out of n rows is k / n here, to the last digit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from constrain.runtime.rows import Condition

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from constrain.runtime.compiled import Job
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.rows import Rows

__all__ = ["averages", "means", "row_residuals", "totals"]

MOST_NUMBERS = 20_000_000
"""Rows times constraints per row that are read in one pass."""


def averages(evaluator: Evaluator, mode: str = "exact") -> list[Tensor]:
    """All moments of a program on the full data, in one pass over every sample.

    Args:
        evaluator: a program with data.
        mode: "exact", or "primal" for the values that gradients see (surrogates of rates).

    Returns:
        One tensor per moment, (levels, ...) with groups, in float64 where the device has it.
    """
    found: list[Any] = [None] * len(evaluator.program.moments)
    with torch.no_grad():
        for job in evaluator.jobs:
            total: list[Tensor] = []
            for rows in evaluator.populations[job.data].chunks(evaluator.chunk):
                parts = totals(evaluator, job, evaluator.rows(job, rows, mode), rows)
                total = [a + b for a, b in zip(total, parts, strict=True)] if total else parts
            for i, mean in zip(job.moments, means(evaluator, job, total), strict=True):
                found[i] = mean
    return found


def totals(evaluator: Evaluator, job: Job, values: Sequence[Tensor], rows: Rows) -> list[Tensor]:
    """Sums of a sample's integrands over some rows of a full pass, per level; differentiable.

    Args:
        evaluator: a program with data.
        job: the sample.
        values: the integrands on the rows, one per moment of the job; more are ignored.
        rows: a chunk of a full pass.
    """
    population = evaluator.populations[job.data]
    wide = [evaluator.accumulator(value) for value in values[: len(job.moments)]]
    members = [Condition(*population.members(population.strata[key], rows)) for key in job.strata]
    return evaluator.reduce_all(job, wide, rows, 1.0, conditions=members)


def means(evaluator: Evaluator, job: Job, sums: Sequence[Tensor]) -> list[Tensor]:
    """The averages of a sample's integrands from their sums over all rows; 0 of a group without any."""
    strata, found = evaluator.populations[job.data].strata, list(sums)
    for key, places in job.strata.items():
        counts = strata[key].counts
        counts = torch.where(counts == 0, 1.0, counts)
        for place in places:
            more = found[place].dim() - counts.dim()
            found[place] = found[place] / counts.reshape(counts.shape + (1,) * more)
    return found


def row_residuals(
    evaluator: Evaluator, parts: Sequence[int], mode: str
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Residuals of constraints per row for all rows, in as few passes over their samples as memory allows.

    Args:
        evaluator: a program with data.
        parts: their positions.
        mode: "exact" or "primal".

    Yields:
        Position, residuals, and the mask of the rows that it selects; sample by sample.
    """
    for job in evaluator.jobs:
        own = [i for i in parts if i in job.parts]
        together = max(MOST_NUMBERS // max(evaluator.populations[job.data].rows, 1), 1)
        for start in range(0, len(own), together):
            yield from _row_residuals(evaluator, job, own[start : start + together], mode)


def _row_residuals(
    evaluator: Evaluator, job: Job, parts: Sequence[int], mode: str
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """The same of some constraints of one sample, in one pass."""
    places = [job.parts.index(i) for i in parts]
    found: list[list[Tensor]] = [[] for _ in parts]
    masks: list[list[Tensor]] = [[] for _ in parts]
    with torch.no_grad():
        for rows in evaluator.populations[job.data].chunks(evaluator.chunk):
            values = evaluator.rows(job, rows, mode)
            first = len(values) - len(job.parts)
            for k, place in enumerate(places):
                found[k].append(values[len(job.moments) + place])
                mask = values[first + place]
                if mask is not None:
                    masks[k].append(mask)
    for i, residuals, own in zip(parts, found, masks, strict=True):
        yield i, torch.cat(residuals), torch.cat(own) if own else None
