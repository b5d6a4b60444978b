# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Solves the equations of every active set exactly. Run in a process of its own, which can be stopped.

Unknowns that an equation gives explicitly are eliminated one by one; products are split into their factors;
an equation in one unknown is solved by its roots; what is left, if polynomial, is brought to triangular form
by a Groebner basis (Cox, Little & O'Shea, *Ideals, Varieties, and Algorithms*, chapter 3).
"""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import sympy as sp

__all__ = ["Question", "candidates", "solutions"]

_DIGITS = 30
_ZERO = sp.Float("1e-12")


@dataclass(frozen=True)
class Question:
    """Stationarity and constraints as plain SymPy expressions.

    Attributes:
        gradient: of the Lagrangian.
        decisions: symbols.
        equalities: residuals.
        equality_multipliers: symbols.
        inequalities: residuals.
        inequality_multipliers: symbols.
        parameters: values by symbol, where they have one.
    """

    gradient: tuple[Any, ...]
    decisions: tuple[Any, ...]
    equalities: tuple[Any, ...]
    equality_multipliers: tuple[Any, ...]
    inequalities: tuple[Any, ...]
    inequality_multipliers: tuple[Any, ...]
    parameters: dict[Any, Any]


def candidates(question: Question) -> list[dict[Any, Any]]:
    """Solutions of stationarity, equalities and complementarity, whatever the signs.

    Returns:
        For each the value of every decision and multiplier.
    """
    found: list[dict[Any, Any]] = []
    count = len(question.inequalities)
    for size in range(count + 1):
        for active in combinations(range(count), size):
            found += _of_active_set(question, frozenset(active))
    return found


def _of_active_set(q: Question, active: frozenset[int]) -> list[dict[Any, Any]]:
    off = {m: sp.S.Zero for i, m in enumerate(q.inequality_multipliers) if i not in active}
    on = [q.inequality_multipliers[i] for i in sorted(active)]
    equations = [g.subs(off) for g in q.gradient]
    equations += [*q.equalities, *(q.inequalities[i] for i in sorted(active))]
    unknowns = [*q.decisions, *q.equality_multipliers, *on]
    found = solutions(equations, unknowns)
    return [{**off, **values} for values in found if _holds(equations, values, q.parameters)]


def _holds(equations: list[Any], solution: dict[Any, Any], parameters: dict[Any, Any]) -> bool:
    """Whether a solution is real and satisfies the equations, where that can be evaluated."""
    values = [v.subs(parameters) for v in solution.values()]
    if any(v.has(sp.nan, sp.zoo, sp.oo) or not _real(v) for v in values):
        return False
    for equation in equations:
        residual = equation.subs(solution).subs(parameters)
        if residual.has(sp.nan, sp.zoo):
            return False
        if not residual.free_symbols and not abs(sp.N(residual, _DIGITS)) < 1e-9:
            return False
    return True


def _real(value: Any) -> bool:
    return bool(value.free_symbols) or bool(abs(sp.im(sp.N(value, _DIGITS))) < _ZERO)


def solutions(equations: list[Any], unknowns: list[Any]) -> list[dict[Any, Any]]:
    """All solutions, each with a value for every unknown; unknowns that are free stay symbols.

    Raises:
        NotImplementedError: when SymPy has no method for what is left.
    """
    found: list[dict[Any, Any]] = []
    stack: list[tuple[list[Any], dict[Any, Any], bool]] = [(equations, {}, False)]
    while stack:
        left, known, triangular = stack.pop()
        left = _cleared(left)
        if left is None:
            continue
        if not left:
            values = {u: sp.sympify(known.get(u, u)) for u in unknowns}
            if values not in found:
                found.append(values)
            continue
        open_ = [u for u in unknowns if u not in known]
        for rest, step, ready in _steps(left, open_, triangular=triangular):
            now = {u: sp.sympify(v).subs(step) for u, v in known.items()} | step
            stack.append((rest, now, ready))
    return found


def _cleared(equations: list[Any]) -> list[Any] | None:
    """Numerators that are not zero; None where one cannot be zero."""
    kept: list[Any] = []
    for equation in equations:
        if equation.has(sp.nan, sp.zoo, sp.oo):
            return None
        top = sp.expand(sp.fraction(sp.together(equation))[0])
        if top == 0 or (top.is_number and top.equals(0)):
            continue
        if top.is_number:
            return None
        kept.append(top)
    return kept


_Step = tuple[list[Any], dict[Any, Any], bool]


def _steps(left: list[Any], unknowns: list[Any], *, triangular: bool) -> list[_Step]:
    """One step: branches with fewer unknowns or simpler equations."""
    left = sorted(left, key=lambda e: (len(e.free_symbols.intersection(unknowns)), e.count_ops()))
    explicit = _explicit(left, unknowns)
    if explicit is not None:
        place, values = explicit
        rest = [e for i, e in enumerate(left) if i != place]
        return [([e.subs(v) for e in rest], v, triangular) for v in values]
    for place, equation in enumerate(left):
        factors = _factors(equation, unknowns)
        if len(factors) > 1:
            rest = [e for i, e in enumerate(left) if i != place]
            return [([*rest, factor], {}, triangular) for factor in factors]
    if not triangular and all(e.is_polynomial(*unknowns) for e in left):
        inside = [u for u in unknowns if any(e.has(u) for e in left)]
        basis = sp.groebner(left, *inside, order="lex")
        return [(list(basis.exprs), {}, True)]
    inside = [u for u in unknowns if any(e.has(u) for e in left)]
    return [([], found, triangular) for found in sp.solve(left, inside, dict=True)]


def _explicit(left: list[Any], unknowns: list[Any]) -> tuple[int, list[dict[Any, Any]]] | None:
    """An equation that gives an unknown: linear in it, of one unknown, or through a logarithm."""
    for place, equation in enumerate(left):
        for u in unknowns:
            slope = equation.diff(u)
            if slope != 0 and not slope.free_symbols.intersection(unknowns):
                return place, [{u: sp.expand((slope * u - equation) / slope)}]
    for place, equation in enumerate(left):
        inside = equation.free_symbols.intersection(unknowns)
        inside = {u for u in unknowns if u in inside}
        if len(inside) == 1:
            (u,) = inside
            return place, [{u: root} for root in _roots(equation, u) if _real(root)]
    for place, equation in enumerate(left):
        for u in unknowns:
            if not equation.has(sp.log(u)):
                continue
            slope = sp.simplify(equation.diff(u) * u)
            if slope != 0 and not slope.free_symbols.intersection(unknowns):
                rest = sp.simplify(equation - slope * sp.log(u))
                return place, [{u: sp.exp(sp.expand(-rest / slope))}]
    return None


def _roots(equation: Any, u: Any) -> list[Any]:
    """Roots of an equation in one unknown."""
    if not equation.is_polynomial(u):
        return list(sp.solve(equation, u))
    polynomial = sp.Poly(equation, u)
    found = sp.roots(polynomial)
    if sum(found.values()) == polynomial.degree() and polynomial.degree() <= 2:
        return list(found)
    if polynomial.domain.is_ZZ or polynomial.domain.is_QQ:
        return list(dict.fromkeys(sp.real_roots(polynomial)))
    if sum(found.values()) == polynomial.degree():
        return list(found)
    return list(sp.solve(equation, u))


def _factors(equation: Any, unknowns: list[Any]) -> list[Any]:
    """The distinct factors that hold unknowns."""
    if not equation.is_polynomial(*unknowns):
        return [equation]
    factors: Any = sp.factor_list(equation)[1]
    return [f for f, _ in factors if f.free_symbols.intersection(unknowns)]


def main() -> None:
    """Reads a pickled `Question`, writes the pickled answer: `("found", candidates)` or `("failed", why)`."""
    question = pickle.load(sys.stdin.buffer)
    try:
        answer: tuple[str, Any] = ("found", candidates(question))
    except (NotImplementedError, sp.PolynomialError, sp.polys.polyerrors.BasePolynomialError) as error:
        answer = ("failed", str(error).split("\n", maxsplit=1)[0])
    pickle.dump(answer, sys.stdout.buffer)
