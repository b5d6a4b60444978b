"""What a method has to show on the known problems.

For the author of a solver or backend:

    from constrain.testing import FULL_DATA, check, known_problems

    for known in known_problems():
        for finding in check(known, MySolver(), expected=FULL_DATA):
            print(finding)

A finding is a sentence; no finding means conformance. The same function takes the built-in methods by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from constrain.errors import RouteError

if TYPE_CHECKING:
    from constrain.solution import Solution
    from constrain.testing.known import KnownProblem, Tolerance

__all__ = ["Finding", "check", "compare", "refusal"]

_INFEASIBLE = ("infeasible", "likely_infeasible")


@dataclass(frozen=True)
class Finding:
    """One way in which a method misses a known problem.

    Attributes:
        problem: name of the known problem.
        quantity: `status`, `objective`, `multiplier of NAME`, `NAME` of a decision, `refusal`.
        expected: what is known.
        found: what the method returned.
        error: largest difference over the largest |expected| (at least 0.01), NaN where there is no number.
        allowed: largest error that conforms.
    """

    problem: str
    quantity: str
    expected: Any
    found: Any
    error: float = math.nan
    allowed: float = math.nan

    def __str__(self) -> str:
        size = "" if math.isnan(self.error) else f" (error {self.error:.2g}, allowed {self.allowed:.2g})"
        return f"{self.problem}: {self.quantity} is {self.found}, expected {self.expected}{size}"


def _error(found: Any, expected: Any) -> float:
    """Largest |found - expected| over the largest |expected|; infinite when the shapes differ.

    The known numbers have about seven digits after the point, so that the divisor is at least 0.01.
    """
    a, b = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if a.shape != b.shape:
        return math.inf
    return float(np.max(np.abs(a - b), initial=0.0)) / max(float(np.max(np.abs(b), initial=0.0)), 1e-2)


def _multiplier(solution: Solution, name: str) -> Any:
    result = solution[name]
    return result.multiplier if result.has_duals else None


def compare(known: KnownProblem, solution: Solution, allowed: Tolerance) -> list[Finding]:
    """Compares a solution with what is known: status, value, multipliers and decisions."""
    status = solution.status.value
    if known.outcome == "infeasible":
        if status in _INFEASIBLE:
            return []
        return [Finding(known.name, "status", "infeasible or likely_infeasible", status)]
    findings: list[Finding] = []
    if not solution.status.solved:
        findings.append(Finding(known.name, "status", "a solved one", status))
    if known.outcome == "unqualified" and status != "feasible":
        findings.append(Finding(known.name, "status", "feasible, as there are no multipliers", status))
    rows = [("objective", known.value, solution.objective, allowed.value)]
    rows += [
        (f"multiplier of {name}", value, _multiplier(solution, name), allowed.multiplier)
        for name, value in known.multipliers.items()
    ]
    rows += [
        (name, value, solution.variables.get(name), allowed.primal) for name, value in known.primal.items()
    ]
    for quantity, expected, found, limit in rows:
        error = _error(found, expected)
        if not error <= limit:
            findings.append(Finding(known.name, quantity, expected, found, error, limit))
    return findings


def check(
    known: KnownProblem, method: Any, expected: Tolerance | None = None, **options: Any
) -> list[Finding]:
    """Solves a known problem with a method and compares.

    Args:
        known: the problem.
        method: a method name or a solver object, as in `solve(method=...)`.
        expected: the tolerance to meet; that of the table when left out.
        options: of the solve.

    Raises:
        KeyError: when the table has no tolerance for this method and none is given.
    """
    allowed = known.routes[method] if expected is None else expected
    return compare(known, known.build().solve(method, progress=False, **options), allowed)


def refusal(known: KnownProblem, method: str, *, run: bool = True) -> list[Finding]:
    """Checks that a method refuses a problem with the words of the table.

    Args:
        known: the problem.
        method: a method name.
        run: ask `solve()` as well, not `explain()` alone.
    """
    words = known.refusals[method]
    problem = known.build()
    route = next(route for route in problem.explain().routes if route.method == method)
    findings: list[Finding] = []
    if route.open or words not in route.reason:
        state = f"{'open' if route.open else 'closed'}: {route.reason}"
        findings.append(Finding(known.name, f"refusal of {method} in explain()", words, state))
    if not run:
        return findings
    try:
        problem.solve(method, progress=False)
    except RouteError as error:
        if words not in str(error):
            findings.append(Finding(known.name, f"refusal of {method}", words, str(error)))
    else:
        findings.append(Finding(known.name, f"refusal of {method}", words, "a solution"))
    return findings
