"""Data bound to a program: columns as tensors on one device, group codes, shares of conditions.

This is the one place that looks at the data before solving. It refuses missing values, empty groups and
unknown levels (E124, E135), counts the shares that make conditional moments unbiased on minibatches, and
keeps the level names for the reports.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from constrain._lazy import attribute, language_printing
from constrain.errors import DataError, ModelingError
from constrain.language import nodes as n
from constrain.language.data import Data, suggest
from constrain.language.regions import Region
from constrain.language.streams import Stream
from constrain.runtime.columns import (
    Column,
    as_array,
    level_codes,
    read_columns,
    refuse_missing,
)
from constrain.runtime.encoding import Encoder, Kind, codes_column, finite_rows, tensor_of
from constrain.runtime.rows import Condition, Gathered, Index, Rows, picked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from constrain.language.location import Location

__all__ = [
    "Kind",
    "Population",
    "Request",
    "Stratum",
    "as_array",
    "bind_codes",
    "bind_population",
    "codes_column",
    "level_codes",
    "listed_rows",
    "parameter_values",
    "refuse_unknown_columns",
]

PLACED = 1_000_000
"""Rows whose levels are looked up at a time."""


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
        places: where the groups are levels that the problem lists, the place of each row's level among them,
            -1 for others, among given columns; else None.
        alike: whether every row counts, those of a level alike.
    """

    codes: Tensor | None
    levels: list[Any]
    mask: Tensor | None
    counts: Tensor
    weight: Tensor | None
    event: Callable[[Mapping[str, Tensor]], Tensor] | None = None
    by: tuple[str, ...] = ()
    places: Callable[[Mapping[str, Tensor]], Tensor] | None = None
    alike: bool = False
    _factors: dict[float, Tensor] = field(default_factory=dict[float, Tensor])

    def factors(self, over: float) -> Tensor:
        """(levels,) weight of a row of each level over a number, made once for each number."""
        known = self._factors.get(over)
        if known is None:
            assert self.weight is not None  # there are levels
            found = self.counts.sum() / (self.counts.clamp(min=1) * over)
            known = self._factors[over] = found.to(self.weight.dtype)
        return known


@dataclass(frozen=True)
class Request:
    """A condition and groups that are to be counted for a moment.

    Attributes:
        given: the condition as a node, None for all rows.
        by: the group columns.
        shown: the moment, in messages.
        at: where it was written.
        event: the rows that satisfy the condition, among given columns; None without one.
    """

    given: n.Node | None
    by: tuple[n.Column | n.Among, ...]
    shown: str
    at: Location | None = None
    event: Callable[[Mapping[str, Tensor]], Tensor] | None = None


