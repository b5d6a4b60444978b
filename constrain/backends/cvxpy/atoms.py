"""One lowering per atom: cvxpy expressions of the arguments to the cvxpy expression of the value.

Arrays keep the layout of the language: the axis of rows (or group levels) first, when there is one, then the
axes of one row. A lowering obeys the disciplined convex rules where `analysis` certified the expression.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from constrain.analysis.fact import is_square
from constrain.backends.cvxpy.package import cp
from constrain.errors import RouteError
from constrain.runtime.checks import refuse_labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from constrain.language import nodes as n

__all__ = ["LOWERINGS", "Arguments", "contract"]


@dataclass(frozen=True)
class Arguments:
    """Arguments of one atom.

    Attributes:
        node: the application.
        values: cvxpy expressions, constants included.
        numbers: per argument its value when it is a constant, else None.
        leads: per argument 1 when it has a leading axis of rows or levels, else 0.
    """

    node: n.Apply
    values: tuple[Any, ...]
    numbers: tuple[NDArray[Any] | None, ...]
    leads: tuple[int, ...]

    def option(self, name: str, default: Any = None) -> Any:
        """A static option of the application."""
        return self.node.option(name, default)


Lowering: TypeAlias = Callable[[Arguments], Any]


def _one(function: Callable[[Any], Any]) -> Lowering:
    """A function of one argument."""
    return lambda a: function(a.values[0])


def _two(function: Callable[[Any, Any], Any]) -> Lowering:
    """A function of two arguments."""
    return lambda a: function(a.values[0], a.values[1])


# ------------------------------------------------------------------------------------------ arithmetic
def _mul(a: Arguments) -> Any:
    return cp.square(a.values[0]) if is_square(a.node) else cp.multiply(*a.values)


def _div(a: Arguments) -> Any:
    top, bottom = a.values
    return (
        cp.multiply(top, cp.inv_pos(bottom))
        if a.numbers[1] is None and not bottom.is_constant()
        else top / bottom
    )


def _pow(a: Arguments) -> Any:
    base, exponent = a.values
    if a.numbers[1] is not None:
        p = float(a.numbers[1].flat[0])
        if p > 2 and p % 2 == 0:  # cvxpy's cones hold the base of x^6 nonnegative: (x^2)^3
            base, p = cp.square(base), p / 2
        return cp.square(base) if p == 2 else cp.power(base, p)
    return cp.exp(cp.multiply(np.log(base.value), exponent))


# --------------------------------------------------------------------------------------- contractions
def _matmul(a: Arguments) -> Any:
    x, y = a.values
    if is_square(a.node):
        return _sum_last(cp.square(x), a.leads[0])
    return contract(x, y, a.leads[0], a.leads[1])


def _sum_last(x: Any, lead: int) -> Any:
    return cp.sum(x) if x.ndim == 1 and not lead else cp.sum(x, axis=x.ndim - 1)


def contract(x: Any, y: Any, lead_x: int, lead_y: int) -> Any:
    """Row-wise `x @ y` in the shapes of one row: vectors or matrices; the row axis is carried along."""
    vector_x, vector_y = x.ndim - lead_x == 1, y.ndim - lead_y == 1
    if not lead_y:
        if x.ndim <= 2:
            return x @ y
        flat = cp.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]), order="C") @ y
        return cp.reshape(flat, (*x.shape[:-1], *y.shape[1:]), order="C")
    if lead_x and vector_x and vector_y:
        return cp.sum(cp.multiply(x, y), axis=1)
    if not lead_x and vector_y:
        return y @ (x if vector_x else x.T)
    left = _axes_added(x, before_last=True) if vector_x else x
    right = _axes_added(y, before_last=False) if vector_y else y
    # (rows, i, k, 1) * (rows, 1, k, j), summed over k
    left = cp.reshape(left, (*left.shape, 1), order="C")
    right = cp.reshape(right, (*right.shape[:-2], 1, *right.shape[-2:]), order="C")
    result = cp.sum(cp.multiply(left, right), axis=max(left.ndim, right.ndim) - 2)
    rows = (x if lead_x else y).shape[0]
    kept = (rows, *(() if vector_x else (x.shape[-2],)), *(() if vector_y else (y.shape[-1],)))
    return cp.reshape(result, kept, order="C")


def _axes_added(x: Any, *, before_last: bool) -> Any:
    shape = (*x.shape[:-1], 1, x.shape[-1]) if before_last else (*x.shape, 1)
    return cp.reshape(x, shape, order="C")


def _linear(a: Arguments) -> Any:
    x, weight, *bias = a.values
    product = contract(x, weight.T if weight.ndim == 2 else weight, a.leads[0], 0)
    return product + bias[0] if bias else product


def _einsum(a: Arguments) -> Any:
    """The operand that moves is multiplied by the matrix of the contraction, found on the unit arrays."""
    moving = [i for i, number in enumerate(a.numbers) if number is None]
    if len(moving) != 1:
        raise RouteError("E125", "cvxpy has no form for an einsum of two expressions without a known value")
    place = moving[0]
    operand = a.values[place]
    inputs, _, output = a.option("equation").replace(" ", "").partition("->")
    letters = [c for c in "ZYXWVUzyxwvu" if c not in a.option("equation")]
    row, unit = letters[0], letters[1]
    terms = [row * lead + term for lead, term in zip(a.leads, inputs.split(","), strict=True)]
    arrays: list[Any] = list(a.numbers)
    size = math.prod(operand.shape)
    arrays[place] = np.eye(size).reshape(size, *operand.shape)
    terms[place] = unit + terms[place]
    target = row * max(a.leads) + output
    table: NDArray[Any] = np.einsum(f"{','.join(terms)}->{unit}{target}", *arrays, optimize=True)
    flat = cp.reshape(operand, (size,), order="C") @ table.reshape(size, -1)
    return cp.reshape(flat, table.shape[1:], order="C")


def _quad_form(a: Arguments) -> Any:
    x, matrix = a.values
    if a.numbers[1] is None:
        vector = a.numbers[0]
        assert vector is not None  # the analysis refused two moving arguments
        outer = vector[..., :, None] * vector[..., None, :]
        return _over_axes(cp.sum, cp.multiply(outer, matrix), a.leads[0], (-2, -1), keepdims=False)
    symmetric = (a.numbers[1] + a.numbers[1].T) / 2
    values, vectors = np.linalg.eigh(symmetric)
    sign = 1.0 if abs(values[-1]) >= abs(values[0]) else -1.0
    if not a.leads[0]:
        return sign * cp.quad_form(x, cp.psd_wrap(sign * symmetric))
    root = vectors * np.sqrt(np.maximum(sign * values, 0.0))
    return sign * cp.sum(cp.square(x @ root), axis=1)


def _trace(a: Arguments) -> Any:
    (x,) = a.values
    picked = cp.multiply(np.eye(x.shape[-1]), x)
    return _over_axes(cp.sum, picked, a.leads[0], (-2, -1), keepdims=False)


def _of_matrices(function: Callable[[Any], Any]) -> Lowering:
    """A function of a matrix, row by row where there are rows."""

    def lowered(a: Arguments) -> Any:
        (x,) = a.values
        return function(x) if not a.leads[0] else cp.hstack([function(x[i]) for i in range(x.shape[0])])

    return lowered


# -------------------------------------------------------------------------------------------- losses
def _logits(a: Arguments) -> Any:
    logits, target = a.values
    return cp.logistic(logits) - cp.multiply(target, logits)


def _probabilities(a: Arguments) -> Any:
    p = a.values[0]
    target = a.values[1] if a.numbers[1] is None else a.numbers[1]  # the sign of 1 - number is known
    return -cp.multiply(target, cp.log(p)) - cp.multiply(1 - target, cp.log(1 - p))


def _cross_entropy(a: Arguments) -> Any:
    scores, target = a.values[0], a.numbers[1]
    assert target is not None  # the analysis refused targets that move
    if target.ndim == a.leads[1]:
        refuse_labels(a.node, target.reshape(-1))  # of an expression: columns were looked at before
        target = np.eye(scores.shape[-1])[target.astype(np.int64)]
    total = 1.0 if a.numbers[1] is not target else target.sum(axis=-1)
    last = scores.ndim - 1
    level = cp.log_sum_exp(scores, axis=last) if scores.ndim > 1 else cp.log_sum_exp(scores)
    picked = cp.multiply(target, scores)
    return cp.multiply(total, level) - (
        cp.sum(picked, axis=picked.ndim - 1) if picked.ndim > 1 else cp.sum(picked)
    )


def _huber(a: Arguments) -> Any:
    """The huber of cvxpy is twice that of torch."""
    return 0.5 * cp.huber(a.values[0], a.option("delta"))


# ----------------------------------------------------------------------------------------- reductions
def _over_axes(
    reduce: Callable[..., Any], x: Any, lead: int, axis: tuple[int, ...] | None, *, keepdims: bool
) -> Any:
    """Reduces axes of one row by a function that reduces the last axis of a matrix, or a vector."""
    axes = tuple(range(lead, x.ndim)) if axis is None else tuple(sorted(i % x.ndim for i in axis))
    if not axes:
        axes, x = (x.ndim,), cp.reshape(x, (*x.shape, 1), order="C")
        keepdims = False
    kept = tuple(i for i in range(x.ndim) if i not in axes)
    shape = tuple(1 if i in axes else s for i, s in enumerate(x.shape) if keepdims or i not in axes)
    if kept + axes != tuple(range(x.ndim)):
        x = cp.transpose(x, axes=kept + axes)
    size = math.prod(x.shape[len(kept) :])
    if not kept:
        result = reduce(cp.reshape(x, (size,), order="C"))
    else:
        result = reduce(cp.reshape(x, (x.size // size, size), order="C"), axis=1)
    return cp.reshape(result, shape, order="C")


def _reduction(reduce: Callable[..., Any]) -> Lowering:
    def lowered(a: Arguments) -> Any:
        return _over_axes(
            reduce, a.values[0], a.leads[0], a.option("axis"), keepdims=bool(a.option("keepdims"))
        )

    return lowered


def _mean(x: Any, axis: int | None = None) -> Any:
    return cp.sum(x, axis=axis) / x.shape[-1]


def _squares(x: Any, axis: int | None = None) -> Any:
    return cp.sum_squares(x) if axis is None else cp.sum(cp.square(x), axis=axis)


def _norm(a: Arguments) -> Any:
    order = float(a.option("ord", 2.0))

    def reduce(x: Any, axis: int | None = None) -> Any:
        if order == 1:
            return cp.sum(cp.abs(x), axis=axis)
        if order == np.inf:
            return cp.max(cp.abs(x), axis=axis)
        if order == 2 or axis is None:
            return cp.norm(x, order, axis=axis) if axis is not None else cp.pnorm(x, order)
        return cp.hstack([cp.pnorm(x[i], order) for i in range(x.shape[0])])

    return _over_axes(reduce, a.values[0], a.leads[0], a.option("axis"), keepdims=bool(a.option("keepdims")))


def _log_softmax(a: Arguments) -> Any:
    (x,) = a.values
    return x - _over_axes(cp.log_sum_exp, x, a.leads[0], a.option("axis"), keepdims=True)


def _over_levels(reduce: Callable[..., Any]) -> Lowering:
    return lambda a: reduce(a.values[0], axis=0)


def _mean_levels(a: Arguments) -> Any:
    return cp.sum(a.values[0], axis=0) / a.values[0].shape[0]


def _norm_levels(a: Arguments) -> Any:
    (x,), order = a.values, float(a.option("ord", 2.0))
    if x.ndim == 1:
        return cp.pnorm(x, order)
    flat = cp.reshape(x, (x.shape[0], math.prod(x.shape[1:])), order="C")
    norms = [cp.pnorm(flat[:, i], order) for i in range(flat.shape[1])]
    return cp.reshape(cp.hstack(norms), x.shape[1:], order="C")


# -------------------------------------------------------------------------------- variances, divergences
def _squares_of_rows(a: Arguments) -> Any:
    """Of (rows, entries), already centered and weighted: the sum of squares per entry."""
    return cp.sum(cp.square(a.values[0]), axis=0)


def _norms_of_rows(a: Arguments) -> Any:
    (x,) = a.values
    return cp.hstack([cp.norm(x[:, i], 2) for i in range(x.shape[1])])


def _kl_logits(a: Arguments) -> Any:
    """logsumexp(q) - <softmax(p), q> + <softmax(p), log softmax(p)> for known logits p."""
    p, (_, q) = a.numbers[0], a.values
    assert p is not None  # the analysis refused first logits that move
    shares = np.exp(p - p.max(axis=-1, keepdims=True))
    shares = shares / shares.sum(axis=-1, keepdims=True)
    own = np.sum(np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1.0)), 0.0), axis=-1)
    level = _over_axes(cp.log_sum_exp, q, 0, (-1,), keepdims=False)
    full = np.broadcast_shapes(shares.shape, q.shape)
    picked = cp.multiply(np.broadcast_to(shares, full), q + np.zeros(full))
    return level - _over_axes(cp.sum, picked, 0, (-1,), keepdims=False) + own


def _take(a: Arguments) -> Any:
    x, codes = a.values[0], a.numbers[1]
    assert codes is not None  # levels of the data
    return x[codes.astype(np.int64).tolist()]


# ------------------------------------------------------------------------------------------ structure
def _decoded(k: Any) -> slice | list[int]:
    return slice(*k[1:]) if k[0] == "slice" else list(k[1])


def _index(a: Arguments) -> Any:
    (x,) = a.values
    decoded: list[Any] = [slice(None)] * a.leads[0]
    for k in a.option("key"):
        if k == "...":
            decoded.append(Ellipsis)
        elif isinstance(k, tuple):
            decoded.append(_decoded(k))
        else:
            decoded.append(k)
    if x.ndim == 0:
        return cp.reshape(x, (1,) * sum(k is None for k in decoded), order="C")
    return x[tuple(decoded)]


def _reshape(a: Arguments) -> Any:
    (x,) = a.values
    leading = x.shape[: a.leads[0]]
    numbers = np.empty(x.shape).reshape((*leading, *a.option("shape")))  # resolves -1
    return cp.reshape(x, numbers.shape, order="C")


def _transpose(a: Arguments) -> Any:
    (x,) = a.values
    order = (*range(a.leads[0]), *reversed(range(a.leads[0], x.ndim)))
    return x if order == tuple(range(x.ndim)) else cp.transpose(x, axes=order)


def _stack(a: Arguments) -> Any:
    lead = max(a.leads)
    rows = next((x.shape[0] for x, has in zip(a.values, a.leads, strict=True) if has), 1)
    shapes = [x.shape[has:] for x, has in zip(a.values, a.leads, strict=True)]
    common = (*((rows,) if lead else ()), *np.broadcast_shapes(*shapes))
    parts: list[Any] = []
    for x, has in zip(a.values, a.leads, strict=True):
        row = x.shape[has:]
        aligned = (*((rows if has else 1,) if lead else ()), *([1] * (len(common) - lead - len(row))), *row)
        parts.append(cp.reshape(x, aligned, order="C") + np.zeros(common))
    return cp.stack(parts, axis=lead)


def _where(a: Arguments) -> Any:
    mask = a.numbers[0]
    assert mask is not None  # the analysis refused events that move
    sides: list[Any] = []
    for weight, value, number in zip((mask, 1 - mask), a.values[1:], a.numbers[1:], strict=True):
        sides.append(cp.multiply(weight, value) if number is None else np.where(weight > 0, number, 0.0))
    return sides[0] + sides[1]


LOWERINGS: dict[str, Lowering] = {
    "add": _two(lambda x, y: x + y),
    "sub": _two(lambda x, y: x - y),
    "neg": _one(lambda x: -x),
    "mul": _mul,
    "div": _div,
    "pow": _pow,
    "matmul": _matmul,
    "linear": _linear,
    "einsum": _einsum,
    "abs": _one(cp.abs),
    "square": _one(cp.square),
    "exp": _one(cp.exp),
    "expm1": _one(lambda x: cp.exp(x) - 1),
    "log": _one(cp.log),
    "log1p": _one(cp.log1p),
    "sqrt": _one(cp.sqrt),
    "reciprocal": _one(cp.inv_pos),
    "entr": _one(cp.entr),
    "relu": _one(cp.pos),
    "softplus": _one(cp.logistic),
    "logsigmoid": _one(lambda x: -cp.logistic(-x)),
    "maximum": _two(cp.maximum),
    "minimum": _two(cp.minimum),
    "kl_div": _two(cp.kl_div),
    "rel_entr": _two(cp.rel_entr),
    "huber": _huber,
    "binary_cross_entropy_with_logits": _logits,
    "binary_cross_entropy": _probabilities,
    "cross_entropy": _cross_entropy,
    "mse_loss": _two(lambda x, y: cp.square(x - y)),
    "l1_loss": _two(lambda x, y: cp.abs(x - y)),
    "sum": _reduction(cp.sum),
    "mean": _reduction(_mean),
    "max": _reduction(cp.max),
    "min": _reduction(cp.min),
    "logsumexp": _reduction(cp.log_sum_exp),
    "norm": _norm,
    "sum_squares": _reduction(_squares),
    "log_softmax": _log_softmax,
    "index": _index,
    "reshape": _reshape,
    "transpose": _transpose,
    "stack": _stack,
    "where": _where,
    "quad_form": _quad_form,
    "trace": _trace,
    "logdet": _of_matrices(cp.log_det),
    "symmetric_part": lambda a: (a.values[0] + cp.swapaxes(a.values[0], -1, -2)) / 2,
    "lambda_max": _of_matrices(lambda x: cp.lambda_max((x + x.T) / 2)),
    "lambda_min": _of_matrices(lambda x: cp.lambda_min((x + x.T) / 2)),
    "spectral_norm": _of_matrices(cp.sigma_max),
    "nuclear_norm": _of_matrices(cp.normNuc),
    "max_levels": _over_levels(cp.max),
    "min_levels": _over_levels(cp.min),
    "sum_levels": _over_levels(cp.sum),
    "mean_levels": _mean_levels,
    "pick_levels": lambda a: a.values[0][a.option("place")],
    "logsumexp_levels": _over_levels(cp.log_sum_exp),
    "norm_levels": _norm_levels,
    "sum_squares_levels": _over_levels(_squares),
    "take": _take,
    "variance": _squares_of_rows,
    "deviation": _norms_of_rows,
    "kl_logits": _kl_logits,
}
"""Every atom of the table has an entry here, or a refusal in its record (`Atom.refusals["cvxpy"]`)."""
