"""The rows of a batch, in any of the ways that a training loop may give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from constrain.errors import ModelingError
from constrain.language.data import Batch
from constrain.runtime.rows import Rows

if TYPE_CHECKING:
    from constrain.runtime.binding import Population
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.rows import Index

__all__ = ["Batches", "add_rows", "masked", "rows_by_sample", "weighted"]

Batches = Batch | Mapping[str, Any] | tuple[Batch, ...] | list[Batch]


def rows_by_sample(evaluator: Evaluator, batch: Batches) -> dict[str, Rows]:
    """The rows of a batch by sample name, on the device.

    Raises:
        ModelingError: E140 when the batch is none, or has no rows of a sample of the problem.
    """
    given = _by_name(evaluator, batch)
    result: dict[str, Rows] = {}
    for data, population in evaluator.populations.items():
        if data.name not in given:
            fix = f"lagrangian({data.name}.rows(index))"
            if population.boundless:
                fix = f'lagrangian({{"{data.name}": 256}}), for so many fresh points'
            raise ModelingError("E140", f"the batch has no rows of {data.name!r}", fix=fix)
        found = given[data.name]
        _refuse_other(population, found)
        drawn = found if isinstance(found, Rows) else population.drawn(found)
        result[data.name] = _at_positions(evaluator, population, found) if drawn is None else drawn
    return result


def _refuse_other(population: Population, given: Any) -> None:
    """E140 for positions in another sample of the same name, such as the one that was split."""
    if not isinstance(given, Batch) or given.data is population.data:
        return
    if given.data.streamed or population.data.streamed or len(given.data) == population.rows:
        return
    raise ModelingError(
        "E140",
        f"the batch has rows of another sample that is called {given.data.name!r}: it has {len(given.data)} "
        f"rows, that of the problem {population.rows}",
        fix="rows(index) of the sample that the problem is written with, such as the first one of a split",
    )


def _by_name(evaluator: Evaluator, batch: Any) -> dict[str, Any]:
    """What was given for each sample (E140 for what is no batch)."""
    if isinstance(batch, Batch):
        return {batch.data.name: batch}
    if isinstance(batch, Mapping):
        return dict(cast("Mapping[str, Any]", batch))
    listed: list[Any] = [*batch] if isinstance(batch, (list, tuple)) else [batch]  # type: ignore[reportUnknownVariableType]
    if all(isinstance(item, Batch) for item in listed):
        return {item.data.name: item for item in listed}
    name = next((data.name for data in evaluator.populations), "D")
    other = next(item for item in listed if not isinstance(item, Batch))
    raise ModelingError(
        "E140",
        f"{type(other).__name__} is no batch: it does not say which rows of which sample it has",
        fix=f'lagrangian({name}.rows(index)), or lagrangian({{"{name}": index}})',
    )


def _at_positions(evaluator: Evaluator, population: Population, given: Any) -> Rows:
    """Rows by position: a batch, or an index."""
    index, weight = (given.index, given.weight) if isinstance(given, Batch) else (given, None)
    if isinstance(index, Tensor) and weight is None:
        return population.take(_positions(index).to(evaluator.device))
    if isinstance(index, Mapping):
        return population.given(cast("Mapping[str, Any]", index), weight)
    if weight is not None:
        weight = torch.as_tensor(weight).to(device=evaluator.device, dtype=evaluator.dtype)
    if isinstance(index, (slice, range)):
        span = index if isinstance(index, range) else range(*index.indices(population.rows))
        if span == range(population.rows):
            return population.take(slice(0, population.rows), weight)
        index = torch.arange(span.start, span.stop, span.step)
    return population.take(_positions(torch.as_tensor(index)).to(evaluator.device), weight)


def _positions(index: Tensor) -> Tensor:
    """Positions, also where a mask was given."""
    return index.nonzero().reshape(-1) if index.dtype is torch.bool else index


def masked(values: Tensor, mask: Tensor | None) -> Tensor:
    """Values per row, 0 for those that a constraint does not select."""
    if mask is None:
        return values
    wide = mask.reshape(-1, *(1 for _ in range(values.dim() - 1)))
    return torch.where(wide, values, 0.0)


def weighted(values: Tensor, rows: Rows) -> Tensor:
    """Values per row times the rows' importance weights."""
    if rows.weight is None:
        return values
    return values * rows.weight.to(values.dtype).reshape(-1, *(1 for _ in range(values.dim() - 1)))


def add_rows(table: Tensor, index: Index, change: Tensor, *, nonneg: bool) -> None:
    """Adds to the rows of a table in place, repeated ones as often as they occur; clips them at 0."""
    if isinstance(index, slice):
        table[index] += change
        if nonneg:
            table[index].clamp_(min=0)
        return
    table.index_add_(0, index, change)
    if nonneg:
        table.index_copy_(0, index, table.index_select(0, index).clamp_(min=0))
