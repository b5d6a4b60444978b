"""`prob.solve(method="constrain")` for CVXPY: problems that are not convex, too, with dual values.

CVXPY's dual values of `lhs <= rhs` and `lhs == rhs` are the multipliers of semantics S10; those of cones
follow from them (`cones.py`), and of a matrix inequality it is the dual matrix.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from cvxpy.reductions.solution import Solution as CvxpySolution

from constrain.backends.cvxpy.cones import TIP, exponential, second_order
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
        if problem.status in cp.settings.SOLUTION_PRESENT:
            _unpack_cones(problem, found, solution)
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


def _unpack_cones(problem: Any, found: Imported, solution: Any) -> None:
    """Dual values of cones; CVXPY's variables have their values by now."""
    for constraint in problem.constraints:
        result = solution[found.constraints[constraint.id]]
        kind = type(constraint).__name__
        if not result.has_duals or kind in _ENTRYWISE:
            continue
        values = [np.asarray(a.value, dtype=np.float64) for a in constraint.args]
        dual: Any = None
        if kind == "SOC":
            x = values[1] if values[1].ndim == 2 and constraint.axis == 1 else values[1].T
            dual = second_order(result.multiplier, x.reshape(values[0].size, -1))
        elif kind == "ExpCone":
            m = _filled(result.multiplier, values[0].shape)
            dual = exponential(*(np.reshape(v, -1, order="F") for v in (m, values[1], values[2])))
        elif kind == "PSD":
            zero = np.zeros(constraint.shape) if abs(float(result.multiplier)) < TIP else None
            dual = zero if result.matrix is None else result.matrix
        if dual is not None:
            constraint.save_dual_value(dual)


def _filled(value: Any, shape: Any) -> Any:
    array: Any = np.asarray(value, dtype=np.float64)
    return np.array(np.broadcast_to(array, tuple(shape)))
