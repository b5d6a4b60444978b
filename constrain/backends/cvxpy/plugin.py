"""`prob.solve(method="constrain")` for CVXPY: problems that are not convex, too, with dual values.

CVXPY's dual values of `lhs <= rhs` and `lhs == rhs` are the multipliers of semantics S10.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from cvxpy.reductions.solution import Solution as CvxpySolution

from constrain.backends.cvxpy.imports import imported
from constrain.backends.cvxpy.package import cp

if TYPE_CHECKING:
    from collections.abc import Callable

    from constrain.backends.cvxpy.imports import Imported

__all__ = ["STATUS", "register"]

STATUS = {
    "optimal": cp.OPTIMAL,
    "stationary": cp.OPTIMAL_INACCURATE,
    "feasible": cp.OPTIMAL_INACCURATE,
    "limit": cp.USER_LIMIT,
    "infeasible": cp.INFEASIBLE,
    "likely_infeasible": cp.INFEASIBLE_INACCURATE,
}
"""Status of CVXPY by that of a solution."""
_ENTRYWISE = ("Inequality", "Equality", "Zero", "NonNeg", "NonPos")
"""Constraints whose dual value has one number per entry of the constraint."""


def register(solve: Callable[..., Any], name: str = "constrain") -> None:
    """Registers the solve method with CVXPY.

    Args:
        solve: `constrain.driver.solve`.
        name: of the method.
    """

    def method(problem: Any, route: Any = "auto", **options: Any) -> float:
        found = imported(problem)
        solution = solve(found.problem, route, **{"progress": False, **options})
        problem.unpack(_unpacked(problem, found, solution))
        return float(problem.value)

    cp.Problem.register_solve(name, method)


def _unpacked(problem: Any, found: Imported, solution: Any) -> Any:
    """The record that CVXPY reads its values, dual values and status from."""
    word = str(solution.status.value)
    status = STATUS.get(word)
    unbounded = word == "diverged" and "no bound" in solution.message
    if status is None and not unbounded:
        raise cp.error.SolverError(f"constrain: {word}: {solution.message}")
    attributes = {"constrain": solution}
    values: dict[int, Any] = {}
    duals: dict[int, Any] = {}
    if unbounded or word in ("infeasible", "likely_infeasible"):
        sign = (1.0 if isinstance(problem.objective, cp.Minimize) else -1.0) * (-1.0 if unbounded else 1.0)
        return CvxpySolution(
            cp.UNBOUNDED if unbounded else status, sign * math.inf, values, duals, attributes
        )
    for key, variable in found.variables.items():
        values[key] = _filled(solution.variables[variable.name], variable.symbol.shape)
    for constraint in problem.constraints:
        result = solution[found.constraints[constraint.id]]
        if result.has_duals and type(constraint).__name__ in _ENTRYWISE:
            duals[constraint.id] = _filled(result.multiplier, constraint.shape)
    return CvxpySolution(status, solution.objective, values, duals, attributes)


def _filled(value: Any, shape: Any) -> Any:
    array: Any = np.asarray(value, dtype=np.float64)
    return np.array(np.broadcast_to(array, tuple(shape)))
