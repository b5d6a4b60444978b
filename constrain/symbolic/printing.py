# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingParameterType=false
"""A derivation as text and as LaTeX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sympy as sp
from sympy.printing.latex import LatexPrinter
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.str import StrPrinter

if TYPE_CHECKING:
    from constrain.symbolic.derivation import Condition, Derivation

__all__ = ["latex_of", "shown", "text_of"]


class _Text(StrPrinter):  # type: ignore[misc]  # SymPy has no types
    """`sum(g, i=0..160)`, and `1[A]` for an indicator."""

    def _print_Sum(self, expr: Any) -> str:  # noqa: N802  # SymPy's name
        limits = ", ".join(f"{i}={self._print(a)}..{self._print(b)}" for i, a, b in expr.limits)
        return f"sum({self._print(expr.function)}, {limits})"

    def _print_Piecewise(self, expr: Any) -> str:  # noqa: N802
        if _gated(expr):
            value, condition = expr.args[0]
            factor = "" if value == 1 else self.parenthesize(value, PRECEDENCE["Mul"]) + "*"
            return f"{factor}1[{self._print(condition)}]"
        cases = [(self._print(value), condition) for value, condition in expr.args]
        return f"cases({'; '.join(v if c == sp.true else f'{v} if {self._print(c)}' for v, c in cases)})"

    def _print_Relational(self, expr: Any) -> str:  # noqa: N802
        sign = {"==": "=", "<=": "≤", ">=": "≥", "!=": "≠"}.get(expr.rel_op, expr.rel_op)
        left, right = _ordered(expr)
        return f"{self._print(left)} {sign} {self._print(right)}"


class _Latex(LatexPrinter):  # type: ignore[misc]  # SymPy has no types
    """Indicators as a bold one."""

    def _print_Piecewise(self, expr: Any) -> str:  # noqa: N802
        if _gated(expr):
            value, condition = expr.args[0]
            factor = "" if value == 1 else self.parenthesize(value, PRECEDENCE["Mul"])
            return rf"{factor} \mathbf{{1}}\left[{self._print(condition)}\right]"
        return str(super()._print_Piecewise(expr))


def _ordered(relation: Any) -> tuple[Any, Any]:
    """The sides, that with an index first in an equality: `sex[i] = Male`."""
    turned = relation.rel_op in ("==", "!=") and relation.lhs.is_Symbol and not relation.rhs.is_number
    return (relation.rhs, relation.lhs) if turned else (relation.lhs, relation.rhs)


def _gated(expr: Any) -> bool:
    """Whether it is a value times the indicator of a condition."""
    return len(expr.args) == 2 and expr.args[1][0] == 0


def shown(expr: Any) -> str:
    """One line of text."""
    return str(_Text().doprint(expr))


def _latex(expr: Any) -> str:
    return str(_Latex({"ln_notation": False}).doprint(expr))


def _ranges_text(condition: Condition) -> str:
    found = [f"{symbol} = 0..{shown(sp.sympify(size) - 1)}" for symbol, size in condition.ranges]
    found += [] if condition.where is None else [f"where {shown(condition.where)}"]
    return f"   for {', '.join(found)}" if found else ""


def text_of(derivation: Derivation) -> str:
    """The Lagrangian, then a block of lines per group of conditions."""
    word = "-(objective)" if derivation.sense == "maximize" else "objective"
    lines = [f"minimize   {word} = {shown(derivation.objective)}", f"L = {shown(derivation.lagrangian)}"]
    for group, conditions in derivation.groups.items():
        if conditions:
            lines += ["", group]
            width = max(len(c.name) for c in conditions)
            lines += [f"  {c.name:<{width}}  {shown(c.relation)}{_ranges_text(c)}" for c in conditions]
    return "\n".join(lines)


def latex_of(derivation: Derivation) -> str:
    """One `aligned` environment."""
    lines = [rf"\mathcal{{L}} &= {_latex(derivation.lagrangian)}"]
    for group, conditions in derivation.groups.items():
        for place, condition in enumerate(conditions):
            head = rf"\text{{{group}}} \quad & " if place == 0 else "& "
            lines.append(head + _latex(condition.relation) + _ranges_latex(condition))
    body = " \\\\\n".join(lines)
    return f"\\begin{{aligned}}\n{body}\n\\end{{aligned}}"


def _ranges_latex(condition: Condition) -> str:
    last = [(symbol, _latex(sp.sympify(size) - 1)) for symbol, size in condition.ranges]
    found = [rf"{symbol} = 0, \dots, {end}" for symbol, end in last]
    found += [] if condition.where is None else [rf"\text{{where }} {_latex(condition.where)}"]
    joined = r",\; ".join(found)
    return rf" \quad ({joined})" if found else ""
