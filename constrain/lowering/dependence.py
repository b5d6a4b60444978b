"""Which nodes depend on decisions, and which on parameters."""

from __future__ import annotations

from constrain.language import nodes as n

__all__ = ["depends_on_decisions"]


def depends_on_decisions(root: n.Node) -> bool:
    """Whether a `Variable` or a trainable `Model` occurs under `root`."""
    return any(
        isinstance(x, n.Decision) or (isinstance(x, (n.Call, n.Weights)) and not x.model.frozen)
        for x in n.postorder(root)
    )
