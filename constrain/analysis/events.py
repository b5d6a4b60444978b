"""Events that hold, or fail, whatever the decisions are: `sigmoid(score) > 0` holds for every row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from constrain.analysis.bounds import Bounds
from constrain.analysis.models import last_layer
from constrain.language import nodes as n

if TYPE_CHECKING:
    from constrain.analysis.fact import Fact

__all__ = ["event_bounds"]

EITHER = Bounds(0.0, 1.0)
ROUNDING = 1e-9
"""Relative distance of a side from the other that is taken for rounding."""
_OPEN = {
    "sigmoid": (True, True),
    "tanh": (True, True),
    "exp": (True, False),
    "softplus": (True, False),
    "softmax": (True, False),
}
"""Functions that do not take the least, or the largest, number of their range."""
_OPEN_LAYERS = {nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.Softplus: "softplus", nn.Softmax: "softmax"}
_MOVING = ("index", "reshape", "transpose")


def event_bounds(node: n.Node, parts: tuple[Fact, ...]) -> Bounds:
    """The range of the indicator of an event: (1, 1) where it always holds, (0, 0) where it never does.

    Args:
        node: a comparison, or events that are joined.
        parts: facts of its sides, or of the events.
    """
    if all(part.constant for part in parts):
        return EITHER
    match node:
        case n.Comparison(op=op, lhs=lhs, rhs=rhs):
            left, right = parts
            if op in (">", ">="):
                return _above(op, lhs, rhs, left.bounds, right.bounds)
            if op in ("<", "<="):
                return _above(op.replace("<", ">"), rhs, lhs, right.bounds, left.bounds)
            return EITHER
        case n.Logic(op="not"):
            (inner,) = (part.bounds for part in parts)
            return Bounds(1 - inner.high, 1 - inner.low)
        case n.Logic(op=op):
            chosen = min if op == "and" else max
            return Bounds(chosen(p.bounds.low for p in parts), chosen(p.bounds.high for p in parts))
        case _:
            return EITHER


def _above(op: str, a: n.Node, b: n.Node, left: Bounds, right: Bounds) -> Bounds:
    """The range of the indicator of a > b, or a >= b."""
    if left.low >= right.high:
        apart = left.low - right.high > ROUNDING * (1 + min(abs(left.low), abs(right.high)))
        if op == ">=" or apart or _open(a)[0] or _open(b)[1]:
            return Bounds(1.0, 1.0)
    if left.high <= right.low:
        apart = right.low - left.high > ROUNDING * (1 + min(abs(left.high), abs(right.low)))
        if op == ">" or apart or _open(a)[1] or _open(b)[0]:
            return Bounds(0.0, 0.0)
    return EITHER


def _open(node: n.Node) -> tuple[bool, bool]:
    """Whether an expression never takes the least, and the largest, number of its range."""
    while isinstance(node, n.Apply) and node.atom in _MOVING:
        node = node.args[0]
    if isinstance(node, n.Apply):
        return _OPEN.get(node.atom, (False, False))
    if isinstance(node, n.Call):
        layer = last_layer(node.model.module)
        return _OPEN.get(_OPEN_LAYERS.get(type(layer), ""), (False, False))  # type: ignore[arg-type]
    return False, False
