"""Records calls of torch functions (and NumPy arithmetic) on expressions.

torch offers its functions to any object with `__torch_function__`. A function of the table below becomes the atom
of the language with its arguments in the order they were written; any other becomes an `Opaque` node that is run
as it is and about whose curvature nothing is known. Nothing is executed here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from constrain._lazy import loaded
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.expr import Expr, apply, as_expr, as_node, compare
from constrain.language.location import here

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["method", "record", "record_ufunc"]

_Rule = Callable[..., Any]
_UNSET: Any = object()


def _elementwise(atom: str) -> _Rule:
    def rule(*args: Any) -> Expr:
        return apply(atom, *args)

    return rule


def _swapped(atom: str) -> _Rule:
    def rule(a: Any, b: Any) -> Expr:
        return apply(atom, b, a)

    return rule


def _axes(e: Expr, dim: Any, name: str) -> tuple[int, ...] | None:
    """torch's `dim` of the batched tensor as negative axes of one row.

    Raises:
        ModelingError: E115 when the rows (or levels) themselves would be reduced.
    """
    lead = e.type.lead
    if dim is None or dim == ():
        if lead and e.shape != ():
            raise ModelingError(
                "E115",
                f"{name}({e}) without dim would also run over the {'rows' if e.type.random else 'levels'}",
                at=here(),
                fix=f"{name}(..., dim=-1), or cn.{name}(...) for all axes of one row; E(...) averages over rows",
            )
        return None
    dims = dim if isinstance(dim, (tuple, list)) else (dim,)
    if e.shape is None:
        if any(d >= 0 for d in dims):
            raise ModelingError("E115", f"the shape of {e} is not known yet", at=here(), fix="negative dims")
        return tuple(int(d) for d in dims)
    axes: list[int] = []
    for d in dims:
        axis = d if d < 0 else d - lead - len(e.shape)
        if axis < -len(e.shape) or (d >= 0 and d < lead):
            raise ModelingError(
                "E115",
                f"{name}({e}, dim={d}) would run over the {'rows' if e.type.random else 'levels'}",
                at=here(),
                fix="E(...) for the average over rows; dims of one row count from the right: dim=-1",
            )
        axes.append(int(axis))
    return tuple(axes)


def _reduction(atom: str) -> _Rule:
    def rule(
        input: Any, dim: Any = None, keepdim: bool = False, *, axis: Any = _UNSET, keepdims: bool = False
    ) -> Expr:
        e = as_expr(input)
        axes = _axes(e, dim if axis is _UNSET else axis, atom)
        return apply(atom, e, axis=axes, keepdims=bool(keepdim or keepdims))

    return rule


def _extremum(reduce: str, pairwise: str) -> _Rule:
    """torch.max(e), torch.max(a, b); with a dim torch returns a pair, which is refused in favour of amax."""

    def rule(input: Any, other: Any = _UNSET, *, dim: Any = _UNSET) -> Expr:
        if other is _UNSET and dim is _UNSET:
            return apply(reduce, as_expr(input), axis=_axes(as_expr(input), None, reduce), keepdims=False)
        if isinstance(other, int) or dim is not _UNSET:
            raise ModelingError(
                "E115",
                f"torch.{reduce} with a dim returns values and indices",
                at=here(),
                fix=f"torch.a{reduce}(e, dim)",
            )
        return apply(pairwise, input, other)

    return rule


def _along(atom: str) -> _Rule:
    def rule(input: Any, dim: Any = -1, _stacklevel: int = 3, dtype: Any = None) -> Expr:
        e = as_expr(input)
        axes = _axes(e, dim, atom)
        return apply(atom, e, axis=axes)

    return rule


def _norm(
    input: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, p: Any = None, dtype: Any = None
) -> Expr:
    order = ord if p is None else p
    e = as_expr(input)
    return apply(
        "norm",
        e,
        ord=float(2 if order in (None, "fro") else order),
        axis=_axes(e, dim, "norm"),
        keepdims=keepdim,
    )


def _no_reduction(name: str, reduction: str) -> None:
    if reduction != "none":
        raise ModelingError(
            "E120",
            f"{name}(..., reduction={reduction!r}) leaves no value per row for E() to average",
            at=here(),
            fix=f'{name}(..., reduction="none")',
        )


def _loss(atom: str) -> _Rule:
    def rule(
        input: Any,
        target: Any,
        weight: Any = None,
        size_average: Any = None,
        reduce: Any = None,
        reduction: str = "mean",
        *,
        pos_weight: Any = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> Expr:
        _no_reduction(atom, reduction)
        if (
            any(extra is not None for extra in (weight, pos_weight))
            or ignore_index != -100
            or label_smoothing
        ):
            raise _NotInTable
        return apply(atom, input, target)

    return rule


def _reshape(input: Any, *shape: Any) -> Expr:
    e = as_expr(input)
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    if e.type.lead:
        raise ModelingError(
            "E115", f"torch.reshape of {e} would mix rows", at=here(), fix="e.reshape(shape of one row)"
        )
    return apply("reshape", e, shape=tuple(int(s) for s in sizes))


def _squeeze(input: Any, dim: Any = None) -> Expr:
    e = as_expr(input)
    axes = _axes(e, -1 if dim is None else dim, "squeeze") or (-1,)
    return e.squeeze(axes[0])


def _stack(tensors: Any, dim: int = 0) -> Expr:
    parts = [as_expr(t) for t in tensors]
    if any(p.type.lead for p in parts) or dim != 0:
        raise _NotInTable
    return apply("stack", *parts)


def _einsum(equation: str, *operands: Any) -> Expr:
    items = operands[0] if len(operands) == 1 and isinstance(operands[0], (tuple, list)) else operands
    return apply("einsum", *items, equation=str(equation))


def _linear(input: Any, weight: Any, bias: Any = None) -> Expr:
    return apply("linear", input, weight) if bias is None else apply("linear", input, weight, bias)


def _add(a: Any, b: Any, *, alpha: Any = 1) -> Expr:
    return apply("add", a, b if alpha == 1 else apply("mul", alpha, b))


def _sub(a: Any, b: Any, *, alpha: Any = 1) -> Expr:
    return apply("sub", a, b if alpha == 1 else apply("mul", alpha, b))


def _div(a: Any, b: Any, *, rounding_mode: Any = None) -> Expr:
    if rounding_mode is not None:
        raise _NotInTable
    return apply("div", a, b)


def _softplus(input: Any, beta: float = 1.0, threshold: float = 20.0) -> Expr:
    if beta != 1:
        raise _NotInTable
    return apply("softplus", input)


def _relu(input: Any, inplace: bool = False) -> Expr:
    return apply("relu", input)


def _unary_with_defaults(atom: str, **defaults: Any) -> _Rule:
    def rule(input: Any, **options: Any) -> Expr:
        if any(options[k] != defaults.get(k) for k in options):
            raise _NotInTable
        return apply(atom, input)

    return rule


def _clamp(input: Any, min: Any = None, max: Any = None) -> Expr:
    e = as_expr(input)
    if min is not None:
        e = apply("maximum", e, min)
    return e if max is None else apply("minimum", e, max)


def _huber(input: Any, target: Any, reduction: str = "mean", delta: float = 1.0, weight: Any = None) -> Expr:
    _no_reduction("huber_loss", reduction)
    if weight is not None:
        raise _NotInTable
    return apply("huber", as_expr(input) - target, delta=float(delta))


def _where(condition: Any, input: Any, other: Any) -> Expr:
    return Expr(n.Apply("where", (as_node(condition), as_node(input), as_node(other)), loc=here()))


def _compare(op: n.CompareOp) -> _Rule:
    return lambda a, b: compare(op, a, b)


def _no_value(what: str) -> _Rule:
    def rule(*_args: Any, **_kwargs: Any) -> Any:
        raise ModelingError(
            "E121",
            f"{what} needs a value, but the expression has none before a solve",
            at=here(),
            fix="leave it out",
        )

    return rule


class _NotInTable(Exception):  # noqa: N818  # a signal, not an error
    """The call uses options the atom does not know: record it as it is."""


_UNARY = (
    "abs neg exp expm1 log log1p sqrt square reciprocal sigmoid tanh sin cos erf sign floor trace matrix_exp logdet"
).split()
RULES: Mapping[str, _Rule] = {
    **{name: _elementwise(name) for name in _UNARY},
    **{f"__{name}__": _elementwise(name) for name in ("neg", "abs")},
    **{name: _elementwise(name) for name in ("mul", "pow", "maximum", "minimum", "matmul")},
    **{f"__{name}__": _elementwise(name) for name in ("add", "sub", "mul", "matmul", "pow")},
    **{f"__r{name}__": _swapped(name) for name in ("add", "sub", "mul", "matmul", "pow", "div")},
    "absolute": _elementwise("abs"),
    "negative": _elementwise("neg"),
    "add": _add,
    "sub": _sub,
    "subtract": _sub,
    "rsub": _swapped("sub"),
    "multiply": _elementwise("mul"),
    "div": _div,
    "divide": _div,
    "true_divide": _div,
    "__div__": _div,
    "__truediv__": _div,
    "__rtruediv__": _swapped("div"),
    "__rpow__": _swapped("pow"),
    "mm": _elementwise("matmul"),
    "mv": _elementwise("matmul"),
    "dot": _elementwise("matmul"),
    "vdot": _elementwise("matmul"),
    "relu": _relu,
    "softplus": _softplus,
    "logsigmoid": _elementwise("logsigmoid"),
    "log_sigmoid": _elementwise("logsigmoid"),
    "gelu": _unary_with_defaults("gelu", approximate="none"),
    "silu": _unary_with_defaults("silu", inplace=False),
    "elu": _unary_with_defaults("elu", alpha=1.0, inplace=False),
    "special_entr": _elementwise("entr"),
    "clamp": _clamp,
    "clip": _clamp,
    "sum": _reduction("sum"),
    "mean": _reduction("mean"),
    "amax": _reduction("max"),
    "amin": _reduction("min"),
    "logsumexp": _reduction("logsumexp"),
    "special_logsumexp": _reduction("logsumexp"),
    "count_nonzero": _reduction("count_nonzero"),
    "max": _extremum("max", "maximum"),
    "min": _extremum("min", "minimum"),
    "softmax": _along("softmax"),
    "log_softmax": _along("log_softmax"),
    "norm": lambda input, p=2, dim=None, keepdim=False, dtype=None: _norm(input, 2, dim, keepdim, p=p),
    "linalg_vector_norm": _norm,
    "vector_norm": _norm,
    "linear": _linear,
    "einsum": _einsum,
    "where": _where,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "stack": _stack,
    "binary_cross_entropy_with_logits": _loss("binary_cross_entropy_with_logits"),
    "binary_cross_entropy": _loss("binary_cross_entropy"),
    "cross_entropy": _loss("cross_entropy"),
    "mse_loss": _loss("mse_loss"),
    "l1_loss": _loss("l1_loss"),
    "huber_loss": _huber,
    **{name: _compare("<=") for name in ("le", "less_equal", "__le__")},
    **{name: _compare(">=") for name in ("ge", "greater_equal", "__ge__")},
    **{name: _compare("<") for name in ("lt", "less", "__lt__")},
    **{name: _compare(">") for name in ("gt", "greater", "__gt__")},
    **{name: _compare("==") for name in ("eq", "__eq__")},
    **{name: _compare("!=") for name in ("ne", "not_equal", "__ne__")},
    **{
        name: _no_value(f".{name}()")
        for name in ("item", "detach", "numpy", "tolist", "backward", "cpu", "cuda")
    },
}

_REDUCING_LOSSES = ("_loss", "_cross_entropy", "kl_div", "cross_entropy")


def record(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The expression for `func(*args, **kwargs)`.

    Raises:
        ModelingError: E115 (would run over rows), E120 (loss already reduced), E121 (needs a value).
    """
    name = func.__name__
    rule = RULES.get(name)
    if rule is not None:
        try:
            bound = inspect.signature(rule).bind(*args, **kwargs)
        except TypeError:
            bound = None
        if bound is not None:
            try:
                return rule(*bound.args, **bound.kwargs)
            except _NotInTable:
                pass
    if name.endswith(_REDUCING_LOSSES) and "reduction" in _defaults(func):
        _no_reduction(name, str(kwargs.get("reduction", "mean")))
    return _opaque(func, args, kwargs)


