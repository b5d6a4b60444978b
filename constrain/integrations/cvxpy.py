"""Registers `method="constrain"` with CVXPY.

    import constrain.integrations.cvxpy
    prob.solve(method="constrain")                     # the route is chosen as in problem.solve()
    prob.solve(method="constrain", route="augmented")  # options are those of problem.solve()

The problem need not be convex. Dual values are set for every `<=` and `==`; the solution with its report is
`prob.solution.attr["constrain"]`. Status: `optimal` where that is proven, `optimal_inaccurate` for points
that are stationary or feasible, `infeasible_inaccurate` without a proof.
"""

from constrain._lazy import backend
from constrain.driver import solve

__all__: list[str] = []

backend("cvxpy").register(solve)
