"""Interval bounds of expressions: the least and largest value an entry can take.

Bounds hold for every entry, every row and every feasible decision. Constants are looked up, decisions have
the bounds that were declared, and functions map intervals to intervals. The sign that the composition rules
of `curvature.py` need is read off the interval.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch

from constrain.analysis.once import once
from constrain.language.atoms import ATOMS
from constrain.language.types import type_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constrain.language import nodes as n
    from constrain.language.atoms import Sign
    from constrain.language.data import Data

__all__ = [
    "ANYTHING",
    "Bounds",
    "apply_bounds",
    "bounds_of_column",
    "bounds_of_value",
    "hull",
    "variable_bounds",
]


class Bounds(NamedTuple):
    """An interval `[low, high]`, possibly unbounded."""

    low: float
    high: float

    @property
    def sign(self) -> Sign:
        """The sign of every number in the interval."""
        if self.low == 0 == self.high:
            return "zero"
        if self.low >= 0:
            return "nonneg"
        return "nonpos" if self.high <= 0 else "any"


ANYTHING = Bounds(-math.inf, math.inf)
_SIGNED: dict[Sign, Bounds] = {
    "zero": Bounds(0.0, 0.0),
    "nonneg": Bounds(0.0, math.inf),
    "nonpos": Bounds(-math.inf, 0.0),
    "any": ANYTHING,
}


def bounds_of_value(value: Any) -> Bounds:
    """Least and largest entry of a number, array, tensor or list; unbounded for text and missing values."""
    if isinstance(value, torch.Tensor):
        if value.is_meta or not value.numel():
            return ANYTHING
        found = (float(value.detach().min()), float(value.detach().max()))
    else:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf" or not array.size:
            return ANYTHING
        found = (float(array.min()), float(array.max()))
    return ANYTHING if math.isnan(found[0]) or math.isnan(found[1]) else Bounds(*found)


def bounds_of_column(data: Data, name: str) -> Bounds:
    """Least and largest entry of a column; unbounded for a stream, whose rows are not looked at."""
    return ANYTHING if data.streamed else _bounds_of_values(data.values(name))


@once
def _bounds_of_values(values: Any) -> Bounds:
    return bounds_of_value(values)


def variable_bounds(symbol: n.VariableSymbol) -> Bounds:
    """What the declaration of a `Variable` says about its entries."""
    low, high = (0.0, 1.0) if symbol.boolean else (-math.inf, math.inf)
    if symbol.bounds is not None:
        lower, upper = symbol.bounds
        low = low if lower is None else max(low, bounds_of_value(lower).low)
        high = high if upper is None else min(high, bounds_of_value(upper).high)
    return Bounds(max(low, 0.0) if symbol.nonneg else low, high)


def hull(parts: Sequence[Bounds]) -> Bounds:
    """The least interval around all parts."""
    return Bounds(min(p.low for p in parts), max(p.high for p in parts))


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _product(a: Bounds, b: Bounds) -> Bounds:
    corners = [_times(x, y) for x in a for y in b]
    return Bounds(min(corners), max(corners))


def _reciprocal(a: Bounds) -> Bounds:
    if a.low < 0 < a.high:
        return ANYTHING
    low = -math.inf if a.high == 0 else (0.0 if math.isinf(a.high) else 1 / a.high)
    high = math.inf if a.low == 0 else (0.0 if math.isinf(a.low) else 1 / a.low)
    return Bounds(low, high)


def _power(base: Bounds, exponent: Bounds) -> Bounds:
    p = exponent.low
    if p != exponent.high:
        return Bounds(0.0, math.inf) if base.low >= 0 else ANYTHING
    if p > 0 and p % 2 == 0:
        magnitude = _apart(base)
        return Bounds(_pow(magnitude.low, p), _pow(magnitude.high, p))
    if base.low < 0 and p == int(p) and p > 0:
        return Bounds(-_pow(-base.low, p), _pow(base.high, p) if base.high >= 0 else -_pow(-base.high, p))
    return Bounds(0.0, math.inf) if base.low >= 0 or p != int(p) or p % 2 == 0 else ANYTHING


def _pow(x: float, p: float) -> float:
    try:
        return float(x**p)
    except OverflowError:
        return math.inf


def _apart(a: Bounds) -> Bounds:
    """Bounds of |a|."""
    if a.low >= 0:
        return a
    return Bounds(-a.high, -a.low) if a.high <= 0 else Bounds(0.0, max(-a.low, a.high))


def _rising(function: Callable[[float], float]) -> _One:
    return lambda a: Bounds(function(a.low), function(a.high))


def _same(a: Bounds) -> Bounds:
    return a


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _log(x: float) -> float:
    return -math.inf if x <= 0 else math.log(x)


def _squashed(x: float) -> float:
    return 1 / (1 + _exp(-x))


_One: TypeAlias = "Callable[[Bounds], Bounds]"
_Two: TypeAlias = "Callable[[Bounds, Bounds], Bounds]"
_ONE: dict[str, _One] = {
    "neg": lambda a: Bounds(-a.high, -a.low),
    "reciprocal": _reciprocal,
    "abs": _apart,
    "square": lambda a: _power(a, Bounds(2.0, 2.0)),
    "exp": _rising(_exp),
    "expm1": _rising(lambda x: _exp(x) - 1),
    "log": _rising(_log),
    "log1p": _rising(lambda x: _log(1 + x)),
    "sqrt": _rising(lambda x: math.sqrt(max(x, 0.0))),
    "relu": _rising(lambda x: max(x, 0.0)),
    "softplus": _rising(lambda x: x if x > 30 else math.log1p(_exp(x))),
    "sigmoid": _rising(_squashed),
    "tanh": _rising(math.tanh),
    "softmax": lambda _a: Bounds(0.0, 1.0),
    **dict.fromkeys(
        (
            *("mean", "max", "min", "index", "reshape", "transpose", "take"),
            *("max_levels", "min_levels", "mean_levels", "pick_levels"),
        ),
        _same,
    ),
}
_TWO: dict[str, _Two] = {
    "add": lambda a, b: Bounds(a.low + b.low, a.high + b.high),
    "sub": lambda a, b: Bounds(a.low - b.high, a.high - b.low),
    "mul": _product,
    "div": lambda a, b: _product(a, _reciprocal(b)),
    "pow": _power,
    "maximum": lambda a, b: Bounds(max(a.low, b.low), max(a.high, b.high)),
    "minimum": lambda a, b: Bounds(min(a.low, b.low), min(a.high, b.high)),
}
_PRODUCTS = {"matmul", "einsum"}


def _by_rule(node: n.Apply, parts: Sequence[Bounds]) -> Bounds | None:
    if node.atom in _ONE:
        return _ONE[node.atom](parts[0])
    if node.atom in _TWO:
        return _TWO[node.atom](parts[0], parts[1])
    if node.atom == "where":
        return hull(parts[1:])
    if node.atom == "stack":
        return hull(parts)
    return _sum_bounds(node, parts[0]) if node.atom == "sum" else None


def apply_bounds(node: n.Apply, parts: Sequence[Bounds]) -> Bounds:
    """Bounds of a function's value from those of its arguments."""
    found = _by_rule(node, parts)
    if found is not None:
        return ANYTHING if math.isnan(found.low) or math.isnan(found.high) else found
    signs: tuple[Sign, ...] = tuple(p.sign for p in parts)
    if node.atom in _PRODUCTS or (node.atom == "linear" and len(parts) == 2):
        return _SIGNED[ATOMS["mul"].sign(signs)]
    return _SIGNED[ATOMS[node.atom].sign(signs)]


def _sum_bounds(node: n.Apply, part: Bounds) -> Bounds:
    """A sum of k entries lies in `[k low, k high]`."""
    before, after = type_of(node.args[0]).shape, type_of(node).shape
    if before is None or after is None:
        return _SIGNED[part.sign]
    count = math.prod(before) / max(math.prod(after), 1)
    return Bounds(_times(count, part.low), _times(count, part.high))