def _defaults(func: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return inspect.signature(func).parameters
    except (TypeError, ValueError):
        return {}


def _opaque(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Expr:
    def lift(value: Any) -> Any:
        if isinstance(value, Expr):
            return value.node
        torch = loaded("torch")
        if torch is not None and isinstance(value, torch.Tensor):
            return as_node(value)
        if isinstance(value, (list, tuple)):
            if any(isinstance(v, Expr) for v in value):
                raise ModelingError(
                    "E117",
                    f"{func.__name__} takes a list of expressions, which cannot be recorded",
                    at=here(),
                    fix="a torch function with separate arguments, or a cn.Model around your own module",
                )
            return tuple(value)
        return value

    torch = loaded("torch")
    path = torch.overrides.resolve_name(func) if torch is not None else None
    arguments = tuple(lift(a) for a in args)
    keywords = tuple((k, lift(v)) for k, v in sorted(kwargs.items()))
    return Expr(n.Opaque(path or func.__name__, func, arguments, keywords, loc=here()))


_METHODS = frozenset(
    "abs exp log log1p expm1 sqrt square sigmoid tanh relu sum mean max min amax amin pow clamp softmax log_softmax "
    "logsumexp norm matmul mul add sub div neg sin cos item detach numpy tolist backward cpu cuda unsqueeze".split()
)


def method(e: Expr, name: str) -> Callable[..., Any]:
    """`e.exp()` and the other tensor methods that the table knows."""
    if name.startswith("__") or name not in _METHODS:
        raise AttributeError(
            f"an expression has no attribute {name!r}; torch functions apply to it: torch.{name}(e)"
        )
    if name == "unsqueeze":
        return lambda dim=-1: _unsqueeze(e, dim)
    rule = RULES[name]
    return lambda *args, **kwargs: rule(e, *args, **kwargs)


def _unsqueeze(e: Expr, dim: int) -> Expr:
    if dim >= 0 or e.shape is None:
        raise ModelingError(
            "E115", f"unsqueeze({dim}) of {e}", at=here(), fix="a negative dim counts from one row's end"
        )
    shape = list(e.shape)
    shape.insert(len(shape) + 1 + dim, 1)
    return e.reshape(tuple(shape))


_UFUNCS = {
    "add": "add",
    "subtract": "sub",
    "multiply": "mul",
    "true_divide": "div",
    "divide": "div",
    "power": "pow",
    "matmul": "matmul",
    "maximum": "maximum",
    "minimum": "minimum",
}
_UCOMPARE: Mapping[str, n.CompareOp] = {
    "less_equal": "<=",
    "greater_equal": ">=",
    "less": "<",
    "greater": ">",
    "equal": "==",
    "not_equal": "!=",
}


def record_ufunc(ufunc: Any, how: str, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """NumPy arithmetic with an array on the left is recorded; other NumPy functions are refused (E121)."""
    name = ufunc.__name__
    if how == "__call__" and not kwargs and len(inputs) == 2:
        if name in _UFUNCS:
            return apply(_UFUNCS[name], *inputs)
        if name in _UCOMPARE:
            return compare(_UCOMPARE[name], *inputs)
    raise ModelingError(
        "E121",
        f"the NumPy function {name} cannot be recorded",
        at=here(),
        fix=f"torch.{name}(...), same arguments",
    )
