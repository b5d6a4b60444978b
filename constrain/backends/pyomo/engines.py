"""The solvers behind Pyomo: which are installed, how they are called, how their endings are read."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from pyomo.common.collections import ComponentMap
from pyomo.contrib.solver.common.factory import SolverFactory
from pyomo.contrib.solver.common.results import SolutionStatus, TerminationCondition
from pyomo.contrib.solver.common.util import IncompatibleModelError, NoDualsError
from pyomo.contrib.solver.solvers.highs import Highs

from constrain.errors import ModelingError, RouteError
from constrain.language.data import suggest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from constrain.runtime.result import Ending

__all__ = ["INTEGRALITY", "LINEAR", "Outcome", "label", "nonlinear_engine", "run"]

LINEAR = "highs"
NONLINEAR = ("pounce", "ipopt")
INTEGRALITY = 1e-9
"""How far from an integer HiGHS may leave a variable: its default, 1e-6, would hide an event behind an M."""
_ENDINGS: dict[str, tuple[Ending, str]] = {
    "convergenceCriteriaSatisfied": ("converged", "the solver reached its tolerances"),
    "provenInfeasible": ("infeasible", "the solver proved that no point satisfies the constraints"),
    "locallyInfeasible": (
        "likely_infeasible",
        "the solver stopped at a point where the violation cannot be reduced locally; no proof",
    ),
    "unbounded": ("unbounded", "the objective has no bound on the feasible set"),
    "infeasibleOrUnbounded": ("error", "the solver found the problem infeasible or unbounded"),
    "maxTimeLimit": ("limit", "the solver reached its limit of time"),
    "iterationLimit": ("limit", "the solver reached its limit of iterations"),
    "objectiveLimit": ("limit", "the solver reached its limit of the objective"),
    "interrupted": ("interrupted", "the solver was interrupted"),
}
_OPTIONS: dict[str, dict[str, Any]] = {
    # the defaults, 1e-7 and 1e-4, move the solution of a quadratic program and stop far from the optimum
    "highs": {
        "qp_regularization_value": 1e-12,
        "mip_rel_gap": 1e-7,
        "mip_feasibility_tolerance": INTEGRALITY,
    },
    # by default they widen every bound by a share of it, and take a violation of 1e-4
    "pounce": {"tol": 1e-10, "bound_relax_factor": 0.0, "constr_viol_tol": 1e-8},
    "ipopt": {"tol": 1e-10, "bound_relax_factor": 0.0, "constr_viol_tol": 1e-8},
}


@dataclass(frozen=True)
class Outcome:
    """One run of a solver.

    Attributes:
        ending: as every solver of this package ends.
        message: the ending in words.
        values: of the variables; empty without a point.
        duals: of the constraints, in Pyomo's sign; None without.
        bound: proven lower bound that the solver reports, None without.
    """

    ending: Ending
    message: str
    values: Any = field(default_factory=ComponentMap)
    duals: Mapping[Any, float] | None = None
    bound: float | None = None


def nonlinear_engine() -> str | None:
    """The nonlinear solver that is installed, None when there is none."""
    if importlib.util.find_spec("pyomo_pounce") is not None:
        importlib.import_module("pyomo_pounce")
        return "pounce"
    quiet = logging.getLogger("pyomo")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)
    try:
        return "ipopt" if SolverFactory("ipopt").available() else None
    finally:
        quiet.setLevel(level)


def label(engine: str) -> str:
    """Name and version."""
    found = _made(engine).version()
    return f"{engine} {'.'.join(map(str, found))}" if found else engine


def _made(engine: str) -> Any:
    if engine not in _OPTIONS:
        close = suggest(engine, _OPTIONS)
        text = f"pyomo has no solver {engine!r} here{close}"
        raise RouteError("E125", text, fix=f"one of {', '.join(_OPTIONS)}")
    if engine == "pounce" and nonlinear_engine() != "pounce":
        raise RouteError("E125", "pounce is not installed", fix="pip install 'constrain-lang[nlp]'")
    made = SolverFactory(engine)
    if not made.available():
        fix = "ipopt on the path; pip install 'constrain-lang[nlp]' for pounce, a port of it"
        raise RouteError("E125", f"{engine} is not installed", fix=fix)
    return made


def _check_options(options: Mapping[str, Any]) -> None:
    """E141 for an option that HiGHS does not know, or a value that it refuses: Pyomo passes over both."""
    trial: Any = importlib.import_module("highspy").Highs()
    trial.setOptionValue("output_flag", False)
    for name, value in options.items():
        if trial.setOptionValue(name, value).name == "kError":
            text = f"highs does not take the option {name!r} with the value {value!r}"
            fix = 'its own names: options={"mip_rel_gap": 1e-4, "presolve": "off"}'
            raise ModelingError("E141", text, fix=fix)


def run(
    engine: str,
    model: Any,
    *,
    time_limit: float | None = None,
    options: Mapping[str, Any] | None = None,
    verbose: bool = False,
    start: Sequence[tuple[Any, float]] = (),
) -> Outcome:
    """Solves a model. Its variables keep their values: what was found is in the outcome.

    Args:
        engine: name of the solver.
        model: of Pyomo.
        time_limit: in seconds.
        options: of the solver, by its own names.
        verbose: show its log.
        start: variables with the values that a search of HiGHS begins with, where they can be completed.

    Raises:
        RouteError: E125 for a solver that is not known, not installed, or cannot take the model.
        ModelingError: E141 for an option that the solver does not have.
    """
    _made(engine)
    if engine == LINEAR and options:
        _check_options(options)
    own = {**_OPTIONS[engine], **(options or {})}
    outcome = _once(engine, model, time_limit, own, verbose, start)
    refused = options and outcome.ending == "error" and "valid option" in outcome.message
    if refused:
        raise ModelingError("E141", f"{engine}: {outcome.message}", fix="options by the names of the solver")
    if outcome.message == _ENDINGS["infeasibleOrUnbounded"][1] and engine == LINEAR:
        return _once(engine, model, time_limit, {**own, "presolve": "off"}, verbose)
    if engine in NONLINEAR and outcome.ending == "limit" and time_limit is None:
        return _once(engine, model, None, {**own, "tol": 1e-8}, verbose)
    return outcome


class _Started(Highs):
    """HiGHS with a point to begin with, which Pyomo's interface does not pass."""

    start: Sequence[tuple[Any, float]] = ()

    def _solve(self) -> Any:
        own = cast("Any", self)
        places = [own._pyomo_var_to_solver_var_map[id(v)] for v, _ in self.start]
        values = np.array([value for _, value in self.start], dtype=np.float64)
        own._solver_model.setSolution(len(places), np.array(places, dtype=np.int32), values)
        return super()._solve()


