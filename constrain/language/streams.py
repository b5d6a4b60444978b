"""Samples that are read batch by batch: from a loader, or from a dataset with positions.

A stream is a `Data` whose columns are never in memory as a whole. What it needs to know about them (row
shapes, types) it learns from the first batch; everything else is counted by passes over all rows when a
problem is compiled.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from constrain._lazy import attribute, loaded
from constrain.errors import DataError
from constrain.language.data import Batch, Data, column_shape, static_shape
from constrain.language.frames import as_frame, frame_columns
from constrain.language.location import here

if TYPE_CHECKING:
    from types import TracebackType

    from constrain.language.expr import Expr

__all__ = ["DatasetSource", "LoaderSource", "RandomState", "Source", "Stream", "from_dataset", "from_loader"]

Names: TypeAlias = "Sequence[str | None] | Mapping[str, str]"
"""Names of the entries of a batch, in order, or name to key of a dictionary; empty for all keys."""

PEEK = 8
"""Rows of a dataset that are read to learn what a row is."""


# ------------------------------------------------------------------------------------- random numbers
class RandomState:
    """Random numbers of a reader, kept apart from those of the program.

    Reading must neither change what the program draws next nor depend on it: a full pass sees the same rows
    in the same order every time, also through a loader that shuffles or a dataset with random transforms.
    Inside of the `with` block the global generators of Python, NumPy and torch (where they are in use) and
    the given ones are in the reader's state, outside in the program's.

    Args:
        seed: of the reader's state.
        generators: `torch.Generator`s of the reader, such as that of a loader.
    """

    def __init__(self, seed: int, generators: Iterable[Any] = ()) -> None:
        self._generators = list(generators)
        self._mine: list[Any] | None = None
        self._theirs: list[Any] = []
        self._seed = seed

    def __enter__(self) -> None:
        self._theirs = self._states()
        if self._mine is not None:
            self._restore(self._mine)
            return
        random.seed(self._seed)
        numpy, torch = loaded("numpy"), loaded("torch")
        if numpy is not None:
            numpy.random.seed(self._seed % 2**32)
        if torch is not None:
            torch.random.default_generator.manual_seed(self._seed)
        for generator in self._generators:
            generator.manual_seed(self._seed)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mine = self._states()
        self._restore(self._theirs)

    def _states(self) -> list[Any]:
        numpy, torch = loaded("numpy"), loaded("torch")
        return [
            random.getstate(),
            None if numpy is None else numpy.random.get_state(),
            None if torch is None else torch.random.default_generator.get_state(),
            *(g.get_state() for g in self._generators),
        ]

    def _restore(self, states: list[Any]) -> None:
        numpy, torch = loaded("numpy"), loaded("torch")
        own, of_numpy, of_torch, *rest = states
        random.setstate(own)
        if of_numpy is not None and numpy is not None:
            numpy.random.set_state(of_numpy)
        if of_torch is not None and torch is not None:
            torch.random.default_generator.set_state(of_torch)
        for generator, state in zip(self._generators, rest, strict=True):
            generator.set_state(state)

    def state_dict(self) -> dict[str, Any]:
        """The reader's state as numbers, texts and tensors."""
        if self._mine is None:
            return {"seed": self._seed, "own": None}
        own, of_numpy, *rest = self._mine
        if of_numpy is not None:
            of_numpy = (of_numpy[0], [int(k) for k in of_numpy[1]], *of_numpy[2:])
        return {"seed": self._seed, "own": [own, of_numpy, *rest]}

    def load_state_dict(self, stored: Mapping[str, Any]) -> None:
        """Puts a state back."""
        self._seed = stored["seed"]
        self._mine = None if stored["own"] is None else list(stored["own"])

    def iterate(self, make: Any) -> Iterator[Any]:
        """The items of the iterator that `make()` returns, every one of them drawn in the reader's state."""
        with self:
            items = iter(make())
        while True:
            with self:
                item = next(items, _END)
            if item is _END:
                return
            yield item


_END = object()


# --------------------------------------------------------------------------------------------- sources
class Source(Protocol):
    """Where the batches of a stream come from."""

    positions: bool

    def first(self) -> Any:
        """A batch, to learn from."""
        ...

    def batches(self) -> Iterable[Any]:
        """All batches, for one pass."""
        ...

    def rows(self) -> int | None:
        """Rows of a pass, None when only a pass can tell."""
        ...

    def generators(self) -> list[Any]:
        """The `torch.Generator`s that the source draws from."""
        ...

    def batch(self) -> int | None:
        """Rows per batch of a training step, None for those of the first batch."""
        ...


