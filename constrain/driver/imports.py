"""The ways in: problems of CVXPY and Pyomo, expressions of SymPy."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch

from constrain._lazy import backend
from constrain.errors import RouteError
from constrain.language import functions as f
from constrain.language.expr import Constraint, Expr, as_expr
from constrain.language.keywords import keywords

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from constrain.language.problem import Problem

__all__ = ["from_cvxpy", "from_pyomo", "from_sympy"]


@keywords
def from_cvxpy(problem: Any) -> Problem:
    """A `cvxpy.Problem` as a problem of the language; see `constrain.backends.cvxpy.imports`."""
    return backend("cvxpy").from_cvxpy(problem)  # type: ignore[no-any-return]


@keywords
def from_pyomo(model: Any) -> Problem:
    """A `pyomo.ConcreteModel` as a problem of the language; see `constrain.backends.pyomo.imports`."""
    return backend("pyomo").from_pyomo(model)  # type: ignore[no-any-return]


# ----------------------------------------------------------------------------------------------- sympy
def _pairwise(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def folded(*args: Any) -> Any:
        total = args[0]
        for other in args[1:]:
            total = function(total, other)
        return total

    return folded


def _pair(value: Any, condition: Any) -> tuple[Any, Any]:
    return value, condition


def _piecewise(*pieces: tuple[Any, Any]) -> Any:
    *others, (total, rest) = pieces
    if rest is not True:
        raise RouteError(
            "E125",
            "from_sympy takes a Piecewise with a last piece for everything else",
            fix="sympy.Piecewise((f, a > 0), (g, True))",
        )
    for value, condition in reversed(others):
        total = f.where(condition, value, total)
    return total


_UNARY: dict[str, Callable[[Any], Any]] = {
    "exp": f.exp,
    "log": f.log,
    "Abs": f.abs,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": lambda x: torch.sin(x) / torch.cos(x),
    "tanh": torch.tanh,
    "sinh": lambda x: (f.exp(x) - f.exp(-x)) / 2,
    "cosh": lambda x: (f.exp(x) + f.exp(-x)) / 2,
    "erf": torch.erf,
    "sign": torch.sign,
}
_SYMPY: dict[str, Callable[..., Any]] = {
    **_UNARY,
    "Add": _pairwise(operator.add),
    "Mul": _pairwise(operator.mul),
    "Pow": operator.pow,
    "Max": _pairwise(f.maximum),
    "Min": _pairwise(f.minimum),
    "LessThan": operator.le,
    "GreaterThan": operator.ge,
    "StrictLessThan": operator.lt,
    "StrictGreaterThan": operator.gt,
    "Equality": operator.eq,
    "And": _pairwise(lambda a, b: a & b),
    "Or": _pairwise(lambda a, b: a | b),
    "Not": operator.invert,
    "BooleanTrue": lambda: True,
    "ExprCondPair": _pair,
    "Piecewise": _piecewise,
}


@keywords
def from_sympy(expr: Any, symbols: Mapping[Any, Any]) -> Expr | Constraint:
    """A SymPy expression or relation as one of the language.

    Args:
        expr: built of arithmetic, powers, `exp`, `log`, `Abs`, `Max`, `Min`, trigonometric and hyperbolic
            functions, `erf`, `Piecewise`, and relations at the top; or a matrix of these.
        symbols: what each symbol stands for, by the symbol or its name: a `Variable`, a column, a number.

    Returns:
        The expression; of a matrix a stack of its entries, with shape `(n,)` for a column and `(m, n)` else.

    Raises:
        RouteError: E125 for a symbol that is not given, or what has no form in the language.
    """
    named = {str(key): value for key, value in symbols.items()}
    if getattr(expr, "is_Matrix", False) and hasattr(expr, "tolist"):
        rows = [[_from_sympy(entry, named) for entry in row] for row in expr.tolist()]
        single = expr.shape[1] == 1
        return f.stack([row[0] if single else f.stack(row) for row in rows])
    found = _from_sympy(expr, named)
    return found if isinstance(found, Constraint) else as_expr(found)


def _from_sympy(expr: Any, named: Mapping[str, Any]) -> Any:
    """One entry, without recursion."""
    done: dict[Any, Any] = {}
    stack = [expr]
    while stack:
        node = stack[-1]
        _known(node)
        waiting = [] if node.is_number else [x for x in node.args if x not in done]
        if waiting:
            stack.extend(waiting)
            continue
        stack.pop()
        if node not in done:
            done[node] = _converted(node, [done[x] for x in node.args if x in done], named)
    return done[expr]


def _known(node: Any) -> None:
    """Refuses what has no form by its own name, and not by that of a part of it."""
    plain = getattr(node, "is_number", False) or getattr(node, "is_Symbol", False)
    if not plain and type(node).__name__ not in _SYMPY:
        raise RouteError("E125", f"from_sympy has no form of {type(node).__name__}")


def _converted(node: Any, args: list[Any], named: Mapping[str, Any]) -> Any:
    if node.is_number:
        value = complex(node)
        if value.imag:
            raise RouteError("E125", f"from_sympy has no form of the complex number {node}")
        return int(value.real) if node.is_Integer else value.real
    name = type(node).__name__
    if node.is_Symbol:
        if str(node) not in named:
            known = ", ".join(named) or "nothing"
            raise RouteError(
                "E125",
                f"from_sympy was not told what {node} stands for; it knows {known}",
                fix=f'cn.from_sympy(expr, {{"{node}": cn.Variable((), "{node}")}})',
            )
        return named[str(node)]
    if any(isinstance(a, Expr) for a in args):
        args = [as_expr(a) if name in ("Max", "Min") else a for a in args]
    return _SYMPY[name](*args)
