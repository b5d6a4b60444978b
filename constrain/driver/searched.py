"""Exact rates on few rows: a search with a limit of time, and training from its best point after that.

An event of decisions is a step, which training replaces by a surrogate. On few rows that is poor, and a
binary variable per row is exact: see `constrain.backends.pyomo`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from constrain._lazy import backend
from constrain.solution import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from constrain.lowering.program import Program
    from constrain.solution import Solution

__all__ = ["FEW_EVENTS", "SECONDS", "few_events", "search_seconds", "the_better"]

FEW_EVENTS = 200
"""Most events of rows for which `method="auto"` searches: 100 rows took 1 to 3 s, of 200 some ran into the
limit with a better point than that of training, of 400 with a worse one."""
SECONDS = 30.0
"""Most seconds of such a search."""
_OWN = ("solver", "options", "verbose")
"""Options that leave the choice open; any other asks for training."""


def few_events(program: Program, options: Mapping[str, Any]) -> int:
    """The number of events of rows, where they are few and no option asks for training; else 0."""
    asked = [value for name, value in options.items() if name not in _OWN]
    if not program.has_rates or any(value is not None and value is not False for value in asked):
        return 0
    count: int = backend("pyomo").events(program)
    return count if count <= FEW_EVENTS else 0


def search_seconds(time_limit: float | None) -> float:
    """Seconds of the search; of a limit of time it leaves half to training."""
    return SECONDS if time_limit is None else min(SECONDS, time_limit / 2)


def the_better(searched: Solution, train: Callable[[], Solution], tolerance: float) -> Solution:
    """The searched point or the trained one, whichever is feasible and has the better objective.

    The decisions and the user's variables end up at the point that is returned. A search that found that no
    point has room at its events stands, unless training finds a point without room.

    Args:
        searched: the best point of a search that ran out of time, or found none.
        train: continues from there.
        tolerance: scaled violation that counts as none.
    """
    trained = train()
    empty = searched.status in (Status.INFEASIBLE, Status.LIKELY_INFEASIBLE)
    holds = trained.record.feasibility_scaled <= trained.record.tolerance
    if holds if empty else _rank(trained, tolerance) < _rank(searched, tolerance):
        words = f"before it, a search over integers: {searched.message}"
        return replace(trained, message=f"{trained.message}; {words}".lstrip("; "))
    attached: Any = searched.live
    attached.decisions.restore(attached.point)
    attached.decisions.write_back()
    words = "training from there found no better point"
    return replace(searched, message=f"{searched.message}; {words}".lstrip("; "))


def _rank(solution: Solution, tolerance: float) -> tuple[float, float]:
    """Smaller is better: the violation beyond the tolerance, then the objective."""
    violation = solution.record.feasibility_scaled
    sign = -1.0 if solution.sense == "maximize" else 1.0
    own = sign * solution.objective
    if not math.isfinite(violation) or not math.isfinite(own):
        return math.inf, math.inf
    return max(violation - tolerance, 0.0), own
