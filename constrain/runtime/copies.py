"""What entries of constraints depend on, whatever the order in which these were written, and how often.

Scales of steps are measured with random combinations of entries. Where these are drawn by what an entry
depends on, and not by its place, permuted constraints make the same run. A constraint that was written twice
has twice the multipliers for one residual: with half the step each, their sum moves as one multiplier would.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from constrain.language import nodes as n
from constrain.lowering.families import Numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from constrain.lowering.families import Stack

__all__ = ["Selected", "contents", "copies", "same_averages"]

DIGITS = 10
"""Significant digits of a bound over its factor that copies share: units leave rounding there."""


class Selected(NamedTuple):
    """Terms that are one entry of one average times a number, plus a constant, in the order of the terms.

    Attributes:
        terms: their places among all terms.
        stacks: positions of the stacks that they belong to.
        moments: positions of the averages.
        columns: of the entries among all averages.
        values: what they are multiplied with.
        constants: what is added.
    """

    terms: NDArray[np.int64]
    stacks: NDArray[np.int64]
    moments: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: NDArray[np.float64]
    constants: NDArray[np.float64]


def contents(stack: Stack) -> NDArray[np.int64]:
    """(parts,) which of the distinct averages and numbers of a family each member has.

    They are counted in the order of the levels, then of the numbers, not of the members.
    """
    nodes = n.postorder(stack.residual)
    levels = [x.option("place") for x in nodes if isinstance(x, n.Apply) and x.atom == "pick_levels"]
    numbers = [x.symbol for x in nodes if isinstance(x, n.Array) and isinstance(x.symbol, Numbers)]
    vectors = [symbol for symbol in levels if isinstance(symbol, n.ArraySymbol)] + numbers
    if not vectors:
        return np.zeros(len(stack.places), dtype=np.int64)
    rows = np.stack([np.asarray(symbol.value, dtype=np.float64) for symbol in vectors], axis=1)
    _, labels = np.unique(rows, axis=0, return_inverse=True)
    return labels.reshape(-1)  # a column in numpy 2.0


def copies(stacks: Sequence[Stack]) -> list[NDArray[np.float64]]:
    """Per stack (parts,) how many parts there are with the residual of each, itself included."""
    counts = Counter((s.part.kind, s.part.rows, s.residual) for s in stacks if s.names is None)
    found: list[NDArray[np.float64]] = []
    for stack in stacks:
        if stack.names is None:
            known = counts[stack.part.kind, stack.part.rows, stack.residual]
            found.append(np.full(1, float(known)))
        else:
            labels = contents(stack)
            found.append(np.bincount(labels)[labels].astype(np.float64))
    return found


def same_averages(one: Selected, equal: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(terms,) how many of some terms bound the average of each at the same value, in any units.

    Args:
        one: terms that are one average times a number, plus a constant.
        equal: (terms,) whether each is an equality.
    """
    sizes = np.abs(one.values)
    bounds = np.array([float(f"{x:.{DIGITS}g}") for x in one.constants / np.where(sizes > 0, sizes, 1.0)])
    rows = np.stack([one.columns, np.sign(one.values), bounds, equal], axis=1)
    _, labels = np.unique(rows, axis=0, return_inverse=True)
    labels = labels.reshape(-1)  # a column in numpy 2.0
    return np.bincount(labels)[labels].astype(np.float64) if len(labels) else np.zeros(0)
