"""Which term, which rows and which decision a value that is not finite comes from.

A run looks at its decisions and multipliers now and then, at no cost for a step. Where it finds NaN or an
infinity it goes back to the last good state and repeats the steps, with the functions here between them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from constrain.language import nodes as n
from constrain.runtime.rows import Index, Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from constrain.runtime.compiled import Job
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.lagrangian import Lagrangian

__all__ = ["NotFinite", "batch_culprit", "decision_culprit", "judged_culprit", "multiplier_culprit", "sound"]

SHOWN = 3
"""Names and rows that a message lists."""


class NotFinite(Exception):  # a signal within the run
    """A value of the run is NaN or infinite.

    Args:
        what: the culprit in words.
        where: the step or epoch in words.
    """

    def __init__(self, what: str, where: str) -> None:
        super().__init__(what)
        self.where = where


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def sound(evaluator: Evaluator, multipliers: Mapping[str, Tensor]) -> bool:
    """Whether all decisions and multipliers are finite."""
    return all(map(_finite, evaluator.decisions.tensors)) and all(map(_finite, multipliers.values()))


def decision_culprit(evaluator: Evaluator, *, gradients: bool) -> str:
    """The decisions that are not finite, or whose gradients are not; empty for none."""
    found: list[str] = []
    for block in evaluator.decisions.blocks:
        value = block.tensor.grad if gradients else block.tensor
        if value is not None and not _finite(value):
            found.append(block.name)
    return _listed(found)


def multiplier_culprit(multipliers: Mapping[str, Tensor]) -> str:
    """The parts whose multipliers are not finite; empty for none."""
    return _listed([key for key, value in multipliers.items() if not _finite(value)])


def judged_culprit(evaluator: Evaluator) -> str:
    """The terms that are not finite on the full data, with the rows that make them so; empty for none."""
    with torch.no_grad():
        outer = evaluator.full("exact")
    values: list[Tensor | None] = [outer.objective, *outer.residuals]
    parts = evaluator.program.parts
    found: list[str] = []
    for position, value in enumerate(values):
        own = evaluator.row_residuals(position - 1) if value is None else (value, None)
        kept = own[0] if own[1] is None else own[0][own[1]]
        if not _finite(kept):
            name = "the objective" if position == 0 else parts[position - 1].key
            found.append(name + _rows_of_data(evaluator, position))
    return _listed(found)


def batch_culprit(lagrangian: Lagrangian, batch: Mapping[str, Rows]) -> str:
    """The first term of a batch whose value or gradient is not finite, with its rows; empty for none."""
    estimate, evaluator = lagrangian.estimate(batch), lagrangian.evaluator
    exact = lagrangian.estimator.shaped(estimate.moments[0])
    for position, found in enumerate([estimate.primal.objective, *estimate.primal.residuals]):
        name = "the objective" if position == 0 else evaluator.program.parts[position - 1].key
        value, _, mask = estimate.rows[position - 1] if found is None else (found, None, None)
        if not _finite(value if mask is None else value[mask]):
            return name + _rows_of_batch(evaluator, position, batch, _fine_value)
        rows = _rows_of_batch(evaluator, position, batch, partial(_fine_gradient, evaluator))
        if rows or not _fine_outside(evaluator, position, exact):
            return f"the gradient of {name}{rows}"
    return ""


def _fine_value(value: Tensor) -> bool:
    return _finite(value.detach())


def _fine_gradient(evaluator: Evaluator, value: Tensor, others: Sequence[Tensor] = ()) -> bool:
    """Whether the gradient of a sum is finite in all decisions, and in some other tensors."""
    if not value.requires_grad:
        return True
    tensors = [*evaluator.decisions.tensors, *others]
    found = cast(
        "tuple[Tensor | None, ...]",
        torch.autograd.grad(value.sum(), tensors, retain_graph=True, allow_unused=True),
    )
    return all(_finite(g) for g in found if g is not None)


def _fine_outside(evaluator: Evaluator, position: int, moments: Sequence[Tensor]) -> bool:
    """Whether a term has a finite gradient in its averages, and in the decisions outside of them."""
    leaves = [m.to(evaluator.dtype, copy=True).requires_grad_(True) for m in moments]
    outer = evaluator.outer(leaves, "primal")
    value = outer.residuals[position - 1] if position else outer.objective
    return value is None or _fine_gradient(evaluator, value, leaves)


# -------------------------------------------------------------------------------------------------- rows
def _integrands(evaluator: Evaluator, position: int) -> list[tuple[Job, Callable[[Rows], Tensor]]]:
    """What a term (0 the objective, i + 1 part i) averages, or its residual per row, by sample.

    As functions of some rows; 0 in rows that do not count.
    """
    program, found = evaluator.program, list[tuple["Job", "Callable[[Rows], Tensor]"]]()
    part = program.parts[position - 1] if position else None
    root = program.objective if part is None else part.residual
    used = {program.moments.index(x) for x in n.postorder(root) if isinstance(x, n.Moment)}
    for job in evaluator.jobs:
        if part is not None and part.rows is job.data:
            found.append((job, _per_row(evaluator, job, position - 1)))
        found += [(job, _averaged(evaluator, job, i)) for i in job.moments if i in used]
    return found


def _per_row(evaluator: Evaluator, job: Job, part: int) -> Callable[[Rows], Tensor]:
    place = job.parts.index(part)

    def values(rows: Rows) -> Tensor:
        found = evaluator.rows(job, rows, "primal")
        value, mask = found[len(job.moments) + place], found[place - len(job.parts)]
        return value if mask is None else _counting(value, mask)

    return values


def _averaged(evaluator: Evaluator, job: Job, moment: int) -> Callable[[Rows], Tensor]:
    place, own = job.moments.index(moment), evaluator.program.moments[moment]
    population = evaluator.populations[job.data]

    def values(rows: Rows) -> Tensor:
        value = evaluator.rows(job, rows, "primal")[place]
        weight, _ = population.conditions(population.stratum(own.given, own.by), rows)
        return value if weight is None else _counting(value, weight != 0)

    return values


def _counting(value: Tensor, mask: Tensor) -> Tensor:
    wide = mask.reshape(-1, *(1 for _ in range(value.dim() - 1)))
    return torch.where(wide, value, 0.0)


def _rows_of_data(evaluator: Evaluator, position: int) -> str:
    """The rows of the samples whose values in a term are not finite, in words."""
    for job, values in _integrands(evaluator, position):
        bad: list[int] = []
        start = 0
        with torch.no_grad():
            for rows in evaluator.populations[job.data].chunks(evaluator.chunk):
                bad += [start + i for i in _bad(values, rows, _fine_value)]
                start += rows.count
        if bad:
            return _shown(bad, job.data.name)
    return ""


def _rows_of_batch(
    evaluator: Evaluator, position: int, batch: Mapping[str, Rows], fine: Callable[[Tensor], bool]
) -> str:
    """The rows of a batch whose integrands in a term are not as they should be, in words."""
    for job, values in _integrands(evaluator, position):
        rows = batch[job.data.name]
        bad = _bad(values, rows, fine)
        if bad and rows.index is not None:
            places = torch.arange(evaluator.populations[job.data].rows)[_on_cpu(rows.index)]
            return _shown([int(places[i]) for i in bad], job.data.name)
        if bad:
            return _shown(bad, f"the batch of {job.data.name}")
    return ""


def _on_cpu(index: Index) -> Index:
    return index if isinstance(index, slice) else index.cpu()


def _bad(values: Callable[[Rows], Tensor], rows: Rows, fine: Callable[[Tensor], bool]) -> list[int]:
    """Places of rows that are not fine, found by halving; no more than the first few are looked for.

    Every piece is evaluated anew: in a gradient through all rows, a row that is left out would still turn
    zero times infinity into NaN.
    """
    found: list[int] = []
    pieces = [(0, rows.count)]
    while pieces and len(found) <= SHOWN:
        start, stop = pieces.pop()
        if fine(values(_piece(rows, start, stop))):
            continue
        if stop - start == 1:
            found.append(start)
            continue
        middle = (start + stop) // 2
        pieces += [(middle, stop), (start, middle)]
    return found


def _piece(rows: Rows, start: int, stop: int) -> Rows:
    """Some of these rows."""
    index = rows.index
    if isinstance(index, slice):
        first, last, step = index.indices(2**62)
        places = range(first, last, step)[start:stop]
        index = slice(places.start, places.stop, places.step)
    elif index is not None:
        index = index[start:stop]
    weight = None if rows.weight is None else rows.weight[start:stop]
    columns = {name: rows.columns[name][start:stop] for name in rows.columns}
    return Rows(columns, stop - start, index, weight)


def _shown(rows: list[int], name: str) -> str:
    more = " and others" if len(rows) > SHOWN else ""
    return f" (row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:SHOWN]))}{more} of {name})"