@dataclass
class Population:
    """A sample on a device.

    Attributes:
        data: the sample as the user gave it.
        rows: number of rows.
        columns: used columns as tensors with rows first; text columns as int64 codes.
        levels: names of the codes of text columns.
        strata: per (condition, group columns) its stratum.
        base: (rows,) weights of the rows (quadrature) in `wide`, None when all count alike.
        coded: group columns that have a derived column of codes.
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
    coded: list[tuple[str, ...]] = field(default_factory=list[tuple[str, ...]])

    # ---- rows
    def take(self, index: Index, weight: Tensor | None = None) -> Rows:
        """The rows at these positions."""
        if isinstance(index, slice):
            start, stop, step = index.indices(self.rows)
            count = len(range(start, stop, step))
            whole = weight is None and count == self.rows
            return Rows(Gathered(self.columns, index), count, index, weight, whole)
        return Rows(Gathered(self.columns, index), int(index.shape[0]), index, weight)

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

    def spread(self, count: int) -> Rows:
        """At most about `count` rows, evenly spread over the sample; always the same ones."""
        return self.take(slice(0, self.rows, max(1, self.rows // count)))

    def kind(self, name: str) -> Kind | None:
        """What a column holds; None for one that the program does not use."""
        column = self.columns.get(name)
        if column is None or name in map(codes_column, self.coded):
            return None
        return Kind(tuple(column.shape[1:]), column.is_floating_point(), self.levels.get(name))

    @property
    def batch(self) -> int | None:
        """Rows that a training step takes unless it is told; None for the solver's choice."""
        return None

    @property
    def sampled(self) -> bool:
        """Whether averages over all rows have a sampling error; those of quadrature have none."""
        return True

    @property
    def positioned(self) -> bool:
        """Whether fresh rows have positions, so that each can have a multiplier of its own."""
        return False

    @property
    def boundless(self) -> bool:
        """Whether fresh rows are draws from a distribution, so that there is no pass over them."""
        return False

    def drawn(self, given: Any) -> Rows | None:  # noqa: ARG002
        """Rows of a distribution as a user's loop asks for them: a number of draws, or points; else None."""
        return None

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
            codes = None if stratum.codes is None else picked(stratum.codes, rows.index)
            weight = None if stratum.weight is None else picked(stratum.weight, rows.index)
        else:
            codes = self.codes(stratum, rows.columns)
            weight = self._weight(stratum, rows, codes)
        if rows.weight is not None:
            weight = rows.weight if weight is None else weight * rows.weight.to(weight.dtype)
        return weight, codes

    def condition(self, stratum: Stratum, rows: Rows) -> Condition:
        """`conditions` without weights where all rows of a level count alike."""
        if not stratum.alike or stratum.codes is None or rows.index is None or rows.weight is not None:
            return Condition(*self.conditions(stratum, rows))
        return Condition(None, picked(stratum.codes, rows.index), alike=True)

    def members(self, stratum: Stratum, rows: Rows) -> tuple[Tensor | None, Tensor | None]:
        """What each row of a full pass counts in sums that are divided by `stratum.counts`, and its level.

        Weights of training steps are rounded to their precision; these are 0 and 1, so that a rate of k out
        of n rows is k / n. Of quadrature they are the weights of the points.

        Returns:
            Numbers (count,) in `wide`, None where every row counts 1; level codes (count,), None without.
        """
        if rows.index is None:
            mask = None if stratum.event is None else stratum.event(rows.columns)
            return None if mask is None else mask.to(self.wide), self.codes(stratum, rows.columns)
        codes = None if stratum.codes is None else picked(stratum.codes, rows.index)
        mask = None if stratum.mask is None else picked(stratum.mask, rows.index).to(self.wide)
        if self.base is None:
            return mask, codes
        base = picked(self.base, rows.index)
        return base if mask is None else mask * base, codes

    @property
    def wide(self) -> torch.dtype:
        """The precision of sums over all rows: float64 where the device has it."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def codes(self, stratum: Stratum, columns: Mapping[str, Tensor]) -> Tensor | None:
        """Level codes of rows without a position, which `given` and streams have among their columns."""
        if stratum.places is not None:
            return stratum.places(columns).clamp(min=0)
        return columns[codes_column(stratum.by)] if stratum.by else None

    def given(self, columns: Mapping[str, Any], weight: Any = None) -> Rows:
        """Rows that are no rows of the sample, such as those of a loader.

        Args:
            columns: column to array-like; columns that the program does not use are ignored.
            weight: (rows,) importance weights.

        Raises:
            DataError: E106 (a missing column), E112 (lengths), E124, E135, E169.
        """
        found = self.encoder().encode(columns)
        lengths = {name: len(column) for name, column in found.items()}
        count = next(iter(lengths.values()), 0)
        if weight is not None:
            weight = torch.as_tensor(weight).to(device=self.device, dtype=self.dtype)
            lengths["weight"] = len(weight)
        if len(set(lengths.values())) > 1:
            own = ((name, length) for name, length in lengths.items() if not name.startswith("#"))
            listed = ", ".join(f"{name} {length}" for name, length in own)
            raise DataError("E112", f"rows of {self.data.name!r} whose columns differ in length: {listed}")
        return Rows(found, count, None, weight)

    def encoder(self) -> Encoder:
        """Encodes rows as those of this sample are."""
        kinds = {name: kind for name in self.columns if (kind := self.kind(name)) is not None}
        leveled = [s for s in self.strata.values() if s.by and s.places is None]
        groups = {stratum.by: stratum.levels for stratum in leveled}
        groups |= {columns: self.levels[codes_column(columns)] for columns in self.coded}
        return Encoder(self.data.name, kinds, groups, self.device, self.dtype)

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

    def stratum(self, given: n.Node | None, by: tuple[n.Column | n.Among, ...]) -> Stratum:
        """The stratum of a moment."""
        return self.strata[given, tuple(c.name for c in by)]

    def add_codes(self, columns: tuple[str, ...], known: Sequence[Any] | None) -> None:
        """Adds a derived column of level codes.

        Raises:
            DataError: E135 for a level that is not one of the known ones.
        """
        name = codes_column(columns)
        codes, self.levels[name] = level_codes(self.data, columns, known)
        self.columns[name] = torch.as_tensor(codes, device=self.device)
        self.coded.append(columns)

    def add_strata(
        self, requests: Sequence[Request], chunk: int, reference: Population | None = None
    ) -> None:
        """Counts the rows of conditions and groups, `chunk` rows at a time.

        Raises:
            DataError: E124 for a condition or group without rows (on a training sample), E135.
        """
        for r in requests:
            mask = (
                None if r.event is None else torch.cat([r.event(rows.columns) for rows in self.chunks(chunk)])
            )
            self.add_stratum(r.given, r.by, mask, r.shown, at=r.at, reference=reference, event=r.event)

    def add_stratum(
        self,
        given: n.Node | None,
        by: tuple[n.Column | n.Among, ...],
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
        codes, levels, places = None, [], None
        listed = by[0] if by else None
        same = next((s for (_, columns), s in self.strata.items() if columns == names), None)
        if isinstance(listed, n.Among):
            levels, places = list(listed.values), self.places(listed)
            found = torch.cat([places(rows.columns) for rows in self.chunks(PLACED)])
            codes, event = found.clamp(min=0), listed_rows(event, places)
            mask = found >= 0 if mask is None else mask & (found >= 0)
        elif same is not None:
            codes, levels = same.codes, same.levels
        elif names:
            host, levels = level_codes(self.data, names, known)
            codes = torch.as_tensor(host, device=self.device)
        ones = (
            torch.ones(self.rows, dtype=self.wide, device=self.device) if mask is None else mask.to(self.wide)
        )
        if self.base is not None:
            ones = ones * self.base
        counts = ones.sum() if codes is None else ones.new_zeros(len(levels)).index_add(0, codes, ones)
        if reference is None and self.device.type != "meta":
            self.refuse_empty(counts, Request(given, by, shown, at), levels)
        weight = None
        if mask is not None or codes is not None or self.base is not None:
            per_row = counts if codes is None else counts[codes]
            weight = torch.where(ones != 0, ones * self.rows / per_row, torch.zeros_like(ones)).to(self.dtype)
        alike = codes is not None and self.base is None
        alike = alike and (mask is None or (not mask.is_meta and bool(mask.all())))
        self.strata[given, names] = Stratum(codes, levels, mask, counts, weight, event, names, places, alike)

    def places(self, group: n.Among) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """Finds the place of each row's level among the listed ones, -1 for others, in given columns.

        Raises:
            DataError: E106 for a text that is no level, E147 for a number as the level of a text column.
        """
        column = group.column.name
        codes = [self._level(column, v, x) for v, x in zip(group.values, group.events, strict=True)]
        known = self.kind(column)
        dtype = self.dtype if known is not None and known.floating else torch.int64
        ordered, order = torch.sort(torch.tensor(codes, dtype=dtype, device=self.device))

        def find(columns: Mapping[str, Tensor]) -> Tensor:
            found = columns[column].to(ordered.dtype).contiguous()
            near = torch.searchsorted(ordered, found).clamp(max=len(ordered) - 1)
            return torch.where(ordered[near] == found, order[near], -1)

        return find

    def _level(self, column: str, value: Any, event: n.Comparison) -> Any:
        """The number that stands for a level in a column."""
        if isinstance(value, str):
            return self.level_code(column, value, event.loc)
        if column in self.levels:
            raise DataError(
                "E147",
                f"the text column {self.data.name}.{column} is used as a number in "
                f"{language_printing().text(event, limit=80)}",
                at=event.loc,
                fix=f'a comparison with one of its texts, {self.data.name}.{column} == "..."',
            )
        return value

    def refuse_empty(self, counts: Tensor, request: Request, levels: Sequence[Any]) -> None:
        """E124 for a condition or group without rows: its average does not exist."""
        empty = cast("list[int]", (counts == 0).reshape(-1).nonzero().reshape(-1).tolist())
        if not empty:
            return
        listed = request.by[0] if request.by else None
        if isinstance(listed, n.Among):
            one = listed.events[empty[0]]
            condition = one if request.given is None else n.Logic("and", (request.given, one))
            shown = str(language_printing().text(condition, limit=80))
            what = f"no row of {self.data.name!r} satisfies the condition {shown} of {request.shown}"
            request = replace(request, at=one.loc or request.at)
            fix = "a condition that some rows satisfy"
        elif request.by:
            group = f"{'/'.join(c.name for c in request.by)}={levels[empty[0]]!r}"
            what = f"the group {group} of {self.data.name!r} has no row for {request.shown}"
            fix = "merge the group with another, or drop its rows"
            if request.given is None:  # only a level that the type of the column declares can have no rows
                what += " (a level that its column declares)"
                fix = "a column without the level, such as column.cat.remove_unused_categories() of pandas"
        else:
            what = f"no row of {self.data.name!r} satisfies the condition of {request.shown}"
            fix = "a condition that some rows satisfy"
        raise DataError("E124", f"{what}: its average does not exist", at=request.at, fix=fix)


def listed_rows(
    event: Callable[[Mapping[str, Tensor]], Tensor] | None, places: Callable[[Mapping[str, Tensor]], Tensor]
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Which rows satisfy a condition and have a listed level."""

    def holds(columns: Mapping[str, Tensor]) -> Tensor:
        listed = places(columns) >= 0
        return listed if event is None else listed & event(columns)

    return holds


