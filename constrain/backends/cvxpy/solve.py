"""Choosing a solver, running it, and reading primal and dual values back in the signs of the language.

The Lagrangian of `residual <= 0` and `residual == 0` in a minimization is the same in cvxpy and in semantics
S10, so its dual values are the multipliers of the parts as they are.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from constrain.backends.cvxpy.declared import without_lowering
from constrain.backends.cvxpy.inner import refused
from constrain.backends.cvxpy.matrices import dual_of
from constrain.backends.cvxpy.package import cp, without_inferred_bounds
from constrain.errors import ModelingError, RouteError
from constrain.language import nodes as n
from constrain.language.types import type_of
from constrain.runtime.columns import column_of
from constrain.runtime.coordinates import too_large
from constrain.runtime.decisions import limits
from constrain.runtime.result import Ending, RawResult, put_back

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from constrain.backends.cvxpy.build import Built
    from constrain.language.symbols import Model
    from constrain.lowering.classify import Facts, ProblemClass
    from constrain.lowering.program import Program

__all__ = ["ENTRY_LIMIT", "SCS_FROM", "RawSolution", "Support", "solve", "support"]

Status = Literal["optimal", "inaccurate", "infeasible", "unbounded", "limit", "error"]

ENTRY_LIMIT = 20_000_000
"""Curved rows times nonzero features beyond which the sample-average program is refused."""
SLOW_FROM = 1_000_000
"""The same number from which a cone program may be too much for Clarabel, so that SCS takes its place."""
SCS_FROM = 5_000_000
"""The same number from which SCS is asked first for cones.

