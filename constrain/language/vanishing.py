"""The trap of constraints whose gradient vanishes wherever they hold: `E(r**2) == 0`.

A square is zero only where its base is, and there its gradient is zero too: the constraint has no normal
direction, so no finite multiplier balances the gradient of the objective (the linear independence
qualification fails at every feasible point). Known when the constraint is written.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from constrain._lazy import language_printing
from constrain.errors import ModelingWarning
from constrain.language import nodes as n
from constrain.language.location import here

if TYPE_CHECKING:
    from constrain.language.location import Location

__all__ = ["warn_vanishing"]

_SQUARES = frozenset({"square", "sum_squares", "mse_loss"})
_KEEPING = frozenset(
    {"sum", "mean", "max", "sum_levels", "mean_levels", "max_levels", "index", "reshape", "stack"}
)
"""Atoms whose value vanishes to second order where all arguments do."""


def warn_vanishing(name: str, relation: n.Node) -> None:
    """Warns (W206) of a constraint `square == 0` or `square <= 0` that depends on decisions."""
    inner = relation.relation if isinstance(relation, n.ForAll) else relation
    if not isinstance(inner, n.Comparison):
        return
    lhs, op, rhs = inner.lhs, inner.op, inner.rhs
    if _zero(lhs):
        lhs, rhs, op = rhs, lhs, "<=" if op == ">=" else "==" if op == "==" else ">="
    if op not in ("<=", "==") or not _zero(rhs) or not _decides(lhs) or not _vanishing(lhs):
        return
    shown = language_printing().text(relation, limit=80)
    pointwise = isinstance(relation, n.ForAll)
    fix = "forall(x, r == 0), the weak form cn.weak(r, tests=...) == 0, or a tolerance: E(r**2) <= 1e-6"
    if pointwise:
        fix = "r == 0 itself, without the square, or a tolerance: r**2 <= 1e-6"
    place = relation.loc or here()
    _warn(
        ModelingWarning(
            "W206",
            f"the gradient of the constraint {name!r} ( {shown} ) is zero wherever it holds: "
            "no finite multiplier exists",
            at=place,
            fix=fix,
        ),
        place,
    )


def _warn(warning: ModelingWarning, place: Location | None) -> None:
    if place is None:
        warnings.warn(warning, stacklevel=2)
    else:
        warnings.warn_explicit(warning, ModelingWarning, place.filename, place.line)


def _zero(node: n.Node) -> bool:
    return isinstance(node, n.Constant) and node.value == 0


def _decides(root: n.Node) -> bool:
    return any(
        isinstance(x, n.Decision) or (isinstance(x, (n.Call, n.Weights)) and not x.model.frozen)
        for x in n.postorder(root)
    )


def _positive(node: n.Node) -> bool:
    return isinstance(node, n.Constant) and node.value > 0


def _vanishing(root: n.Node) -> bool:
    """Whether an expression is nonnegative and its gradient vanishes where it is zero."""

    def step(node: n.Node, parts: tuple[bool, ...]) -> bool:
        match node:
            case n.Mean():
                return parts[0]
            case n.Apply(atom="pow", args=(_, n.Constant(value=power))):
                return power >= 2 and power % 2 == 0
            case n.Apply(atom="mul", args=(a, b)):
                return a == b or (_positive(a) and parts[1]) or (_positive(b) and parts[0])
            case n.Apply(atom="div", args=(_, b)):
                return parts[0] and _positive(b)
            case n.Apply(atom=atom) if atom in _SQUARES:
                return True
            case n.Apply(atom=atom) if atom == "add" or atom in _KEEPING:
                return bool(parts) and all(parts)
            case _:
                return False

    return n.fold(root, step)
