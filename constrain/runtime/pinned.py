"""Entries of variables that are 0 wherever values are finite: rel_entr(p, q) is infinite for p > 0 = q."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from constrain.language import nodes as n
from constrain.language.types import type_of
from constrain.lowering.dependence import depends_on_decisions

if TYPE_CHECKING:
    from constrain.runtime.evaluator import Evaluator

__all__ = ["pin_entries"]


def pin_entries(evaluator: Evaluator) -> None:
    """Fixes the entries p_i of variables in `rel_entr(p, q)` and `kl_div(p, q)` with fixed q_i = 0 at 0.

    A variable has no values near 0 there, so no step could find it, and its bound has no finite price.
    """
    for node in evaluator.program.nodes:
        if not isinstance(node, n.Apply) or node.atom not in ("rel_entr", "kl_div"):
            continue
        p, q = node.args
        fixed = type_of(q).rows is None and not depends_on_decisions(q)
        if not isinstance(p, n.Decision) or not fixed or any(isinstance(x, n.Moment) for x in n.postorder(q)):
            continue
        zero = evaluator.free(q).cpu().numpy() == 0
        shape = p.symbol.shape
        if zero.any() and np.broadcast_shapes(zero.shape, shape) == shape:
            evaluator.decisions.pin(p.symbol, np.broadcast_to(zero, shape))