A logistic loss with dense features took Clarabel 35 s and 0.8 GB at 1.5 million entries (two cores); at
3 million it took 86 s and stopped just short of its tolerance. SCS took 48 s and 115 s there and reached its
own, looser one.
"""
ON_BOUND = 1e-6
"""Distance from a bound within which an entry is put on it, where the objective is infinite otherwise."""
# Quadratic programs go to Clarabel: the active-set solver of HiGHS 1.15.1 called a point optimal on a
# support-vector program (300 rows, hinge loss) whose objective was three times the optimum.
_PREFERENCE: dict[ProblemClass, tuple[str, ...]] = {
    "LP": ("HIGHS", "CLARABEL", "SCIPY"),
    "QP": ("CLARABEL", "OSQP", "HIGHS"),
    "cone": ("CLARABEL", "SCS"),
    "MILP": ("HIGHS", "SCIP", "GUROBI", "SCIPY"),
    "MIQP": ("SCIP", "GUROBI", "MOSEK", "CPLEX"),
    "mixed-integer cone": ("SCIP", "MOSEK", "GUROBI"),
    "nonconvex": (),
}
_PACKAGES = {"HIGHS": "highspy", "CLARABEL": "clarabel", "SCS": "scs", "OSQP": "osqp", "SCIPY": "scipy"}
_TOLERANCES = {
    "CLARABEL": ("tol_gap_abs", "tol_gap_rel", "tol_feas"),
    "SCS": ("eps_abs", "eps_rel"),
    "OSQP": ("eps_abs", "eps_rel"),
    "HIGHS": ("primal_feasibility_tolerance", "dual_feasibility_tolerance"),
}
_TIME_LIMITS = {
    "CLARABEL": "time_limit",
    "SCS": "time_limit_secs",
    "OSQP": "time_limit",
    "HIGHS": "time_limit",
}
_STATUS: dict[str, tuple[Status, str]] = {
    cp.OPTIMAL: ("optimal", "the solver proved optimality"),
    cp.OPTIMAL_INACCURATE: ("inaccurate", "the solver stopped short of its tolerance"),
    cp.INFEASIBLE: ("infeasible", "the solver proved that no point satisfies the constraints"),
    cp.INFEASIBLE_INACCURATE: (
        "infeasible",
        "the solver found a certificate of infeasibility of reduced accuracy",
    ),
    cp.UNBOUNDED: ("unbounded", "the objective has no bound on the feasible set"),
    cp.UNBOUNDED_INACCURATE: ("unbounded", "the objective seems to have no bound on the feasible set"),
    "infeasible_or_unbounded": ("error", "the solver found the problem infeasible or unbounded"),
    cp.USER_LIMIT: ("limit", "the solver reached its limit of time or iterations"),
}
_ENDINGS: dict[Status, Ending] = {
    "optimal": "converged",
    "inaccurate": "limit",
    "infeasible": "infeasible",
    "unbounded": "unbounded",
    "limit": "limit",
    "error": "error",
}
_BENIGN = ("too many subexpressions", "Defaulting to the SCIPY backend", "Solution may be inaccurate")


# --------------------------------------------------------------------------------------------- support
@dataclass(frozen=True)
class Support:
    """Whether this backend takes a program.

    Attributes:
        ok: yes or no.
        reason: why, or why not, in a sentence.
        solver: the solver that would run, when `ok`.
        cost: rough number of scalar entries of the cone program; comparable between backends.
    """

    ok: bool
    reason: str
    solver: str = ""
    cost: float = float("inf")


def _size(program: Program) -> int:
    """Curved rows times the width of what they depend on, plus the rows of constraints per row."""
    total = 0
    for moment in program.moments:
        width = max((_width(x) for x in n.postorder(moment.integrand)), default=1)
        total += len(moment.data) * width if not _linear_in_rows(moment.integrand) else width
    for part in program.parts:
        if part.rows is not None:
            total += len(part.rows) * max((_width(x) for x in n.postorder(part.residual)), default=1)
    return total + sum(math.prod(s.shape) for s in program.variables)


def _width(node: n.Node) -> int:
    """Numbers in one row of an expression; of a column, those that are not zero."""
    kind = type_of(node)
    if not kind.random or not kind.shape:
        return 1
    if isinstance(node, n.Column):
        values = column_of(node.data, node.name).values
        return math.ceil(np.count_nonzero(values) / len(node.data))
    return math.prod(kind.shape)


def _linear_in_rows(node: n.Node) -> bool:
    """Whether the data can be averaged before anything else: models and arithmetic only."""
    keep = {"add", "sub", "neg", "mul", "div", "matmul", "sum", "mean", "index", "reshape", "linear"}
    return all(not isinstance(x, n.Apply) or x.atom in keep for x in n.postorder(node))


def _installed(candidates: Sequence[str]) -> list[str]:
    known = cp.installed_solvers()
    return [name for name in candidates if name in known]


def _candidates(kind: ProblemClass, entries: int) -> list[str]:
    found = _installed(_PREFERENCE[kind])
    if kind == "cone" and entries > SCS_FROM:
        found.sort(key=lambda name: name != "SCS")
    return found


def support(program: Program, facts: Facts) -> Support:
    """Whether the sample-average program is convex, of a size within reach, and has an installed solver."""
    if not facts.convex:
        return Support(False, facts.certificate)
    unwritten = without_lowering(program)
    if unwritten is not None:
        return Support(False, f"{unwritten} is convex by its declaration, which has no cvxpy=")
    unwritten = refused(program)
    if unwritten is not None:
        return Support(False, unwritten)
    streamed = next((data for data in program.populations if data.streamed), None)
    if streamed is not None:
        return Support(False, f"the sample {streamed.name} streams from a loader: there is no table")
    size = _size(program)
    found = _candidates(facts.problem_class, size)
    if not found:
        wanted = ", ".join(_PREFERENCE[facts.problem_class])
        return Support(
            False, f"no installed solver takes a {facts.problem_class} problem (cvxpy knows {wanted})"
        )
    if size > ENTRY_LIMIT:
        return Support(
            False, f"the sample-average program has about {size:,} entries, more than {ENTRY_LIMIT:,}"
        )
    dense = too_large(program)
    if dense is not None:
        return Support(False, dense)
    why = f"{facts.certificate}; {found[0]} solves it"
    if facts.problem_class == "cone" and found[0] == "SCS":
        why += (
            f", a first-order method: minutes (about {size:,} entries, more than Clarabel solves accurately)"
        )
    elif facts.problem_class == "cone" and size > SLOW_FROM and "SCS" in found:
        why += f" (about {size:,} entries; where it stops short, SCS goes on, a first-order method: minutes)"
    return Support(True, why, found[0], float(size))


# -------------------------------------------------------------------------------------------- solution
@dataclass(frozen=True)
class RawSolution:
    """What the solver found, in the language's terms.

    Attributes:
        status: in one word; `message` says it in a sentence.
        objective: value of the program, which minimizes (a user's maximize is negated); None without a point.
        values: per variable (auxiliary ones included) an array of its shape.
        weights: per model, parameter name to array.
        multipliers: per part key an array of the shape of the residual; of a constraint per row one entry per
            row, 0 where the row takes no part. None when the solver has none: `message` says why.
        solver: name and version of the solver.
        seconds: wall time of canonicalization and solver.
        iterations: of the solver, if it says.
        gap: primal minus dual objective (or minus the bound of an integer search), if both are known.
        message: status in words, and what cvxpy warned about.
        slopes: of extreme eigenvalues at the solution, from the dual values of matrix inequalities.
    """

    status: Status
    objective: float | None
    values: Mapping[n.VariableSymbol, NDArray[Any]]
    weights: Mapping[Model, Mapping[str, NDArray[Any]]]
    multipliers: dict[str, NDArray[Any]] | None
    solver: str
    seconds: float
    iterations: int | None = None
    gap: float | None = None
    message: str = ""
    warnings: tuple[str, ...] = field(default=())
    slopes: Mapping[n.ArraySymbol, Any] = field(default_factory=dict["n.ArraySymbol", Any])

    def write_back(self) -> None:
        """Puts the values into the `Variable`s and the weights into the modules; dtype and device stay."""
        put_back(self.values, self.weights)
        for symbol, slope in self.slopes.items():
            symbol.value = slope

    def result(self) -> RawResult:
        """The record that solvers and backends share."""
        bound = None if self.objective is None or self.gap is None else self.objective - abs(self.gap)
        return RawResult(
            ending=_ENDINGS[self.status],
            multipliers=self.multipliers,
            solver=self.solver,
            seconds=self.seconds,
            iterations=self.iterations or 0,
            bound=bound,
            message=self.message,
        )


def _options(solver: str, tolerance: float | None, time_limit: float | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if solver == "HIGHS":
        # the default, 1e-7, moves the solution of a quadratic program by about as much as it is worth
        options["qp_regularization_value"] = 1e-12
        # its default, 1e-4, is a gap that no one would call optimal
        options["mip_rel_gap"] = 1e-6
    if solver == "CLARABEL":
        # its default, 1e-8, leaves multipliers off by up to 4e-4 (a quadratic trust region); short of this
        # the solver falls back to its reduced tolerances
        options.update(dict.fromkeys(_TOLERANCES[solver], 1e-10))
    if tolerance is not None:
        options.update(dict.fromkeys(_TOLERANCES.get(solver, ()), tolerance))
    if time_limit is not None and solver in _TIME_LIMITS:
        options[_TIME_LIMITS[solver]] = float(time_limit)
    return options


class _CannotTakeError(cp.error.SolverError):  # type: ignore[misc]  # cvxpy has no types
    """The solver has no form of the problem, whatever its numbers are."""


def _run(problem: Any, solver: str, options: dict[str, Any], verbose: bool) -> tuple[Any, Mapping[str, Any]]:
    """Canonicalizes, solves and unpacks; returns the solver's own result, and the data that it was given.

    Raises:
        cp.error.SolverError: when the solver fails or cannot take the problem.
    """
    try:
        with without_inferred_bounds():
            data, chain, inverse = problem.get_problem_data(solver, solver_opts=dict(options))
    except cp.error.SolverError as error:
        raise _CannotTakeError(str(error)) from None
    raw = chain.solve_via_data(problem, data, warm_start=False, verbose=verbose, solver_opts=dict(options))
    problem.unpack_results(raw, chain, inverse)
    return raw, data


def _highs_gap(raw: Mapping[str, Any], data: Mapping[str, Any]) -> float | None:
    """Primal objective minus that of the dual point (of integer programs: minus the bound of the search).

    HiGHS does not report its dual objective: minimize q'x + x'Px/2 with l <= Ax <= u and lb <= x <= ub has
    the dual value y'(l or u) + r'(lb or ub) - x'Px/2 with the reduced costs r = q + Px - A'y, by the signs
    of y and r. An entry against an infinite bound must be 0 within the solver's tolerance.
    """
    info: Any = raw["info"]
    if data.get("bool_vars_idx") or data.get("int_vars_idx"):
        return abs(float(info.objective_function_value) - float(info.mip_dual_bound))
    if not raw["solution"].dual_valid:
        return None
    x, y = (np.asarray(v, dtype=np.float64) for v in (raw["solution"].col_value, raw["solution"].row_dual))
    cost = np.asarray(data["q"] if "q" in data else data["c"], dtype=np.float64)
    curved = data["P"] @ x if data.get("P") is not None else np.zeros(len(x))
    reduced = cost + curved - data["Ax"].T @ y
    none = np.full(len(x), np.inf)
    lower, upper = data.get("lower_bounds"), data.get("upper_bounds")
    sides = (
        (y, np.asarray(data["l"], dtype=np.float64), np.asarray(data["u"], dtype=np.float64)),
        (reduced, -none if lower is None else lower, none if upper is None else upper),
    )
    scale = 1.0 + float(np.abs(cost).max(initial=0.0))
    dual = -0.5 * float(x @ curved)
    for price, low, high in sides:
        at = np.where(price > 0, low, high)
        limited = np.abs(at) < 1e20  # HiGHS' infinity
        if np.abs(price[~limited]).max(initial=0.0) > 1e-6 * scale:
            return None
        dual += float(price[limited] @ at[limited])
    return abs(float(cost @ x) + 0.5 * float(x @ curved) - dual)


def _gap(raw: Any, data: Mapping[str, Any]) -> float | None:
    """Primal minus dual objective, from the solver's own record."""
    primal: Any = getattr(raw, "obj_val", None)
    dual: Any = getattr(raw, "obj_val_dual", None)
    record: Mapping[str, Any] = cast("Mapping[str, Any]", raw) if isinstance(raw, Mapping) else {}
    if "model_status" in record:
        gap = _highs_gap(record, data)
        return gap if gap is not None and np.isfinite(gap) else None
    if record:
        info: Any = record.get("info")
        known = cast("dict[str, float]", info) if isinstance(info, dict) else {}
        primal, dual = known.get("pobj"), known.get("dobj")
    if isinstance(primal, float) and isinstance(dual, float) and np.isfinite(primal) and np.isfinite(dual):
        return abs(primal - dual)
    return None


def solve(
    built: Built,
    facts: Facts,
    *,
    solver: str | None = None,
    tolerance: float | None = None,
    time_limit: float | None = None,
    options: Mapping[str, Any] | None = None,
    verbose: bool = False,
) -> RawSolution:
    """Runs a solver on a built program.

    Args:
        built: by `build`.
        facts: of the same program; its class chooses the solver.
        solver: cvxpy's name of a solver to use instead.
        tolerance: of the solver; its own default when left out.
        time_limit: in seconds.
        options: further options, passed to the solver as they are.
        verbose: let the solver print its log.

    Raises:
        RouteError: E125 when the named solver is not installed, or has no form of the problem.
        ModelingError: E141 for options that the solver does not have.
    """
    candidates = _choices(built, facts, solver)
    start = time.perf_counter()
    failures: list[str] = []
    for name in candidates:
        chosen = {**_options(name, tolerance, time_limit), **(options or {})}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                raw, data = _run(built.problem, name, chosen, verbose)
                if name == "HIGHS" and built.problem.status == "infeasible_or_unbounded":
                    raw, data = _run(built.problem, name, {**chosen, "presolve": "off"}, verbose)
            except cp.error.SolverError as error:
                if solver is not None and isinstance(error, _CannotTakeError):
                    reason = str(error).splitlines()[0]
                    text = f"{name.lower()} cannot take the problem: {reason}"
                    raise RouteError("E125", text, fix="no solver=, for the one that fits") from None
                failures.append(f"{name}: {str(error).splitlines()[0]}")
                continue
            except (TypeError, ValueError, AttributeError) as error:
                if not options or "NaN or Inf" in str(error):
                    raise
                text = f"{name.lower()} does not take options={dict(options)}: {error}"
                raise ModelingError("E141", text, fix="its own names and types") from None
        notes = tuple(dict.fromkeys(str(w.message) for w in caught))
        return _solution(built, name, raw, data, time.perf_counter() - start, (*built.messages, *notes))
    seconds = time.perf_counter() - start
    return RawSolution(
        "error", None, {}, {}, None, candidates[-1].lower(), seconds, message="; ".join(failures)
    )


def _choices(built: Built, facts: Facts, solver: str | None) -> list[str]:
    if solver is not None:
        if not _installed([solver.upper()]):
            known = ", ".join(cp.installed_solvers())
            raise RouteError("E125", f"cvxpy has no installed solver {solver!r}", fix=f"one of {known}")
        return [solver.upper()]
    found = _candidates(facts.problem_class, _size(built.program))
    if not found:
        raise RouteError("E125", f"no installed solver takes a {facts.problem_class} problem")
    return found


def _solution(
    built: Built, name: str, raw: Any, data: Mapping[str, Any], seconds: float, notes: tuple[str, ...]
) -> RawSolution:
    problem = built.problem
    status, message = _STATUS.get(str(problem.status), ("error", f"cvxpy reports {problem.status}"))
    shown = tuple(note for note in notes if not any(word in note for word in _BENIGN))
    package = _PACKAGES.get(name)
    version = metadata.version(package) if package else ""
    label = f"{name.lower()} {version}".strip()
    steps: Any = getattr(problem.solver_stats, "num_iters", None)
    iterations = None if steps is None else int(steps)
    known = status in ("optimal", "inaccurate", "limit") and problem.value is not None
    objective = _finite_objective(built) if known else None
    if known and objective is None:
        status, message = "error", "the point that the solver found cannot be used: no finite objective there"
    if objective is None:
        return RawSolution(status, None, {}, {}, None, label, seconds, iterations, None, message, shown)
    multipliers, why = _multipliers(built)
    values = {symbol: _value(variable, symbol) for symbol, variable in built.variables.items()}
    weights = {
        model: {k: np.asarray(v.value, dtype=np.float64) for k, v in own.items() if v.value is not None}
        for model, own in built.weights.items()
    }
    words = "; ".join((message, *([why] if why else ()), *shown))
    gap = _gap(raw, data)
    slopes = {
        own.slope: dual_of(own)[1]
        for own in built.inequalities.values()
        if own.constraint.dual_value is not None
    }
    return RawSolution(
        status, objective, values, weights, multipliers, label, seconds, iterations, gap, words, shown, slopes
    )


def _finite_objective(built: Built) -> float | None:
    """The value at the point that was found; None where it is not finite.

    An entropy is infinite just outside of its domain, which an interior point may leave by its tolerance.
    Then entries within `ON_BOUND` of their bounds are put there, and if that is not enough, those near 0.
    """
    objective: Any = built.problem.objective
    value = objective.value
    for ends in (limits, _zeros):
        if value is not None and np.isfinite(value):
            return float(value)
        for symbol, variable in built.variables.items():
            if variable.value is None:
                continue
            at = np.asarray(variable.value, dtype=np.float64).reshape(symbol.shape)
            for end in ends(symbol):
                at = np.where(np.abs(at - end) <= ON_BOUND, end, at)
            variable.save_value(at.reshape(variable.shape))
        value = objective.value
    return float(value) if value is not None and np.isfinite(value) else None


def _zeros(symbol: n.VariableSymbol) -> tuple[NDArray[Any]]:
    return (np.zeros(symbol.shape),)


def _value(variable: Any, symbol: n.VariableSymbol) -> NDArray[Any]:
    if variable.value is None:
        return np.zeros(symbol.shape)
    value = np.asarray(variable.value, dtype=np.float64).reshape(symbol.shape)
    return np.round(value) if symbol.boolean or symbol.integer else value


def _multipliers(built: Built) -> tuple[dict[str, NDArray[Any]] | None, str]:
    """Dual values per part, or the reason why there are none."""
    found: dict[str, NDArray[Any]] = {}
    for part in built.program.judged.parts:
        constraint = built.constraints[part.key]
        value = constraint.dual_value
        if value is None:
            integer = built.problem.is_mixed_integer()
            why = (
                "a problem with integer variables has no multipliers"
                if integer
                else "the solver returned none"
            )
            return None, f"no multipliers: {why}"
        if part.key in built.inequalities:
            found[part.key] = np.asarray(dual_of(built.inequalities[part.key])[0])
            continue
        dual = np.asarray(value, dtype=np.float64).reshape(constraint.shape)
        rows = built.rows.get(part.key)
        if rows is not None and len(rows.selected) < rows.count:
            full = np.zeros((rows.count, *dual.shape[1:]))
            full[rows.selected] = dual
            dual = full
        found[part.key] = dual
    return found, ""
