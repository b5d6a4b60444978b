"""Some rows of a sample, as one step or one chunk of a full pass sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

__all__ = ["Condition", "Gathered", "Index", "Rows", "picked"]

Index = Tensor | slice
"""Positions of some rows in their sample."""


def picked(column: Tensor, index: Index) -> Tensor:
    """Some rows of a column."""
    return column[index] if isinstance(index, slice) else column.index_select(0, index)


class Gathered(Mapping[str, Tensor]):
    """Columns of some rows, gathered when they are asked for: groups and conditions need none of them."""

    def __init__(self, columns: Mapping[str, Tensor], index: Index) -> None:
        self._columns = columns
        self._index = index
        self._made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._made:
            self._made[name] = picked(self._columns[name], self._index)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


@dataclass(frozen=True)
class Rows:
    """Some rows of a sample, as one step or one chunk of a full pass sees them.

    Attributes:
        columns: by name, first axis the rows.
        count: number of rows.
        index: their positions in the sample; None for rows without one (streams, fresh points).
        weight: (count,) importance weights that keep the mean of weight * integrand an unbiased estimate of
            the mean over the sample, None when all are one.
        whole: these are all rows of the sample, each once, so that averages over them are exact.
        stratified: the weights are those of batches that have rows of every group, also of rare ones.
    """

    columns: Mapping[str, Tensor]
    count: int
    index: Index | None = None
    weight: Tensor | None = None
    whole: bool = False
    stratified: bool = False

    @property
    def gathered(self) -> bool:
        """Whether the columns are those of the sample at `index`, and not given with the rows."""
        return isinstance(self.columns, Gathered)

    def every_other(self) -> slice:
        """Positions of the first of two interleaved half batches."""
        return slice(0, 2 * (self.count // 2), 2)


class Condition(NamedTuple):
    """What some rows count in averages over a condition and groups.

    Attributes:
        weight: (count,) of each row, None where all are one.
        codes: (count,) level of each row, None without groups.
        alike: all rows of a level count alike, as much as the stratum tells, instead of `weight`.
    """

    weight: Tensor | None
    codes: Tensor | None
    alike: bool = False
