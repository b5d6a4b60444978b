"""Which nodes depend on decisions, and which on parameters."""

from __future__ import annotations

from constrain.language import nodes as n

__all__ = ["depends_on_decisions"]


def depends_on_decisions(root: n.Node, *, outside_averages: bool = False) -> bool:
    """Whether a `Variable` or a trainable `Model` occurs under `root`.

    Args:
        root: of the expression.
        outside_averages: look only at what is not inside of a moment.
    """
    stack, seen = [root], set[int]()
    while stack:
        node = stack.pop()
        if id(node) in seen or (outside_averages and isinstance(node, n.Moment)):
            continue
        seen.add(id(node))
        if isinstance(node, n.Decision) or (isinstance(node, (n.Call, n.Weights)) and not node.model.frozen):
            return True
        stack.extend(n.children(node))
    return False