def _once(
    engine: str,
    model: Any,
    time_limit: float | None,
    options: Mapping[str, Any],
    verbose: bool,
    start: Sequence[tuple[Any, float]] = (),
) -> Outcome:
    solver = _made(engine)
    if start and engine == LINEAR:
        solver = _Started()
        solver.start = start
    if engine in NONLINEAR:  # its presolve drops the duals of linear equalities
        solver.config.writer_config.linear_presolve = False
    log = logging.getLogger("pyomo")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of iteration counts in the log of a port of Ipopt
    try:
        found = solver.solve(
            model,
            raise_exception_on_nonoptimal_result=False,
            load_solutions=False,
            time_limit=time_limit,
            tee=verbose,
            solver_options=dict(options),
        )
    except (IncompatibleModelError, ValueError) as error:
        reason = str(error).splitlines()[0].partition(", but ")[0]
        if isinstance(error, IncompatibleModelError) and engine == LINEAR:
            reason = "it takes linear constraints and quadratic objectives only"
        raise RouteError(
            "E125", f"{engine} cannot take the problem: {reason}", fix="no solver=, for the one that fits"
        ) from None
    finally:
        log.setLevel(level)
    return _outcome(found)


def _outcome(found: Any) -> Outcome:
    condition: TerminationCondition = found.termination_condition
    ending, message = _ENDINGS.get(condition.name, ("error", f"the solver reports {condition.name}"))
    if ending == "error" and "option" in str(found.solver_log):
        message = next(line for line in str(found.solver_log).splitlines() if "option" in line).strip()
    if found.solution_status not in (SolutionStatus.optimal, SolutionStatus.feasible) or ending not in (
        "converged",
        "limit",
        "interrupted",
    ):
        return Outcome(ending, message)
    duals: Mapping[Any, float] | None = None
    if found.solution_status == SolutionStatus.optimal:
        try:
            duals = dict(found.solution_loader.get_duals())
        except NoDualsError:  # integer programs have none
            duals = None
    bound = found.objective_bound
    return Outcome(
        ending, message, found.solution_loader.get_vars(), duals, None if bound is None else float(bound)
    )
