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
    from collections.abc import Sequence

    from constrain.runtime.compiled import Job
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.rows import Rows

__all__ = ["averages", "means", "row_residuals", "totals"]


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


def row_residuals(evaluator: Evaluator, i: int, mode: str) -> tuple[Tensor, Tensor | None]:
    """Residuals (rows, ...) of part `i`, a constraint per row; and the mask (rows,) of the rows it selects.

    The mask is None where the part is about all rows; `mode` is that of `averages`.
    """
    part = evaluator.program.per_row[i]
    job = next(j for j in evaluator.jobs if j.data is part.rows)
    place = len(job.moments) + job.parts.index(i)
    found: list[Tensor] = []
    masks: list[Tensor] = []
    with torch.no_grad():
        for rows in evaluator.populations[job.data].chunks(evaluator.chunk):
            values = evaluator.rows(job, rows, mode)
            found.append(values[place])
            mask = values[len(values) - len(job.parts) + job.parts.index(i)]
            if mask is not None:
                masks.append(mask)
    return torch.cat(found), torch.cat(masks) if masks else None
