"""A solver object for CVXPY: `prob.solve(solver=conic("newton"))` for what it writes as a cone program.

CVXPY writes the problem as matrices, with its own reformulations; a method of this package, a solver object
or a plug-in solves them. `prob.solve(method="constrain")` takes the problem as it was written instead, and
problems that are not convex, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cvxpy.settings as s
import numpy as np
from cvxpy.constraints.exponential import ExpCone
from cvxpy.constraints.nonpos import NonNeg
from cvxpy.constraints.psd import PSD
from cvxpy.constraints.second_order import SOC
from cvxpy.constraints.zero import Zero
from cvxpy.reductions.solvers.conic_solvers.conic_solver import ConicSolver

from constrain.backends.cvxpy.cones import exponential, second_order
from constrain.backends.cvxpy.package import cp
from constrain.backends.cvxpy.plugin import STATUS
from constrain.language.functions import lambda_min, norm, quad_form, rel_entr
from constrain.language.problem import minimize
from constrain.language.symbols import Variable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

__all__ = ["ENTRIES", "Conic"]

NEAR_TIP = 1e-7
"""A vector of a second-order cone this short has no direction that could be read off."""
ENTRIES = 4_000_000
"""Most entries of the matrices, which are dense here."""

_Base: Any = ConicSolver


class Conic(_Base):
    """Solves minimize ½ x·Px + c·x subject to A x + s = b, where s is in a product of cones.

    The rows of s are zero first, then nonnegative, then in second-order, semidefinite (all entries of a
    matrix) and exponential cones.

    Args:
        solve: `constrain.driver.solve`.
        method: as in `problem.solve`.
        options: as in `problem.solve`; those of CVXPY's `solve` come on top.
    """

    MIP_CAPABLE = False
    SUPPORTED_CONSTRAINTS = (Zero, NonNeg, SOC, PSD, ExpCone)
    EXP_CONE_ORDER = (0, 1, 2)

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
        x = Variable(len(c), "x")
        cost = c @ x
        if s.P in data and data[s.P].nnz:
            cost = cost + 0.5 * quad_form(x, data[s.P].toarray())
        blocks = _blocks(data[self.DIMS])
        relations: dict[str, Any] = {}
        for block in blocks:
            rest = _rest(a, b, x, block.rows)
            relations[block.name] = block.relation(rest)
            if block.kind == "exp":  # where the logarithm is defined
                relations["exp_domain"] = rest.reshape(-1, 3)[:, 1:] >= 0.0
        options = {"progress": verbose, **self._options, **solver_opts}
        solution = self._solve(minimize(cost).subject_to(**relations), self._method, **options)
        word = str(solution.status.value)
        status = cp.UNBOUNDED if word == "diverged" and "no bound" in solution.message else STATUS.get(word)
        if status is None:
            raise cp.error.SolverError(f"constrain: {word}: {solution.message}")
        primal = np.asarray(solution.variables.get("x", np.zeros(len(c)))).reshape(-1)
        duals, tips = np.zeros(len(b)), [np.zeros(0, np.int64)]
        for block in blocks:
            if solution[block.name].has_duals:
                rest = b[block.rows] - a[block.rows] @ primal
                duals[block.rows] = block.dual(solution[block.name], rest)
                tips.append(block.tips(rest))
        slope = c + (data[s.P] @ primal if s.P in data else 0.0)
        _balance(duals, np.concatenate(tips), a, slope)
        equal = int(data[self.DIMS].zero)
        return {
            "status": status,
            "value": solution.objective,
            "primal": primal,
            "eq_dual": duals[:equal],
            "ineq_dual": duals[equal:],
        }


def _balance(duals: NDArray[Any], rows: NDArray[np.int64], a: Any, slope: NDArray[Any]) -> None:
    """Fills in the dual vectors of cones at their tip, which their multiplier bounds and does not determine.

    They are those of least norm with which the slopes of the Lagrangian, slope + A' y, balance best.
    """
    if len(rows):
        left = slope + a.T @ duals
        duals[rows] = np.linalg.lstsq(a[rows].toarray().T, -left, rcond=None)[0]


def _rest(a: Any, b: NDArray[Any], x: Any, rows: NDArray[np.int64]) -> Any:
    """These rows of b - A x."""
    return b[rows] - a[rows].toarray() @ x


@dataclass(frozen=True)
class _Block:
    """Rows of s in cones of one kind and size.

    Attributes:
        name: of the constraint.
        kind: `zero`, `nonneg`, `soc`, `psd` or `exp`.
        rows: positions in s.
        size: rows of one cone.
    """

    name: str
    kind: str
    rows: NDArray[np.int64]
    size: int

    def relation(self, rest: Any) -> Any:
        """That s is in the cones."""
        if self.kind == "zero":
            return rest == 0.0
        if self.kind == "nonneg":
            return rest >= 0.0
        if self.kind == "psd":
            side = math.isqrt(self.size)
            return lambda_min(rest.reshape(side, side)) >= 0.0
        each = rest.reshape(-1, self.size)
        if self.kind == "soc":
            return norm(each[:, 1:], axis=-1) <= each[:, 0]
        return each[:, 0] + rel_entr(each[:, 1], each[:, 2]) <= 0.0

    def dual(self, found: Any, rest: NDArray[np.float64]) -> NDArray[np.float64]:
        """The dual values of the rows, in the sign of L = f + y (A x + s - b)."""
        m = np.asarray(found.multiplier, dtype=np.float64).reshape(-1)
        if self.kind == "zero":
            return -m  # the multiplier is that of b - A x == 0
        if self.kind == "nonneg":
            return m
        if self.kind == "psd":
            return np.zeros(self.size) if found.matrix is None else found.matrix.reshape(-1)
        each = rest.reshape(-1, self.size)
        if self.kind == "exp":
            return exponential(m, each[:, 1], each[:, 2]).reshape(-1)
        tip = np.linalg.norm(each[:, 1:], axis=1) <= NEAR_TIP
        cones = second_order(np.where(tip, 0.0, m), each[:, 1:])
        assert cones is not None  # no cone at its tip has a multiplier now
        cones[:, 0] += np.where(tip, m, 0.0)
        return cones.reshape(-1)

    def tips(self, rest: NDArray[np.float64]) -> NDArray[np.int64]:
        """Rows of the vectors of second-order cones that are at their tip."""
        if self.kind != "soc":
            return np.zeros(0, np.int64)
        tip = np.linalg.norm(rest.reshape(-1, self.size)[:, 1:], axis=1) <= NEAR_TIP
        return self.rows.reshape(-1, self.size)[tip, 1:].reshape(-1)


def _blocks(dims: Any) -> list[_Block]:
    """The rows by kind and size of their cones, in CVXPY's order."""
    sizes = [("zero", 1, int(dims.zero)), ("nonneg", 1, int(dims.nonneg))]
    sizes += [("soc", int(k), int(k)) for k in dims.soc] + [
        ("psd", int(k) ** 2, int(k) ** 2) for k in dims.psd
    ]
    sizes += [("exp", 3, 3 * int(dims.exp))]
    found: dict[tuple[str, int, int], list[NDArray[np.int64]]] = {}
    start = 0
    for kind, size, count in sizes:
        number = start if kind == "psd" else 0  # a matrix is a constraint of its own
        if count:
            found.setdefault((kind, size, number), []).append(np.arange(start, start + count))
        start += count
    return [
        _Block(f"{kind}_{k}", kind, np.concatenate(rows), size)
        for k, ((kind, size, _), rows) in enumerate(found.items())
    ]
