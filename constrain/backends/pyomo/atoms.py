"""One lowering per atom: arrays of terms of the arguments to the array of terms of the value.

Arrays keep the layout of the language: the axis of rows (or group levels) first, when there is one, then the
axes of one row. Functions with kinks and jumps are in `integers.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from constrain.backends.pyomo import integers
from constrain.backends.pyomo.package import pyo
from constrain.backends.pyomo.term import (
    Term,
    expression_of,
    lifted,
    mapped,
    mapped_all,
    mapped_pairs,
    summed,
)
from constrain.errors import RouteError
from constrain.runtime import rowwise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from constrain.backends.pyomo.integers import Pieces
    from constrain.language import nodes as n

__all__ = ["LOWERINGS", "Arguments"]


@dataclass(frozen=True)
class Arguments:
    """Arguments of one atom.

    Attributes:
        node: the application.
        values: arrays of terms and numbers.
        numbers: per argument its value when it is a constant, else None.
        leads: per argument 1 when it has a leading axis of rows or levels, else 0.
        side: +1 where everything that is minimized or bounded above increases in the value, -1 where it
            decreases, 0 where neither is known.
        pieces: makes auxiliary variables.
    """

    node: n.Apply
    values: tuple[NDArray[Any], ...]
    numbers: tuple[NDArray[Any] | None, ...]
    leads: tuple[int, ...]
    side: int
    pieces: Pieces

    def option(self, name: str, default: Any = None) -> Any:
        """A static option of the application."""
        return self.node.option(name, default)

    def axes(self, place: int = 0) -> tuple[int, ...]:
        """The axes that a reduction runs over."""
        axis = self.option("axis")
        count = self.values[place].ndim
        return tuple(range(self.leads[place], count)) if axis is None else tuple(a % count for a in axis)


Lowering: TypeAlias = Callable[[Arguments], Any]


# ---------------------------------------------------------------------------------------- elementwise
def _smooth(name: str) -> Callable[[Any], Any]:
    """A function of one number that Pyomo has, of a term or a number."""

    def applied(x: Any) -> Any:
        function = getattr(pyo, name)
        if not isinstance(x, Term):
            return float(function(float(x)))
        return Term(x.space, 0.0, {}, {}, function(expression_of(x)))

    return applied


exp, log = _smooth("exp"), _smooth("log")


def _softplus(x: Any) -> Any:
    return log(1.0 + exp(x))


def _sigmoid(x: Any) -> Any:
    return 1.0 / (1.0 + exp(-x))


def _entr(x: Any) -> Any:
    if not isinstance(x, Term):
        return -x * math.log(x) if x else 0.0
    return -(x * log(x))


def _rel_entr(p: Any, q: Any) -> Any:
    if not isinstance(p, Term) and not p:
        return 0.0
    return p * (log(p) - log(q))


def _kl_div(p: Any, q: Any) -> Any:
    return _rel_entr(p, q) - p + q


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(exponent, Term):
        return exp(exponent * log(base))
    if not isinstance(base, Term):
        return float(base) ** float(exponent)
    if exponent in (1.0, 2.0):
        return base if exponent == 1.0 else base * base
    power = int(exponent) if float(exponent).is_integer() else float(exponent)
    return Term(base.space, 0.0, {}, {}, expression_of(base) ** power)


def _square(x: Any) -> Any:
    return x * x


def _one(function: Callable[[Any], Any]) -> Lowering:
    return lambda a: mapped(function, a.values[0])


def _two(function: Callable[[Any, Any], Any]) -> Lowering:
    return lambda a: mapped_pairs(function, *_aligned(a.values, a.leads))


def _difference(x: Any, y: Any) -> Any:
    return x - y


def _aligned(values: tuple[NDArray[Any], ...], leads: tuple[int, ...]) -> list[NDArray[Any]]:
    """Arrays that broadcast within a row: a leading axis of rows stands before the longest row."""
    rank = max(v.ndim - lead for v, lead in zip(values, leads, strict=True))
    return [
        v.reshape(v.shape[:lead] + (1,) * (rank - v.ndim + lead) + v.shape[lead:]) if lead else v
        for v, lead in zip(values, leads, strict=True)
    ]


# -------------------------------------------------------------------------------------------- products
def _multiply(x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    return lifted(lifted(x) * lifted(y))


def _matmul(a: Arguments) -> Any:
    (x, y), (lead_x, lead_y) = a.values, a.leads
    vector_x, vector_y = x.ndim - lead_x == 1, y.ndim - lead_y == 1
    left = x[..., None, :] if vector_x else x
    right = y[..., :, None] if vector_y else y
    products = _multiply(left[..., :, :, None], right[..., None, :, :])
    result = summed(products, (-2,))
    if vector_y:
        result = result[..., 0]
    return result[..., 0] if vector_x and vector_y else result[..., 0, :] if vector_x else result


def _linear(a: Arguments) -> Any:
    x, weight, *bias = a.values
    turned = weight if weight.ndim == 2 else weight[None, :]
    result = summed(_multiply(x[..., None, :], turned), (-1,))
    result = result if weight.ndim == 2 else result[..., 0]
    return lifted(result + lifted(bias[0])) if bias else result


def _einsum(a: Arguments) -> Any:
    inputs, _, output = a.option("equation").replace(" ", "").partition("->")
    row = next(c for c in "ZYXWVUzyxwvu" if c not in a.option("equation"))
    terms = [row * lead + term for lead, term in zip(a.leads, inputs.split(","), strict=True)]
    order = list(dict.fromkeys("".join((row * max(a.leads), output, *terms))))
    spread: list[NDArray[Any]] = []
    for term, value in zip(terms, a.values, strict=True):
        unique = "".join(dict.fromkeys(term))
        diagonal = value
        if unique != term:  # a repeated letter takes a diagonal
            places = np.einsum(f"{term}->{unique}", np.arange(value.size).reshape(value.shape))
            diagonal = value.reshape(-1)[places]
        moved = diagonal.transpose([unique.index(c) for c in order if c in unique])
        spread.append(
            moved.reshape([moved.shape[_place(order, unique, c)] if c in unique else 1 for c in order])
        )
    product = spread[0]
    for other in spread[1:]:
        product = _multiply(product, other)
    kept = row * max(a.leads) + output
    gone = tuple(k for k, c in enumerate(order) if c not in kept)
    return summed(product, gone) if gone else product


def _place(order: list[str], letters: str, letter: str) -> int:
    """Position of a letter among those of a term, in a given order."""
    return [c for c in order if c in letters].index(letter)


def _quad_form(a: Arguments) -> Any:
    x, matrix = a.values
    products = _multiply(_multiply(x[..., :, None], x[..., None, :]), matrix)
    return summed(products, (-2, -1))


def _trace(a: Arguments) -> Any:
    return summed(lifted(np.diagonal(a.values[0], axis1=-2, axis2=-1)), (-1,))


def _symmetric_part(a: Arguments) -> Any:
    (x,) = a.values
    return mapped_pairs(lambda p, q: 0.5 * (p + q), x, np.swapaxes(x, -1, -2))


# ------------------------------------------------------------------------------------------ reductions
def _sum(a: Arguments) -> Any:
    axes = a.axes()
    return summed(a.values[0], axes, keepdims=bool(a.option("keepdims"))) if axes else a.values[0]


def _mean(a: Arguments) -> Any:
    axes = a.axes()
    return _multiply(_sum(a), lifted(1.0 / math.prod(a.values[0].shape[k] for k in axes)))


def _squares(a: Arguments) -> Any:
    squared = mapped(_square, a.values[0])
    axes = a.axes()
    return summed(squared, axes, keepdims=bool(a.option("keepdims"))) if axes else squared


def _norm(a: Arguments, axes: tuple[int, ...] | None = None) -> Any:
    """Along axes of one row, or along these."""
    order, over = float(a.option("ord", 2.0)), a.axes() if axes is None else axes
    keep = bool(a.option("keepdims"))
    if order == 2.0:
        return mapped(_smooth("sqrt"), summed(mapped(_square, a.values[0]), over, keepdims=keep))
    sizes = integers.absolute(a, a.values[0])
    if order == 1.0:
        return summed(sizes, over, keepdims=keep)
    if math.isinf(order):
        return integers.largest(a, sizes, axes=axes)
    raise RouteError("E125", f"pyomo has no form of a norm of order {order:g}", at=a.node.loc)


def _logsumexp(a: Arguments) -> Any:
    return mapped(log, summed(mapped(exp, a.values[0]), a.axes(), keepdims=bool(a.option("keepdims"))))


def _levels(function: Callable[[NDArray[Any]], Any]) -> Lowering:
    """A reduction over the levels of `by=`, the first axis."""
    return lambda a: function(a.values[0])


def _log_of_shares(x: NDArray[Any], axes: tuple[int, ...] = (-1,)) -> Any:
    """Logarithms of the probabilities that logits stand for."""
    level = mapped(log, summed(mapped(exp, x), axes, keepdims=True))
    return lifted(x - level)


def _log_softmax(a: Arguments) -> Any:
    return _log_of_shares(a.values[0], a.axes())


def _entropy_logits(a: Arguments) -> Any:
    level = _log_of_shares(a.values[0])
    return -1.0 * summed(_multiply(mapped(exp, level), level), (-1,))


def _kl_logits(a: Arguments) -> Any:
    p, q = (_log_of_shares(x) for x in _aligned(a.values, a.leads))
    return summed(_multiply(mapped(exp, p), lifted(p - q)), (-1,))


def _cross_entropy(a: Arguments) -> Any:
    scores, target = a.values[0], a.numbers[1]
    if target is None:
        raise RouteError("E125", "pyomo needs targets of cross_entropy that are data", at=a.node.loc)
    if target.ndim == a.leads[1]:
        target = np.eye(scores.shape[-1])[target.astype(np.int64)]
    level = mapped(log, summed(mapped(exp, scores), (-1,), keepdims=True))
    return summed(_multiply(lifted(target), lifted(level - scores)), (-1,))


def _variance(a: Arguments) -> Any:
    second, first = a.values
    return lifted(second - mapped(_square, first))


# ------------------------------------------------------------------------------------------- structure
def _moved(a: Arguments) -> Any:
    """Entries in other places: found by moving their positions with the torch function of the atom."""
    flat: list[Any] = []
    places: list[torch.Tensor] = []
    for value in a.values:
        places.append(torch.arange(len(flat), len(flat) + value.size).reshape(value.shape))
        flat.extend(lifted(value).reshape(-1))
    options = dict(a.node.options)
    moved = getattr(rowwise, a.node.atom)(*places, **options, lead=a.leads)
    entries = np.empty(len(flat), dtype=object)
    entries[:] = flat
    return lifted(entries[moved.numpy()])


def _take(a: Arguments) -> Any:
    codes = a.numbers[1]
    assert codes is not None  # codes are data
    return a.values[0][codes.astype(np.int64)]


def _chosen(condition: Any, first: Any, second: Any) -> Any:
    return first if condition else second


def _where(a: Arguments) -> Any:
    if a.numbers[0] is None:
        raise RouteError("E125", "pyomo has no form of where with a condition on decisions", at=a.node.loc)
    return mapped_all(_chosen, *_aligned(a.values, a.leads))


LOWERINGS: dict[str, Lowering] = {
    "add": _two(lambda x, y: x + y),
    "sub": _two(_difference),
    "neg": _one(lambda x: -x),
    "mul": _two(lambda x, y: x * y),
    "div": _two(lambda x, y: x / y),
    "pow": _two(_power),
    "matmul": _matmul,
    "linear": _linear,
    "einsum": _einsum,
    "quad_form": _quad_form,
    "trace": _trace,
    "symmetric_part": _symmetric_part,
    **{name: _one(_smooth(name)) for name in ("exp", "log", "sqrt", "sin", "cos", "tanh")},
    "square": _one(_square),
    "expm1": _one(lambda x: exp(x) - 1.0),
    "log1p": _one(lambda x: log(1.0 + x)),
    "reciprocal": _one(lambda x: 1.0 / x),
    "entr": _one(_entr),
    "softplus": _one(_softplus),
    "logsigmoid": _one(lambda x: -_softplus(-x)),
    "sigmoid": _one(_sigmoid),
    "silu": _one(lambda x: x * _sigmoid(x)),
    "kl_div": _two(_kl_div),
    "rel_entr": _two(_rel_entr),
    "mse_loss": _two(lambda x, y: _square(x - y)),
    "binary_cross_entropy_with_logits": _two(lambda s, y: _softplus(s) - y * s),
    "binary_cross_entropy": _two(lambda p, y: -y * log(p) - (1.0 - y) * log(1.0 - p)),
    "cross_entropy": _cross_entropy,
    "sum": _sum,
    "mean": _mean,
    "sum_squares": _squares,
    "norm": _norm,
    "logsumexp": _logsumexp,
    "log_softmax": _log_softmax,
    "softmax": lambda a: mapped(exp, _log_softmax(a)),
    "entropy_logits": _entropy_logits,
    "kl_logits": _kl_logits,
    **dict.fromkeys(("index", "reshape", "transpose", "stack"), _moved),
    "take": _take,
    "where": _where,
    "pick_levels": lambda a: lifted(a.values[0][a.option("place")]),
    "sum_levels": _levels(lambda x: summed(x, (0,))),
    "mean_levels": _levels(lambda x: _multiply(summed(x, (0,)), lifted(1.0 / len(x)))),
    "sum_squares_levels": _levels(lambda x: summed(mapped(_square, x), (0,))),
    "logsumexp_levels": _levels(lambda x: mapped(log, summed(mapped(exp, x), (0,)))),
    "norm_levels": lambda a: _norm(a, axes=(0,)),
    "variance": _variance,
    "deviation": lambda a: mapped(_smooth("sqrt"), _variance(a)),
    "abs": lambda a: integers.absolute(a, a.values[0]),
    "l1_loss": lambda a: integers.absolute(a, _two(_difference)(a)),
    "relu": lambda a: integers.elementwise(a, 1.0, (a.values[0], lifted(0.0))),
    "maximum": lambda a: integers.elementwise(a, 1.0, _aligned(a.values, a.leads)),
    "minimum": lambda a: integers.elementwise(a, -1.0, _aligned(a.values, a.leads)),
    "max": lambda a: integers.largest(a, a.values[0]),
    "min": lambda a: integers.smallest(a, a.values[0]),
    "max_levels": lambda a: integers.largest(a, a.values[0], axes=(0,)),
    "min_levels": lambda a: integers.smallest(a, a.values[0], axes=(0,)),
    "count_nonzero": integers.count,
}
"""Every atom of the table has an entry here, or a refusal in its record (`Atom.refusals["pyomo"]`)."""