def _refused(what: str, fix: str) -> DataError:
    return DataError("E170", what, at=here(), fix=fix)


class LoaderSource:
    """A `DataLoader`, or anything else that can be iterated over again and again.

    Raises:
        DataError: E170 for what can be iterated over only once, and for a loader that drops or repeats rows.
    """

    positions = False

    def __init__(self, name: str, loader: Any) -> None:
        if not isinstance(loader, Iterable) or isinstance(loader, (str, bytes, dict)):
            raise _refused(
                f"the loader of {name!r} is a {type(cast('Any', loader)).__name__}, which yields no batches",
                "a torch DataLoader, or a list of batches",
            )
        if isinstance(loader, Iterator):
            raise _refused(
                f"the loader of {name!r} is a {type(cast('Any', loader)).__name__}: it can be iterated over "
                "once, and every full pass iterates over all rows",
                "an object whose __iter__ starts again, such as a DataLoader",
            )
        self.loader: Any = cast("Any", loader)
        self._rows = self._expected(name)

    def _expected(self, name: str) -> int | None:
        """Rows of a pass of a `DataLoader`, as far as it says."""
        data = loaded("torch.utils.data")
        if data is None or not isinstance(self.loader, data.DataLoader):
            return None
        sampler = self.loader.sampler
        usual = self.loader.batch_sampler is None or type(self.loader.batch_sampler) is data.BatchSampler
        if (
            isinstance(self.loader.dataset, data.IterableDataset)
            or not usual
            or not isinstance(sampler, Sized)
        ):
            return None
        rows = len(sampler)
        way_out = "DataLoader(..., shuffle=True) without replacement"
        if getattr(sampler, "replacement", False):
            raise _refused(
                f"the loader of {name!r} draws rows with replacement: a pass is not a pass over the sample",
                way_out,
            )
        if isinstance(sampler, data.RandomSampler) and rows != len(self.loader.dataset):
            raise _refused(
                f"the loader of {name!r} draws {rows} of {len(self.loader.dataset)} rows, other ones in each "
                "pass",
                way_out,
            )
        size = self.loader.batch_size
        if self.loader.drop_last and size and rows % size:
            raise _refused(
                f"the loader of {name!r} drops the last {rows % size} of {rows} rows of each pass",
                "DataLoader(..., drop_last=False); an unequal last batch is weighted rightly",
            )
        return rows

    def first(self) -> Any:
        """The first batch, _END without one."""
        return next(iter(self.loader), _END)

    def batches(self) -> Iterable[Any]:
        """The loader."""
        return self.loader

    def rows(self) -> int | None:
        """Rows of a pass, None when only a pass can tell."""
        return self._rows

    def generators(self) -> list[Any]:
        """The generators of the loader and its sampler."""
        found = [getattr(self.loader, "generator", None)]
        found.append(getattr(getattr(self.loader, "sampler", None), "generator", None))
        return list({id(g): g for g in found if hasattr(g, "get_state")}.values())

    def batch(self) -> int | None:
        """The loader's own batches."""
        return None


class _Blocks:
    """Positions in blocks of one size, the last one maybe smaller; lists are made one at a time.

    Args:
        order: positions, a range or an integer tensor.
        size: of a block.
    """

    def __init__(self, order: Any, size: int) -> None:
        self.order = order
        self.size = size

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.order), self.size):
            block = self.order[start : start + self.size]
            yield list(block) if isinstance(block, range) else block.tolist()

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.size)


