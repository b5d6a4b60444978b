# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingParameterType=false, reportIncompatibleMethodOverride=false
"""Outputs of models as symbols: `f(x[i]; theta_f)` and its partial derivatives."""

from __future__ import annotations

from typing import Any

import sympy as sp

__all__ = ["ModelOutput"]


class ModelOutput(sp.Expr):
    """One entry of a model's output, or a partial derivative of it.

    Made by `ModelOutput(name, arguments, theta, component, orders)`, all of them SymPy objects.

    Args:
        name: symbol of the model.
        arguments: tuple of what the model is applied to.
        theta: tuple with the indexed base of its trainable parameters, empty when it is frozen.
        component: tuple of the entry's indices, empty for an output of one number.
        orders: tuple of the variables of the partial derivatives: `theta[k]`, or the number of an argument.
    """

    is_commutative = True
    is_real = True

    args: Any

    def __new__(cls, *args: Any) -> Any:
        """The output with these parts, which become SymPy objects."""
        return sp.Expr.__new__(cls, *map(sp.sympify, args))

    def _by(self, variable: Any) -> Any:
        name, arguments, theta, component, orders = self.args
        return self.func(name, arguments, theta, component, sp.Tuple(*orders, variable))

    def _eval_derivative(self, s: Any) -> Any:
        arguments, theta = self.args[1], self.args[2]
        total: Any = sp.S.Zero
        if isinstance(s, sp.Indexed) and s.base in theta.args:
            total += self._by(s)
        for place, argument in enumerate(arguments.args):
            inner = argument.diff(s)
            if inner != 0:
                total += self._by(sp.Integer(place)) * inner
        return total

    def _written(self, show: Any) -> tuple[str, list[str]]:
        """The output, and the variables of its derivatives."""
        name, arguments, theta, component, orders = self.args
        head = show(name) if not component.args else f"{show(name)}_{{{','.join(map(show, component.args))}}}"
        inside = "; ".join(", ".join(map(show, group.args)) for group in (arguments, theta) if group.args)
        by = [show(arguments.args[int(v)]) if v.is_Integer else show(v) for v in orders.args]
        return f"{head}({inside})", by

    def _sympystr(self, printer: Any) -> str:
        written, by = self._written(printer.doprint)
        written = written.replace("{", "").replace("}", "")
        return f"d[{written}]/d[{', '.join(by)}]" if by else written

    def _latex(self, printer: Any, **_options: Any) -> str:
        written, by = self._written(printer.doprint)
        if not by:
            return written
        power = f"^{{{len(by)}}}" if len(by) > 1 else ""
        below = r"\,".join(rf"\partial {v}" for v in by)
        return rf"\frac{{\partial{power} {written}}}{{{below}}}"
