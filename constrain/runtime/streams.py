"""Samples that are read batch by batch, bound to a program: `StreamPopulation`.

Binding takes two passes over all rows. The first counts rows and missing values and collects the levels of
text columns (`census.Census`); the second counts conditions and groups (`census.Tally`), and keeps some rows
for what only needs an impression of the sample: scales of surrogates and steps. Every later full pass reads
all rows once, in the memory of a batch, and is compared with the first: a sample is a set of rows, which a
pass may permute and must not change. What it came to is remembered (`known.py`).

One pass would not do. A condition is computed on encoded rows, and only all rows tell how to encode one:
codes are places among all levels of a text column, which may first occur in the last batch, and a column of
whole numbers is floating-point where one batch has a fraction. Evenly spread rows are a stride apart that
follows from their number. And a sample that cannot be read again is refused before anything is trained on it:
iterators by E170, other loaders that do not start again by E171 at the end of the second pass.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from constrain.errors import DataError, ModelingWarning
from constrain.language import nodes as n
from constrain.language.streams import DatasetSource, RandomState, Stream
from constrain.runtime.binding import Population, Request, Stratum, listed_rows, refuse_unknown_columns
from constrain.runtime.census import Census, Kept, Summary, Tally, count_rows
from constrain.runtime.columns import read_column, refuse_missing
from constrain.runtime.encoding import Encoder, Kind, codes_column
from constrain.runtime.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from constrain.runtime.rows import Index

__all__ = ["StreamPopulation", "bind_stream", "stream_levels"]

KEPT_ROWS = 32_768
KEPT_BYTES = 2**26
"""Most rows that are kept for an impression of the sample, and most memory that they take."""
HEAD = 8
"""Rows from the start of a pass that are kept for checks."""
ORDERED = 6.0
"""Standard errors between the first batch and all rows from which on a loader is called ordered."""
_AGAIN = "a loader that starts again and gives every row once per pass"


# --------------------------------------------------------------------------------------- later passes
class _Watch:
    """Compares a pass with the first one: the number of rows and the sums of every column."""

    def __init__(self, population: StreamPopulation) -> None:
        self.population = population
        self.rows = 0
        zero = torch.zeros((), dtype=population.wide, device=population.device)
        self.totals = {name: zero.clone() for name in population.sums}

    def add(self, rows: Rows) -> None:
        """Takes a batch."""
        self.rows += rows.count
        for name, total in self.totals.items():
            total.add_(rows.columns[name].sum(dtype=total.dtype))

    def close(self) -> None:
        """Ends the pass.

        Raises:
            DataError: E171 when it gave other rows.
        """
        known, name = self.population, self.population.data.name
        if self.rows != known.rows:
            what = f"a pass over {name!r} gave {self.rows} rows, the first one {known.rows}"
            raise DataError("E171", what, fix=_AGAIN)
        if known.device.type == "meta":  # tensors without entries
            return
        rounding = 4 * torch.finfo(known.dtype).eps + (1e-4 if known.device.type == "mps" else 1e-9)
        for column, total in self.totals.items():
            before, size = known.sums[column]
            found = float(total)
            if not abs(found - before) <= rounding * size:
                raise DataError(
                    "E171",
                    f"a pass over {name!r} gave other values of {column!r} than the first one: their sum is "
                    f"{found:.6g}, and was {before:.6g}",
                    fix="the same rows in every pass; only their order may change",
                )


class _Order:
    """Notices a loader whose first batch is not like the rest: sorted by label, by group or by time.

    A training step would see some kinds of rows only for a stretch of each pass, and its averages would be of
    these.
    """

    def __init__(self) -> None:
        self.first: dict[str, tuple[float, int]] = {}
        self.told = False

    def add(self, rows: Rows) -> None:
        """Takes the first batch."""
        for name, column in rows.columns.items() if not self.first else ():
            if column.dim() == 1 and not column.is_meta and not name.startswith("#"):
                self.first[name] = float(column.double().mean()), rows.count

    def warn(self, kept: Rows, name: str) -> None:
        """W217 where the mean of a column over the first batch is far from that of rows of the whole pass."""
        for column, (mean, count) in () if self.told else self.first.items():
            values = kept.columns[column].double()
            error = float(values.std()) * (1 / count + 1 / kept.count) ** 0.5
            off = abs(mean - float(values.mean()))
            if off > ORDERED * error > 0:
                message = (
                    f"the loader of {name!r} is ordered: over its first batch of {count} rows the mean of "
                    f"{column!r} is {off / error:.0f} standard errors from that of all rows; training steps "
                    "would see such stretches one after the other"
                )
                fix = "DataLoader(..., shuffle=True), or batches in random order"
                warnings.warn(ModelingWarning("W217", message, fix=fix), stacklevel=2)
                break
        self.told = True


class _Feed:
    """Batches for training steps, pass after pass: in the loader's order, or along permutations."""

    def __init__(self, population: StreamPopulation, count: int, generator: torch.Generator | None) -> None:
        self.population = population
        self.count = count
        self.generator = generator
        seeded = not population.positioned
        seed = int(torch.randint(2**31, (), generator=generator)) if seeded else 0
        self.state = RandomState(seed, population.stream.source.generators())
        self._left: list[Rows] = []
        self._start: dict[str, Any] = {}
        self._drawn = 0
        self.rows = self._endless()

    def _endless(self) -> Iterator[Rows]:
        source = self.population.stream.source
        while True:
            self._start, self._drawn = self._place(), 0
            found = self._permuted(source) if isinstance(source, DatasetSource) else self._loaded()
            for rows in found:
                self._drawn += 1
                yield rows

    def _place(self) -> dict[str, Any]:
        """Where the feed is at the start of a pass, as data."""
        return {
            "generator": None if self.generator is None else self.generator.get_state(),
            "reader": self.state.state_dict(),
            "left": [({**rows.columns}, rows.count) for rows in self._left],
        }

    def state_dict(self) -> dict[str, Any]:
        """Where this pass began, and how many of its batches were drawn."""
        return {"start": self._start, "drawn": self._drawn}

    def load_state_dict(self, stored: Mapping[str, Any]) -> None:
        """Reads the pass again up to the same place; leaves the generator as it is."""
        start, generator = stored["start"], self.generator
        now = None if generator is None else generator.get_state()
        if generator is not None:
            generator.set_state(start["generator"])
        self.state.load_state_dict(start["reader"])
        device = self.population.device
        self._left = [Rows({k: v.to(device) for k, v in c.items()}, count) for c, count in start["left"]]
        self.rows = self._endless()
        for _ in range(stored["drawn"]):
            next(self.rows)
        if generator is not None and now is not None:
            generator.set_state(now)

    def _permuted(self, source: DatasetSource) -> Iterator[Rows]:
        """One pass along a permutation; the last partial batch is left out."""
        population, count = self.population, self.count
        order = torch.randperm(population.rows, generator=self.generator)
        order = order[: population.rows - population.rows % count]
        for i, batch in enumerate(self.state.iterate(lambda: source.blocks(order, count))):
            rows = population.encode(population.stream.read(batch, f"batch {i}"))
            yield replace(rows, index=order[i * count : (i + 1) * count].to(population.device))

    def _loaded(self) -> Iterator[Rows]:
        """One pass of the loader in batches of the wanted size; what is left over goes to the next pass."""
        population = self.population
        met = 0
        for i, batch in enumerate(self.state.iterate(population.stream.source.batches)):
            rows = population.encode(population.stream.read(batch, f"batch {i}"))
            met += rows.count
            self._left.append(rows)
            while sum(piece.count for piece in self._left) >= self.count:
                joined = _joined(self._left)
                yield _part(joined, 0, self.count)
                self._left = [_part(joined, self.count, joined.count)] if joined.count > self.count else []
        if met == 0:
            raise DataError("E171", f"a pass over {population.data.name!r} gave no rows", fix=_AGAIN)


