"""Columns of any origin as NumPy arrays: numbers in their own type, texts as codes of their levels.

What a column holds is decided here once, whatever library it comes from. Numbers never pass through Python
objects on the way, so that integers beyond 2^53 next to missing values stay what they are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from constrain._lazy import attribute
from constrain.analysis.once import once
from constrain.errors import DataError
from constrain.language.frames import as_frame, as_series, declared_levels, refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from constrain.language.data import Data

__all__ = [
    "Column",
    "as_array",
    "column_of",
    "combine",
    "level_codes",
    "match_levels",
    "missing_rows",
    "pick",
    "read_column",
    "read_columns",
    "reads_as_numbers",
    "refuse_missing",
    "split_rows",
]

_WORDS: dict[type, str] = {
    **dict.fromkeys((bool, np.bool_), "truth value"),
    **dict.fromkeys((float, Decimal, Fraction), "number"),
    **dict.fromkeys((int,), "integer"),
    **dict.fromkeys((str, np.str_), "text"),
    **dict.fromkeys((list, tuple, np.ndarray, Tensor), "vector"),
}
_MISSING = frozenset(("NoneType", "NAType", "NaTType"))
"""Types of the objects that stand for a missing value: None, `pandas.NA`, `NaT`."""
_LARGEST = np.iinfo(np.int64).max


def as_array(value: Any) -> NDArray[Any]:
    """An array-like (tensor, array, series, list) as a NumPy array on the host, not copied where possible."""
    if isinstance(value, Tensor):
        host = value.detach().cpu()
        return (host.float() if host.dtype == torch.bfloat16 else host).numpy()  # NumPy has no bfloat16
    to_numpy = getattr(value, "to_numpy", None)
    array = np.asarray(value if to_numpy is None else to_numpy())
    if array.dtype.kind == "O" and all(isinstance(entry, (int, float)) for entry in array.reshape(-1)):
        return array.astype(np.float64)
    return array


@dataclass(frozen=True)
class Column:
    """A column as NumPy sees it.

    Attributes:
        values: (rows, ...) numbers or truth values; of a text column (rows,) int64 codes, 0 where missing.
        texts: names of the codes of a text column, in their order; None for numbers.
        declared: levels that the type of a categorical column declares, in their order; None otherwise.
        missing: (rows,) rows with a missing or infinite entry; None when there is none.
    """

    values: NDArray[Any]
    texts: list[str] | None = None
    declared: list[Any] | None = None
    missing: NDArray[np.bool_] | None = None

    def coded(self) -> tuple[NDArray[np.int64], list[Any]]:
        """Code of each row and the levels: the texts, the declared numbers, or the numbers that occur."""
        if self.texts is not None:
            return self.values, list(self.texts)
        if self.declared is not None:
            order = {level: i for i, level in enumerate(self.declared)}
            return np.array([order[v] for v in self.values.tolist()], dtype=np.int64), list(self.declared)
        levels, codes = np.unique(self.values, return_inverse=True)
        return codes.reshape(-1).astype(np.int64), levels.tolist()


# ------------------------------------------------------------------------------------------- reading
def read_column(value: Any, shown: str) -> Column:
    """A column out of whatever holds it.

    Args:
        value: tensor, array, list, series or frame; of a frame every column is one entry of a row.
        shown: the column in messages, such as `adult.sex`.

    Raises:
        DataError: E167 (dates and others that are neither numbers nor texts), E168 (texts among numbers).
    """
    unfit = refusal(value)
    if unfit is not None:
        raise DataError("E167", f"{shown} holds {unfit[0]}", fix=unfit[1])
    if isinstance(value, Tensor):
        return _finite(as_array(value))
    series = as_series(value)
    if series is not None:
        return _of_series(series, shown)
    frame = as_frame(value)
    if frame is not None:
        return _of_frame(cast("Any", frame), shown)
    if isinstance(value, (list, tuple)):
        return _of_list(list(cast("Sequence[Any]", value)), shown)
    if isinstance(value, np.ma.MaskedArray):
        return _of_masked(cast("Any", value), shown)
    return _of_array(np.asarray(value), shown)


def _finite(array: NDArray[Any], missing: NDArray[np.bool_] | None = None) -> Column:
    """A column of numbers; entries that are not finite are missing."""
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.all():
            bad = np.asarray(~finite.reshape(len(array), -1).all(axis=1))
            missing = bad if missing is None else np.logical_or(bad, missing)
    return Column(array, missing=missing)


def _encoded(entries: list[Any], levels: list[str] | None, missing: NDArray[np.bool_] | None) -> Column:
    """A column of texts; its levels are the texts in sorted order unless they are declared."""
    if missing is not None:
        stand_in = next((v for v, gone in zip(entries, missing, strict=True) if not gone), "")
        entries = [stand_in if gone else v for v, gone in zip(entries, missing, strict=True)]
    texts = sorted(map(str, set(entries))) if levels is None else levels
    order = {level: i for i, level in enumerate(texts)}
    return Column(np.array([order.get(v, 0) for v in entries], dtype=np.int64), texts, levels, missing)


def _of_series(series: Any, shown: str) -> Column:
    """A column of a frame."""
    kind = type(series.dtype).__name__
    missing = series.is_null().to_numpy().astype(bool) if series.null_count() else None
    if missing is not None and missing.all():
        return Column(np.zeros(len(series)), missing=missing)
    if kind in ("Categorical", "Enum"):
        return _of_levels(series.to_list(), declared_levels(series), missing, shown)
    if kind == "Boolean" or series.dtype.is_integer():
        whole = series if missing is None else series.fill_null(False if kind == "Boolean" else 0)
        array = np.asarray(whole.to_numpy())
        return _finite(
            array.astype(bool) if kind == "Boolean" else _of_integers(array, shown).values, missing
        )
    if kind == "Decimal":
        series = series.cast(attribute("narwhals.stable.v2:Float64"))
    if kind == "Decimal" or series.dtype.is_float():
        return _finite(np.asarray(series.to_numpy()), missing)
    if kind == "String":
        return _encoded(series.to_list(), None, missing)
    if kind == "Unknown":
        return _of_array(np.asarray(series.to_numpy()), shown)
    if kind == "Array":
        array = np.asarray(series.to_numpy())
        return _finite(array, missing) if array.dtype.kind in "biuf" else _of_objects(list(array), shown)
    return _of_objects(series.to_list(), shown)


def _of_masked(array: Any, shown: str) -> Column:
    """A masked array of NumPy: what is masked is missing."""
    column = _of_array(np.asarray(array.data), shown)
    masked = _any(np.ma.getmaskarray(array).reshape(len(array), -1), 1)
    missing = masked if column.missing is None else np.logical_or(masked, column.missing)
    return replace(column, missing=missing if missing.any() else None)


def _of_levels(
    entries: list[Any], declared: list[Any] | None, missing: NDArray[np.bool_] | None, shown: str
) -> Column:
    """A categorical column: of texts, or of numbers whose order is declared."""
    if declared is None or all(isinstance(v, str) for v in declared):
        texts = entries if declared is None else [v if isinstance(v, str) else str(v) for v in entries]
        return _encoded(texts, declared, missing)
    if any(isinstance(v, str) for v in declared):
        raise _mixed(declared, f"the levels of {shown} mix")
    first = declared[0]
    numbers = np.array(
        entries if missing is None else [first if g else v for v, g in zip(entries, missing, strict=True)]
    )
    return Column(numbers, declared=declared, missing=missing)


def _of_frame(frame: Any, shown: str) -> Column:
    """Several columns as one: entry k of a row is that of column k."""
    parts = [read_column(frame.get_column(c).to_native(), f"{shown}[{c!r}]") for c in frame.columns]
    for name, part in zip(frame.columns, parts, strict=True):
        if part.texts is not None or part.values.ndim > 1:
            what = "texts" if part.texts is not None else "vectors"
            raise DataError(
                "E168",
                f"{shown} is made of several columns, of which {name!r} holds {what}",
                fix="columns of numbers only; texts as a column of their own",
            )
    gone = [p.missing for p in parts if p.missing is not None]
    missing = _any(np.stack(gone), 0) if gone else None
    return Column(np.stack([p.values for p in parts], axis=1), missing=missing)


def _of_list(items: list[Any], shown: str) -> Column:
    if items and isinstance(items[0], Tensor) and items[0].dim():
        return _finite(as_array(torch.stack(items)))
    array = np.asarray(items)
    if array.dtype.kind in "US" and array.ndim == 1 and set(map(type, items)) != {str}:
        return _of_objects(items, shown)  # NumPy makes texts of numbers next to texts
    return _of_array(array, shown)


def _of_array(array: NDArray[Any], shown: str) -> Column:
    if array.dtype.kind == "O":
        return _of_objects(array.tolist(), shown) if array.ndim == 1 else _of_table(array, shown)
    if array.dtype.kind in "US":
        if array.ndim > 1:
            raise DataError(
                "E168", f"{shown} has texts in rows of shape {array.shape[1:]}", fix="one text per row"
            )
        return _encoded(array.astype(str).tolist(), None, None)
    unfit = refusal(array)
    if unfit is not None:
        raise DataError("E167", f"{shown} holds {unfit[0]}", fix=unfit[1])
    return _of_integers(array, shown) if array.dtype.kind in "iu" else _finite(array)


def _of_table(array: NDArray[Any], shown: str) -> Column:
    """An array of objects with several entries per row."""
    flat = _of_objects(array.reshape(-1).tolist(), shown)
    if flat.texts is not None:
        raise DataError(
            "E168", f"{shown} has texts in rows of shape {array.shape[1:]}", fix="one text per row"
        )
    gone = None if flat.missing is None else _any(flat.missing.reshape(len(array), -1), 1)
    return Column(flat.values.reshape(array.shape), missing=gone)


def _of_integers(array: NDArray[Any], shown: str) -> Column:
    large = array.dtype.kind == "u" and array.size and int(array.max()) > _LARGEST
    if large or array.dtype.kind not in "iu":
        raise _too_large(shown)
    return Column(array)


def _too_large(shown: str) -> DataError:
    return DataError("E167", f"{shown} holds integers of more than 64 bits", fix="floating-point numbers")


def _of_objects(entries: list[Any], shown: str) -> Column:
    """A column of Python objects of one kind, and missing ones."""
    words = {kind: _word(kind) for kind in set(map(_type, entries))}
    gone = [words[_type(v)] == "missing" for v in entries]
    found = set(words.values()) - {"missing"}
    if "text" in found and "number" in found:
        gone = [g or (words[_type(v)] == "number" and v != v) for v, g in zip(entries, gone, strict=True)]  # noqa: PLR0124  # true of NaN
        kept = (words[_type(v)] for v, g in zip(entries, gone, strict=True) if not g)
        found = set(kept)
    missing = np.array(gone, dtype=bool) if any(gone) else None
    if found == {"text"}:
        return _encoded(entries, None, missing)
    if found == {"vector"}:
        first = next(np.asarray(v) for v, g in zip(entries, gone, strict=True) if not g)
        stacked = [np.zeros_like(first) if g else np.asarray(v) for v, g in zip(entries, gone, strict=True)]
        return _finite(np.stack(stacked), missing)
    if not found <= {"truth value", "integer", "number"}:
        if len(found) == 1:
            raise DataError("E167", f"{shown} holds entries of type {found.pop()}", fix="numbers or texts")
        raise _mixed([v for v, g in zip(entries, gone, strict=True) if not g], f"{shown} mixes")
    numbers = [0 if g else v for v, g in zip(entries, gone, strict=True)] if missing is not None else entries
    if found == {"truth value"}:
        return Column(np.array(numbers, dtype=bool), missing=missing)
    if "number" in found or not found:
        return _finite(np.array([float(v) for v in numbers]), missing)
    try:
        return Column(np.array([int(v) for v in numbers], dtype=np.int64), missing=missing)
    except OverflowError:
        raise _too_large(shown) from None


def _any(flags: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    return np.asarray(flags.any(axis=axis))


def _type(value: Any) -> type[Any]:
    return cast("type[Any]", type(value))


def _word(kind: type[Any]) -> str:
    """What the objects of a type are called, "missing" for those that stand for no value."""
    if kind.__name__ in _MISSING:
        return "missing"
    for known, word in _WORDS.items():
        if issubclass(kind, known):
            return word
    if issubclass(kind, np.generic):
        return {"i": "integer", "u": "integer", "f": "number"}.get(kind(0).dtype.kind, kind.__name__)
    return kind.__name__


def _mixed(entries: Sequence[Any], what: str) -> DataError:
    """E168: how many entries there are of each kind, with the first of each."""
    counts = Counter(_word(_type(v)) for v in entries)
    listed: list[str] = []
    for word, count in counts.most_common(4):
        first = next(v for v in entries if _word(_type(v)) == word)
        listed.append(f"{count} {word}{'s'[: count > 1]} (such as {first!r:.40})")
    return DataError("E168", f"{what} {' and '.join(listed)}", fix="one kind of entries, numbers or texts")


def column_of(data: Data, name: str) -> Column:
    """A column of a sample, read once within a solve.

    Raises:
        DataError: E167, E168.
    """
    return _read(data.values(name), f"{data.name}.{name}")


@once
def _read(value: Any, shown: str) -> Column:
    return read_column(value, shown)


# ------------------------------------------------------------------------------------ missing values
def missing_rows(data: Data, name: str) -> NDArray[np.int64]:
    """Positions of the rows whose entry in a column is missing (None, NaN, NA, NaT, null) or infinite."""
    found = column_of(data, name).missing
    return np.zeros(0, dtype=np.int64) if found is None else np.flatnonzero(found)


def refuse_missing(data: str, counts: Mapping[str, tuple[int, Sequence[int]]]) -> None:
    """Raises E124 when a column has missing values.

    Args:
        data: name of the sample.
        counts: per column the number of such rows, and the first of their positions.
    """
    bad = {name: found for name, found in counts.items() if found[0]}
    if not bad:
        return

    def rows(count: int, first: Sequence[int]) -> str:
        listed = ", ".join(map(str, first[:3])) + (", …" if count > len(first[:3]) else "")
        return f" (rows {listed})" if first else ""

    if len(bad) == 1:
        ((name, (count, first)),) = bad.items()
        what = f"{data}.{name} has {count} missing or infinite value{'s'[: count > 1]}{rows(count, first)}"
    else:
        listed = ", ".join(f"{name} {count}{rows(count, first)}" for name, (count, first) in bad.items())
        what = f"columns of {data!r} have missing or infinite values: {listed}"
    raise DataError("E124", what, fix="drop those rows or impute them before cn.Data")


def read_columns(data: Data, names: Sequence[str]) -> dict[str, Column]:
    """Columns of a sample without missing values.

    Raises:
        DataError: E124 with the counts of all of these columns, E167, E168.
    """
    found = {name: column_of(data, name) for name in names}
    places = {name: np.flatnonzero(c.missing) for name, c in found.items() if c.missing is not None}
    refuse_missing(data.name, {name: (len(rows), rows[:3].tolist()) for name, rows in places.items()})
    return found


# ------------------------------------------------------------------------------------------- levels
def level_codes(
    data: Data, columns: Sequence[str], reference: Sequence[Any] | None = None
) -> tuple[NDArray[np.int64], list[Any]]:
    """Integer codes of the levels of one column, or of the combinations that occur of several.

    Args:
        data: the sample.
        columns: one or more columns with one value per row.
        reference: levels of the training sample, which a hold-out sample must reuse.

    Returns:
        Codes of shape (rows,) and the levels (tuples when there are several columns): sorted, or in the order
        that a categorical column declares.

    Raises:
        DataError: E135 when the sample has a level that the reference has not; E124, E167, E168.
    """
    levels, codes = combine(list(read_columns(data, columns).values()))
    if reference is None:
        return codes, levels
    shown = f"{data.name}.{'/'.join(columns)}"
    return match_levels(codes, levels, reference, shown), list(reference)


def combine(columns: Sequence[Column]) -> tuple[list[Any], NDArray[np.int64]]:
    """The levels of one column, or the combinations that occur of several, and the place of each row's."""
    parts = [column.coded() for column in columns]
    if len(parts) == 1:
        codes, levels = parts[0]
        return levels, codes
    sizes = tuple(len(own) for _, own in parts)
    flat = np.ravel_multi_index(tuple(codes for codes, _ in parts), sizes)
    found, inverse = np.unique(flat, return_inverse=True)
    places = zip(*np.unravel_index(found, sizes), strict=True)
    levels = [tuple(own[i] for (_, own), i in zip(parts, place, strict=True)) for place in places]
    return levels, inverse.reshape(-1).astype(np.int64)


