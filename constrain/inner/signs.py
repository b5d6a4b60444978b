"""Parameters whose sign makes an inner problem convex: weights of norms, of squares, of other convex terms.

The analysis takes the sign of a parameter from its value, where it has one. A layer replaces the value on
every batch, so that what was concluded from the sign holds for rows with this sign only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from constrain.inner.convexity import replaced
from constrain.language import nodes as n
from constrain.lowering.classify import classify
from constrain.lowering.lower import lower

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from constrain.language.problem import Problem

__all__ = ["needed", "relied_on"]


def relied_on(problem: Problem, parameters: Iterable[n.ParameterSymbol]) -> dict[n.ParameterSymbol, float]:
    """Parameters without whose sign (1.0 or -1.0) a convex problem would not be certified."""
    signs = {symbol: sign for symbol in parameters if (sign := _sign(symbol.value))}
    if not signs or _convex(problem, dict.fromkeys(signs)):
        return {}
    return {symbol: sign for symbol, sign in signs.items() if not _convex(problem, {symbol: None})}


def needed(problem: Problem, parameters: Iterable[n.ParameterSymbol]) -> tuple[str, ...]:
    """Names of the parameters without a value that would make the problem convex, were they positive."""
    without = {symbol: np.ones(symbol.shape) for symbol in parameters if symbol.value is None}
    if not without or not _convex(problem, without):
        return ()
    return tuple(s.name for s in without if not _convex(problem, {**without, s: None}))


def _sign(value: Any) -> float:
    """Of all entries; 0.0 without a value and where they have no common sign."""
    if value is None:
        return 0.0
    entries = np.asarray(value, dtype=np.float64)
    return 1.0 if (entries >= 0).all() else -1.0 if (entries <= 0).all() else 0.0


def _convex(problem: Problem, values: Mapping[n.ParameterSymbol, Any]) -> bool:
    """Whether the problem is certified convex when these parameters have other values (None: unknown)."""
    others: dict[n.Node, n.Node] = {
        n.Knob(symbol): n.Knob(n.ParameterSymbol(symbol.name, symbol.shape, value))
        for symbol, value in values.items()
    }
    return classify(lower(replaced(problem, others), use_epigraph=False)).convex
