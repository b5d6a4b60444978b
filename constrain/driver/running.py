"""Runs of one method on one problem: prepared, run and judged."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from constrain._lazy import backend
from constrain.diagnostics.alive import rebind
from constrain.diagnostics.anywhere import settle
from constrain.diagnostics.judge import Facts as JudgeFacts
from constrain.diagnostics.judge import build_solution
from constrain.driver.blocks import merged
from constrain.driver.checkpoints import checkpoints_of
from constrain.driver.infeasible import with_conflict, with_exclusion
from constrain.driver.installed import backend_options
from constrain.driver.last_layers import with_exact_block
from constrain.driver.polish import polish as finish
from constrain.driver.request import Request
from constrain.driver.routes import make_solver, routes
from constrain.driver.searched import search_seconds, the_better
from constrain.driver.setup import Setup, floating_type, place, prepare, refuse_infinite
from constrain.errors import ConstrainError, ModelingError, RouteError
from constrain.language.data import suggest
from constrain.runtime.decisions import precision
from constrain.runtime.modes import noted
from constrain.solution import Status
from constrain.solvers.primal_dual import PrimalDual
from constrain.solvers.progress import Silent, TerminalProgress, Watched

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from constrain.language.data import Data
    from constrain.lowering.classify import Facts
    from constrain.lowering.program import Program
    from constrain.runtime.result import Ending, RawResult
    from constrain.solution import Solution
    from constrain.solvers.closed import ClosedForm
    from constrain.solvers.progress import Progress

__all__ = ["CONVEX_TOLERANCE", "TRAINING_TOLERANCE", "Run"]

CONVEX_TOLERANCE = 1e-6
TRAINING_TOLERANCE = 1e-3
"""Tolerance of the judgment: of deterministic methods, and of minibatch training."""
LAST_DIGITS = 500
"""Variables and constraints up to which Newton's method adds digits to an optimum that was proved."""


