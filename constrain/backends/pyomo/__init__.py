"""Linear, quadratic, mixed-integer and smooth nonlinear programs through Pyomo, on the whole sample.

`support` says whether a program can be taken and why, `build` makes the `pyomo.ConcreteModel`, `solve` runs a
solver and returns values and multipliers in the signs of the language. `from_pyomo` is the way in.
"""

from constrain.backends.pyomo.build import Built, build
from constrain.backends.pyomo.events import events
from constrain.backends.pyomo.imports import Imported, from_pyomo, imported
from constrain.backends.pyomo.plugin import register
from constrain.backends.pyomo.solve import RawSolution, Support, discrete, solve, support

__all__ = [
    "Built",
    "Imported",
    "RawSolution",
    "Support",
    "build",
    "discrete",
    "events",
    "from_pyomo",
    "imported",
    "register",
    "solve",
    "support",
]
