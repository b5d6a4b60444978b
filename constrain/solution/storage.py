"""Solutions on disk: `solution.json` (versioned) and `arrays.npz`. Nothing is pickled.

JSON has no NaN, no infinity, no tuples and no arrays: they are written as objects with one reserved key, and
read back as they were. Arrays of more than a few entries go to the NPZ file.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from constrain.errors import DataError
from constrain.solution import records

if TYPE_CHECKING:
    from constrain.solution.answer import Solution

__all__ = ["SCHEMA", "indent_of", "plain_dict", "plain_value", "save"]

SCHEMA = 1
"""Version of the layout of `solution.json`."""

READABLE = 500
"""Constraints up to which JSON is indented."""


INLINE = 32
"""Arrays up to this size stay readable in the JSON file."""

_SKIPPED = ("live", "diagnosis")


class _Encoder:
    """Python values to JSON values; large arrays are put aside."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}

    def encode(self, value: Any) -> Any:
        """A JSON value."""
        if isinstance(value, records.Status):
            return {"$status": value.value}
        if value is None or isinstance(value, (bool, str, int)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"$float": repr(value)}
        if isinstance(value, np.generic):
            return self.encode(value.item())
        if isinstance(value, np.ndarray):
            return self._array(cast("np.ndarray[Any, Any]", value))
        if is_dataclass(value):
            stored = {
                f.name: self.encode(getattr(value, f.name)) for f in fields(value) if f.name not in _SKIPPED
            }
            return {"$type": type(value).__name__, **stored}
        if isinstance(value, dict):
            items = cast("dict[str, Any]", value).items()
            return {"$dict": [[key, self.encode(item)] for key, item in items]}
        listed = [self.encode(item) for item in value]
        return {"$tuple": listed} if isinstance(value, tuple) else listed

    def _array(self, value: np.ndarray[Any, Any]) -> Any:
        if value.size <= INLINE and value.dtype.kind in "fbiu":
            listed = [self.encode(x) for x in value.ravel().tolist()]
            return {"$array": listed, "dtype": value.dtype.str, "shape": list(value.shape)}
        key = f"array_{len(self.arrays)}"
        self.arrays[key] = value
        return {"$npz": key}


def indent_of(solution: Solution) -> int | None:
    """How JSON is indented: not at all where it is too long to be read, which is faster."""
    return 1 if len(solution.names) <= READABLE else None


def save(solution: Solution, folder: str | Path) -> Path:
    """Writes a solution to a folder and returns the folder.

    Decisions are stored under their names (`variable:w`, `weight:f.0.bias`), so that other programs can read
    `arrays.npz` too. `problem.json` has the structure of the problem when it is at hand.
    """
    target = Path(folder)
    if target.is_file():
        raise DataError(
            "E144", f"{target} is a file, and a solution is stored in a folder", fix="another name"
        )
    target.mkdir(parents=True, exist_ok=True)
    encoder = _Encoder()
    body: dict[str, Any] = {}
    for f in fields(solution):
        if f.name not in (*_SKIPPED, "variables", "weights", "hidden", "multipliers"):
            body[f.name] = encoder.encode(getattr(solution, f.name))
    groups = {
        "variable": solution.variables,
        "weight": solution.weights,
        "hidden": solution.hidden,
        "multiplier": solution.multipliers or {},
    }
    named = {f"{kind}:{name}": array for kind, group in groups.items() for name, array in group.items()}
    document = {"schema": SCHEMA, "multipliers": solution.multipliers is not None, "solution": body}
    indent = indent_of(solution)
    text = json.dumps(document, allow_nan=False, indent=indent, ensure_ascii=False)
    (target / "solution.json").write_text(text + "\n", encoding="utf-8")
    if solution.live is not None:
        text = solution.live.problem.to_json(indent=indent)
        (target / "problem.json").write_text(text + "\n", encoding="utf-8")
    with (target / "arrays.npz").open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **encoder.arrays, **named)  # type: ignore[arg-type]  # arrays
    return target


def plain_value(value: Any, limit: int | None) -> Any:
    """A record as dictionaries, lists, numbers and text; larger arrays than `limit` by their size."""
    if isinstance(value, (np.ndarray, np.generic)):
        array = cast("np.ndarray[Any, Any]", value)
        if limit is not None and array.size > limit:
            return {"left_out": int(array.size)}
        return plain_value(array.tolist(), limit)
    if is_dataclass(value):
        shown = [f.name for f in fields(value) if f.name not in (*_SKIPPED, "members")]
        found = {name: plain_value(getattr(value, name), limit) for name in shown}
        if "duals" in found:  # of a constraint
            found["multiplier"], found["shadow_price"] = found.pop("duals") or (None, None)
        summary = getattr(value, "summary", None)
        return found if summary is None else found | {"summary": plain_value(summary, limit)}
    if isinstance(value, dict):
        return {str(key): plain_value(item, limit) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(item, limit) for item in cast("list[Any]", value)]
    return str(value) if isinstance(value, records.Status) else value


def plain_dict(solution: Solution, limit: int | None = None) -> dict[str, Any]:
    """Everything but the decisions and the problem, as dictionaries, lists, numbers and text.

    Args:
        solution: of a solve.
        limit: arrays with more numbers are left out, and only their size is told.
    """
    skipped = (*_SKIPPED, "variables", "weights", "hidden")
    kept = [f.name for f in fields(solution) if f.name not in skipped]
    return {name: plain_value(getattr(solution, name), limit) for name in kept}
