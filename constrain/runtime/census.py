"""What passes over a stream find out: counts, levels and kinds of columns, rows of conditions and groups."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from constrain.errors import DataError
from constrain.language.data import column_shape
from constrain.runtime.columns import Column, combine, match_levels, pick, read_column

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.language.streams import Stream

__all__ = ["Census", "Kept", "Summary", "Sums", "Tally", "count_rows"]

MOST_VALUES = 200
"""Different numbers of a column that are kept."""

Sums = tuple[float, float]
"""Sum of a column over a pass, and sum of its absolute values."""


# ------------------------------------------------------------------------------------------ first pass
@dataclass
class Summary:
    """What one column comes to over a pass.

    Attributes:
        seen: a batch without missing values was met.
        floating: some batch holds floating-point numbers.
        texts: rows per level of a text column as they were met, None for numbers.
        declared: the levels are declared by the type of the column, in this order.
        missing: rows with missing values, and the first of them.
        sums: of the numbers.
        values: different numbers of a column of single numbers: all of few, of many the least and the largest
            ones and one that is not whole.
    """

    seen: bool = False
    floating: bool = False
    texts: Counter[str] | None = None
    declared: bool = False
    missing: int = 0
    first: list[int] = field(default_factory=list[int])
    sums: Sums = (0.0, 0.0)
    values: NDArray[Any] = field(default_factory=lambda: np.zeros(0))

    def meet(self, values: NDArray[Any]) -> None:
        """Takes the numbers of a batch."""
        met = np.union1d(self.values, values)
        if len(met) > MOST_VALUES:
            broken = met[met % 1 != 0][:1]
            half = MOST_VALUES // 2 - 1
            met = np.concatenate([met[:half], broken, met[-half:]])
        self.values = met

    def levels(self) -> list[str] | None:
        """Levels of a text column in their order."""
        if self.texts is None:
            return None
        return list(self.texts) if self.declared else sorted(self.texts)

    def expected(self, levels: Sequence[str] | None) -> Sums:
        """What the encoded column sums up to: of texts their codes in these levels."""
        if self.texts is None or levels is None:
            return self.sums
        total = float(sum(levels.index(text) * rows for text, rows in self.texts.items() if rows))
        return total, total


class Census:
    """The first pass: counts, levels, kinds and a hash of the used columns."""

    def __init__(self, stream: Stream, used: Sequence[str]) -> None:
        self.stream = stream
        self.columns = {name: Summary() for name in used}
        self.rows = 0
        self.bytes = 0
        self._digests = {name: hashlib.sha256() for name in used}
        for raw in stream.batches():
            for name, summary in self.columns.items():
                column = read_column(raw[name], f"{stream.name}.{name}")
                self.bytes += column.values.nbytes
                self._take(name, summary, column)
            self.rows += count_rows(raw)

    @property
    def digest(self) -> str:
        """16 digits of the SHA-256 over names and values of the columns, in the order of a pass."""
        whole = hashlib.sha256(f"{self.rows}".encode())
        for name, digest in sorted(self._digests.items()):
            whole.update(name.encode() + digest.digest())
        return whole.hexdigest()[:16]

    def _take(self, name: str, summary: Summary, column: Column) -> None:
        if column.missing is not None:
            places = np.flatnonzero(column.missing)
            summary.missing += len(places)
            summary.first += (places[: 3 - len(summary.first)] + self.rows).tolist()
            return
        if (column.texts is None) != (summary.texts is None) and summary.seen:
            raise DataError(
                "E168",
                f"{self.stream.name}.{name} holds texts in some batches and numbers in others",
                fix="one kind of entries, numbers or texts",
            )
        summary.seen = True
        if column.texts is None:
            values = column.values
            size = float(np.abs(values).sum(dtype=np.float64)) if values.dtype.kind != "b" else 0.0
            total = float(values.sum(dtype=np.float64))
            summary.sums = summary.sums[0] + total, summary.sums[1] + (size or abs(total))
            summary.floating |= values.dtype.kind == "f"
            if values.ndim == 1:
                summary.meet(values)
            self._digests[name].update(np.ascontiguousarray(values).tobytes())
            return
        texts = Counter[str]() if summary.texts is None else summary.texts
        counts = np.bincount(column.values, minlength=len(column.texts)).tolist()
        for text, count in zip(column.texts, counts, strict=True):
            texts[text] += count
        summary.texts, summary.declared = texts, column.declared is not None
        self._digests[name].update("\x1f".join([column.texts[int(i)] for i in column.values]).encode())


def count_rows(raw: Mapping[str, Any]) -> int:
    """Number of rows of a batch."""
    shape = column_shape(next(iter(raw.values())))
    return shape[0] if shape else 0


# --------------------------------------------------------------------------------------- second pass
class Tally:
    """Counts the rows of a condition by group, batch after batch.

    Args:
        by: the group columns.
        event: rows that satisfy the condition, among encoded columns; None for all rows.
        places: where the groups are listed levels, the place of each row's level among them (-1: none).
    """

    def __init__(
        self,
        by: tuple[str, ...],
        event: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
        places: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
    ) -> None:
        self.by = by
        self.event = event
        self.places = places
        self.total = 0.0
        self._met: dict[Any, int] = {}
        self._counts: dict[Any, float] = {}

    @property
    def trivial(self) -> bool:
        """Whether all rows count, in one group."""
        return not self.by and self.event is None

    def add(self, raw: Mapping[str, Any], columns: Mapping[str, Tensor], shown: str) -> None:
        """Takes a batch, as it came and encoded."""
        found = None if self.event is None else self.event(columns)
        mask = None if found is None or found.is_meta else found.cpu().numpy().astype(np.float64)
        if not self.by:
            self.total += float(mask.sum()) if mask is not None else count_rows(raw)
            return
        if self.places is not None:
            own = self.places(columns)
            for place, listed in enumerate(() if own.is_meta else np.bincount(own.cpu() + 1, mask)[1:]):
                self._counts[place] = self._counts.get(place, 0.0) + float(listed)
            return
        levels, codes = combine([read_column(raw[c], f"{shown}.{c}") for c in self.by])
        met = np.bincount(codes, minlength=len(levels)).tolist()
        counts = np.bincount(codes, weights=mask, minlength=len(levels)).tolist()
        for level, rows, counted in zip(levels, met, counts, strict=True):
            self._met[level] = self._met.get(level, 0) + rows
            self._counts[level] = self._counts.get(level, 0.0) + counted

    def levels(self, orders: Sequence[Mapping[Any, int] | None]) -> list[Any]:
        """The levels that were met, sorted by the order of each group column (None: by value)."""
        if len(self.by) == 1:
            order = orders[0]
            return sorted(self._met) if order is None else sorted(self._met, key=order.__getitem__)

        def key(level: tuple[Any, ...]) -> list[Any]:
            return [v if order is None else order[v] for v, order in zip(level, orders, strict=True)]

        return sorted(self._met, key=key)

    def counts(self, levels: Sequence[Any], shown: str) -> list[float]:
        """Rows per level.

        Raises:
            DataError: E135 for a row of another level.
        """
        if self.places is not None:
            return [self._counts.get(place, 0.0) for place in range(len(levels))]
        met = [level for level, rows in self._met.items() if rows]
        match_levels(np.arange(len(met)), met, levels, shown)
        return [self._counts.get(level, 0.0) for level in levels]


class Kept:
    """Evenly spread rows of a pass, as they came: `stride` rows apart."""

    def __init__(self, names: Sequence[str], stride: int) -> None:
        self.stride = stride
        self.place = 0
        self._pieces: dict[str, list[Any]] = {name: [] for name in names}

    def add(self, raw: Mapping[str, Any]) -> None:
        """Takes a batch."""
        count = count_rows(raw)
        chosen = np.arange(-self.place % self.stride, count, self.stride)
        self.place += count
        for name, pieces in self._pieces.items():
            if len(chosen):
                pieces.append(pick(raw[name], chosen))

    def columns(self) -> dict[str, Any]:
        """The rows by column, as arrays or lists of texts."""
        found: dict[str, Any] = {}
        for name, pieces in self._pieces.items():
            columns = [read_column(piece, name) for piece in pieces]
            if columns[0].texts is None:
                found[name] = np.concatenate([c.values for c in columns])
            else:
                found[name] = [cast("list[str]", c.texts)[i] for c in columns for i in c.values.tolist()]
        return found
