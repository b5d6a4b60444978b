"""Registers the solver `constrain` with Pyomo, in both of its interfaces.

    import constrain.integrations.pyomo
    model.dual = pyo.Suffix(direction=pyo.Suffix.IMPORT)
    pyo.SolverFactory("constrain").solve(model)

Options of `problem.solve` are `solver_options`: `{"route": "augmented", "tolerance": 1e-8}`.
"""

from constrain._lazy import backend
from constrain.driver import solve

__all__: list[str] = []

backend("pyomo").register(solve)
