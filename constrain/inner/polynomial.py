"""Which terms are constant, linear or quadratic in the variables, and which move with parameters.

A quadratic program whose matrices do not depend on parameters is factorized with constant matrices: this is
known from the structure, before any number is.
"""

from __future__ import annotations

from typing import TypeAlias

from constrain.language import nodes as n
from constrain.language.atoms import ATOMS

__all__ = ["Terms", "degree", "terms"]

Terms: TypeAlias = "dict[int, bool] | None"
"""Per degree in the variables, whether the terms of that degree depend on parameters; None: no polynomial of
degree at most two is known."""


def degree(found: Terms) -> int | None:
    """The largest degree, None for what is no polynomial of degree at most two."""
    return None if found is None else max(found)


def _sum(*parts: Terms) -> Terms:
    total: dict[int, bool] = {}
    for part in parts:
        if part is None:
            return None
        for order, depends in part.items():
            total[order] = total.get(order, False) or depends
    return total


def _product(*parts: Terms) -> Terms:
    total: dict[int, bool] = {0: False}
    for part in parts:
        if part is None:
            return None
        new: dict[int, bool] = {}
        for i, a in total.items():
            for j, b in part.items():
                new[i + j] = new.get(i + j, False) or a or b
        total = new
    return total if max(total) <= 2 else None


def terms(root: n.Node, memo: dict[int, Terms] | None = None) -> Terms:
    """The terms of an expression.

    Args:
        root: any node without rows.
        memo: results by `id` of nodes already seen.
    """
    return n.fold(root, _step, memo)


def _step(node: n.Node, parts: tuple[Terms, ...]) -> Terms:
    match node:
        case n.Decision():
            return {1: False}
        case n.Knob():
            return {0: True}
        case _ if all(part is not None and max(part) == 0 for part in parts):
            return {0: any(part is not None and part[0] for part in parts)}
        case n.Apply():
            return _apply(node, parts)
        case _:
            return None


def _apply(node: n.Apply, parts: tuple[Terms, ...]) -> Terms:  # one case per kind of function
    atom = node.atom
    if atom in ("square", "sum_squares"):
        return _product(parts[0], parts[0])
    if atom == "mse_loss":
        difference = _sum(*parts)
        return _product(difference, difference)
    if atom == "quad_form":
        return _product(parts[0], parts[0], parts[1])
    if atom == "linear":
        return _sum(_product(parts[0], parts[1]), *parts[2:])
    if atom == "pow":
        exponent = node.args[1].value if isinstance(node.args[1], n.Constant) else None
        return _product(parts[0], parts[0]) if exponent == 2 else parts[0] if exponent == 1 else None
    if atom == "div":
        return _product(*parts) if degree(parts[1]) == 0 else None
    if atom == "take" or (atom == "where" and degree(parts[0]) != 0):
        return None
    if atom == "where" or ATOMS[atom].curvature == "affine":
        return _sum(*parts)
    return _product(*parts) if ATOMS[atom].curvature == "multilinear" else None
