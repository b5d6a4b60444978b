"""Linear programs by `scipy.optimize.linprog`: the smallest backend.

A backend is a module (or object) with three functions. This one lets constrain write the program as a
`cvxpy.Problem`, reads the matrices of it and hands the multipliers back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import linprog

from constrain.backends.cvxpy import build
from constrain.runtime.result import Answer, RawResult, Support

__all__ = ["build", "solve", "support"]

ENDINGS = {0: "converged", 1: "limit", 2: "infeasible", 3: "unbounded"}


def support(program: Any, facts: Any) -> Support:
    """Whether a program can be taken, and why."""
    if facts.problem_class != "LP":
        return Support(False, f"linprog takes linear programs: this is {facts.certificate}")
    return Support(True, "a linear program; SciPy solves it")


def solve(built: Any, facts: Any, *, time_limit: float | None = None, presolve: bool = True) -> Answer:
    """Solves; keyword arguments are the options of `problem.solve("linprog", ...)`."""
    problem = built.problem
    data, chain, inverse = problem.get_problem_data("SCS")  # A x + s = b with s = 0, then s >= 0
    equal, a, b = data["dims"].zero, data["A"], data["b"]
    options = {"presolve": presolve} | ({} if time_limit is None else {"time_limit": time_limit})
    found = linprog(
        data["c"], a[equal:], b[equal:], a[:equal], b[:equal], bounds=(None, None), options=options
    )
    ending = ENDINGS.get(found.status, "error")
    if ending != "converged":
        return Answer(RawResult(ending, None, "SciPy linprog", message=found.message))
    # SciPy's marginals are derivatives of the optimum in b, which are the multipliers with their sign changed
    duals = -np.concatenate([found.eqlin.marginals, found.ineqlin.marginals])
    info = {
        "status": "solved",
        "status_val": 1,
        "pobj": found.fun,
        "setup_time": 0,
        "solve_time": 0,
        "iter": 0,
    }
    problem.unpack_results({"x": found.x, "y": duals, "s": b - a @ found.x, "info": info}, chain, inverse)
    multipliers = {
        part.key: np.reshape(built.constraints[part.key].dual_value, built.constraints[part.key].shape)
        for part in built.program.parts
    }
    raw = RawResult(
        ending,
        multipliers,
        "SciPy linprog",
        iterations=int(found.nit),
        bound=float(problem.value),
        message=found.message,
    )
    return Answer(raw, {symbol: variable.value for symbol, variable in built.variables.items()})
