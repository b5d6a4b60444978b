"""Data frames and their columns (pandas, polars, arrow and what else narwhals reads), before any conversion.

narwhals is loaded when an object shows up that is neither a list nor a tensor nor an array; the frame
libraries themselves are only used through the objects that the user made with them.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, cast

from constrain._lazy import attribute, loaded
from constrain.errors import DataError
from constrain.language.location import here

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import narwhals.stable.v2 as nw

__all__ = [
    "as_frame",
    "as_series",
    "declared_levels",
    "entry_shape",
    "frame_columns",
    "in_another_order",
    "refusal",
]

_OWN = frozenset(("builtins", "torch", "numpy", "constrain"))
"""Packages whose objects are no columns of a frame."""
_TEMPORAL = {"Date": "dates", "Datetime": "dates", "Time": "times of day", "Duration": "durations"}
_WIDE = "integers of more than 64 bits"
_OTHERS = {"Struct": "structs", "Binary": "bytes", "Int128": _WIDE, "UInt128": _WIDE}
_NUMPY_KINDS = {"M": "dates", "m": "durations", "c": "complex numbers", "V": "structs"}


def _foreign(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] not in _OWN


def _native(value: Any) -> Any:
    """A narwhals object for what narwhals reads, else None."""
    reader = attribute("narwhals.stable.v2")
    found = reader.from_native(value, allow_series=True, pass_through=True)
    return found if isinstance(found, (reader.Series, reader.DataFrame, reader.LazyFrame)) else None


def as_series(value: Any) -> nw.Series[Any] | None:
    """One column of a frame as a narwhals series; None for anything else.

    Takes series of pandas and polars, chunked arrays and arrays of arrow, and the arrays and indexes that
    pandas keeps its columns in.
    """
    if not _foreign(value):
        return None
    pandas, arrow = loaded("pandas"), loaded("pyarrow")
    if pandas is not None and isinstance(value, (pandas.Index, pandas.api.extensions.ExtensionArray)):
        value = pandas.Series(value)
    if arrow is not None and isinstance(value, arrow.Array):
        value = arrow.chunked_array([value])
    found = _native(value)
    return found if isinstance(found, attribute("narwhals.stable.v2:Series")) else None


def in_another_order(columns: Mapping[str, Any]) -> tuple[str, str] | None:
    """Two columns of pandas whose indexes label their rows differently, so that row i of them is not one row.

    An index that only counts (0, 1, 2, ...) beside one with other labels says nothing about the order.

    Args:
        columns: of one sample, of equal length.
    """
    pandas = loaded("pandas")
    if pandas is None:
        return None
    kinds = (pandas.Series, pandas.DataFrame)
    labeled = [(name, value.index) for name, value in columns.items() if isinstance(value, kinds)]
    for (first, own), (second, other) in itertools.pairwise(labeled):
        if own.equals(other):
            continue
        counts = any(x.equals(pandas.RangeIndex(len(x))) for x in (own, other))
        if not counts or own.sort_values().equals(other.sort_values()):
            return first, second
    return None


def as_frame(value: Any) -> nw.DataFrame[Any] | nw.LazyFrame[Any] | None:
    """A frame, eager or lazy; None for anything else."""
    arrow = loaded("pyarrow")
    if arrow is not None and isinstance(value, arrow.RecordBatch):
        value = arrow.Table.from_batches([value])
    found = _native(value) if _foreign(value) else None
    return None if isinstance(found, attribute("narwhals.stable.v2:Series")) else found


def frame_columns(frame: Any, roles: Mapping[str, str | Sequence[str]]) -> dict[str, Any]:
    """Columns of a sample out of a frame, in types of its own library; a lazy frame is collected.

    Args:
        frame: what `as_frame` takes.
        roles: column of the sample to column of the frame, or to several that make one; empty for all columns
            under their own names.

    Raises:
        DataError: E168 for what is no frame, or for two columns of one name; E106 for an unknown name.
    """
    try:
        found: Any = as_frame(frame)
    except attribute("narwhals.exceptions:DuplicateError") as error:
        raise _twice(" ".join(str(error).split())) from None
    if found is None:
        raise DataError(
            "E168",
            f"a {type(frame).__name__} is no data frame",
            at=here(),
            fix="a frame of pandas, polars or arrow; cn.Data(name, x=..., y=...) takes arrays and tensors",
        )
    column = attribute("narwhals.stable.v2:col")
    names = {str(c): c for c in cast("list[Any]", found.collect_schema().names())}  # pandas takes any name
    chosen = dict(roles) or {c: c for c in names}
    wanted: dict[str, None] = {}
    for source in chosen.values():
        several = [source] if isinstance(source, str) else list(source)
        for name in several:
            if name not in names:
                suggest = attribute("constrain.language.data:suggest")
                raise DataError("E106", f"the frame has no column {name!r}{suggest(name, names)}", at=here())
        if len(set(several)) < len(several) or not several:
            raise _twice(f"a column made of {several}")
        wanted.update(dict.fromkeys(several))
    if isinstance(found, attribute("narwhals.stable.v2:LazyFrame")):
        found = found.select(*(column(names[c]) for c in wanted)).collect()
    return {
        role: (
            found.get_column(names[source])
            if isinstance(source, str)
            else found.select(*(column(names[c]) for c in source))
        ).to_native()
        for role, source in chosen.items()
    }


def _twice(what: str) -> DataError:
    return DataError(
        "E168", f"columns that cannot be told apart: {what}", at=here(), fix="one name for each column"
    )


def entry_shape(series: nw.Series[Any]) -> tuple[int, ...]:
    """Shape of one entry of a column: `()` for numbers and texts, `(d,)` for vectors of one length.

    Raises:
        DataError: E112 when the entries are vectors of several lengths.
    """
    shape = getattr(series.dtype, "shape", None)
    if shape is not None:
        return tuple(int(size) for size in shape)
    kind = _kind(series)
    if kind not in ("List", "Object") or not len(series):
        return ()
    static_shape = attribute("constrain.language.data:static_shape")
    entries = series.drop_nulls().to_list()
    first = static_shape(entries[0]) if entries else None
    if first is None:
        return ()
    for i, entry in enumerate(entries):
        if static_shape(entry) != first:
            raise DataError(
                "E112",
                f"a column of vectors of several lengths: entry 0 has shape {first}, entry {i} "
                f"{static_shape(entry)}",
                at=here(),
                fix="vectors of one length, padded if need be",
            )
    return cast("tuple[int, ...]", first)


def _kind(series: nw.Series[Any]) -> str:
    return type(series.dtype).__name__


def declared_levels(series: nw.Series[Any]) -> list[Any] | None:
    """Levels that the type of a column declares, in their order; None when it declares none.

    Categories of pandas, an enum of polars, a dictionary of arrow. A `Categorical` of polars shares its
    categories with all other columns of the process: it declares none, and its levels are those that occur.
    """
    kind = _kind(series)
    if kind not in ("Categorical", "Enum"):
        return None
    native = series.to_native()
    library = type(native).__module__.partition(".")[0]
    if library == "pandas":
        return _plain(native.cat.categories.tolist())
    if library == "pyarrow":
        return _plain(series.cat.get_categories().to_list())
    return _plain(getattr(series.dtype, "categories", None) if kind == "Enum" else None)


def _plain(levels: Any) -> list[Any] | None:
    """Levels as numbers or texts: an interval of `pandas.cut` or a date becomes its text."""
    if levels is None:
        return None
    found = list(levels)
    return found if all(isinstance(v, (bool, int, float, str)) for v in found) else [str(v) for v in found]


def refusal(value: Any) -> tuple[str, str] | None:
    """What a column holds that is neither numbers nor texts, and what to give instead; None if it is fine.

    Told from the type of the column alone; what the entries are is looked at when a problem is compiled.
    """
    found = _unusable(value)
    if found is None:
        return None
    if found in ("dates", "times of day", "durations"):
        return found, "a number, such as days since a day of your choice; or text levels, such as the month"
    instead = {
        "complex numbers": "two columns, the real and the imaginary part",
        "sparse rows": ".to_dense()",
        _WIDE: "floating-point numbers",
    }
    return found, instead.get(found, "numbers, truth values or texts")


def _unusable(value: Any) -> str | None:
    if isinstance(value, (list, tuple)):
        return None
    if str(getattr(value, "layout", "torch.strided")) != "torch.strided":
        return "sparse rows"
    dtype = getattr(value, "dtype", None)
    if str(dtype).startswith("torch.complex"):
        return "complex numbers"
    if not _foreign(value):
        return _NUMPY_KINDS.get(getattr(dtype, "kind", ""))
    series = as_series(value)
    if series is None:
        return None
    kind = _kind(series)
    if kind in _TEMPORAL:
        return _TEMPORAL[kind]
    if kind in _OTHERS:
        return _OTHERS[kind]
    if kind == "Unknown" and series.null_count() < len(series):
        native: Any = series.to_native()  # periods, intervals, complex numbers, sparse and extension types
        own = getattr(native, "dtype", getattr(native, "type", "unknown"))
        letter = getattr(own, "kind", "O")
        if not hasattr(own, "subtype") or letter not in "biuf":
            return _NUMPY_KINDS.get(letter, f"entries of type {own}")
    return None
