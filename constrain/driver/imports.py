"""The ways in: problems of CVXPY and Pyomo, expressions of SymPy."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch

from constrain._lazy import backend
from constrain.errors import RouteError
from constrain.language import functions as f
from constrain.language.expr import Constraint, Expr, as_expr

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from constrain.language.problem import Problem

__all__ = ["from_cvxpy", "from_pyomo", "from_sympy"]


def from_cvxpy(problem: Any) -> Problem:
    """A `cvxpy.Problem` as a problem of the language; see `constrain.backends.cvxpy.imports`."""
    return backend("cvxpy").from_cvxpy(problem)  # type: ignore[no-any-return]


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
}


def from_sympy(expr: Any, symbols: Mapping[Any, Any]) -> Expr | Constraint:
    """A SymPy expression or relation as one of the language.

    Args:
        expr: built of arithmetic, powers, `exp`, `log`, `Abs`, `Max`, `Min`, trigonometric and hyperbolic
            functions, `erf`, and relations at the top.
        symbols: what each symbol stands for, by the symbol or its name: a `Variable`, a column, a number.

    Raises:
        RouteError: E125 for a symbol that is not given, or a function without a form in the language.
    """
    named = {str(key): value for key, value in symbols.items()}
    done: dict[Any, Any] = {}
    stack = [expr]
    while stack:
        node = stack[-1]
        waiting = [] if node.is_number else [x for x in node.args if x not in done]
        if waiting:
            stack.extend(waiting)
            continue
        stack.pop()
        if node not in done:
            done[node] = _converted(node, [done[x] for x in node.args if x in done], named)
    found = done[expr]
    return found if isinstance(found, Constraint) else as_expr(found)


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
    if name not in _SYMPY:
        raise RouteError("E125", f"from_sympy has no form of {name}")
    if any(isinstance(a, Expr) for a in args):
        args = [as_expr(a) if name in ("Max", "Min") else a for a in args]
    return _SYMPY[name](*args)
