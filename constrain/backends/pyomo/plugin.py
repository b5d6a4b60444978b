"""`SolverFactory("constrain")` for Pyomo, in its old and new interface, with duals for suffixes.

Pyomo's dual of a constraint is the derivative of the optimal value in its right-hand side: the shadow price.
"""

from __future__ import annotations

import math
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from pyomo.common.collections import ComponentMap
from pyomo.contrib.solver.common.base import Availability, SolverBase
from pyomo.contrib.solver.common.config import SolverConfig
from pyomo.contrib.solver.common.factory import SolverFactory
from pyomo.contrib.solver.common.results import Results, SolutionStatus, TerminationCondition
from pyomo.contrib.solver.common.solution_loader import SolutionLoader
from pyomo.contrib.solver.common.util import NoDualsError, NoSolutionError

from constrain.backends.pyomo.imports import imported

if TYPE_CHECKING:
    from collections.abc import Callable

    from constrain.backends.pyomo.imports import Imported

__all__ = ["register"]

_CONDITIONS: dict[str, tuple[TerminationCondition, SolutionStatus]] = {
    "optimal": (TerminationCondition.convergenceCriteriaSatisfied, SolutionStatus.optimal),
    "stationary": (TerminationCondition.convergenceCriteriaSatisfied, SolutionStatus.feasible),
    "feasible": (TerminationCondition.convergenceCriteriaSatisfied, SolutionStatus.feasible),
    "limit": (TerminationCondition.iterationLimit, SolutionStatus.infeasible),
    "infeasible": (TerminationCondition.provenInfeasible, SolutionStatus.infeasible),
    "likely_infeasible": (TerminationCondition.locallyInfeasible, SolutionStatus.infeasible),
    "diverged": (TerminationCondition.error, SolutionStatus.unknown),
}
_NAME = "constrain"


class _Loader(SolutionLoader):
    """Values and duals of one solution."""

    def __init__(self, model: Any, values: Any, duals: dict[Any, float] | None) -> None:
        super().__init__()
        self._pyomo_model = model  # read by Pyomo when it imports suffixes
        self._values = values
        self._duals = duals

    def get_number_of_solutions(self) -> int:
        """One, or none."""
        return int(self._values is not None)

    def get_vars(self, vars_to_load: Any = None) -> Any:
        """Values of all variables, or of these."""
        if self._values is None:
            raise NoSolutionError()
        if vars_to_load is None:
            return self._values
        return ComponentMap((v, self._values[v]) for v in vars_to_load)

    def get_duals(self, cons_to_load: Any = None) -> dict[Any, float]:
        """Duals of all constraints, or of these."""
        if self._duals is None:
            raise NoDualsError()
        return dict(self._duals) if cons_to_load is None else {c: self._duals[c] for c in cons_to_load}

    def get_reduced_costs(self, vars_to_load: Any = None) -> Any:  # noqa: ARG002  # the signature is Pyomo's
        """None are known: bounds of variables are no constraints here."""
        return ComponentMap()


def register(solve: Callable[..., Any]) -> None:
    """Registers the solver with Pyomo, once.

    Args:
        solve: `constrain.driver.solve`.
    """

    class Constrain(SolverBase):
        """The routes of constrain: `solver_options={"route": "augmented", ...}` are options of `solve`."""

        CONFIG = SolverConfig()

        def available(self) -> Any:
            """It is installed, or this class would not be."""
            return Availability.FullLicense

        def version(self) -> tuple[int, ...]:
            """The version of this package."""
            return tuple(int(x) for x in metadata.version("constrain-lang").split(".")[:3])

        def solve(self, model: Any, **kwds: Any) -> Any:
            """Solves a model; see `from_pyomo` for what it may hold."""
            config: Any = self.config(value=cast("Any", kwds), preserve_implicit=True)
            options: dict[str, Any] = {"progress": False, **config.solver_options.value()}
            if config.time_limit is not None:
                options["time_limit"] = config.time_limit
            found = imported(model)
            solution = solve(found.problem, options.pop("route", "auto"), **options)
            return _results(self, model, found, solution, config)

    SolverFactory.register(_NAME, doc="The routes of constrain: convex, mixed-integer, smooth and more")(
        Constrain
    )


def _results(solver: Any, model: Any, found: Imported, solution: Any, config: Any) -> Any:
    word = str(solution.status.value)
    condition, status = _CONDITIONS[word]
    if word == "diverged" and "no bound" in solution.message:
        condition = TerminationCondition.unbounded
    values, duals = None, None
    if status in (SolutionStatus.optimal, SolutionStatus.feasible):
        values, duals = _values(found, solution), _duals(found, solution)
    results: Any = Results()
    results.solver_name, results.solver_version = _NAME, solver.version()
    results.solver_log = str(solution)
    results.solution_loader = _Loader(model, values, duals)
    results.termination_condition, results.solution_status = condition, status
    if values is not None:
        results.incumbent_objective = float(solution.objective)
    results.objective_bound = None if solution.bound is None else float(solution.bound)
    if values is None and config.raise_exception_on_nonoptimal_result:
        raise NoSolutionError()
    if values is not None and config.load_solutions:
        results.solution_loader.load_solution()
    return results


def _values(found: Imported, solution: Any) -> Any:
    values = ComponentMap()
    for variable, entries in found.variables:
        array = np.asarray(solution.variables.get(variable.name, _current(entries))).reshape(-1)
        values.update((data, float(x)) for data, x in zip(entries, array, strict=True))
    return values


def _current(entries: tuple[Any, ...]) -> list[float]:
    """Of a variable that no term uses: where it is, within its bounds."""
    found: list[float] = []
    for data in entries:
        low, high = (-math.inf if data.lb is None else data.lb), (math.inf if data.ub is None else data.ub)
        found.append(min(max(0.0 if data.value is None else data.value, low), high))
    return found


def _duals(found: Imported, solution: Any) -> dict[Any, float] | None:
    duals: dict[Any, float] = {}
    for name, entries in found.constraints.items():
        if not solution[name].has_duals:
            return None
        prices = np.asarray(solution[name].shadow_price, dtype=np.float64).reshape(-1)
        duals.update((data, float(price)) for data, price in zip(entries, prices, strict=True))
    return duals
