"""The torch functions that are functions of the language: which atom each is, and how its arguments map.

A rule is called with torch's own arguments and returns the recorded expression; it raises `NotInTable` for
options that the atom does not know. Dims count in the batched tensor, as in torch: those that would run over
the rows are refused (E115).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from constrain.errors import ModelingError
from constrain.language.data import as_list
from constrain.language.expr import Expr, apply, as_expr, choose, code, compare, logic, shown
from constrain.language.location import here

if TYPE_CHECKING:
    from constrain.language import nodes as n

__all__ = ["RULES", "NotInTable", "Rule", "axes_of", "refuse_reduction"]

Rule = Callable[..., Any]
_UNSET: Any = object()
_OPERANDS = ("input", "other", "exponent", "mat2", "vec", "vec2", "tensor")


class NotInTable(Exception):
    """The call uses options the atom does not know: record it as it is."""


# ------------------------------------------------------------------------------------- rules of the table
def _plain(atom: str, count: int = 2, **defaults: Any) -> Rule:
    """A function of `count` tensors; options other than their defaults are not in the table."""

    def rule(*args: Any, **named: Any) -> Expr:
        operands = (*args, *(named.pop(k) for k in _OPERANDS if k in named))
        if len(operands) != count or any(k not in defaults or v != defaults[k] for k, v in named.items()):
            raise NotInTable
        return apply(atom, *operands)

    return rule


def _swapped(atom: str) -> Rule:
    def rule(a: Any, b: Any) -> Expr:
        return apply(atom, b, a)

    return rule


def _rows_or_levels(e: Expr) -> str:
    return "rows" if e.type.random else "levels"


def axes_of(e: Expr, dim: Any, name: str) -> tuple[int, ...] | None:
    """Torch's `dim` of the batched tensor as negative axes of one row, sorted.

    Raises:
        ModelingError: E115 when the rows (or levels) themselves would be reduced, E112 for an axis that is
            not there.
    """
    lead = e.type.lead
    if dim is None or dim == ():
        if not lead:
            return None
        raise ModelingError(
            "E115",
            f"{name}({shown(e)}) without dim would also run over the {_rows_or_levels(e)}",
            at=here(),
            fix=_without_dim(e, name),
        )
    return tuple(sorted(_axis(e, int(d), name) for d in as_list(dim)))


def _axis(e: Expr, d: int, name: str) -> int:
    lead, shape = e.type.lead, e.shape
    if shape is None:
        if d >= 0:
            raise ModelingError(
                "E115",
                f"{name}(..., dim={d}): the shape of {shown(e)} is not known yet",
                at=here(),
                fix="a negative dim",
            )
        return d
    axis = d if d < 0 else d - lead - len(shape)
    if lead and axis in (-len(shape) - 1, -len(shape) - lead):
        raise ModelingError(
            "E115",
            f"{name}({shown(e)}, dim={d}) would run over the {_rows_or_levels(e)}",
            at=here(),
            fix="E(...) for the average over rows; dims of one row count from the right: dim=-1",
        )
    if not -len(shape) <= axis < 0:
        raise ModelingError(
            "E112",
            f"{name}({shown(e)}, dim={d}): one row has shape {shape}",
            at=here(),
            fix="dim=-1 for the last axis",
        )
    return axis


_OWN_REDUCTIONS = ("sum", "mean", "max", "min", "logsumexp", "norm", "count_nonzero")


def _without_dim(e: Expr, name: str) -> str:
    if e.type.levels is not None and name in ("sum", "mean", "max", "min", "logsumexp", "norm"):
        return f"cn.{name}({code(e)}) reduces the levels"
    if e.shape == ():
        return "E(...) for the average over rows"
    own = f", or cn.{name}(...) for all axes of one row" if name in _OWN_REDUCTIONS else ""
    return f"{name}(..., dim=-1){own}; E(...) averages over rows"


def _reduction(atom: str) -> Rule:
    def rule(
        input: Any, dim: Any = None, keepdim: bool = False, *, axis: Any = _UNSET, keepdims: bool = False
    ) -> Expr:
        e = as_expr(input)
        axes = axes_of(e, dim if axis is _UNSET else axis, atom)
        return apply(atom, e, axis=axes, keepdims=bool(keepdim or keepdims))

    return rule


def _extremum(reduce: str, pairwise: str) -> Rule:
    """torch.max(e), torch.max(a, b); with a dim torch returns a pair, which is refused in favor of amax."""

    def rule(input: Any, other: Any = _UNSET, *, dim: Any = _UNSET, keepdim: bool = False) -> Expr:
        if other is _UNSET and dim is _UNSET:
            return apply(reduce, as_expr(input), axis=axes_of(as_expr(input), None, reduce), keepdims=keepdim)
        if isinstance(other, int) or dim is not _UNSET:
            raise ModelingError(
                "E115",
                f"torch.{reduce} with a dim returns values and indices",
                at=here(),
                fix=f"torch.a{reduce}(e, dim)",
            )
        return apply(pairwise, input, other)

    return rule


def _along(atom: str) -> Rule:
    def rule(input: Any, dim: Any = None, *extra: Any, dtype: Any = None, _stacklevel: Any = None) -> Expr:
        if dtype is not None or any(not isinstance(x, int) for x in extra):
            raise NotInTable
        e = as_expr(input)
        if dim is None:
            raise ModelingError(
                "E115",
                f"{atom}({shown(e)}) without dim: torch guesses it",
                at=here(),
                fix=f"{atom}(..., dim=-1)",
            )
        return apply(atom, e, axis=axes_of(e, dim, atom))

    return rule


def _norm(
    input: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, p: Any = None, **rest: Any
) -> Expr:
    order = ord if p is None else p
    order = 2.0 if order == "fro" else order
    if any(v is not None for v in rest.values()) or order not in (1, 2, float("inf")):
        raise NotInTable
    e = as_expr(input)
    return apply("norm", e, ord=float(order), axis=axes_of(e, dim, "norm"), keepdims=keepdim)


def _linalg_norm(
    input: Any, ord: Any = None, dim: Any = None, keepdim: bool = False, *, out: Any = None, dtype: Any = None
) -> Expr:
    """torch.linalg.norm: without `ord` of all entries; with it of a vector, or a matrix norm."""
    e = as_expr(input)
    count = len(as_list(dim)) if dim is not None else None if e.shape is None else len(e.shape)
    # over two axes every `ord` but "fro" is a norm of matrices; "fro" is one of matrices only
    if out is not None or dtype is not None or (ord is not None and count != (2 if ord == "fro" else 1)):
        raise NotInTable
    return _norm(e, 2 if ord is None else ord, dim, keepdim)


def refuse_reduction(name: str, reduction: str) -> None:
    """E120 for a loss that averages over the rows by itself."""
    if reduction != "none":
        raise ModelingError(
            "E120",
            f"{name}(..., reduction={reduction!r}) leaves no value per row for E() to average",
            at=here(),
            fix=f'{name}(..., reduction="none")',
        )


def _loss(atom: str) -> Rule:
    neutral = {"ignore_index": -100, "label_smoothing": 0.0}

    def rule(input: Any, target: Any, weight: Any = None, *, reduction: str = "mean", **rest: Any) -> Expr:
        refuse_reduction(atom, reduction)
        if weight is not None or any(v != neutral.get(k) for k, v in rest.items()):
            raise NotInTable
        return apply(atom, input, target)

    return rule


def _huber(input: Any, target: Any, reduction: str = "mean", delta: float = 1.0, weight: Any = None) -> Expr:
    refuse_reduction("huber_loss", reduction)
    if weight is not None:
        raise NotInTable
    return apply("huber", as_expr(input) - target, delta=float(delta))


def _smooth_l1(input: Any, target: Any, reduction: str = "mean", beta: float = 1.0, **rest: Any) -> Expr:
    refuse_reduction("smooth_l1_loss", reduction)
    if beta != 1 or any(v is not None for v in rest.values()):
        raise NotInTable
    return apply("huber", as_expr(input) - target, delta=1.0)


def _reshape(input: Any, *shape: Any) -> Expr:
    e = as_expr(input)
    if e.type.lead:
        raise ModelingError(
            "E115",
            f"torch.reshape({shown(e)}, ...) would mix {_rows_or_levels(e)}",
            at=here(),
            fix=f"{code(e)}.reshape(shape of one row)",
        )
    return e.reshape(*shape)


def _squeeze(input: Any, dim: Any = None) -> Expr:
    e = as_expr(input)
    if dim is not None:
        return e.squeeze(_axis(e, int(dim), "squeeze"))
    if e.shape is None:
        raise ModelingError("E115", f"squeeze({shown(e)}) without dim", at=here(), fix="squeeze(..., dim=-1)")
    return e.reshape(tuple(size for size in e.shape if size != 1))


def _unsqueeze(input: Any, dim: int) -> Expr:
    e = as_expr(input)
    lead, shape = e.type.lead, e.shape
    if shape is None and dim == -1:
        return e[..., None]
    if shape is None:
        raise ModelingError(
            "E115", f"unsqueeze: the shape of {shown(e)} is not known yet", at=here(), fix="dim=-1"
        )
    place = dim + len(shape) + 1 if dim < 0 else dim - lead
    if not 0 <= place <= len(shape):
        raise ModelingError(
            "E115",
            f"unsqueeze({shown(e)}, {dim}) is no axis of one row, which has shape {shape}",
            at=here(),
            fix="dim=-1 for a new last axis",
        )
    return e.reshape((*shape[:place], 1, *shape[place:]))


def _t(input: Any) -> Expr:
    e = as_expr(input)
    if e.type.lead:
        raise ModelingError(
            "E115",
            f"torch.t({shown(e)}) would swap {_rows_or_levels(e)} and columns",
            at=here(),
            fix="e.T for one row",
        )
    return e.T


def _stack(tensors: Any, dim: int = 0) -> Expr:
    parts = [as_expr(t) for t in tensors]
    lead, shape = max(p.type.lead for p in parts), parts[0].shape
    if shape is None or any(p.shape != shape for p in parts):
        raise NotInTable
    place = dim + len(shape) + 1 if dim < 0 else dim - lead
    if place == 1 and len(shape) == 1:
        return apply("stack", *parts).T
    if place == 0:
        return apply("stack", *parts)
    if lead and dim == 0:
        raise ModelingError(
            "E115",
            f"torch.stack(..., dim=0) would put a new axis before the {_rows_or_levels(parts[0])}",
            at=here(),
            fix=f"torch.stack(..., dim={-len(shape) - 1}), or cn.stack(a, b)",
        )
    raise NotInTable


def _einsum(equation: Any, *operands: Any) -> Expr:
    if not isinstance(equation, str):
        raise NotInTable
    items = as_list(operands[0]) if len(operands) == 1 else operands
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    if not arrow:
        letters = inputs.replace(",", "")
        output = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    return apply("einsum", *items, equation=f"{inputs}->{output}")


def _linear(input: Any, weight: Any, bias: Any = None) -> Expr:
    return apply("linear", input, weight) if bias is None else apply("linear", input, weight, bias)


def _scaled(atom: str, *, swap: bool = False) -> Rule:
    """Sums and differences: a + alpha b."""

    def rule(input: Any, other: Any, *, alpha: Any = 1) -> Expr:
        a, b = (other, input) if swap else (input, other)
        if alpha != 1 and swap:
            raise NotInTable
        return apply(atom, a, b if alpha == 1 else apply("mul", alpha, b))

    return rule


def _div(input: Any, other: Any, *, rounding_mode: Any = None) -> Expr:
    if rounding_mode is not None:
        raise NotInTable
    return apply("div", input, other)


def _softplus(input: Any, beta: float = 1.0, threshold: float = 20.0) -> Expr:
    if beta != 1 or threshold != 20:
        raise NotInTable
    return apply("softplus", input)


def _clamp(input: Any, min: Any = None, max: Any = None) -> Expr:
    e = as_expr(input)
    if min is not None:
        e = apply("maximum", e, min)
    return e if max is None else apply("minimum", e, max)


def _and(a: Any, b: Any) -> Expr:
    return logic("and", a, b)


def _or(a: Any, b: Any) -> Expr:
    return logic("or", a, b)


def _not(a: Any) -> Expr:
    return ~as_expr(a)


def _where(condition: Any, input: Any, other: Any) -> Expr:
    return choose(condition, input, other)


def _compare(op: n.CompareOp) -> Rule:
    def rule(input: Any, other: Any) -> Any:
        return compare(op, input, other)

    return rule


def _no_value(what: str, fix: str) -> Rule:
    def rule(*_args: Any, **_kwargs: Any) -> Any:
        raise ModelingError(
            "E121", f"{what} needs a value, but the expression has none before a solve", at=here(), fix=fix
        )

    return rule


def _no_distribution(*_args: Any, **_kwargs: Any) -> Any:
    """torch.distributions broadcast their parameters first."""
    raise ModelingError(
        "E154",
        "expressions cannot be broadcast into tensors, nor be parameters of torch.distributions",
        at=here(),
        fix="cn.distributions.Normal, Bernoulli or Categorical, for cn.kl and cn.entropy",
    )


def _not_into_a_tensor(*_args: Any, **_kwargs: Any) -> Any:
    raise ModelingError(
        "E113",
        "an expression cannot be written into a tensor",
        at=here(),
        fix="a new expression: cn.stack, cn.where",
    )


_UNARY = (
    *("abs", "neg", "exp", "expm1", "log", "log1p", "sqrt", "square", "reciprocal", "sigmoid"),
    *("tanh", "sin", "cos", "erf", "sign", "floor", "trace", "matrix_exp", "logdet"),
    *("logsigmoid"),
)
_UNARY_ALIASES = {
    "absolute": "abs",
    "negative": "neg",
    "log_sigmoid": "logsigmoid",
    "special_expit": "sigmoid",
    "special_entr": "entr",
    "__neg__": "neg",
    "__abs__": "abs",
}
_BINARY_ALIASES = {
    "multiply": "mul",
    "mm": "matmul",
    "mv": "matmul",
    "dot": "matmul",
    "vdot": "matmul",
    **{f"__{name}__": name for name in ("add", "sub", "mul", "matmul", "pow")},
}
_COMPARISONS: Mapping[n.CompareOp, tuple[str, ...]] = {
    "<=": ("le", "less_equal", "__le__"),
    ">=": ("ge", "greater_equal", "__ge__"),
    "<": ("lt", "less", "__lt__"),
    ">": ("gt", "greater", "__gt__"),
    "==": ("eq", "__eq__"),
    "!=": ("ne", "not_equal", "__ne__"),
}
RULES: dict[str, Rule] = {
    **{name: _plain(name, 1) for name in _UNARY},
    **{name: _plain(atom, 1) for name, atom in _UNARY_ALIASES.items()},
    **{name: _plain(name) for name in ("mul", "pow", "maximum", "minimum", "matmul")},
    **{name: _plain(atom) for name, atom in _BINARY_ALIASES.items()},
    **{f"__r{name}__": _swapped(name) for name in ("add", "sub", "mul", "matmul", "pow", "div", "truediv")},
    **{name: _scaled("add") for name in ("add",)},
    **{name: _scaled("sub") for name in ("sub", "subtract")},
    "rsub": _scaled("sub", swap=True),
    **{name: _div for name in ("div", "divide", "true_divide", "__div__", "__truediv__")},
    "__rtruediv__": _swapped("div"),
    "relu": _plain("relu", 1, inplace=False),
    "softplus": _softplus,
    "gelu": _plain("gelu", 1, approximate="none"),
    "silu": _plain("silu", 1, inplace=False),
    "elu": _plain("elu", 1, alpha=1.0, inplace=False),
    "clamp": _clamp,
    "clip": _clamp,
    **{name: _reduction(name) for name in ("sum", "mean", "logsumexp", "count_nonzero")},
    "special_logsumexp": _reduction("logsumexp"),
    "amax": _reduction("max"),
    "amin": _reduction("min"),
    "max": _extremum("max", "maximum"),
    "min": _extremum("min", "minimum"),
    "softmax": _along("softmax"),
    "log_softmax": _along("log_softmax"),
    **{name: _norm for name in ("norm", "linalg_vector_norm", "vector_norm")},
    "linalg_norm": _linalg_norm,
    "linear": _linear,
    "einsum": _einsum,
    "where": _where,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "t": _t,
    "stack": _stack,
    **{
        name: _loss(name)
        for name in (
            *("binary_cross_entropy_with_logits", "binary_cross_entropy", "cross_entropy"),
            *("mse_loss", "l1_loss"),
        )
    },
    "huber_loss": _huber,
    "smooth_l1_loss": _smooth_l1,
    **{name: _compare(op) for op, names in _COMPARISONS.items() for name in names},
    **{name: _and for name in ("logical_and", "bitwise_and", "__and__", "__rand__")},
    **{name: _or for name in ("logical_or", "bitwise_or", "__or__", "__ror__")},
    **{name: _not for name in ("logical_not", "bitwise_not", "__invert__")},
    **{name: _no_value(f".{name}()", "leave it out") for name in ("detach", "cpu", "cuda", "requires_grad_")},
    **{
        name: _no_value(f".{name}()", "after a solve: solution['name'].value, w.value")
        for name in ("item", "numpy", "tolist")
    },
    "broadcast_tensors": _no_distribution,
    "backward": _no_value(".backward()", "problem.solve(), or problem.compile() for a loop of your own"),
    "__setitem__": _not_into_a_tensor,
}
