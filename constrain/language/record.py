"""Records calls of torch functions (and NumPy arithmetic) on expressions.

Torch offers its functions to any object with `__torch_function__`. A function of the table (`torch_rules.py`)
becomes the atom of the language with its arguments in the order they were written; any other becomes an
`Opaque` node that is run as it is and about whose curvature nothing is known. Nothing is executed here.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from constrain._lazy import loaded
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.expr import Expr, apply, as_node, as_number, code, compare, shown
from constrain.language.location import here, name_in_caller
from constrain.language.torch_linear import LINEAR
from constrain.language.torch_rules import RULES, NotInTable, Rule, axes_of, refuse_reduction

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["method", "record", "record_ufunc", "refuse_numpy"]

_REDUCING_LOSSES = ("_loss", "_cross_entropy", "kl_div", "cross_entropy")
# functions whose second argument, or `dim`, is an axis they run along
_ALONG_DIM = frozenset(
    (
        *("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "flip", "sort", "argsort"),
        *("softmin", "diff", "roll", "std", "var", "median", "prod", "all", "any", "argmax"),
        *("argmin", "nansum", "nanmean", "quantile"),
    )
)


def record(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The expression for `func(*args, **kwargs)`.

    Raises:
        ModelingError: E113 (in place), E115 (would run over rows), E120 (loss already reduced), E121 (needs a
            value).
    """
    name = func.__name__
    rule = RULES.get(name) or LINEAR.get(name)
    if rule is not None and _fits(rule, args, kwargs):
        try:
            return rule(*args, **kwargs)
        except NotInTable:
            pass
    if name.endswith("_") and not name.endswith("__"):
        RULES["__setitem__"]()
    if name.endswith(_REDUCING_LOSSES) and "reduction" in _parameters(func):
        refuse_reduction(name, str(kwargs.get("reduction", "mean")))
    if name in _ALONG_DIM:
        _refuse_rows(name, args, kwargs)
    return _opaque(func, args, kwargs)


