"""A solver object for CVXPY: `prob.solve(solver=conic("newton"))` for linear and quadratic programs.

CVXPY writes the problem as matrices, with its own reformulations; a method of this package, a solver object
or a plug-in solves them. `prob.solve(method="constrain")` takes the problem as it was written instead, cones
and problems that are not convex included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cvxpy.settings as s
import numpy as np
from cvxpy.constraints.nonpos import NonNeg
from cvxpy.constraints.zero import Zero
from cvxpy.reductions.solvers.conic_solvers.conic_solver import ConicSolver

from constrain.backends.cvxpy.package import cp
from constrain.backends.cvxpy.plugin import STATUS
from constrain.language.functions import quad_form
from constrain.language.problem import minimize
from constrain.language.symbols import Variable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["ENTRIES", "Conic"]

ENTRIES = 4_000_000
"""Most entries of the matrices, which are dense here."""

_Base: Any = ConicSolver


class Conic(_Base):
    """Solves minimize ½ x·Px + c·x subject to A x + s = b, s zero in the first rows and nonnegative below.

    Args:
        solve: `constrain.driver.solve`.
        method: as in `problem.solve`.
        options: as in `problem.solve`; those of CVXPY's `solve` come on top.
    """

    MIP_CAPABLE = False
    SUPPORTED_CONSTRAINTS = (Zero, NonNeg)

    def __init__(self, solve: Callable[..., Any], method: Any = "auto", **options: Any) -> None:
        super().__init__()
        self._solve = solve
        self._method = method
        self._options = options

    def name(self) -> str:
        """The name in `problem.solver_stats`."""
        return "CONSTRAIN"

    def import_solver(self) -> None:
        """Nothing to import: this package is running."""

    def supports_quad_obj(self) -> bool:
        """Quadratic objectives stay quadratic."""
        return True

    def cite(self, data: Any) -> str:  # noqa: ARG002  # of CVXPY
        """No paper of its own."""
        return ""

    def solve_via_data(
        self,
        data: Mapping[str, Any],
        warm_start: bool,  # noqa: ARG002
        verbose: bool,
        solver_opts: Mapping[str, Any],
        solver_cache: Any = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Values and multipliers, for `ConicSolver.invert` to hand on.

        Raises:
            cvxpy.error.SolverError: for matrices that are too large, and endings without an answer.
        """
        a, b, c = data[s.A], np.asarray(data[s.B]), np.asarray(data[s.C])
        size = len(c) * (len(b) + (len(c) if s.P in data else 0))
        if size > ENTRIES:
            raise cp.error.SolverError(f"constrain: {size:,} dense entries, more than {ENTRIES:,}")
        equal = int(data[self.DIMS].zero)
        x = Variable(len(c), "x")
        cost = c @ x
        if s.P in data and data[s.P].nnz:
            cost = cost + 0.5 * quad_form(x, data[s.P].toarray())
        relations: dict[str, Any] = {}
        if equal:
            relations["equal"] = a[:equal].toarray() @ x == b[:equal]
        if equal < len(b):
            relations["upper"] = a[equal:].toarray() @ x <= b[equal:]
        options = {"progress": verbose, **self._options, **solver_opts}
        solution = self._solve(minimize(cost).subject_to(**relations), self._method, **options)
        word = str(solution.status.value)
        status = cp.UNBOUNDED if word == "diverged" and "no bound" in solution.message else STATUS.get(word)
        if status is None:
            raise cp.error.SolverError(f"constrain: {word}: {solution.message}")
        found = {key: np.zeros(0) for key in ("equal", "upper")}
        for key in relations:
            if solution[key].has_duals:
                found[key] = np.asarray(solution[key].multiplier, dtype=np.float64).reshape(-1)
        return {
            "status": status,
            "value": solution.objective,
            "primal": np.asarray(solution.variables.get("x", np.zeros(len(c)))).reshape(-1),
            "eq_dual": found["equal"],
            "ineq_dual": found["upper"],
        }