def bind_population(
    data: Data,
    used: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    reference: Population | None = None,
) -> Population:
    """Moves the used columns of a sample to a device.

    Floating columns take `dtype`; integer and boolean ones become int64; text becomes codes. Of a hold-out,
    columns take the kind that they have in the training sample: whole numbers that were read as floating ones
    are integers again.

    Args:
        data: the sample.
        used: names of the columns.
        device: where to.
        dtype: of floating columns.
        reference: the training population, whose levels and kinds of columns a hold-out must reuse.

    Raises:
        DataError: E106 (column missing in a hold-out), E124 (missing values), E135 (unknown level), E167,
            E168, E169 (a column of another kind or shape than in the training sample).
    """
    if isinstance(data, Region):
        bound: Population = attribute("constrain.runtime.regions:bind_region")(data, device, dtype)
        return bound
    if isinstance(data, Stream):
        return attribute("constrain.runtime.streams:bind_stream")(data, used, device, dtype, reference)  # type: ignore[no-any-return]
    refuse_unknown_columns(data, used)
    there = {name: raw for name in used if _on_device(raw := data.values(name))}
    refuse_missing(data.name, {name: finite_rows(raw) for name, raw in there.items()})
    read = read_columns(data, [name for name in used if name not in there])
    columns: dict[str, Tensor] = {}
    levels: dict[str, list[Any]] = {}
    for name in used:
        if name in there:
            column = Column(np.zeros(0))
            tensor = there[name].detach()
        else:
            column = read[name]
            tensor = tensor_of(column.values)
        known = None if reference is None else reference.kind(name)
        if known is not None:
            tensor = known.fit(tensor, column.texts, f"{data.name}.{name}")
        if column.texts is not None:
            levels[name] = list(column.texts) if known is None else list(known.texts or ())
        columns[name] = tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else torch.int64)
    return Population(data, len(data), columns, levels, device, dtype)


def refuse_unknown_columns(data: Data, used: Sequence[str]) -> None:
    """E106 for a column that a sample lacks."""
    for name in used:
        if name not in data.columns:
            raise DataError(
                "E106",
                f"data {data.name!r} has no column {name!r}{suggest(name, data.columns)}",
                fix=f"the columns that the problem uses: {', '.join(used)}",
            )


def _on_device(raw: Any) -> bool:
    return isinstance(raw, Tensor) and raw.device.type != "cpu"


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
    wanted = {x.columns for x in n.postorder(*roots) if isinstance(x, n.Codes) and x.data is data}
    for columns in sorted(wanted):
        population.add_codes(columns, None if reference is None else reference.levels[codes_column(columns)])


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
