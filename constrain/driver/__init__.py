"""Chooses a route for a problem, says why, runs it, and has the result judged.

`Problem.solve`, `.compile`, `.explain`, `.kkt`, `.to_cvxpy` and `.to_cooper` end here.
"""

from constrain.driver.explain import Explanation, explain
from constrain.driver.exports import compile, kkt, to_cooper, to_cvxpy
from constrain.driver.run import solve

__all__ = ["Explanation", "compile", "explain", "kkt", "solve", "to_cooper", "to_cvxpy"]