class DatasetSource:
    """A map-style dataset: rows by position, read by a `DataLoader` that is made here.

    Raises:
        DataError: E170 for a dataset without `dataset[i]` and `len`, E124 for one without rows.
    """

    positions = True

    def __init__(self, name: str, dataset: Any, batch: int, workers: int, collate: Any) -> None:
        data = attribute("torch.utils.data")
        iterable = isinstance(dataset, data.IterableDataset)
        if iterable or not (isinstance(dataset, Sized) and hasattr(dataset, "__getitem__")):
            raise _refused(
                f"the dataset of {name!r} is a {type(dataset).__name__} without positions: it has no "
                "dataset[i] and len(dataset)",
                f'cn.Data.from_loader("{name}", DataLoader(dataset, batch_size=512), columns=...)',
            )
        if not len(dataset):
            raise DataError("E124", f"data {name!r} has no rows", at=here())
        self.dataset: Any = dataset
        self.size = batch
        self.workers = workers
        self.collate = collate

    def loader(self, positions: Iterable[list[int]], *, workers: bool = True) -> Any:
        """A loader of the rows at these positions, one list of them per batch."""
        return attribute("torch.utils.data:DataLoader")(
            self.dataset,
            batch_sampler=positions,
            num_workers=self.workers if workers else 0,
            collate_fn=self.collate,
        )

    def blocks(self, order: Any, size: int) -> Any:
        """A loader of the rows in this order (an integer tensor), `size` at a time."""
        return self.loader(_Blocks(order, size))

    def at(self, positions: list[int]) -> Any:
        """The batch of the rows at these positions, read by this process."""
        return next(iter(self.loader([positions], workers=False)))

    def first(self) -> Any:
        """A batch of the first rows."""
        return self.at(list(range(min(PEEK, len(self.dataset)))))

    def batches(self) -> Iterable[Any]:
        """All rows in order."""
        return self.loader(_Blocks(range(len(self.dataset)), self.size))

    def rows(self) -> int | None:
        """Rows of the dataset."""
        return len(self.dataset)

    def generators(self) -> list[Any]:
        """None: positions are drawn elsewhere."""
        return []

    def batch(self) -> int | None:
        """Rows per batch, as asked for."""
        return self.size


# -------------------------------------------------------------------------------------------- streams
class Stream(Data):
    """A sample that is read in batches: larger than memory, or too slow to read for one array.

    Made by `Data.from_loader` and `Data.from_dataset`. Columns are used as those of a table. A full pass
    (exact values and gradients, counts of conditions and levels, hold-out evaluation) reads all rows once, in
    the memory of one batch; the last batch may be smaller. Training takes batches in the loader's own order,
    and starts over at the end.

    Attributes:
        source: where the batches come from.
    """

    def __init__(self, name: str, source: Source, names: Names, rows: int | None = None) -> None:
        self.source = source
        self._names = names
        with RandomState(0, source.generators()):
            first = source.first()
        if first is _END:
            raise DataError("E124", f"data {name!r} has no rows", at=here())
        self._counted = source.rows() if rows is None else rows
        super().__init__(name, **_named(name, first, names))

    @property
    def streamed(self) -> bool:
        """True: no column is in memory as a whole."""
        return True

    @property
    def positions(self) -> bool:
        """Whether a row has a position: of a dataset, not of a loader."""
        return self.source.positions

    def __len__(self) -> int:
        if self._counted is None:
            self._counted = sum(_length(columns) for columns in self.batches())
        return self._counted

    def counted(self, rows: int) -> None:
        """Is told by a full pass how many rows there are.

        Raises:
            DataError: E171 when the source, or `rows=`, says another number.
        """
        if self._counted is not None and self._counted != rows:
            raise DataError(
                "E171",
                f"a pass over {self.name!r} gave {rows} rows, and {self._counted} were expected",
                fix="a loader that gives every row once per pass; rows= is the number of rows of a pass",
            )
        self._counted = rows

    def __repr__(self) -> str:
        listed = ", ".join(f"{c}:{s[1:]}" for c, s in self._shapes.items())
        rows = "rows not counted yet" if self._counted is None else f"{self._counted} rows"
        return f"<Stream {self.name} with {rows}, read in batches: {listed} per row>"

    def values(self, column: str) -> Any:
        """Raises E166: the rows are not in memory."""
        raise self.absent(f"the values of {self.name}.{column} are wanted as a whole")

    def absent(self, what: str) -> DataError:
        """E166: something that needs the rows in memory, or their positions."""
        return DataError(
            "E166",
            f"{what}, and the sample {self.name!r} is read batch by batch",
            at=here(),
            fix="a table, cn.Data(name, x=..., y=...), if the rows fit into memory",
        )

    def levels(self, *columns: str) -> tuple[Any, ...]:
        """Levels of a column, or combinations that occur of several; reads all rows.

        Raises:
            DataError: E106 (unknown column), E124 (missing values), E168 (texts among numbers).
        """
        for column in columns:
            self[column]  # E106, E167
        return tuple(attribute("constrain.runtime.streams:stream_levels")(self, columns))

    def split(
        self, fraction: float, seed: int = 0, by: str | Expr | Sequence[str | Expr] = ()
    ) -> tuple[Data, Data]:
        """Raises E166: split the dataset, `torch.utils.data.random_split`, and make a stream of each part."""
        del fraction, seed, by
        raise DataError(
            "E166",
            f"split: the rows of {self.name!r} are read batch by batch",
            at=here(),
            fix="torch.utils.data.random_split(dataset, lengths), and a stream of each part",
        )

    def rows(self, index: Any, weight: Any = None) -> Batch:
        """A batch: rows at positions of a dataset, or columns that were read elsewhere; see `Data.rows`.

        Raises:
            DataError: E166 for positions of a loader, whose rows have none.
        """
        if not self.positions and not isinstance(index, Mapping):
            raise DataError(
                "E166",
                f"rows by position: the loader of {self.name!r} does not say which row is which",
                at=here(),
                fix=f"the columns of a batch, {self.name}.rows({{...}}); or cn.Data.from_dataset",
            )
        return Batch(self, cast("Any", index), weight)

    # ---- reading
    def batches(self) -> Iterator[dict[str, Any]]:
        """One full pass: the columns of batch after batch, as they come; always in the same order.

        Raises:
            DataError: E170 for a batch of other entries or row shapes than the first one.
        """
        state = RandomState(0, self.source.generators())
        for i, batch in enumerate(state.iterate(self.source.batches)):
            yield self.read(batch, f"batch {i}")

    def read(self, batch: Any, shown: str) -> dict[str, Any]:
        """The columns of a batch by name.

        Raises:
            DataError: E170 for a batch of other entries or row shapes than the first one.
        """
        columns = _named(self.name, batch, self._names)
        lengths: dict[str, int] = {}
        for name in self.columns:
            found = column_shape(columns[name]) if name in columns else None
            if not found or found[1:] != self.row_shape(name):
                own = f"shape {found}" if found else "no entries"
                raise _refused(
                    f"{shown} of {self.name!r} has {own} for {name!r}; the first batch has rows of shape "
                    f"{self.row_shape(name)}",
                    "batches of one structure; sequences of several lengths are padded by collate_fn",
                )
            lengths[name] = found[0]
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} {rows}" for name, rows in lengths.items())
            raise _refused(
                f"the columns of {shown} of {self.name!r} differ in length: {listed}", "one entry per row"
            )
        return columns