class Run:
    """One method on one problem: prepared, run and judged.

    Args:
        program: the moment form.
        facts: of the analysis.
        route: which method and why, in words.
        request: what was asked.
        tolerance: of the judgment.
    """

    def __init__(
        self, program: Program, facts: Facts, route: str, request: Request, tolerance: float
    ) -> None:
        self.program = program
        self.facts = facts
        self.route = route
        self.data = request.data
        self.other = request.holdout
        self.params = request.params
        self.seed = request.seed
        self.time_limit = request.time_limit
        self.tolerance = tolerance
        self.device = place(program, request.device)
        self.progress = request.progress
        self.polish = request.polish
        self.asked = request.tolerance
        self.request = request
        self.ending: Ending | None = None  # of the last exact backend

    # --------------------------------------------------------------------------------------- routes
    def exact(self, method: str, options: Mapping[str, Any], *, supported: bool) -> Solution:
        """The program of all rows by CVXPY or Pyomo, judged in float64, weights written back.

        `supported` tells that the route was asked already.
        """
        try:
            package = backend(method)
        except ModuleNotFoundError as error:
            missing = str(error.name).partition(".")[0]
            text = f"{method} cannot take the problem: {missing} is not installed"
            raise RouteError("E125", text, fix=f"pip install {missing}") from None
        known = {} if method == "cvxpy" else {"parameters": self.params}
        answer = None if supported else package.support(self.program, self.facts, **known)
        if answer is not None and not answer.ok:
            raise RouteError(
                "E125", f"{method} cannot take the problem: {answer.reason}", fix='solve(method="auto")'
            )
        return self._whole(method, package, options, ("solver", "options", "verbose"))

    def in_place_of(self, failed: Solution, multipliers: Mapping[str, Any] | None) -> Solution:
        """Second derivatives or gradients, where an exact backend found no point that can be used."""
        answers = {route.method: route.open for route in routes(self.program, self.facts)}
        other = next((name for name in ("newton", "augmented") if answers[name]), None)
        if other is None:
            return failed
        self.route += f": {failed.message}; {other} in its place"
        try:
            return self.loop(make_solver(other, {}), multipliers, minibatch=False)
        except ModelingError as error:
            if error.code != "E199":  # no point of finite value to start from
                raise
            return failed

    def with_last_digits(self, found: Solution) -> Solution:
        """A convex program of variables only, by Newton's method where a cone solver balanced too little.

        Its point is taken when the judge calls it optimal, with gradients balanced to the tolerance. Large
        programs whose optimum the cone solver proved stay as they are: dense steps take far longer there.
        """
        k = found.record
        balanced = k.stationary and found.status is not Status.FEASIBLE
        if balanced or not found.status.solved or self.facts.integer or self.program.populations:
            return found
        answers = {route.method: route.open for route in routes(self.program, self.facts)}
        if found.multipliers is None or not answers["newton"]:
            return found
        sizes = [np.size(v) for v in (*found.variables.values(), *found.multipliers.values())]
        if found.status is Status.OPTIMAL and sum(sizes) > LAST_DIGITS:
            return found
        kept = self.route, self.time_limit
        self.route += "; Newton's method for the last digits"
        if self.time_limit is not None:
            self.time_limit = max(self.time_limit - found.provenance.seconds, 0.0)
        try:
            finished = self.loop(make_solver("newton", {}), found.multipliers, minibatch=False)
        except ModelingError as error:
            if error.code != "E199":  # no point of finite value to start from
                raise
        else:
            if finished.status is Status.OPTIMAL and finished.record.stationary:
                return finished
        (self.route, self.time_limit), attached = kept, cast("Any", found.live)
        attached.decisions.restore(attached.point)
        attached.decisions.write_back()
        return found

    def searched(self, options: Mapping[str, Any], multipliers: Mapping[str, Any] | None) -> Solution:
        """Exact rates by a search over integers; where its time runs out, training goes on from there."""
        started, whole = time.perf_counter(), self.time_limit
        self.time_limit = search_seconds(whole)
        found = self.exact("pyomo", options, supported=True)
        missed = self.ending == "converged" and found.record.feasibility_scaled > found.record.tolerance
        if not missed and self.ending not in ("limit", "error", "likely_infeasible"):
            return found

        def train() -> Solution:
            self.time_limit = None if whole is None else max(whole - (time.perf_counter() - started), 1.0)
            self.tolerance = TRAINING_TOLERANCE if self.asked is None else self.asked
            return self.loop(PrimalDual(seed=self.seed), multipliers, minibatch=True)

        return the_better(found, train, CONVEX_TOLERANCE)

    def installed(self, method: str, package: Any, options: Mapping[str, Any]) -> Solution:
        """The program of all rows by a backend that another package registered."""
        answer = package.support(self.program, self.facts)
        if not answer.ok:
            text = f"{method} cannot take the problem: {answer.reason}"
            raise RouteError("E125", text, fix='solve(method="auto")')
        return self._whole(method, package, options, backend_options(package))

    def _whole(
        self, method: str, package: Any, options: Mapping[str, Any], allowed: tuple[str, ...]
    ) -> Solution:
        """Builds, solves and judges; the package was asked whether it takes the program."""
        given = {k: v for k, v in options.items() if v is not None}
        unknown = sorted(set(given) - set(allowed))
        if unknown:
            hint = suggest(unknown[0], ("method", *(f.name for f in fields(Request)), *allowed))
            raise ModelingError(
                "E141",
                f"method {method!r} has no option {unknown[0]!r}{hint}",
                fix=f"one of {', '.join(allowed)}" if allowed else f"solve({method!r})",
            )
        with self._precise():
            setup = self._prepare(torch.float64, check=False)
            built = package.build(self.program, self._replaced(), self.params)
            try:
                raw = package.solve(built, self.facts, time_limit=self.time_limit, **given)
            except ValueError as error:
                if isinstance(error, ConstrainError) or "NaN or Inf" not in str(error):
                    raise
                refuse_infinite(setup.evaluator)
            self.ending = raw.result().ending
            if raw.values or raw.weights:
                raw.write_back()
                fresh = {s: raw.values[s] for s in setup.decisions.variables if s in raw.values}
                with torch.no_grad():
                    for symbol, value in fresh.items():
                        tensor = setup.decisions.variables[symbol]
                        tensor.copy_(torch.as_tensor(value).to(tensor).reshape(tensor.shape))
            return self._judge(setup, raw.result(), options)

    def loop(self, solver: Any, multipliers: Mapping[str, Any] | None, *, minibatch: bool) -> Solution:
        """A built-in (or the user's) solver loop; full-data methods run in float64."""
        bar = self._bar(getattr(solver, "name", type(solver).__name__))
        if minibatch:
            setup = self._prepare(floating_type(self.program))
            acting = noted(setup.evaluator.modes.words(setup.evaluator))
            self.route += f"; {acting}" if acting else ""
            raw = self._with(bar, solver, setup, multipliers)
            if self.polish:
                return self._polished(setup, raw, solver)
            return self._judge(setup, raw, _options_of(solver))
        with self._precise():
            setup = self._prepare(self._double())
            acting = setup.evaluator.modes.words(setup.evaluator)
            self.route += f"; in evaluation mode, without {acting}" if acting else ""
            start = setup.decisions.snapshot()
            raw = self._with(bar, solver, setup, multipliers)
            found = self._judge(setup, raw, _options_of(solver))
            if found.status is Status.DIVERGED:  # the next solve does not start far out
                setup.decisions.restore(start)
                setup.decisions.write_back()
            return found

    def formula(self, form: ClosedForm, multipliers: Mapping[str, Any] | None) -> Solution:
        """A problem that was recognized."""
        setup = self._prepare(torch.float64, check=False)
        bar = Watched(Silent(), self.request.callbacks, None)
        raw = form.solve(setup.evaluator, progress=bar, multipliers=multipliers, time_limit=self.time_limit)
        return self._judge(setup, raw, {})

    def together(self, solutions: Sequence[Solution]) -> Solution:
        """The points that were found for the blocks, judged as one of the whole problem."""
        with self._precise():
            setup = self._prepare(self._double(), check=False)
            settle(setup.evaluator)
            keys = [part.key for part in self.program.judged.parts]
            return self._judge(setup, merged(solutions, self.program.sign, keys), {})

    def cooper(self, options: Mapping[str, Any], multipliers: Mapping[str, Any] | None) -> Solution:
        """Cooper's primal-dual optimizers on the compiled estimates."""
        solver = backend("cooper").CooperSolver
        given = {k: v for k, v in options.items() if v is not None}
        unknown = sorted(set(given) - set(solver.option_names()))
        if unknown:
            known = ", ".join(solver.option_names())
            raise ModelingError(
                "E141", f"method 'cooper' has no option {unknown[0]!r}", fix=f"one of {known}"
            )
        return self.loop(solver(seed=self.seed, **given), multipliers, minibatch=True)

    def _polished(self, trained: Setup, raw: RawResult, solver: Any) -> Solution:
        """The trained point with the last digits by a full-data method, in float64."""
        trained.decisions.write_back()
        with self._precise():
            setup = self._prepare(self._double(), check=False)
            raw = with_exact_block(
                self.program, setup, raw, data=self.data, replaced=self._replaced(), params=self.params,
                time_limit=self.time_limit, tolerance=CONVEX_TOLERANCE,
            )  # fmt: skip
            bar = self._bar("polish")
            try:
                found, told = finish(
                    self.program, self.facts, setup, raw, progress=bar, time_limit=self.time_limit,
                    tolerance=CONVEX_TOLERANCE,
                )  # fmt: skip
            finally:
                bar.close()
            if not told and self.asked is None:
                self.tolerance = CONVEX_TOLERANCE
            solution = self._judge(setup, found, _options_of(solver))
            return replace(solution, warnings=(*told, *solution.warnings))

    # --------------------------------------------------------------------------------------- pieces
    def _double(self) -> torch.dtype:
        return torch.float32 if self.device.type == "mps" else torch.float64

    def _precise(self) -> Any:
        return precision(self.program, self._double())

    def _prepare(self, dtype: torch.dtype, *, check: bool = True) -> Setup:
        return prepare(
            self.program,
            device=self.device,
            dtype=dtype,
            data=self.data,
            params=self.params,
            check=check,
            reach=check,  # of a convex program the solver proves it
        )

    def _replaced(self) -> dict[Data, Data] | None:
        """Each sample of the program with the one in its place; None where none is replaced."""
        if self.data is None:
            return None
        named = rebind(self.program, self.data)
        return {d: named.get(d.name, d) for d in self.program.populations}

    def _bar(self, name: str) -> Progress:
        return TerminalProgress(name) if self.progress else Silent()

    def _with(
        self, bar: Progress, solver: Any, setup: Setup, multipliers: Mapping[str, Any] | None
    ) -> RawResult:
        request = self.request
        stored = checkpoints_of(setup.evaluator, solver, request.checkpoint, request.resume)
        bar = Watched(bar, request.callbacks, stored)
        try:
            return solver.solve(  # type: ignore[no-any-return]
                setup.evaluator, progress=bar, multipliers=multipliers, time_limit=self.time_limit
            )
        finally:
            bar.close()

    def _judge(self, setup: Setup, raw: RawResult, options: Mapping[str, Any]) -> Solution:
        facts = JudgeFacts(self.facts.convex and not self.facts.integer, self.facts.problem_class, self.route)
        if facts.certified_convex and raw.bound is None:
            raw = replace(raw, bound=raw.bound_if_convex)
        setup.decisions.write_back()
        solution = build_solution(
            self.program,
            setup.evaluator,
            setup.decisions,
            raw,
            facts=facts,
            holdout=setup.holdout(self.other),
            tolerance=self.tolerance,
            seed=self.seed,
            options={k: v for k, v in options.items() if v is not None},
        )
        if solution.status in (Status.LIMIT, Status.LIKELY_INFEASIBLE):
            solution = with_exclusion(solution, setup.evaluator)
        if solution.status in (Status.INFEASIBLE, Status.LIKELY_INFEASIBLE):
            return with_conflict(solution, self.program.problem, self.data, self.params)
        return solution


def _options_of(solver: Any) -> dict[str, Any]:
    """Plain settings of a solver object, for the record."""
    settings = cast("dict[str, Any]", vars(solver))
    return {k: v for k, v in settings.items() if isinstance(v, (bool, int, float, str))}
