"""Chooses a route for a problem, says why, runs it, and has the result judged.

`Problem.solve`, `.compile`, `.check`, `.explain`, `.evaluate`, `.kkt`, `.to_cvxpy`, `.to_pyomo` and
`.to_cooper` end here.
"""

from constrain.driver.check import Check, check
from constrain.driver.explain import Explanation, explain
from constrain.driver.exports import compile, evaluate, kkt, to_cooper, to_cvxpy, to_pyomo
from constrain.driver.run import solve

__all__ = [
    "Check",
    "Explanation",
    "check",
    "compile",
    "evaluate",
    "explain",
    "kkt",
    "solve",
    "to_cooper",
    "to_cvxpy",
    "to_pyomo",
]
