"""Functions of expressions that need no torch: `cn.sum`, `cn.quad_form`, `cn.max` and friends.

Axes count within one row: `axis=0` is the first axis of a row, `axis=-1` the last. Over the group levels that
`by=` makes, `sum`, `mean`, `max`, `min`, `norm`, `sum_squares` and `logsumexp` without an axis reduce the
levels: `cn.max(E(loss, by=D.group))` is the worst group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.data import as_list
from constrain.language.expr import Expr, apply, as_expr, choose, shown
from constrain.language.keywords import keywords
from constrain.language.location import here
from constrain.language.symbols import Model

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "abs",
    "constant",
    "count_nonzero",
    "entr",
    "exp",
    "kl_div",
    "lambda_max",
    "lambda_min",
    "log",
    "log_det",
    "logsumexp",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "norm",
    "nuclear_norm",
    "quad_form",
    "rel_entr",
    "relu",
    "sigmoid",
    "softplus",
    "spectral_norm",
    "sqrt",
    "square",
    "stack",
    "sum",
    "sum_squares",
    "trace",
    "where",
]


OVER_LEVELS = ("sum", "mean", "max", "min", "logsumexp", "norm", "sum_squares")
"""Reductions that without an axis run over the levels of a `by=` block."""


def _axis(e: Expr, axis: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if axis is None:
        return None
    axes = (axis,) if isinstance(axis, int) else _axes(axis)
    if e.shape is None:
        if any(a >= 0 for a in axes):
            raise ModelingError(
                "E115", f"the shape of {shown(e)} is not known yet", at=here(), fix="a negative axis"
            )
        return axes
    rank = len(e.shape)
    for a in axes:
        if not -rank <= a < rank:
            raise ModelingError(
                "E112",
                f"axis {a} of {shown(e)}, which has shape {e.shape}",
                at=here(),
                fix="axes count within one row; axis=-1 is the last of them",
            )
    return tuple(sorted(a - rank if a >= 0 else a for a in axes))


def _axes(axis: Any) -> tuple[int, ...]:
    given: list[Any] = list(cast("Sequence[Any]", axis)) if isinstance(axis, (tuple, list)) else [None]
    if any(type(a) is not int for a in given):
        raise ModelingError(
            "E117",
            f"an axis is an integer or a tuple of integers, got {shown(axis)}",
            at=here(),
            fix="axis=-1; of several expressions cn.maximum(a, b), cn.minimum(a, b), a + b, cn.sum([a, b])",
        )
    return tuple(given)


def _reduce(atom: str, expr: Any, axis: int | Sequence[int] | None, keepdims: bool, **options: Any) -> Expr:
    if isinstance(expr, (list, tuple)):
        expr = stack(*expr)
    e = as_expr(expr)
    if e.type.levels is not None and axis is None and atom in OVER_LEVELS:
        return apply(f"{atom}_levels", e, **options)
    return apply(atom, e, axis=_axis(e, axis), keepdims=keepdims, **options)


@keywords
def sum(expr: Any, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Expr:
    """Sum of the entries of one row (over `axis`), or of a list of expressions."""
    return _reduce("sum", expr, axis, keepdims)


@keywords
def mean(expr: Any, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Expr:
    """Mean of the entries of one row (over `axis`). The average over rows is `E`."""
    return _reduce("mean", expr, axis, keepdims)


@keywords
def max(expr: Any, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Expr:
    """Largest entry; of a `by=` block the worst level."""
    return _reduce("max", expr, axis, keepdims)


@keywords
def min(expr: Any, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Expr:
    """Smallest entry; of a `by=` block the smallest level."""
    return _reduce("min", expr, axis, keepdims)


@keywords
def logsumexp(expr: Any, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Expr:
    """log(sum(exp(e))); of a `by=` block over the levels."""
    return _reduce("logsumexp", expr, axis, keepdims)


@keywords
def norm(expr: Any, ord: float = 2, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Expr:
    """The `ord`-norm of the entries (1, 2 or inf; as one vector, also for matrices).

    Of a `by=` block, that over the levels.
    """
    if not isinstance(ord, (int, float)) or isinstance(ord, bool) or not ord > 0:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ModelingError(
            "E117",
            f"the order of a norm is a positive number, got {shown(ord)}",
            at=here(),
            fix="cn.norm(e), of a matrix that of Frobenius; cn.norm(e, 1); cn.norm(e, math.inf)",
        )
    return _reduce("norm", _entries(expr), axis, keepdims, ord=float(ord))


@keywords
def sum_squares(expr: Any, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Expr:
    """Sum of squared entries; of a `Model`, of all its trainable parameters; of a `by=` block over levels."""
    return _reduce("sum_squares", _entries(expr), axis, keepdims)


@keywords
def count_nonzero(expr: Any, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Expr:
    """Number of non-zero entries (an integer function)."""
    return _reduce("count_nonzero", expr, axis, keepdims)


def _entries(expr: Any) -> Any:
    return Expr(n.Weights(expr, loc=here())) if isinstance(expr, Model) else expr


@keywords
def maximum(a: Any, b: Any, *more: Any) -> Expr:
    """The largest of the arguments, entry by entry."""
    result = apply("maximum", a, b)
    for c in more:
        result = apply("maximum", result, c)
    return result


@keywords
def minimum(a: Any, b: Any, *more: Any) -> Expr:
    """The smallest of the arguments, entry by entry."""
    result = apply("minimum", a, b)
    for c in more:
        result = apply("minimum", result, c)
    return result


@keywords
def abs(expr: Any) -> Expr:
    """Absolute value."""
    return apply("abs", expr)


@keywords
def square(expr: Any) -> Expr:
    """e**2, entry by entry."""
    return apply("square", expr)


@keywords
def sqrt(expr: Any) -> Expr:
    """Square root."""
    return apply("sqrt", expr)


@keywords
def exp(expr: Any) -> Expr:
    """Exponential."""
    return apply("exp", expr)


@keywords
def log(expr: Any) -> Expr:
    """Natural logarithm."""
    return apply("log", expr)


@keywords
def sigmoid(expr: Any) -> Expr:
    """1 / (1 + exp(-e))."""
    return apply("sigmoid", expr)


@keywords
def softplus(expr: Any) -> Expr:
    """log(1 + exp(e))."""
    return apply("softplus", expr)


@keywords
def relu(expr: Any) -> Expr:
    """max(e, 0)."""
    return apply("relu", expr)


@keywords
def entr(expr: Any) -> Expr:
    """Entropy of each entry, -e log e, in nats (0 at 0)."""
    return apply("entr", expr)


@keywords
def rel_entr(p: Any, q: Any) -> Expr:
    """Entry by entry p log(p / q); its sum over a distribution is the Kullback-Leibler divergence."""
    return apply("rel_entr", p, q)


@keywords
def kl_div(p: Any, q: Any) -> Expr:
    """Entry by entry p log(p / q) - p + q: nonnegative, and zero only at p = q."""
    return apply("kl_div", p, q)


@keywords
def quad_form(x: Any, P: Any) -> Expr:
    """The number x' P x for a vector and a square matrix."""
    return apply("quad_form", x, P)


