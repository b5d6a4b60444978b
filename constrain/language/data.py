"""Finite samples with named columns."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, cast

from constrain._lazy import attribute, language, loaded
from constrain.errors import DataError, ModelingError
from constrain.language import nodes as n
from constrain.language.frames import (
    as_series,
    declared_levels,
    entry_shape,
    frame_columns,
    in_another_order,
    refusal,
)
from constrain.language.keywords import keywords
from constrain.language.location import here

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from constrain.language.expr import Expr
    from constrain.language.streams import Stream

__all__ = ["Batch", "Data", "Subset", "as_list", "column_shape", "hidden_column", "static_shape", "suggest"]

SHOWN_LEVELS = 6
"""Levels of a text column that the representation of a sample lists."""


def as_list(value: Any) -> list[Any]:
    """The entries of a list or tuple; anything else as the only entry."""
    return list(cast("Sequence[Any]", value)) if isinstance(value, (list, tuple)) else [value]


def static_shape(value: Any) -> tuple[int, ...] | None:
    """Shape of an array-like (tensor, array, series, nested list), or None when it has none."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return tuple(int(size) for size in shape)
    if not isinstance(value, (list, tuple)):
        return None
    items = as_list(value)  # pyright: ignore[reportUnknownArgumentType]
    if not items:
        return (0,)
    inner = static_shape(items[0])
    if inner is None:
        return (len(items),)
    for i, item in enumerate(items):
        if static_shape(item) != inner:
            raise DataError(
                "E112", f"a ragged list: entry 0 has shape {inner}, entry {i} {static_shape(item)}", at=here()
            )
    return (len(items), *inner)


def column_shape(value: Any) -> tuple[int, ...] | None:
    """Shape of a column with its rows first, or None for what is no column.

    Raises:
        DataError: E112 for a ragged list or vectors of several lengths.
    """
    series = as_series(value)
    return static_shape(value) if series is None else (len(series), *entry_shape(series))


_BOOLEAN = frozenset(("bool", "torch.bool"))
"""Names of the dtype of truth values of NumPy and torch."""


def _is_boolean(value: Any) -> bool:
    """Whether a column (a list as well) holds truth values."""
    if isinstance(value, (list, tuple)):
        return all(_is_boolean(item) for item in as_list(value))  # pyright: ignore[reportUnknownArgumentType]
    series = as_series(value)
    if series is not None:
        return type(series.dtype).__name__ == "Boolean"
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in _BOOLEAN


def _texts(value: Any) -> list[str] | None:
    """The texts that a column holds, in the order of its levels; None for a column of something else."""
    series = as_series(value)
    if series is not None:
        declared = declared_levels(series)
        kind = type(series.dtype).__name__
        found: Iterable[Any] = () if kind not in ("String", "Categorical") else series.unique().to_list()
        if declared is not None:
            return [v for v in declared if isinstance(v, str)] or None
    elif isinstance(value, (list, tuple)) or getattr(getattr(value, "dtype", None), "kind", "") in "UO":
        items = as_list(value) if isinstance(value, (list, tuple)) else value.reshape(-1).tolist()  # pyright: ignore[reportUnknownArgumentType]
        found = set(items) if all(isinstance(v, str) for v in items) else ()
    else:
        return None
    return sorted(v for v in found if isinstance(v, str)) or None


class UnknownColumnError(ModelingError, AttributeError):
    """A column that the data has not (E106). An `AttributeError`, so that `hasattr` and `getattr` work."""


