"""Which of very many constraints a report lists, and what it says about the others."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from constrain.solution import Estimate, Solution
    from constrain.solution.records import Number

__all__ = ["LISTED", "bounds_of", "others_line", "telling", "telling_estimates"]

LISTED = 30
"""Constraints that a report lists; of more, those that tell most."""

OPEN = ("violated", "undecided", "not judged", "relaxed")
"""Verdicts other than that a constraint holds, the worst first."""


def telling(s: Solution) -> list[str]:
    """The constraints that are listed, in the user's order: of very many, those that tell most.

    Violations come first, then verdicts that are open, large multipliers, and little room.
    """

    def rank(name: str) -> tuple[float, int, float, float]:
        c = s[name]
        broken = c.max_violation if c.max_violation > s.record.tolerance else 0.0
        word = OPEN.index(c.verdict) if c.verdict in OPEN else len(OPEN)
        price = float(np.max(np.abs(c.multiplier), initial=0.0)) if c.has_duals else 0.0
        return -broken, word, -price, float(np.min(c.slack, initial=math.inf))

    names = list(s.names)
    if len(names) <= LISTED:
        return names
    kept = set(sorted(names, key=rank)[:LISTED])
    return [name for name in names if name in kept]


def others_line(s: Solution) -> str:
    """What is said about the constraints that are not listed; empty where all are."""
    kept = set(telling(s))
    left = Counter(s[name].verdict for name in s.names if name not in kept)
    if not left:
        return ""
    words = ", ".join(
        f"{count:,} {'hold' if word == 'holds' else word}" for word, count in left.most_common()
    )
    return f"{left.total():,} more constraints: {words}; solution.to_frame() has all"


def telling_estimates(estimates: Mapping[str, Estimate]) -> list[str]:
    """The same for an evaluation: the worst violations, then the least distance from the bound."""
    if len(estimates) <= LISTED:
        return list(estimates)

    def rank(name: str) -> tuple[float, bool, float]:
        e = estimates[name]
        distance = np.min([np.min(np.abs(np.asarray(e.value) - b), initial=np.inf) for b in bounds_of(e)])
        return -float(np.max(e.violation, initial=0.0)), e.verdict == "holds", float(distance)

    kept = set(sorted(estimates, key=rank)[:LISTED])
    return [name for name in estimates if name in kept]


def bounds_of(estimate: Estimate) -> tuple[Number, ...]:
    """One bound, or both of `between`."""
    return estimate.bound if isinstance(estimate.bound, tuple) else (estimate.bound,)