def match_levels(
    codes: NDArray[np.int64], levels: Sequence[Any], reference: Sequence[Any], shown: str
) -> NDArray[np.int64]:
    """Codes of the same rows in the levels of the training sample; a level without rows may be unknown there.

    Raises:
        DataError: E135 for a level that the training sample lacks.
    """
    known = {level: i for i, level in enumerate(reference)}
    table = np.array([known.get(level, -1) for level in levels], dtype=np.int64)
    found = table[codes]
    if len(found) and int(found.min()) < 0:
        unknown = levels[int(codes[int(np.argmin(found))])]
        like = next((level for level in reference if str(level) == str(unknown)), None)
        hint = "" if like is None else f": it has {like!r}, of another type"
        raise DataError(
            "E135",
            f"{shown} has the level {unknown!r}, which the training sample lacks{hint}",
            fix="drop those rows, or merge rare levels before training"
            if like is None
            else "the same type of column in both samples",
        )
    return found


def reads_as_numbers(texts: Sequence[str]) -> bool:
    """Whether every text is the text of a number, as in a column that was read without its type."""
    try:
        return bool(texts) and all(np.isfinite(float(text)) for text in texts)
    except ValueError:
        return False


# ------------------------------------------------------------------------------------------- splits
def split_rows(
    data: Data, fraction: float, seed: int, by: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of two disjoint parts of a sample, in order; the second has this share of each level.

    Raises:
        DataError: E112 when a part would have no rows.
    """
    generator = np.random.default_rng(seed)
    rows = len(data)
    codes = level_codes(data, by)[0] if by else np.zeros(rows, dtype=np.int64)
    chosen = np.zeros(rows, dtype=bool)
    for level in np.unique(codes):
        own = np.flatnonzero(codes == level)
        chosen[generator.permutation(own)[: round(fraction * len(own))]] = True
    if not 0 < fraction < 1 or chosen.all() or not chosen.any():
        raise DataError(
            "E112",
            f"a fraction of {fraction:g} of the {rows} rows of {data.name!r} leaves one part without rows",
            fix="a fraction between 0 and 1, such as 0.3",
        )
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def pick(value: Any, rows: NDArray[np.int64]) -> Any:
    """Some rows of a column, in the type that it was given in."""
    if isinstance(value, (list, tuple)):
        items = cast("Sequence[Any]", value)
        return [items[i] for i in rows.tolist()]
    if isinstance(value, Tensor):
        return value[torch.as_tensor(rows, device=value.device)]
    found: Any = as_series(value)
    if found is None:
        found = as_frame(value)
    return np.asarray(value)[rows] if found is None else found[rows.tolist()].to_native()