def _fits(rule: Rule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(rule).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _parameters(func: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return inspect.signature(func).parameters
    except (TypeError, ValueError):
        return {}


def _refuse_rows(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """E115 for a function that would run along the axis of rows."""
    place = 2 if name in ("diff", "roll", "quantile") else 1
    dim = kwargs.get("dim", kwargs.get("dims", args[place] if len(args) > place else None))
    if args and isinstance(args[0], Expr) and args[0].type.lead and not isinstance(dim, bool):
        axes_of(args[0], -1 if dim is None and name in ("sort", "argsort", "diff") else dim, name)


def _opaque(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Expr:
    def lift(value: Any) -> Any:
        if isinstance(value, Expr):
            return value.node
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            shape = tuple(value.shape)
            if shape or getattr(value, "requires_grad", False):
                return as_node(value)
            return n.Array(n.ArraySymbol.of(value, shape, name_in_caller(value)), loc=here())
        if not isinstance(value, (list, tuple)):
            return value
        items = tuple(lift(v) for v in value)  # type: ignore[reportUnknownVariableType]
        if any(isinstance(v, n.Node) for v in items):
            raise ModelingError(
                "E117",
                f"{func.__name__} takes a list of expressions, which cannot be recorded",
                at=here(),
                fix="cn.stack, a function with separate arguments, or a cn.Model around your own module",
            )
        return items

    torch = loaded("torch")
    path = torch.overrides.resolve_name(func) if torch is not None else None
    arguments = tuple(lift(a) for a in args)
    keywords = tuple((k, lift(v)) for k, v in sorted(kwargs.items()))
    return Expr(n.Opaque(path or func.__name__, func, arguments, keywords, loc=here()))


# functions of the table that are methods of tensors too, so that they need no torch
_METHODS = frozenset(
    (
        *("abs", "exp", "log", "log1p", "expm1", "sqrt", "square", "sigmoid", "tanh", "relu", "sin", "cos"),
        *("neg", "reciprocal", "sign", "floor", "erf", "sum", "mean", "max", "min", "amax", "amin", "norm"),
        *("logsumexp", "softmax", "log_softmax", "count_nonzero", "pow", "clamp", "clip", "matmul", "mul"),
        *("add", "sub", "div", "maximum", "minimum", "unsqueeze", "trace", "logdet", "matrix_exp", "t"),
        *("item", "detach", "numpy", "tolist", "backward", "cpu", "cuda", "requires_grad_"),
    )
)


_OF_VALUES = frozenset(("item", "detach", "numpy", "tolist", "backward", "cpu", "cuda", "requires_grad_"))
_CHOSEN_BY_SOLVE = frozenset(
    ("to", "float", "double", "half", "bfloat16", "long", "int", "bool", "type", "type_as", "contiguous")
)
_AFTER_SOLVE = frozenset(("value", "values", "grad", "data", "requires_grad"))
_OF_TENSORS = frozenset(("dtype", "device", "dim", "ndim", "size", "numel", "expand"))


class TensorAttributeError(ModelingError, AttributeError):
    """What only a tensor has (E154). An `AttributeError`, so that `hasattr` and `getattr` work."""


def _no_tensor(e: Expr, name: str) -> ModelingError:
    """E121 for types and devices, which a solve chooses, and for values, which it brings."""
    if name in _AFTER_SOLVE:
        message = f"{shown(e)} has no .{name} before a solve"
        fix = "after it: solution['name'].value, solution.objective, or w.value of a Variable"
    else:
        message = f"{shown(e)} has no .{name}(): a solve chooses the type and the device"
        fix = f"cn.indicator({code(e)})" if e.type.event else "leave it out; solve(device=...)"
    return TensorAttributeError("E121", message, at=here(), fix=fix)


def method(e: Expr, name: str) -> Callable[..., Any]:
    """`e.exp()` and other methods of tensors: of the table, and those that torch has as functions."""
    if name in _CHOSEN_BY_SOLVE or name in _AFTER_SOLVE:
        raise _no_tensor(e, name)
    if name in _OF_TENSORS:
        raise TensorAttributeError(
            "E154",
            f"{shown(e)} is no tensor: it has no {name} before a solve, and cannot be a parameter of "
            "torch.distributions",
            at=here(),
            fix="e.shape for the shape of one row; cn.distributions.Normal, Bernoulli or Categorical",
        )
    if name in _METHODS:
        if e.type.event and name not in _OF_VALUES:
            as_number(e)  # refuses: an event is no number
        rule = RULES[name]
        return lambda *args, **kwargs: rule(e, *args, **kwargs)
    torch = None if name.startswith("_") else loaded("torch")
    if torch is not None and callable(getattr(torch, name, None)) and hasattr(torch.Tensor, name):
        function = getattr(torch, name)
        return lambda *args, **kwargs: record(function, (e, *args), kwargs)
    raise AttributeError(
        f"an expression has no attribute {name!r}; torch functions apply to it: torch.{name}(e)"
    )


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


_INSTEAD_OF_NUMPY = {
    "mean": "E(...) for the average over rows, cn.mean(...) within one row",
    "average": "E(...) for the average over rows, cn.mean(...) within one row",
    "sum": "cn.sum(...) within one row; over the rows E(...) times their number",
    "var": "cn.Var(...), over the rows",
    "std": "cn.sqrt(cn.Var(...)), over the rows",
    "cov": "cn.Cov(a, b), over the rows",
    "corrcoef": "cn.Corr(a, b), over the rows",
    "quantile": "cn.Quantile(e, 0.9), over the rows",
    "percentile": "cn.Quantile(e, 0.9), over the rows",
    "median": "cn.Quantile(e, 0.5), over the rows",
    "max": "cn.max(...) within one row",
    "amax": "cn.max(...) within one row",
    "min": "cn.min(...) within one row",
    "amin": "cn.min(...) within one row",
    "absolute": "abs(e)",
    "dot": "a @ b",
    "norm": "cn.norm(...)",
    "stack": "cn.stack(a, b)",
    "concatenate": "cn.stack(a, b) of numbers",
    "where": "cn.where(event, a, b)",
    "clip": "torch.clamp(e, low, high)",
    "logical_and": "a & b",
    "logical_or": "a | b",
    "logical_not": "~a",
}


def record_ufunc(ufunc: Any, how: str, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """NumPy arithmetic with an array on the left is recorded; other NumPy functions are refused (E121)."""
    name = ufunc.__name__
    if how == "__call__" and not kwargs and len(inputs) == 2:
        if name in _UFUNCS:
            return apply(_UFUNCS[name], *inputs)
        if name in _UCOMPARE:
            return compare(_UCOMPARE[name], *inputs)
    raise refuse_numpy(ufunc)


def refuse_numpy(function: Any) -> ModelingError:
    """E121 for a NumPy function."""
    name = function.__name__
    return ModelingError(
        "E121",
        f"the NumPy function {name} cannot be recorded",
        at=here(),
        fix=_INSTEAD_OF_NUMPY.get(name, f"torch.{name}(...) where torch has it, or the cn function"),
    )
