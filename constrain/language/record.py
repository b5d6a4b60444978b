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
from constrain.language.expr import Expr, apply, as_node, compare, shown
from constrain.language.location import here, name_in_caller
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
    rule = RULES.get(name)
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


_OF_TENSORS = frozenset(("dtype", "device", "dim", "ndim", "size", "numel", "expand"))


class TensorAttributeError(ModelingError, AttributeError):
    """What only a tensor has (E154). An `AttributeError`, so that `hasattr` and `getattr` work."""


def method(e: Expr, name: str) -> Callable[..., Any]:
    """`e.exp()` and other methods of tensors: of the table, and those that torch has as functions."""
    if name in _METHODS:
        rule = RULES[name]
        return lambda *args, **kwargs: rule(e, *args, **kwargs)
    torch = None if name.startswith("_") else loaded("torch")
    if torch is not None and callable(getattr(torch, name, None)) and hasattr(torch.Tensor, name):
        function = getattr(torch, name)
        return lambda *args, **kwargs: record(function, (e, *args), kwargs)
    if name in _OF_TENSORS:
        raise TensorAttributeError(
            "E154",
            f"{shown(e)} is no tensor: it has no {name} before a solve, and cannot be a parameter of "
            "torch.distributions",
            at=here(),
            fix="e.shape for the shape of one row; cn.distributions.Normal, Bernoulli or Categorical",
        )
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
        fix=f"torch.{name}(...) where torch has it, or the cn function",
    )
