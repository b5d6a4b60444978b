"""Exact derivatives on the full data: gradients in two passes with the memory of one chunk, dense Hessians.

The gradient of any outer function of moments takes two passes. Pass one streams the rows and accumulates the
moments m. The outer function is then differentiated with respect to m, a few numbers. Pass two streams the
rows again and back-propagates sum_j (d phi / d m_j) * (contribution of these rows to m_j). The result is
exact for any outer function (ratios, products, absolute values), and memory is that of one chunk of rows.
Where one chunk is all there is, both passes share its forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from constrain.runtime.averages import means, totals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.runtime.compiled import Job
    from constrain.runtime.evaluator import Evaluator, Outer
    from constrain.runtime.rows import Index, Rows

__all__ = [
    "Linearization",
    "RowTerm",
    "Whole",
    "curvature",
    "hessian",
    "jacobian",
    "largest",
    "linearize",
    "pull",
    "whole",
]

NUMBERS, PRODUCTS = 4_000_000, 400_000_000
"""Rows of a sample times backward passes that run as one, and these times decisions: between such groups a
run can be stopped."""
LEAST_GROUP = 4

RowTerm = Callable[[int, Tensor, Tensor | slice], Tensor]
"""(index of the part, residual of some rows, which rows) -> a scalar to add to the objective."""


def pull(
    evaluator: Evaluator, functions: Sequence[Callable[[Outer], Tensor]], row_term: RowTerm | None = None
) -> list[tuple[float, list[Tensor]]]:
    """Exact full-data values and gradients of functions of the outer values, in two passes.

    Args:
        evaluator: a program with data.
        functions: each maps the (primal) outer values to a scalar; or to a vector, (k,), whose gradients in
            the moments and decisions are taken at once, by backward passes that torch vectorizes.
        row_term: added to the first function: a sum over the rows of constraints per row.

    Returns:
        For each function its value and its gradient with respect to every decision tensor; for each entry of
        a vector in turn.
    """
    moments, held = _first_pass(evaluator)
    leaves = [m.requires_grad_(True) for m in moments]
    outer = evaluator.outer(leaves, "primal")
    tensors = evaluator.decisions.tensors
    values: list[float] = []
    cotangents: list[list[Tensor | None]] = []
    gradients: list[list[Tensor]] = []
    for function in functions:
        value = function(outer)
        values += value.detach().reshape(-1).tolist()
        for found in _outer_gradients(value, [*leaves, *tensors]):
            cotangents.append(list(found[: len(leaves)]))
            direct = zip(tensors, found[len(leaves) :], strict=True)
            gradients.append([torch.zeros_like(t) if g is None else g for t, g in direct])
    for job in evaluator.jobs:
        values[0] += _pull_rows(evaluator, job, held, cotangents, gradients, row_term)
    return list(zip(values, gradients, strict=True))


def _outer_gradients(value: Tensor, inputs: Sequence[Tensor]) -> list[Sequence[Tensor | None]]:
    """Gradients of a scalar, or of each entry of a vector, in each of the inputs, which may be changed.

    None where an input is not used.
    """
    if not value.requires_grad:
        return [[None] * len(inputs)] * value.numel()
    if not value.dim():
        alone = cast(
            "tuple[Tensor | None, ...]",
            torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True),
        )
        return [[None if g is None else g.clone() for g in alone]]
    seeds = torch.eye(len(value), dtype=value.dtype, device=value.device)
    found = cast(
        "tuple[Tensor | None, ...]",
        torch.autograd.grad(
            value, inputs, seeds, is_grads_batched=True, retain_graph=True, allow_unused=True
        ),
    )
    return [[None if g is None else g[k] for g in found] for k in range(len(value))]


def _first_pass(evaluator: Evaluator) -> tuple[list[Tensor], list[Any] | None]:
    """All moments; of a single sample of one chunk the values of its rows too, with their graph."""
    if len(evaluator.jobs) != 1:
        return evaluator.moments("primal"), None
    (job,) = evaluator.jobs
    population = evaluator.populations[job.data]
    if population.endless or not 0 < population.rows <= evaluator.chunk:
        return evaluator.moments("primal"), None
    (rows,) = population.chunks(evaluator.chunk)
    values = evaluator.rows(job, rows, "primal")
    with torch.no_grad():
        found = means(evaluator, job, totals(evaluator, job, values, rows))
    places = dict(zip(job.moments, found, strict=True))
    return [places[i] for i in range(len(found))], values


def _pull_rows(
    evaluator: Evaluator,
    job: Job,
    held: list[Any] | None,
    cotangents: list[list[Tensor | None]],
    gradients: list[list[Tensor]],
    row_term: RowTerm | None,
) -> float:
    """Pass two over one sample, whose values may be known; returns the value of the row terms."""
    tensors, population = evaluator.decisions.tensors, evaluator.populations[job.data]
    added = 0.0
    for rows in population.chunks(evaluator.chunk):
        values = evaluator.rows(job, rows, "primal") if held is None else held
        for r, cotangent in enumerate(cotangents):
            scalar = _contraction(evaluator, job, cotangent, values, rows, population.rows)
            if r == 0 and row_term is not None:
                for term in _row_terms(job, values, rows.index, row_term):
                    added += float(term.detach())
                    scalar = term if scalar is None else scalar + term
            if scalar is None or not scalar.requires_grad:
                continue
            last = r == len(cotangents) - 1
            for total, g in zip(gradients[r], _gradient(scalar, tensors, retain=not last), strict=True):
                if g is not None:
                    total.add_(g)
    return added


def _gradient(scalar: Tensor, tensors: Sequence[Tensor], *, retain: bool) -> tuple[Tensor | None, ...]:
    """Gradient of a scalar in the decision tensors; None for those that it does not use."""
    return torch.autograd.grad(scalar, tensors, retain_graph=retain, allow_unused=True)


def _contraction(
    evaluator: Evaluator,
    job: Job,
    cotangent: list[Tensor | None],
    values: list[Any],
    rows: Rows,
    over: int,
) -> Tensor | None:
    """sum_j <d phi / d m_j, contribution of these rows to m_j>."""
    scalar: Tensor | None = None
    for place, i in enumerate(job.moments):
        g = cotangent[i]
        if g is None or not values[place].requires_grad:
            continue
        contribution = evaluator.reduce(i, values[place], rows, over)
        term = (contribution * g.to(contribution.dtype)).sum()
        scalar = term if scalar is None else scalar + term
    return scalar


def _row_terms(job: Job, values: list[Any], index: Index | None, row_term: RowTerm) -> list[Tensor]:
    """The row terms of the parts of a sample; rows that a part does not select count as residual 0."""
    terms: list[Tensor] = []
    if not job.parts:
        return terms
    assert index is not None  # a sample without positions takes no constraints per row
    for place, i in enumerate(job.parts):
        residual = values[len(job.moments) + place]
        mask = values[len(values) - len(job.parts) + place]
        if mask is not None:
            wide = mask.reshape(-1, *(1 for _ in range(residual.dim() - 1)))
            residual = torch.where(wide, residual, 0.0)
        terms.append(row_term(i, residual, index))
    return terms


def hessian(
    evaluator: Evaluator,
    function: Callable[[Outer], Tensor],
    row_term: RowTerm | None = None,
    *,
    check: Callable[[], None] | None = None,
) -> Tensor:
    """Dense Hessian of a scalar function of the outer values over all decisions, on the full data.

    One graph over all rows: meant for few decisions (`decisions.size * rows` numbers per operation).

    Args:
        evaluator: a program with data.
        function: of the outer values, scalar.
        row_term: added to it, a sum over the rows of constraints per row.
        check: called between groups of columns; it may raise to stop.
    """
    values = whole(evaluator, row_term)
    scalar = function(values.outer) + values.added
    tensors = evaluator.decisions.tensors
    first = torch.autograd.grad(scalar, tensors, create_graph=True, materialize_grads=True)
    return jacobian(torch.cat([g.reshape(-1) for g in first]), tensors, largest(evaluator), check)


def largest(evaluator: Evaluator) -> int:
    """Rows of the largest sample."""
    return max([population.rows for population in evaluator.populations.values()], default=1)


def jacobian(
    values: Tensor, tensors: Sequence[Tensor], rows: int = 1, check: Callable[[], None] | None = None
) -> Tensor:
    """(count, size) derivatives of `values`, (count,), in all entries of the tensors.

    Backward passes are vectorized in groups, whose size `NUMBERS` and `PRODUCTS` limit.

    Args:
        values: with their graph, which is kept; zeros come back where they have none.
        tensors: leaves.
        rows: that the graph is over.
        check: called before every group; it may raise to stop.
    """
    count, size = values.numel(), sum(t.numel() for t in tensors)
    found = values.new_zeros((count, size))
    if not values.requires_grad:
        return found
    work = max(rows * min(found.shape), 1)
    group = max(LEAST_GROUP, min(NUMBERS // max(rows, 1), PRODUCTS // work))
    for start in range(0, count, group):
        if check is not None:
            check()
        own = min(group, count - start)
        seeds = values.new_zeros((own, count))
        seeds[torch.arange(own), torch.arange(start, start + own)] = 1.0
        batched = own > 1  # one pass is faster as it is
        pieces = cast(
            "tuple[Tensor | None, ...]",
            torch.autograd.grad(
                values,
                tensors,
                seeds if batched else seeds[0],
                is_grads_batched=batched,
                allow_unused=True,
                retain_graph=True,
            ),
        )  # None of a decision that is not used; zeros that torch makes lack the axis of the batch
        at = 0
        for t, piece in zip(tensors, pieces, strict=True):
            if piece is not None:
                found[start : start + own, at : at + t.numel()] = piece.reshape(own, -1)
            at += t.numel()
    return found


def curvature(
    evaluator: Evaluator, function: Callable[[Outer], Tensor], row_term: RowTerm | None = None
) -> Callable[[Tensor], Tensor]:
    """Products of the Hessian of a scalar function of the outer values with vectors, without the Hessian.

    One graph over all rows is made once; a product is one backward pass over it (Pearlmutter 1994).

    Returns:
        v -> H v, both (n,) over all decisions in the order of `Decisions.get`.
    """
    values = whole(evaluator, row_term)
    scalar = function(values.outer) + values.added
    tensors = evaluator.decisions.tensors
    first = torch.autograd.grad(scalar, tensors, create_graph=True, materialize_grads=True)
    flat = torch.cat([g.reshape(-1) for g in first])

    def product(v: Tensor) -> Tensor:
        if not flat.requires_grad:
            return torch.zeros_like(flat)
        found = torch.autograd.grad(flat, tensors, v.to(flat), retain_graph=True, materialize_grads=True)
        return torch.cat([h.reshape(-1) for h in found])

    return product


@dataclass
class Whole:
    """Outer values on all rows in one graph, and the sum of the row terms."""

    outer: Outer
    added: Tensor


def whole(evaluator: Evaluator, row_term: RowTerm | None) -> Whole:
    """All rows in one graph."""
    moments: list[Any] = [None] * len(evaluator.program.moments)
    added = torch.zeros((), dtype=evaluator.dtype, device=evaluator.device)
    for job in evaluator.jobs:
        population = evaluator.populations[job.data]
        rows = population.everything()
        values = evaluator.rows(job, rows, "primal")
        found = means(evaluator, job, totals(evaluator, job, values, rows))
        for i, mean in zip(job.moments, found, strict=True):
            moments[i] = mean
        if row_term is not None:
            for term in _row_terms(job, values, rows.index, row_term):
                added = added + term
    return Whole(evaluator.outer(moments, "primal"), added)


@dataclass(frozen=True)
class Linearization:
    """The problem to first order at the current decisions.

    Attributes:
        objective: its value.
        gradient: of the objective, (n,) over all decisions in the order of `Decisions.get`.
        residuals: entries of all parts one after the other, (m,); rows that a part per row does not select
            count as 0.
        jacobian: of the residuals, (m, n).
    """

    objective: Tensor
    gradient: Tensor
    residuals: Tensor
    jacobian: Tensor


def linearize(evaluator: Evaluator, check: Callable[[], None] | None = None) -> Linearization:
    """Objective, residuals and their first derivatives on the full data.

    One graph over all rows, and one backward pass over it that is vectorized over the residuals: meant for
    few decisions and residuals (`residuals * rows` numbers per operation).
    """
    per_row: dict[int, Tensor] = {}

    def keep(i: int, residual: Tensor, _index: Tensor | slice) -> Tensor:
        per_row[i] = residual
        return residual.new_zeros(())

    outer = whole(evaluator, keep).outer
    parts = [per_row[i] if r is None else r for i, r in enumerate(outer.residuals)]
    values = torch.cat([outer.objective.reshape(1), *(r.reshape(-1) for r in parts)])
    found = jacobian(values, evaluator.decisions.tensors, largest(evaluator), check)
    values = values.detach()
    return Linearization(values[0], found[0], values[1:], found[1:])