def _joined(pieces: Sequence[Rows]) -> Rows:
    """Rows one after the other, without positions."""
    if len(pieces) == 1:
        return replace(pieces[0], index=None)
    names = pieces[0].columns
    columns = {name: torch.cat([rows.columns[name] for rows in pieces]) for name in names}
    return Rows(columns, sum(rows.count for rows in pieces))


def _part(rows: Rows, start: int, stop: int) -> Rows:
    """Some of these rows, without positions."""
    if (start, stop) == (0, rows.count):
        return rows
    return Rows({name: column[start:stop] for name, column in rows.columns.items()}, stop - start)


# ----------------------------------------------------------------------------------------- population
class StreamPopulation(Population):
    """A stream bound to a program; made by `bind_stream`.

    No column is in memory: `columns` is empty, strata have counts and no tables of rows, and rows find their
    groups and conditions by their own columns.

    Args:
        stream: the sample.
        census: its first pass.
        kinds: what its used columns hold.
        device: where batches go.
        dtype: of floating columns.
    """

    def __init__(
        self,
        stream: Stream,
        census: Census,
        kinds: Mapping[str, Kind],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        levels = {name: list(kind.texts) for name, kind in kinds.items() if kind.texts is not None}
        super().__init__(stream, census.rows, {}, levels, device, dtype)
        self.stream = stream
        self.kinds = dict(kinds)
        self.sums = {name: s.expected(levels.get(name)) for name, s in census.columns.items()}
        self.met = {name: s.values for name, s in census.columns.items() if s.values.size}
        self.digest = census.digest
        most = min(KEPT_ROWS, KEPT_BYTES * census.rows // max(census.bytes, 1))
        self._stride = -(-census.rows // max(most, HEAD))
        self._groups: dict[tuple[str, ...], list[Any]] = {}
        self._pending: list[tuple[str, ...]] = []
        self._kept: dict[str, Any] | None = None
        self._impression: Rows | None = None
        self._head: Rows | None = None
        self._feed: _Feed | None = None
        self._order = _Order()

    # ---- what it is
    @property
    def positioned(self) -> bool:
        """Whether fresh rows have positions: of a dataset, not of a loader."""
        return self.stream.positions

    @property
    def endless(self) -> bool:
        """True: training steps take the next batch."""
        return True

    @property
    def batch(self) -> int | None:
        """Rows per training step: of a dataset as asked for, of a loader those of its first batch."""
        own = self.stream.source.batch()
        return own if own is not None else count_rows({"": self.stream.example(self.stream.columns[0])})

    def kind(self, name: str) -> Kind | None:
        """What a column holds; None for one that the program does not use."""
        return self.kinds.get(name)

    def encoder(self) -> Encoder:
        """Encodes rows as those of this sample are."""
        return Encoder(self.data.name, self.kinds, self._groups, self.device, self.dtype)

    def encode(self, raw: Mapping[str, Any]) -> Rows:
        """A batch as rows without positions; missing values were refused when the sample was bound.

        Raises:
            DataError: E171 for a level that the first pass did not have.
        """
        try:
            return Rows(self.encoder().encode(raw, check=False), count_rows(raw))
        except DataError as error:
            if error.code != "E135":
                raise
            what = str(error).splitlines()[0].partition("] ")[2].partition(", which")[0]
            raise DataError(
                "E171",
                f"a pass over {self.data.name!r} gave other rows than the first one: {what}",
                fix="the same rows in every pass; only their order may change",
            ) from None

    # ---- reading
    def chunks(self, size: int) -> Iterator[Rows]:
        """All rows, in the stream's batches; of a larger one at most `size` at a time.

        Raises:
            DataError: E171 at the end of a pass that gave other rows than the first one.
        """
        watch, place = _Watch(self), 0
        for raw in self.stream.batches():
            rows = self.encode(raw)
            watch.add(rows)
            for start in range(0, rows.count, size):
                piece = _part(rows, start, min(start + size, rows.count))
                stop = place + piece.count
                yield replace(piece, index=slice(place, stop) if self.positioned else None)
                place = stop
        watch.close()

    def everything(self) -> Rows:
        """All rows at once, in memory: for a batch that is as large as the sample."""
        joined = _joined(list(self.chunks(self.rows)))
        return replace(joined, index=slice(0, self.rows) if self.positioned else None, whole=True)

    def take(self, index: Index, weight: Tensor | None = None) -> Rows:
        """Rows of a dataset by position; of a loader the first few, or all.

        Raises:
            DataError: E166 for other rows of a loader.
        """
        kept = index if self.positioned else None
        wanted = range(*index.indices(self.rows)) if isinstance(index, slice) else None
        if wanted is not None and wanted == range(len(wanted)) and len(wanted) <= HEAD:
            return replace(_part(self._first(), 0, len(wanted)), index=kept, weight=weight)
        if wanted == range(self.rows):
            return replace(self.everything(), weight=weight, whole=weight is None)
        source = self.stream.source
        if not isinstance(source, DatasetSource):
            raise self.stream.absent("rows are wanted by position")
        places = list(wanted) if wanted is not None else cast("list[int]", cast("Tensor", index).tolist())
        with RandomState(0):
            raw = self.stream.read(source.at(places), "a batch")
        return replace(self.encode(raw), index=kept, weight=weight)

    def _first(self) -> Rows:
        """The first rows of a pass."""
        if self._head is None:
            pieces: list[Rows] = []
            for raw in self.stream.batches():
                pieces.append(self.encode(raw))
                if sum(rows.count for rows in pieces) >= HEAD:
                    break
            joined = _joined(pieces)
            self._head = _part(joined, 0, min(HEAD, joined.count))
        return self._head

    def spread(self, count: int) -> Rows:
        """At most about `count` of the kept rows; always the same ones."""
        if self._kept is None:
            self._survey([])
        if self._impression is None:
            assert self._kept is not None  # the survey keeps rows
            self._impression = self.encode(self._kept)
        step = max(1, self._impression.count // count)
        columns = {name: column[::step] for name, column in self._impression.columns.items()}
        return Rows(columns, len(range(0, self._impression.count, step)))

    def some(self, count: int, generator: torch.Generator | None = None) -> Rows:
        """Random ones of the kept rows, with repetition."""
        kept = self.spread(KEPT_ROWS)
        chosen = torch.randint(kept.count, (count,), generator=generator).to(self.device)
        index = chosen * self._stride if self.positioned else None
        return Rows({name: column[chosen] for name, column in kept.columns.items()}, count, index)

    def fresh(self, count: int, generator: torch.Generator | None = None) -> Rows | None:
        """The next batch: in the loader's own order, or along a random permutation of a dataset."""
        if count >= self.rows:
            return self.everything()
        feed = self._feed
        if feed is None and not self.positioned and self.device.type != "meta":
            self._order.warn(self.spread(KEPT_ROWS), self.data.name)
        if feed is None or feed.count != count or feed.generator is not generator:
            feed = self._feed = _Feed(self, count, generator)
        return next(feed.rows)

    def feed_state(self) -> dict[str, Any] | None:
        """Where the batches of training steps are, as data; None before the first one."""
        return None if self._feed is None else self._feed.state_dict()

    def restore_feed(
        self, count: int, generator: torch.Generator | None, stored: Mapping[str, Any] | None
    ) -> None:
        """Batches of training steps go on from a stored place; the generator stays as it is."""
        self._feed = None
        if stored is not None:
            now = None if generator is None else generator.get_state()
            self._feed = _Feed(self, count, generator)
            if generator is not None and now is not None:
                generator.set_state(now)
            self._feed.load_state_dict(stored)

    def conditions(self, stratum: Stratum, rows: Rows) -> tuple[Tensor | None, Tensor | None]:
        """Weight (count,) and level code (count,) of each row for moments of this stratum; None without."""
        return super().conditions(stratum, rows if rows.index is None else replace(rows, index=None))

    def members(self, stratum: Stratum, rows: Rows) -> tuple[Tensor | None, Tensor | None]:
        """What each row counts in sums over all rows, and its level code."""
        return super().members(stratum, rows if rows.index is None else replace(rows, index=None))

    # ---- counting
    def add_codes(self, columns: tuple[str, ...], known: Sequence[Any] | None) -> None:
        """Lets rows have a derived column of level codes; unknown levels are counted by `add_strata`."""
        self.coded.append(columns)
        if known is None:
            self._pending.append(columns)
        else:
            self._learn(columns, list(known))

    def add_strata(
        self, requests: Sequence[Request], chunk: int, reference: Population | None = None
    ) -> None:
        """Counts the rows of all conditions and groups in one pass, which also keeps some rows.

        Raises:
            DataError: E124 for a condition or group without rows (on a training sample), E135.
        """
        del chunk  # a batch is a chunk
        tallies = [self._tally(r) for r in requests]
        codes = [Tally(columns) for columns in self._pending]
        if reference is None or not all(t.trivial for t in tallies):
            self._survey([*tallies, *codes])
        for tally in codes:
            self._learn(tally.by, tally.levels(self._orders(tally.by)))
        self._pending = []
        for request, tally in zip(requests, tallies, strict=True):
            known = None if reference is None else reference.strata[request.given, tally.by].levels
            self._add(request, tally, known, training=reference is None)

    def _tally(self, request: Request) -> Tally:
        listed = request.by[0] if request.by else None
        places = self.places(listed) if isinstance(listed, n.Among) else None
        return Tally(tuple(c.name for c in request.by), request.event, places)

    def _add(self, request: Request, tally: Tally, known: list[Any] | None, *, training: bool) -> None:
        """The stratum of a request that was counted."""
        levels: list[Any] = []
        numbers: Any = float(self.rows) if tally.trivial else tally.total
        listed = request.by[0] if request.by else None
        event = request.event
        if tally.places is not None and isinstance(listed, n.Among):
            levels = list(listed.values)
            numbers = tally.counts(levels, "")
            event = listed_rows(event, tally.places)
        elif tally.by:
            levels = known or self._groups.get(tally.by) or tally.levels(self._orders(tally.by))
            numbers = tally.counts(levels, f"{self.data.name}.{'/'.join(tally.by)}")
            self._learn(tally.by, levels)
        counts = torch.tensor(numbers, dtype=self.wide, device=self.device)
        if training and self.device.type != "meta":
            self.refuse_empty(counts, request, levels)
        stratum = Stratum(None, levels, None, counts, None, event, tally.by, tally.places)
        self.strata[request.given, tally.by] = stratum

    def _learn(self, columns: tuple[str, ...], levels: list[Any]) -> None:
        """Rows have codes of these levels from now on."""
        if columns not in self._groups:
            self._groups[columns] = levels
            self._impression = self._head = self._feed = None
        if columns in self.coded:
            self.levels[codes_column(columns)] = levels

    def _orders(self, columns: Iterable[str]) -> list[Mapping[Any, int] | None]:
        """Order of the levels of columns: of texts and declared levels, None for that of the numbers."""
        found: list[Mapping[Any, int] | None] = []
        for name in columns:
            kind = self.kinds.get(name)
            own = kind.texts if kind is not None else None
            if own is None:
                own = read_column(self.stream.example(name), f"{self.data.name}.{name}").declared
            found.append(None if own is None else {level: i for i, level in enumerate(own)})
        return found

    def _survey(self, tallies: Sequence[Tally]) -> None:
        """One pass for counts, and for the kept rows if there are none yet."""
        kept = Kept(list(self.kinds), self._stride) if self._kept is None else None
        if kept is None and all(t.trivial for t in tallies):
            return
        watch = _Watch(self)
        for raw in self.stream.batches():
            rows = self.encode(raw)
            watch.add(rows)
            self._order.add(rows)
            for tally in tallies:
                tally.add(raw, rows.columns, self.data.name)
            if kept is not None:
                kept.add(raw)
        watch.close()
        if kept is not None:
            self._kept = kept.columns()


def bind_stream(
    stream: Stream,
    used: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    reference: Population | None = None,
) -> StreamPopulation:
    """Reads all rows of a stream once and binds it; see `binding.bind_population`.

    Raises:
        DataError: E106, E124 (no rows, missing values with their counts), E135, E167, E168, E169.
    """
    refuse_unknown_columns(stream, used)
    census = Census(stream, used)
    if census.rows == 0:
        raise DataError("E124", f"data {stream.name!r} has no rows")
    stream.counted(census.rows)
    counts = {name: (s.missing, s.first) for name, s in census.columns.items()}
    refuse_missing(stream.name, counts)
    kinds: dict[str, Kind] = {}
    for name, summary in census.columns.items():
        shown = f"{stream.name}.{name}"
        own = Kind(stream.row_shape(name), summary.floating, summary.levels())
        known = None if reference is None else reference.kind(name)
        kinds[name] = own if known is None else known
        if known is not None:
            texts = own.texts
            codes = (
                torch.zeros((0, *own.shape)) if texts is None else torch.tensor(_occurring(summary, texts))
            )
            known.fit(codes, texts, shown)
    return StreamPopulation(stream, census, kinds, device, dtype)


def _occurring(summary: Summary, levels: Sequence[str]) -> list[int]:
    """Codes of the levels that have rows."""
    texts = summary.texts if summary.texts is not None else Counter[str]()
    return [i for i, level in enumerate(levels) if texts[level]]


def stream_levels(stream: Stream, columns: Sequence[str]) -> list[Any]:
    """Levels of a column, or combinations that occur of several; see `Data.levels`.

    Raises:
        DataError: E124, E167, E168.
    """
    population = bind_stream(stream, list(columns), torch.device("cpu"), torch.float64)
    population.add_codes(tuple(columns), None)
    population.add_strata([], 0)
    return population.levels[codes_column(tuple(columns))]
