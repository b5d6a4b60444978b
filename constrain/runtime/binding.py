"""Data bound to a program: columns as tensors on one device, group codes, shares of conditions.

This is the one place that looks at the data before solving. It refuses missing values, empty groups and
unknown levels (E124, E135), counts the shares that make conditional moments unbiased on minibatches, and
keeps the level names for the reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from constrain.errors import DataError, ModelingError
from constrain.language import nodes as n
from constrain.language.data import Data, suggest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from constrain.language.location import Location

__all__ = [
    "Index",
    "Population",
    "Rows",
    "Stratum",
    "as_array",
    "bind_codes",
    "bind_population",
    "codes_column",
    "level_codes",
    "parameter_values",
]

Index = Tensor | slice
"""Positions of some rows in their sample."""


class _Gathered(Mapping[str, Tensor]):
    """Columns of some rows, gathered when they are asked for: groups and conditions need none of them."""

    def __init__(self, columns: Mapping[str, Tensor], index: Index) -> None:
        self._columns = columns
        self._index = index
        self._made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._made:
            self._made[name] = self._columns[name][self._index]
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
    """

    columns: Mapping[str, Tensor]
    count: int
    index: Index | None = None
    weight: Tensor | None = None
    whole: bool = False

    def every_other(self) -> slice:
        """Positions of the first of two interleaved half batches."""
        return slice(0, 2 * (self.count // 2), 2)


def as_array(value: Any) -> NDArray[Any]:
    """A column (tensor, array, series, list) as a NumPy array on the host, without copying where possible."""
    if isinstance(value, Tensor):
        host = value.detach().cpu()
        return (host.float() if host.dtype == torch.bfloat16 else host).numpy()  # NumPy has no bfloat16
    to_numpy = getattr(value, "to_numpy", None)
    array = np.asarray(value if to_numpy is None else to_numpy())
    if array.dtype.kind == "O" and all(isinstance(entry, (int, float)) for entry in array.reshape(-1)):
        return array.astype(np.float64)
    return array


def _is_text(array: NDArray[Any]) -> bool:
    return array.dtype.kind in "OUS"


def level_codes(
    data: Data, columns: Sequence[str], reference: Sequence[Any] | None = None
) -> tuple[NDArray[np.int64], list[Any]]:
    """Integer codes of the levels of one column, or of the combinations that occur of several.

    Args:
        data: the sample.
        columns: one or more columns with one value per row.
        reference: levels of the training sample, which a hold-out sample must reuse.

    Returns:
        Codes of shape (rows,) and the sorted levels (tuples when there are several columns).

    Raises:
        DataError: E135 when the sample has a level that the reference has not.
    """
    parts = [as_array(data.values(c)) for c in columns]
    parts = [p.astype(str) if _is_text(p) else p for p in parts]
    uniques, inverses = zip(*(np.unique(p, return_inverse=True) for p in parts), strict=True)
    if len(parts) == 1:
        levels: list[Any] = uniques[0].tolist()
        codes = inverses[0]
    else:
        flat = np.ravel_multi_index(inverses, tuple(len(u) for u in uniques))
        found, codes = np.unique(flat, return_inverse=True)
        places = zip(*np.unravel_index(found, tuple(len(u) for u in uniques)), strict=True)
        levels = [tuple(u[i].item() for u, i in zip(uniques, place, strict=True)) for place in places]
    if reference is not None:
        known = {level: i for i, level in enumerate(reference)}
        unknown = [level for level in levels if level not in known]
        if unknown:
            raise DataError(
                "E135",
                f"{data.name}.{'/'.join(columns)} has the level {unknown[0]!r}, "
                "which the training sample lacks",
                fix="drop those rows, or merge rare levels before training",
            )
        codes = np.asarray([known[level] for level in levels], dtype=np.int64)[codes]
        levels = list(reference)
    return codes.reshape(-1).astype(np.int64), levels


@dataclass
class Stratum:
    """What a moment's condition and groups come to on one sample.

    Attributes:
        codes: (rows,) int64 level of each row, None without `by`.
        levels: level names, empty without `by`.
        mask: (rows,) bool, None without a condition.
        counts: (levels,) or () number of rows that count, float.
        weight: (rows,) 1{row counts} * rows / counts[level of row]: a moment is the plain mean of
            weight * integrand, summed per level. None without condition and groups.
        event: the rows that count among given columns, for rows without a position; None without condition.
        by: names of the group columns.
    """

    codes: Tensor | None
    levels: list[Any]
    mask: Tensor | None
    counts: Tensor
    weight: Tensor | None
    event: Callable[[Mapping[str, Tensor]], Tensor] | None = None
    by: tuple[str, ...] = ()


@dataclass
class Population:
    """A sample on a device.

    Attributes:
        data: the sample as the user gave it.
        rows: number of rows.
        columns: used columns as tensors with rows first; text columns as int64 codes.
        levels: names of the codes of text columns.
        strata: per (condition, group columns) its stratum.
        base: (rows,) weights of the rows (quadrature), None when all count alike.
    """

    data: Data
    rows: int
    columns: dict[str, Tensor]
    levels: dict[str, list[Any]]
    device: torch.device
    dtype: torch.dtype
    strata: dict[tuple[n.Node | None, tuple[str, ...]], Stratum] = field(
        default_factory=dict[tuple[n.Node | None, tuple[str, ...]], Stratum]
    )
    base: Tensor | None = None

    # ---- rows
    def take(self, index: Index, weight: Tensor | None = None) -> Rows:
        """The rows at these positions."""
        if isinstance(index, slice):
            start, stop, step = index.indices(self.rows)
            count = len(range(start, stop, step))
            whole = weight is None and count == self.rows
            return Rows(_Gathered(self.columns, index), count, index, weight, whole)
        return Rows(_Gathered(self.columns, index), int(index.shape[0]), index, weight)

    def chunks(self, size: int) -> Iterator[Rows]:
        """All rows, in chunks of at most `size`, each row once."""
        for start in range(0, self.rows, size):
            yield self.take(slice(start, min(start + size, self.rows)))

    def everything(self) -> Rows:
        """All rows at once."""
        return self.take(slice(0, self.rows))

    def some(self, count: int, generator: torch.Generator | None = None) -> Rows:
        """Random rows, with repetition."""
        return self.fresh(count, generator) or self.take(
            torch.randint(self.rows, (count,), generator=generator).to(self.device)
        )

    @property
    def endless(self) -> bool:
        """Whether training steps take new rows (`fresh`) instead of positions of a table."""
        return False

    def fresh(self, count: int, generator: torch.Generator | None = None) -> Rows | None:  # noqa: ARG002
        """New rows for a training step, None where steps take positions of a table."""
        return None

    def conditions(self, stratum: Stratum, rows: Rows) -> tuple[Tensor | None, Tensor | None]:
        """Weight (count,) and level code (count,) of each row for moments of this stratum; None without."""
        if rows.index is not None:
            codes = None if stratum.codes is None else stratum.codes[rows.index]
            weight = None if stratum.weight is None else stratum.weight[rows.index]
        else:
            codes = self.codes(stratum, rows.columns)
            weight = self._weight(stratum, rows, codes)
        if rows.weight is not None:
            weight = rows.weight if weight is None else weight * rows.weight.to(weight.dtype)
        return weight, codes

    def codes(self, stratum: Stratum, columns: Mapping[str, Tensor]) -> Tensor | None:
        """Level codes of rows without a position."""
        if not stratum.by:
            return None
        raise AssertionError(f"{self.data.name} has no groups by {columns}")  # only tables and streams have

    def _weight(self, stratum: Stratum, rows: Rows, codes: Tensor | None) -> Tensor | None:
        if stratum.event is None and codes is None:
            return None
        share = (stratum.counts if codes is None else stratum.counts[codes]).to(self.dtype)
        if stratum.event is None:
            return self.rows / share
        return torch.where(stratum.event(rows.columns), self.rows / share, share.new_zeros(()))

    # ---- levels and conditions
    def level_code(self, column: str, text: str, at: Location | None = None) -> int:
        """Code of a text level.

        Raises:
            DataError: E106 for a level that does not occur.
        """
        levels = self.levels.get(column)
        if levels is None:
            raise DataError(
                "E106",
                f"{self.data.name}.{column} is numeric and is compared with the text {text!r}",
                at=at,
                fix="a number",
            )
        if text not in levels:
            raise DataError(
                "E106",
                f"{self.data.name}.{column} has no level {text!r}{suggest(text, levels)}",
                at=at,
                fix=f"one of {', '.join(map(repr, levels[:8]))}",
            )
        return levels.index(text)

    def stratum(self, given: n.Node | None, by: tuple[n.Column, ...]) -> Stratum:
        """The stratum of a moment."""
        return self.strata[given, tuple(c.name for c in by)]

    def add_stratum(
        self,
        given: n.Node | None,
        by: tuple[n.Column, ...],
        mask: Tensor | None,
        shown: str,
        *,
        at: Location | None = None,
        reference: Population | None = None,
        event: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
    ) -> None:
        """Counts the rows of a condition (`mask`; `event` finds it in any columns) and its groups.

        Raises:
            DataError: E124 for a condition or group without rows (on a training sample).
        """
        names = tuple(c.name for c in by)
        known = None if reference is None else reference.strata[given, names].levels
        codes, levels = None, []
        if names:
            host, levels = level_codes(self.data, names, known)
            codes = torch.as_tensor(host, device=self.device)
        ones = torch.ones(self.rows, device=self.device) if mask is None else mask.to(torch.float32)
        ones = ones.to(torch.float64) if self.device.type != "mps" else ones
        if self.base is not None:
            ones = ones * self.base.to(ones.dtype)
        counts = ones.sum() if codes is None else ones.new_zeros(len(levels)).index_add(0, codes, ones)
        if reference is None and self.device.type != "meta":
            self._refuse_empty(counts, levels, names, shown, at)
        weight = None
        if mask is not None or codes is not None or self.base is not None:
            per_row = counts if codes is None else counts[codes]
            weight = torch.where(ones != 0, ones * self.rows / per_row, torch.zeros_like(ones)).to(self.dtype)
        self.strata[given, names] = Stratum(codes, levels, mask, counts, weight, event, names)

    def _refuse_empty(
        self, counts: Tensor, levels: list[Any], names: tuple[str, ...], shown: str, at: Location | None
    ) -> None:
        empty = cast("list[int]", (counts == 0).reshape(-1).nonzero().reshape(-1).tolist())
        if not empty:
            return
        if names:
            group = f"{'/'.join(names)}={levels[empty[0]]!r}"
            raise DataError(
                "E124",
                f"the group {group} of {self.data.name!r} has no row for {shown}: its average does not exist",
                at=at,
                fix="merge the group with another, or drop its rows",
            )
        raise DataError(
            "E124",
            f"no row of {self.data.name!r} satisfies the condition of {shown}: its average does not exist",
            at=at,
            fix="a condition that some rows satisfy",
        )


def _refuse_missing(data: Data, column: str, array: NDArray[Any]) -> None:
    """E124 for NaN, infinities and missing text."""
    if array.dtype.kind in "fc":
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    elif array.dtype.kind == "O":
        missing = [v is None or v != v for v in array.reshape(-1)]  # noqa: PLR0124  # true of NaN and NaT
        bad = np.asarray(missing).reshape(len(array), -1).any(axis=1)
    else:
        return
    if bad.any():
        rows = np.flatnonzero(bad)
        listed = ", ".join(map(str, rows[:3].tolist())) + (", …" if len(rows) > 3 else "")
        raise DataError(
            "E124",
            f"{data.name}.{column} has {len(rows)} missing or infinite value{'s'[: len(rows) > 1]} "
            f"(rows {listed})",
            fix="drop those rows or impute them before cn.Data",
        )


def bind_population(
    data: Data,
    used: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    reference: Population | None = None,
) -> Population:
    """Moves the used columns of a sample to a device.

    Floating columns take `dtype`; integer and boolean ones become int64; text becomes codes.

    Raises:
        DataError: E106 (column missing in a hold-out), E124 (missing values), E135 (unknown level).
    """
    columns: dict[str, Tensor] = {}
    levels: dict[str, list[Any]] = {}
    for name in used:
        if name not in data.columns:
            raise DataError("E106", f"data {data.name!r} has no column {name!r}{suggest(name, data.columns)}")
        raw = data.values(name)
        if isinstance(raw, Tensor) and raw.device.type != "cpu":
            finite = (
                bool(torch.isfinite(raw).all())
                if raw.is_floating_point() and raw.device.type != "meta"
                else True
            )
            if not finite:
                _refuse_missing(data, name, as_array(raw))
            columns[name] = raw.detach().to(
                device=device, dtype=dtype if raw.is_floating_point() else torch.int64
            )
            continue
        array = as_array(raw)
        _refuse_missing(data, name, array)
        if _is_text(array):
            known = None if reference is None else reference.levels.get(name)
            codes, levels[name] = level_codes(data, [name], known)
            columns[name] = torch.as_tensor(codes, device=device)
        else:
            tensor = torch.as_tensor(array.copy() if not array.flags.writeable else array)
            columns[name] = tensor.to(
                device=device, dtype=dtype if tensor.is_floating_point() else torch.int64
            )
    return Population(data, len(data), columns, levels, device, dtype)


def codes_column(columns: Sequence[str]) -> str:
    """Name of the derived column that holds the level codes of these columns."""
    return "#" + ",".join(columns)


def bind_codes(
    population: Population, roots: Sequence[n.Node], data: Data, reference: Population | None = None
) -> None:
    """Adds the derived columns of level codes that expressions look thresholds up with (`nodes.Codes`).

    Args:
        population: of the sample that stands in for `data`.
        roots: the expressions.
        data: the sample as the problem names it.
        reference: the training population, whose levels a hold-out must reuse.

    Raises:
        DataError: E135 for an unknown level.
    """
    for columns in {x.columns for x in n.postorder(*roots) if isinstance(x, n.Codes) and x.data is data}:
        name = codes_column(columns)
        known = None if reference is None else reference.levels[name]
        codes, population.levels[name] = level_codes(population.data, columns, known)
        population.columns[name] = torch.as_tensor(codes, device=population.device)


def parameter_values(
    symbols: Sequence[n.ParameterSymbol], overrides: Mapping[str, Any] | None = None
) -> dict[n.ParameterSymbol, Any]:
    """Current values of parameters.

    Raises:
        ModelingError: E127 for one without a value, or an override of an unknown name.
    """
    given = dict(overrides or {})
    unknown = sorted(set(given) - {s.name for s in symbols})
    if unknown:
        names = [s.name for s in symbols]
        raise ModelingError("E127", f"no Parameter is named {unknown[0]!r}{suggest(unknown[0], names)}")
    values: dict[n.ParameterSymbol, Any] = {}
    for symbol in symbols:
        value = given.get(symbol.name, symbol.value)
        if value is None:
            raise ModelingError(
                "E127",
                f"Parameter {symbol.name!r} has no value",
                fix=f'{symbol.name}.value = ..., or solve(params={{"{symbol.name}": ...}})',
            )
        values[symbol] = value
    return values
