"""Chooses a route for a problem, says why, runs it, and has the result judged.

`Problem.solve`, `.compile`, `.check`, `.explain`, `.evaluate`, `.kkt`, `.derive`, `.diagnose_infeasible`,
`.to_cvxpy`, `.to_pyomo` and `.to_cooper` end here.
"""

from constrain.driver.check import Check, check
from constrain.driver.explain import Explanation, explain
from constrain.driver.exports import compile, derive, evaluate, kkt, to_cooper, to_cvxpy, to_pyomo
from constrain.driver.infeasible import diagnose_infeasible
from constrain.driver.paths import pareto, path
from constrain.driver.run import solve

__all__ = [
    "Check",
    "Explanation",
    "check",
    "compile",
    "derive",
    "diagnose_infeasible",
    "evaluate",
    "explain",
    "kkt",
    "pareto",
    "path",
    "solve",
    "to_cooper",
    "to_cvxpy",
    "to_pyomo",
]
