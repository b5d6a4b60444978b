"""Turns surrogates that bound a rate from above to the side on which they are a bound.

1[A] = 1 - 1[~A]: exact; with a hinge on the right the surrogate is a lower bound of the rate in place of an
upper one. A residual that decreases in a rate (`P(A) >= b`) is bounded from above by a lower bound of it, so
what the surrogates meet, the rates meet (Cotter et al. 2019, "Optimization with non-differentiable
constraints with applications to fairness, recall, churn, and other goals"). Sigmoid and power are symmetric
and need no side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from constrain.analysis.curvature import analyze
from constrain.language import nodes as n
from constrain.language.atoms import ATOMS
from constrain.language.surrogates import Hinge

if TYPE_CHECKING:
    from constrain.analysis.fact import Fact

__all__ = ["direction", "oriented"]

Side = int
"""+1 where the root increases in a node, -1 where it decreases, 0 where neither is known."""


_POSITIVE = frozenset(("sqrt", "log", "log1p", "reciprocal"))


def oriented(root: n.Node) -> n.Node:
    """The same expression, an upper bound of its exact value where all its surrogates are hinges.

    Args:
        root: an objective to minimize, or a residual that is to be at most 0.

    Returns:
        The root itself when it has no hinge. In a denominator, in functions that are not defined below zero,
        and wherever the direction is not known, surrogates stay as they are.
    """
    if not any(isinstance(x, n.Indicator) and isinstance(x.surrogate, Hinge) for x in n.postorder(root)):
        return root
    facts: dict[int, Fact] = {}
    done: dict[tuple[int, Side], n.Node] = {}
    stack: list[tuple[n.Node, Side]] = [(root, 1)]
    while stack:
        node, side = stack[-1]
        parts = n.children(node)
        sides = [_kept(node, direction(node, i, facts) * side) for i in range(len(parts))]
        waiting = [(p, s) for p, s in zip(parts, sides, strict=True) if s and (id(p), s) not in done]
        if (id(node), side) in done:
            stack.pop()
        elif waiting:
            stack.extend(waiting)
        else:
            stack.pop()
            new = tuple(done[id(p), s] if s else p for p, s in zip(parts, sides, strict=True))
            done[id(node), side] = _turned(n.rebuild(node, new), side)
    return done[id(root), 1]


def _kept(node: n.Node, side: Side) -> Side:
    """No side where a lower bound of a rate, which may be negative, has no value."""
    return 0 if side < 0 and isinstance(node, n.Apply) and node.atom in _POSITIVE else side


def _turned(node: n.Node, side: Side) -> n.Node:
    """1 - 1[~A] for the indicator of A on the falling side."""
    if side > 0 or not isinstance(node, n.Indicator) or not isinstance(node.surrogate, Hinge):
        return node
    complement = n.Logic("not", (node.event,), loc=node.loc)
    turned = n.Indicator(complement, node.surrogate, loc=node.loc)
    return n.Apply("sub", (n.Constant(1.0), turned), loc=node.loc)


def direction(node: n.Node, place: int, facts: dict[int, Fact]) -> Side:
    """Direction in which a node moves with its child at `place`."""
    if isinstance(node, n.Moment):
        return 1 if place == 0 else 0
    if not isinstance(node, n.Apply):
        return 0
    match node.atom:
        case "mul" | "matmul" | "einsum" | "linear":
            others = [x for i, x in enumerate(node.args) if i != place]
            if node.atom == "linear" and place == 2:
                return 1
            return _sign(others[0], facts) if len(others) == 1 or node.atom == "linear" else 0
        case "div":
            return _sign(node.args[1], facts) if place == 0 else 0
        case "where":
            return 1 if place else 0
        case "pow":
            return _raised(node, facts) if place == 0 else 0
        case _:
            kinds = ATOMS[node.atom].monotone
            kind = kinds[min(place, len(kinds) - 1)]
            if kind == "by-sign":
                return _sign(node.args[place], facts)
            return {"up": 1, "down": -1}.get(kind, 0)


def _raised(node: n.Apply, facts: dict[int, Fact]) -> Side:
    """Of a base with a known sign, in a power above 0: even powers fall where it is negative."""
    exponent = node.args[1]
    if not isinstance(exponent, n.Constant) or exponent.value <= 0:
        return 0
    base = _sign(node.args[0], facts)
    return base if base > 0 or exponent.value % 2 == 0 else 0


def _sign(node: n.Node, facts: dict[int, Fact]) -> Side:
    """+1 for what is nowhere negative, -1 for what is nowhere positive."""
    return {"nonneg": 1, "zero": 1, "nonpos": -1}.get(analyze(node, facts).sign, 0)