@keywords
def trace(expr: Any) -> Expr:
    """Sum of the diagonal of a square matrix."""
    return apply("trace", expr)


@keywords
def log_det(expr: Any) -> Expr:
    """Logarithm of the determinant of a square matrix; concave on symmetric, positive definite ones."""
    return apply("logdet", expr)


@keywords
def lambda_max(expr: Any) -> Expr:
    """The largest eigenvalue of a square matrix (of its symmetric part)."""
    return apply("lambda_max", expr)


@keywords
def lambda_min(expr: Any) -> Expr:
    """The smallest eigenvalue of a square matrix (of its symmetric part).

    `A >> B`, which says that A - B is positive semidefinite, is `lambda_min(A - B) >= 0`.
    """
    return apply("lambda_min", expr)


@keywords
def spectral_norm(expr: Any) -> Expr:
    """The largest singular value of a matrix. `cn.norm(A)` is that of Frobenius."""
    return apply("spectral_norm", expr)


@keywords
def nuclear_norm(expr: Any) -> Expr:
    """The sum of the singular values of a matrix."""
    return apply("nuclear_norm", expr)


@keywords
def stack(*parts: Any) -> Expr:
    """Expressions of one shape, or a list of them, as entries of a new first axis."""
    return apply("stack", *(as_list(parts[0]) if len(parts) == 1 else parts))


@keywords
def where(event: Any, a: Any, b: Any) -> Expr:
    """`a` where the event holds, else `b`, row by row."""
    return choose(event, a, b)


@keywords
def constant(value: Any) -> Expr:
    """A number, array or tensor as an expression, where Python would otherwise compute with it at once."""
    return as_expr(value)
