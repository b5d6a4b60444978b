"""Registers `method="constrain"` with CVXPY.

    import constrain.integrations.cvxpy
    prob.solve(method="constrain")                     # the route is chosen as in problem.solve()
    prob.solve(method="constrain", route="augmented")  # options are those of problem.solve()

    prob.solve(solver=constrain.integrations.cvxpy.conic("newton"))  # as a cone program

The problem need not be convex. Dual values are set for every `<=` and `==`, and for second-order, exponential
and semidefinite cones; the solution with its report is `prob.solution.attr["constrain"]`. Status: `optimal`
where that is proven, `optimal_inaccurate` for points that are stationary or feasible, `infeasible_inaccurate`
without a proof.
"""

from typing import Any

from constrain._lazy import backend
from constrain.driver import solve

__all__ = ["conic"]


def conic(method: Any = "auto", **options: Any) -> Any:
    """A solver object for `prob.solve(solver=conic("newton"))`: what CVXPY writes as a cone program.

    Cones are linear, second-order, semidefinite and exponential.

    Args:
        method: as in `problem.solve`: a name, one of a plug-in, or a solver object.
        options: of `problem.solve`.
    """
    return backend("cvxpy").Conic(solve, method, **options)


backend("cvxpy").register(solve)
