"""Finite samples with named columns."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, cast

from constrain._lazy import language
from constrain.errors import DataError, ModelingError
from constrain.language import nodes as n
from constrain.language.location import here

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.language.expr import Expr

__all__ = ["Batch", "Data", "Subset", "as_list", "static_shape", "suggest"]


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


_BOOLEAN = frozenset(("bool", "torch.bool", "boolean", "Boolean"))
"""Names of the dtype of truth values: NumPy and pandas, torch, nullable pandas, polars."""


def _is_boolean(value: Any) -> bool:
    """Whether a column (a list as well) holds truth values."""
    if isinstance(value, (list, tuple)):
        return all(_is_boolean(item) for item in as_list(value))  # pyright: ignore[reportUnknownArgumentType]
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in _BOOLEAN


class UnknownColumnError(ModelingError, AttributeError):
    """A column that the data has not (E106). An `AttributeError`, so that `hasattr` and `getattr` work."""


class Data:
    """A finite sample: named columns of equal length, one row per example.

    `D.x` is a random variable: an expression whose axis is the rows of `D`. Columns may be torch tensors,
    NumPy arrays, pandas or polars series, or lists; text columns are categorical and keep their level names;
    a column of truth values is an event where one is needed: `P(D.flag)`, `given=~D.flag`.
    Nothing is copied or converted before a problem is compiled.

    Args:
        name: how reports and messages call the sample.
        columns: array-likes whose first axis is the row axis.

    Raises:
        DataError: E112 when the columns differ in length or one has no rows.
    """

    def __init__(self, name: str, /, **columns: Any) -> None:
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ModelingError(
                "E117", "the first argument of cn.Data is its name", at=here(), fix='cn.Data("train", x=X)'
            )
        if not columns:
            raise DataError(
                "E112", f"data {name!r} has no columns", at=here(), fix=f'cn.Data("{name}", x=X, y=y)'
            )
        self.name = name
        self._columns = dict(columns)
        self._shapes: dict[str, tuple[int, ...]] = {}
        for column, value in columns.items():
            shape = static_shape(value)
            if not shape:
                raise DataError(
                    "E112",
                    f"column {column!r} of data {name!r} is a {type(value).__name__} without rows",
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

    @classmethod
    def from_frame(cls, name: str, frame: Any, **roles: str | Sequence[str]) -> Data:
        """A sample out of a data frame (pandas or polars).

        Args:
            name: how reports call the sample.
            frame: the frame.
            roles: column of the sample to column, or list of columns, of the frame; without roles every
                column of the frame is taken under its own name.

        Raises:
            DataError: E106 when the frame has no such column.
        """
        known = [str(c) for c in frame.columns]
        chosen = roles or {c: c for c in known}
        columns: dict[str, Any] = {}
        for role, source in chosen.items():
            for wanted in [source] if isinstance(source, str) else source:
                if wanted not in known:
                    raise DataError(
                        "E106", f"the frame has no column {wanted!r}{suggest(wanted, known)}", at=here()
                    )
            columns[role] = (
                frame[source].to_numpy() if isinstance(source, str) else frame[list(source)].to_numpy()
            )
        return cls(name, **columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self._columns)

    def __len__(self) -> int:
        return next(iter(self._shapes.values()))[0]

    def __repr__(self) -> str:
        listed = ", ".join(f"{c}:{s}" for c, s in self._shapes.items())
        return f"<Data {self.name} with {len(self)} rows: {listed}>"

    def __getattr__(self, column: str) -> Expr:
        if column.startswith("_"):
            raise AttributeError(column)
        return self[column]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._columns]

    def __getitem__(self, column: str) -> Expr:
        if column not in self._columns:
            raise UnknownColumnError(
                "E106",
                f"data {self.name!r} has no column {column!r}{suggest(column, self._columns)}",
                at=here(),
                fix=f"one of {', '.join(self._columns)}",
            )
        return language("expr").Expr(n.Column(self, column, loc=here()))

    def row_shape(self, column: str) -> tuple[int, ...]:
        """Shape of one row of a column."""
        return self._shapes[column][1:]

    def boolean(self, column: str) -> bool:
        """Whether a column holds truth values, so that it is an event by itself."""
        return _is_boolean(self._columns[column])

    def values(self, column: str) -> Any:
        """The column as it was given."""
        return self._columns[column]

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
            index: positions: integers (array, tensor), a slice or a range.
            weight: (batch,) importance weights when rows are not drawn uniformly: 1 / (rows * probability), so
                that the mean of weight * g is an unbiased estimate of E(g).
        """
        return Batch(self, index, weight)


class Subset:
    """Rows of a sample selected by an event; made by `Data.where`."""

    def __init__(self, data: Data, event: n.Node) -> None:
        self.data = data
        self.event = event


class Batch:
    """Some rows of a sample, by position; made by `Data.rows`."""

    def __init__(self, data: Data, index: Any, weight: Any = None) -> None:
        self.data = data
        self.index = index
        self.weight = weight

    def __repr__(self) -> str:
        return f"<Batch of {self.data.name}>"


def suggest(word: str, known: Any) -> str:
    """`; did you mean 'group'?` when a known word is close, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