class Data:
    """A finite sample: named columns of equal length, one row per example.

    `D.x` is a random variable: an expression whose axis is the rows of `D`; so is `D["x"]`, also for a name
    that is no identifier or that `Data` has a method of, such as `D["rows"]`. Columns may be torch tensors,
    NumPy arrays, series of pandas or polars, arrays of arrow, frames, or lists; text columns are categorical
    and keep their level names; a column of truth values is an event where one is needed: `P(D.flag)`,
    `given=~D.flag`. Nothing is copied or converted before a problem is compiled.

    The levels of a text column are its texts in sorted order; of a categorical column (of pandas, an enum of
    polars, a dictionary of arrow) those that its type declares, in that order, also those without a row: that
    is an empty group, whose average does not exist (E124).

    Args:
        name: how reports and messages call the sample.
        columns: array-likes whose first axis is the row axis.

    Raises:
        DataError: E112 when the columns differ in length or one has no rows, E205 when columns of pandas have
            indexes that name their rows differently.
    """

    def __init__(self, name: str, /, *unnamed: Any, **columns: Any) -> None:
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ModelingError(
                "E117", "the first argument of cn.Data is its name", at=here(), fix='cn.Data("train", x=X)'
            )
        if unnamed:
            raise language("refusals").unnamed_columns(name, unnamed[0])
        if not columns:
            raise DataError(
                "E112", f"data {name!r} has no columns", at=here(), fix=f'cn.Data("{name}", x=X, y=y)'
            )
        self.name = name
        self._columns = dict(columns)
        self._shapes: dict[str, tuple[int, ...]] = {}
        for column, value in columns.items():
            symbolic = isinstance(value, language("expr").Expr)
            shape = None if symbolic else column_shape(value)
            if not shape:
                what = "an expression" if symbolic else f"a {type(value).__name__}"
                raise DataError(
                    "E112",
                    f"column {column!r} of data {name!r} is {what} without rows",
                    at=here(),
                    fix="a tensor, an array, a series or a list with one entry per row",
                )
            self._shapes[column] = shape
        lengths = {shape[0] for shape in self._shapes.values()}
        if len(lengths) > 1:
            listed = ", ".join(f"{c}:{s}" for c, s in self._shapes.items())
            raise DataError("E112", f"the columns of data {name!r} differ in length: {listed}", at=here())
        if lengths == {0}:
            raise DataError("E124", f"data {name!r} has no rows", at=here())
        apart = in_another_order(columns)
        if apart is not None:
            first, second = apart
            raise DataError(
                "E205",
                f"the indexes of the columns {first!r} and {second!r} of data {name!r} name other rows, or "
                "in another order, and columns are put together by position",
                at=here(),
                fix=f"{second}.loc[{first}.index] for the same rows, or .reset_index(drop=True) for both",
            )

    @classmethod
    def from_frame(cls, name: str, frame: Any = None, /, **roles: str | Sequence[str]) -> Data:
        """A sample out of a data frame of pandas, polars or arrow, or of another that narwhals reads.

        Args:
            name: how reports call the sample.
            frame: the frame; a lazy one is collected, with the columns that are asked for only.
            roles: column of the sample to column of the frame, or to a list of columns that make one of
                several numbers per row; without roles every column of the frame is taken under its own name.

        Raises:
            DataError: E106 when the frame has no such column, E168 for what is no frame.
            ModelingError: E117 when the name is missing.
        """
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            fix = 'cn.Data.from_frame("train", frame)'
            raise ModelingError("E117", "a sample has a name, before its frame", at=here(), fix=fix)
        return cls(name, **frame_columns(frame, roles))

    @classmethod
    @keywords
    def from_loader(
        cls,
        name: str,
        loader: Any,
        columns: Sequence[str | None] | Mapping[str, str] = (),
        rows: int | None = None,
    ) -> Stream:
        """A sample that is read batch by batch from a loader; see `constrain.language.streams.Stream`.

        Args:
            name: how reports call the sample.
            loader: a `torch.utils.data.DataLoader`, or anything that can be iterated over again and again and
                yields batches: tuples or dictionaries of array-likes with the rows first, or one array.
            columns: names of the entries of a batch, in their order, None for one that is not used; of
                dictionaries the keys to use, or name to key (left out: all keys).
            rows: number of rows of a pass, if you know it; else the loader is asked, or a pass counts them.

        Raises:
            DataError: E170 for a loader that can be iterated over only once, drops or repeats rows, or whose
                batches do not fit the names.
        """
        return language("streams").from_loader(name, loader, columns, rows)  # type: ignore[no-any-return]

    @classmethod
    @keywords
    def from_dataset(
        cls,
        name: str,
        dataset: Any,
        columns: Sequence[str | None] | Mapping[str, str] = (),
        batch: int = 512,
        workers: int = 0,
        collate: Any = None,
    ) -> Stream:
        """A sample that is read from a `torch.utils.data.Dataset` with positions, `dataset[i]` and `len`.

        Its rows keep their position, so that they can have a multiplier each (`forall`).

        Args:
            name: how reports call the sample.
            dataset: yields tuples or dictionaries of array-likes, or one array, for one row.
            columns: as in `from_loader`.
            batch: rows that a full pass reads at a time, and a training step takes unless `solve(batch=...)`.
            workers: processes that read (`num_workers` of `DataLoader`).
            collate: makes a batch out of a list of rows (`collate_fn` of `DataLoader`).

        Raises:
            DataError: E170 for a dataset without positions, or whose rows do not fit the names.
        """
        make = language("streams").from_dataset
        return make(name, dataset, columns, batch, workers, collate)  # type: ignore[no-any-return]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self._columns)

    def __len__(self) -> int:
        return next(iter(self._shapes.values()))[0]

    def __repr__(self) -> str:
        listed = ", ".join(f"{c}:{s}{self._shown_levels(c)}" for c, s in self._shapes.items())
        return f"<Data {self.name} with {len(self)} rows: {listed}>"

    def _shown_levels(self, column: str) -> str:
        """` in 'F', 'M'` for a text column."""
        texts = _texts(self._columns[column]) if len(self._shapes[column]) == 1 else None
        if not texts:
            return ""
        few = len(texts) <= SHOWN_LEVELS
        return f" in {', '.join(map(repr, texts))}" if few else f" in {len(texts)} levels"

    def __getattr__(self, column: str) -> Expr:
        if column.startswith("_"):
            raise AttributeError(column)
        return self[column]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._columns]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_columns", ()):
            self[name] = value  # refuses
        super().__setattr__(name, value)

    def __setitem__(self, column: str, value: Any) -> None:
        raise ModelingError(
            "E113",
            f"samples are immutable; the column {column!r} of {self.name!r} cannot be set",
            at=here(),
            fix="a new sample: cn.Data(name, ...) with that column",
        )

    def __getitem__(self, column: str) -> Expr:
        if not isinstance(column, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise language("refusals").no_column_name(self, column)
        line = here()
        known: dict[Any, n.Column] = vars(self).setdefault("_written", {})
        node = known.get((column, line))  # many constraints of one line share it
        if node is not None and node.data is self:
            return language("expr").Expr(node)
        self._known(column)
        unfit = refusal(self.example(column))
        if unfit is not None:
            raise DataError("E167", f"{self.name}.{column} holds {unfit[0]}", at=here(), fix=unfit[1])
        node = known[column, line] = n.Column(self, column, loc=line)
        return language("expr").Expr(node)

    def _named(self, column: Any) -> str:
        """The name of a column, which is given by it or as `D.sex`."""
        if isinstance(column, language("expr").Expr) and isinstance(column.node, n.Column):
            column = column.node.name
        if not isinstance(column, str):
            raise language("refusals").no_column_name(self, column)
        self._known(column)
        return column

    def _known(self, column: str) -> None:
        """Refuses a name that no column has (E106)."""
        if column not in self._columns:
            raise UnknownColumnError(
                "E106",
                f"data {self.name!r} has no column {column!r}{suggest(column, self._columns)}",
                at=here(),
                fix=f"one of {', '.join(self._columns)}",
            )

    def row_shape(self, column: str) -> tuple[int, ...]:
        """Shape of one row of a column."""
        return self._shapes[column][1:]

    def boolean(self, column: str) -> bool:
        """Whether a column holds truth values, so that it is an event by itself."""
        return _is_boolean(self._columns[column])

    @property
    def streamed(self) -> bool:
        """Whether the rows are read batch by batch, so that no column is in memory as a whole."""
        return False

    @property
    def positions(self) -> bool:
        """Whether a row has a position, by which it can be met again: `D.rows(index)`, `forall(D, ...)`."""
        return True

    def values(self, column: str) -> Any:
        """The column as it was given.

        Raises:
            DataError: E106 for an unknown column, E166 for a stream, whose rows are not in memory.
        """
        self._known(column)
        return self._columns[column]

    def example(self, column: str) -> Any:
        """Some rows of the column as they were given, which show its type: all rows, of a stream a batch."""
        return self._columns[column]

    def levels(self, *columns: str) -> tuple[Any, ...]:
        """Levels of a column, or combinations that occur of several, in the order of `by=` and of reports.

        Raises:
            DataError: E106 (unknown column), E124 (missing values), E168 (texts among numbers).
        """
        for column in columns:
            self[column]  # E106, E167
        return tuple(attribute("constrain.runtime.columns:level_codes")(self, columns)[1])

    @keywords
    def split(
        self, fraction: float, seed: int = 0, by: str | Expr | Sequence[str | Expr] = ()
    ) -> tuple[Data, Data]:
        """Two samples of different rows at random, such as a training sample and a hold-out.

            train, test = D.split(0.3, seed=0, by="sex")

        The first keeps the name, the second is called `NAME_holdout`; rows stay in their order.

        Args:
            fraction: share of the rows that the second sample gets, in (0, 1).
            seed: of the random choice.
            by: a column or several: the second gets this share (rounded) of each level, or combination.

        Raises:
            DataError: E106 for an unknown column, E112 when one of the two would have no rows, E166 for a
                stream.
        """
        names = tuple(self._named(column) for column in (by if isinstance(by, (list, tuple)) else (by,)))
        parts = attribute("constrain.runtime.columns:split_rows")(self, fraction, seed, names)
        pick = attribute("constrain.runtime.columns:pick")
        first, second = ({c: pick(self.values(c), rows) for c in self.columns} for rows in parts)
        return Data(self.name, **first), Data(f"{self.name}_holdout", **second)

    def where(self, event: Expr) -> Subset:
        """The rows where an event holds, for `forall`."""
        condition = language("expr").as_event(event, f"{self.name}.where()")
        if condition.type.rows is not self:
            raise ModelingError(
                "E107",
                f"{self.name}.where({event}) is about the rows of {condition.type.rows.name!r}",
                at=here(),
                fix=f"an event of columns of {self.name!r}",
            )
        return Subset(self, condition.node)

    def rows(self, index: Any, weight: Any = None) -> Batch:
        """A batch: the same columns, those rows.

        Args:
            index: positions: integers (array, tensor), a slice or a range; or a dictionary of columns, for
                rows that are read elsewhere, such as the next batch of a loader.
            weight: (batch,) importance weights when rows are not drawn uniformly: 1 / (rows * probability),
                so that the mean of weight * g is an unbiased estimate of E(g).

        Raises:
            ModelingError: E117 for what is no index, E140 for positions that the sample does not have, E112
                for weights that do not fit.
        """
        torch = loaded("torch")
        tensor = torch is not None and isinstance(index, torch.Tensor)
        if not tensor and isinstance(index, (int, float, str, bool, language("expr").Expr)):
            raise language("refusals").no_positions(self, index)
        if not hasattr(index, "keys"):
            attribute("constrain.runtime.encoding:check_positions")(self.name, len(self), index, weight)
        return Batch(self, index, weight)


class Subset:
    """Rows of a sample selected by an event; made by `Data.where`."""

    def __init__(self, data: Data, event: n.Node) -> None:
        self.data = data
        self.event = event

    def __getattr__(self, column: str) -> Any:
        raise language("refusals").column_of_a_subset(self, column)


class Batch:
    """Some rows of a sample, by position; made by `Data.rows`."""

    def __init__(self, data: Data, index: Any, weight: Any = None) -> None:
        self.data = data
        self.index = index
        self.weight = weight

    def __repr__(self) -> str:
        return f"<Batch of {self.data.name}>"


def hidden_column(value: Any) -> str | None:
    """`D["rows"]` for the method `D.rows` when the sample has a column of that name."""
    data, name = getattr(value, "__self__", None), getattr(value, "__name__", "")
    return f'{data.name}["{name}"]' if isinstance(data, Data) and name in data.columns else None


def suggest(word: str, known: Any) -> str:
    """`; did you mean 'group'?` when a known word is close, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
