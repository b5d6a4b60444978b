"""Rows that come from elsewhere in the terms of a bound sample: kinds of columns, codes of texts and groups.

A hold-out, the batches of a stream and the rows that a training loop of one's own reads are all encoded by
what was learned from the training sample.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from constrain.errors import DataError, ModelingError
from constrain.language.data import suggest
from constrain.runtime.columns import Column, combine, match_levels, read_column, refuse_missing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["Encoder", "Kind", "check_positions", "codes_column", "finite_rows", "tensor_of"]


NONE: tuple[int, list[int]] = (0, [])
"""Number of rows with missing values and the first of them: there are none."""


def codes_column(columns: Sequence[str]) -> str:
    """Name of the derived column that holds the level codes of these columns."""
    return "#" + ",".join(columns)


def tensor_of(array: NDArray[Any]) -> Tensor:
    """An array as a tensor that may be written to."""
    return torch.as_tensor(array if array.flags.writeable else array.copy())


def finite_rows(values: Tensor) -> tuple[int, list[int]]:
    """Number of rows with an entry that is not finite, and the first of them."""
    if not values.is_floating_point() or values.device.type == "meta" or bool(torch.isfinite(values).all()):
        return NONE
    rows = (~torch.isfinite(values)).reshape(len(values), -1).any(1).nonzero().reshape(-1)
    return len(rows), cast("list[int]", rows[:3].tolist())


@dataclass(frozen=True)
class Kind:
    """What a column of the training sample holds, which one of another sample has to hold as well.

    Attributes:
        shape: of a row.
        floating: floating-point numbers, and not integers, truth values or codes of texts.
        texts: names of the codes of a text column; None for numbers.
    """

    shape: tuple[int, ...]
    floating: bool
    texts: list[Any] | None

    def fit(self, values: Tensor, texts: Sequence[Any] | None, shown: str) -> Tensor:
        """Another sample's column, (rows, ...), in the codes and the type of the training sample.

        Raises:
            DataError: E169 for a column of another kind or row shape, E135 for an unknown level.
        """
        if (texts is None) != (self.texts is None):
            own, other = ("texts", "numbers") if texts is not None else ("numbers", "texts")
            raise DataError(
                "E169",
                f"{shown} holds {own}, and that column of the training sample {other}",
                fix="the same type of column in both samples",
            )
        if tuple(values.shape[1:]) != self.shape:
            raise DataError(
                "E169",
                f"{shown} has rows of shape {tuple(values.shape[1:])}, those of the training sample have "
                f"{self.shape}",
                fix="the same features, in the same order",
            )
        if texts is not None and self.texts is not None:
            return torch.as_tensor(match_levels(values.numpy(), texts, self.texts, shown))
        whole = values.is_floating_point() and not self.floating and values.device.type != "meta"
        return values.to(torch.int64) if whole and bool((values == values.round()).all()) else values


@dataclass
class Encoder:
    """Encodes raw columns as a bound sample holds its own.

    Attributes:
        data: name of the sample, for messages.
        kinds: per used column.
        groups: per tuple of group columns the names of their levels (tuples when there are several columns).
        device: where tensors go.
        dtype: of floating columns.
    """

    data: str
    kinds: Mapping[str, Kind]
    groups: Mapping[tuple[str, ...], Sequence[Any]]
    device: torch.device
    dtype: torch.dtype
    _order: dict[tuple[str, ...], dict[Any, int]] = field(
        default_factory=dict[tuple[str, ...], dict[Any, int]], init=False
    )

    def encode(self, raw: Mapping[str, Any], *, check: bool = True) -> dict[str, Tensor]:
        """Columns as tensors with the rows first, and the derived columns of group codes.

        Args:
            raw: column to array-like; columns that are not used are ignored.
            check: refuse missing values.

        Raises:
            DataError: E106 (a missing column), E124, E135, E167, E168, E169.
        """
        columns: dict[str, Tensor] = {}
        read: dict[str, Column] = {}
        grouped = {name for names in self.groups for name in names}
        for name, kind in self.kinds.items():
            if name not in raw:
                raise DataError(
                    "E106", f"rows of {self.data!r} without the column {name!r}{suggest(name, raw)}"
                )
            value, texts = raw[name], None
            if isinstance(value, Tensor) and name not in grouped:
                tensor = value.detach()
                missing = finite_rows(tensor) if check else NONE
            else:
                read[name] = column = read_column(value, f"{self.data}.{name}")
                tensor, texts = tensor_of(column.values), column.texts
                missing = NONE if column.missing is None or not check else _counted(column.missing)
            refuse_missing(self.data, {name: missing})
            tensor = kind.fit(tensor, texts, f"{self.data}.{name}")
            floating = kind.floating or tensor.is_floating_point()
            columns[name] = tensor.to(device=self.device, dtype=self.dtype if floating else torch.int64)
        for names in self.groups:
            codes = torch.as_tensor(self.codes(names, [read[c] for c in names]))
            columns[codes_column(names)] = codes.to(self.device)
        return columns

    def codes(self, names: tuple[str, ...], columns: Sequence[Column]) -> NDArray[np.int64]:
        """Codes of the groups that rows belong to.

        Raises:
            DataError: E135 for a level, or combination of levels, that the sample lacks.
        """
        found, inverse = combine(columns)
        shown = f"{self.data}.{'/'.join(names)}"
        return match_levels(inverse, found, self.groups[names], shown)


def check_positions(data: str, rows: int, index: Any, weight: Any) -> None:
    """Refuses positions of rows that a sample does not have, and weights that do not fit them.

    What lies on a device is not looked into: that would wait for it.

    Args:
        data: name of the sample.
        rows: number of its rows.
        index: a slice, a range or an array-like of positions; a mask of all rows.
        weight: an array-like of importance weights, or None.

    Raises:
        ModelingError: E140 for positions, E112 for weights.
    """
    if weight is None and _within(index, rows):
        return
    if isinstance(index, slice):
        index = range(*index.indices(rows))
    if isinstance(index, range):
        count, ends = len(index), [index[0], index[-1]] if index else []
    else:
        found = _positions(data, rows, index)
        count = int(found.sum()) if found.dtype is torch.bool else len(found)
        on_host = found.device.type == "cpu" and found.dtype is not torch.bool
        ends = [int(end) for end in torch.aminmax(found)] if on_host and count else []
    if not count:
        raise _no_batch(f"a batch of {data!r} without rows", data)
    for place in ends:
        if not 0 <= place < rows:
            raise _no_batch(f"{data!r} has {rows} rows and no row {place}", data)
    if weight is not None:
        given = torch.as_tensor(weight)
        if tuple(given.shape) != (count,) or (given.device.type == "cpu" and not bool((given >= 0).all())):
            raise ModelingError(
                "E112",
                f"{count} rows of {data!r} need {count} importance weights that are not negative, got "
                f"{tuple(given.shape) if given.shape != (count,) else 'negative ones'}",
                fix="1 / (rows * probability) for each row",
            )


def _within(index: Any, rows: int) -> bool:
    """Whether these are positions on the host, of rows that there are: what most steps are made with."""
    if not isinstance(index, Tensor) or not index.is_cpu:
        return False
    if index.dtype is not torch.int64 or index.dim() != 1 or not index.shape[0]:
        return False
    low, high = torch.aminmax(index)
    return low.item() >= 0 and high.item() < rows


def _positions(data: str, rows: int, index: Any) -> Tensor:
    """Positions or a mask as a tensor of one axis (E140)."""
    try:
        found = torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError):
        raise _no_batch(f"{index!r:.60} are no positions of rows of {data!r}", data) from None
    mask = found.dtype is torch.bool
    if found.dim() != 1 or (found.is_floating_point() and len(found)) or found.is_complex():
        what = f"{str(found.dtype).removeprefix('torch.')} of shape {tuple(found.shape)}"
        raise _no_batch(f"positions of rows of {data!r} are integers in one axis, got {what}", data)
    if mask and len(found) != rows:
        raise _no_batch(f"a mask of {len(found)} entries for the {rows} rows of {data!r}", data)
    return found


def _no_batch(what: str, data: str) -> ModelingError:
    return ModelingError("E140", what, fix=f"{data}.rows([0, 5, 9]), {data}.rows(range(64))")


def _counted(missing: NDArray[np.bool_]) -> tuple[int, list[int]]:
    rows = np.flatnonzero(missing)
    return len(rows), rows[:3].tolist()
