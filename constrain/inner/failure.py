"""Why a quadratic program has no solution, and how its parameters are shown in messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy import optimize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from constrain.inner.quadratic import Quadratic
    from constrain.language import nodes as n

__all__ = ["reason_of", "shown_parameters"]


def reason_of(qp: Quadratic) -> str:
    """`infeasible` or `unbounded` as two linear programs prove it, "" when the program has a solution.

    Args:
        qp: one quadratic program.
    """
    P, q, G, h, A, b = (t[0].detach().cpu().numpy() for t in qp.tensors)
    linprog = cast("Any", optimize).linprog  # its stubs are partial
    free = [(None, None)] * len(q)
    if linprog(np.zeros_like(q), A_ub=G, b_ub=h, A_eq=A, b_eq=b, bounds=free).status == 2:
        return "infeasible: no point satisfies its constraints"
    # a direction of descent along which the objective has no curvature and every constraint holds
    rows, box = np.vstack([P, A]), [(-1, 1)] * len(q)
    found = linprog(q, A_ub=G, b_ub=np.zeros_like(h), A_eq=rows, b_eq=np.zeros(len(rows)), bounds=box)
    if found.status == 0 and found.fun < -1e-9 * (1 + np.abs(q).max(initial=0.0)):
        return "unbounded: the objective decreases without end"
    return ""


def shown_parameters(
    symbols: Sequence[n.ParameterSymbol], tensors: Sequence[Tensor], batched: Sequence[bool], row: int
) -> str:
    """`: target = [3.1, 1.3], cap = 3`, shortened; "" without parameters."""
    parts: list[str] = []
    for symbol, t, many in zip(symbols, tensors, batched, strict=True):
        values = cast("list[float]", (t[row] if many else t).detach().cpu().reshape(-1).tolist())
        numbers = ", ".join(f"{v:.4g}" for v in values[:6]) + (", …" if len(values) > 6 else "")
        parts.append(f"{symbol.name} = {numbers if not symbol.shape else f'[{numbers}]'}")
    return f": {'; '.join(parts[:4])}" if parts else ""
