"""The rows of a batch as tensors, for functions of tensors alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.rows import Rows

__all__ = ["Packed", "unpacked"]


class Packed(NamedTuple):
    """The rows of a batch as tensors, and what says how to make rows of them again.

    Attributes:
        key: equal for batches whose rows are made in the same way of tensors of the same shapes and types.
        tensors: the positions, and the columns where these are not the sample's at the positions.
    """

    key: tuple[Any, ...]
    tensors: list[Tensor]

    @staticmethod
    def of(batch: Mapping[str, Rows]) -> Packed:
        """The rows of each sample."""
        key: list[Any] = []
        tensors: list[Tensor] = []
        for name, rows in batch.items():
            index = rows.index
            own = [] if rows.gathered else list(rows.columns.values())
            if isinstance(index, Tensor):
                own.append(index)
            if rows.weight is not None:
                own.append(rows.weight)
            key += [name, rows.whole, rows.stratified]
            key.append(str(index) if isinstance(index, slice) else len(own))
            tensors += own
        return Packed((*key, *[(t.shape, t.dtype) for t in tensors]), tensors)


def unpacked(evaluator: Evaluator, batch: Mapping[str, Rows], tensors: Sequence[Tensor]) -> dict[str, Rows]:
    """Rows like those of a batch, of other tensors."""
    left = list(tensors)
    found: dict[str, Rows] = {}
    populations = {data.name: p for data, p in evaluator.populations.items()}
    for name, rows in batch.items():
        columns = None if rows.gathered else {column: left.pop(0) for column in rows.columns}
        index = left.pop(0) if isinstance(rows.index, Tensor) else rows.index
        weight = None if rows.weight is None else left.pop(0)
        if columns is None:
            assert index is not None  # the columns were gathered by it
            columns = populations[name].take(index, weight).columns
        found[name] = replace(rows, columns=columns, index=index, weight=weight)
    return found