def _length(columns: Mapping[str, Any]) -> int:
    shape = column_shape(next(iter(columns.values())))
    return shape[0] if shape else 0


def _named(sample: str, batch: Any, names: Names) -> dict[str, Any]:
    """The entries of a batch by column.

    Raises:
        DataError: E170 when entries have no names, or names no entries.
    """
    if as_frame(batch) is not None:
        roles = names if isinstance(names, Mapping) else {c: c for c in names if c is not None}
        return frame_columns(batch, roles)
    if isinstance(batch, Mapping):
        entries = cast("Mapping[Any, Any]", batch)
        keys = dict(names) if isinstance(names, Mapping) else {c: c for c in names if c is not None}
        keys = keys or {str(k): k for k in entries}
        for name, key in keys.items():
            if key not in entries:
                raise _refused(
                    f"a batch of {sample!r} has no entry {key!r} for the column {name!r}",
                    f"of {', '.join(map(str, entries))}",
                )
        return {name: entries[key] for name, key in keys.items()}
    if isinstance(names, Mapping):
        raise _refused(
            f"the batches of {sample!r} are no dictionaries, so that columns= cannot name keys",
            'names in the order of the entries, columns=("x", "y")',
        )
    entries = _positional(batch, len(names))
    if not names:
        raise _refused(
            f"a batch of {sample!r} has {len(entries)} entries and no names for them",
            'columns=("x", "y"), in their order',
        )
    if len(names) != len(entries):
        raise _refused(
            f"a batch of {sample!r} has {len(entries)} entries, and columns= {len(names)} names",
            "one name per entry, None for one that is not used",
        )
    return {name: entry for name, entry in zip(names, entries, strict=True) if name is not None}


def _positional(batch: Any, names: int) -> list[Any]:
    """The entries of a tuple; an array, or a list of plain values, is the only entry."""
    if not isinstance(batch, (list, tuple)):
        return [batch]
    entries = list(cast("Sequence[Any]", batch))
    plain = all(static_shape(e) is None and column_shape(e) is None for e in entries)
    return [cast("Any", batch)] if plain and names <= 1 else entries


def from_loader(name: str, loader: Any, columns: Names = (), rows: int | None = None) -> Stream:
    """See `Data.from_loader`."""
    return Stream(name, LoaderSource(name, loader), columns, rows)


def from_dataset(
    name: str, dataset: Any, columns: Names = (), batch: int = 512, workers: int = 0, collate: Any = None
) -> Stream:
    """See `Data.from_dataset`."""
    return Stream(name, DatasetSource(name, dataset, batch, workers, collate), columns)
