"""Certified-convex problems solved exactly through cvxpy, on the whole sample.

`support` says whether a program can be taken and why, `build` makes the `cvxpy.Problem`, `solve` runs a
solver and returns values and multipliers in the signs of the language.
"""

from constrain.backends.cvxpy.atoms import LOWERINGS
from constrain.backends.cvxpy.build import Built, build
from constrain.backends.cvxpy.conic import Conic
from constrain.backends.cvxpy.elastic import Elastic
from constrain.backends.cvxpy.imports import Imported, from_cvxpy, imported
from constrain.backends.cvxpy.plugin import register
from constrain.backends.cvxpy.solve import RawSolution, Support, solve, support

__all__ = [
    "LOWERINGS",
    "Built",
    "Conic",
    "Elastic",
    "Imported",
    "RawSolution",
    "Support",
    "build",
    "from_cvxpy",
    "imported",
    "register",
    "solve",
    "support",
]
