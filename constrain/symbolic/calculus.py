# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Partial derivatives of expressions with sums over index symbols."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import sympy as sp
from sympy.concrete.delta import deltasummation

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Range", "derivative"]

Range = tuple[Any, int]
"""An index symbol and the number of its values, from 0."""


def derivative(expr: Any, entry: Any, ranges: Sequence[Range]) -> Any:
    """d expr / d entry, with sums over Kronecker deltas collapsed: d/dp[j] sum_i g(p[i]) = g'(p[j]).

    Args:
        expr: with sums over index symbols.
        entry: a symbol, or an indexed one whose indices are numbers or the symbols of `ranges`.
        ranges: the index symbols of the entry and their ranges. Conditions that hold for all of them vanish.
    """

    def is_sum(e: Any) -> bool:
        return isinstance(e, sp.Sum)

    def has_cases(e: Any) -> bool:
        return isinstance(e, sp.Piecewise)

    def collapsed(whole: Any) -> Any:
        found = whole
        if whole.function.has(sp.KroneckerDelta):
            terms = sp.Add.make_args(_spread(whole.function))
            found = sp.Add(*(_collapsed(term, whole.limits) for term in terms))
        return found.replace(has_cases, within)

    def within(cases: Any) -> Any:
        value, condition = cases.args[0]
        return value if _holds(condition, ranges) else cases

    return expr.diff(entry).replace(is_sum, collapsed)


def _spread(body: Any) -> Any:
    """The body as a sum of terms, multiplied out only as far as deltas ask for it."""
    if isinstance(body, sp.Add):
        return sp.Add(*map(_spread, body.args))
    if isinstance(body, sp.Mul):
        sums = [a for a in body.args if isinstance(a, sp.Add) and a.has(sp.KroneckerDelta)]
        if sums:
            rest = sp.Mul(*(a for a in body.args if a is not sums[0]))
            return sp.Add(*(_spread(rest * term) for term in sums[0].args))
    return body


def _collapsed(term: Any, limits: Sequence[Any]) -> Any:
    for limit in limits:
        term = deltasummation(term, limit) if _collapses(term, limit[0]) else sp.Sum(term, limit)
        if isinstance(term, sp.Sum):
            body: Any = term.function
            factor, inner = body.as_independent(limit[0], as_Add=False)
            term = factor * sp.Sum(inner, limit) if factor != 1 else term
    return term


def _collapses(term: Any, along: Any) -> bool:
    """Whether a delta picks one value of an index symbol: i + 2 does, and 2 i skips every other one."""
    deltas = [delta for delta in term.atoms(sp.KroneckerDelta) if delta.has(along)]
    slopes = [sp.diff(delta.args[0] - delta.args[1], along) for delta in deltas]
    return bool(slopes) and all(slope in (1, -1) for slope in slopes)


def _holds(condition: Any, ranges: Sequence[Range]) -> bool:
    """Whether a condition that is linear in the index symbols holds for all of their values."""
    if not condition.free_symbols <= {symbol for symbol, _ in ranges}:
        return False
    corners = product(*((0, size - 1) for _, size in ranges))
    symbols = [symbol for symbol, _ in ranges]
    return all(condition.subs(list(zip(symbols, corner, strict=True))) == sp.true for corner in corners)
