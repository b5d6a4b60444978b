"""`solve`: route, run, judge."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, cast

import torch

from constrain._lazy import backend
from constrain.analysis.once import asked_once
from constrain.diagnostics.alive import rebind
from constrain.diagnostics.anywhere import settle
from constrain.diagnostics.judge import Facts as JudgeFacts
from constrain.diagnostics.judge import build_solution
from constrain.driver.blocks import (
    blocks_of,
    components,
    in_order,
    merged,
    own_data,
    own_params,
    own_start,
    text_of,
)
from constrain.driver.checkpoints import checkpoints_of, places, refuse_without_steps
from constrain.driver.formulas import asked_for_formula, formula_of
from constrain.driver.infeasible import with_conflict
from constrain.driver.installed import backend_options, installed_backend, installed_solver
from constrain.driver.last_layers import with_exact_block
from constrain.driver.margins import solve_with_margin
from constrain.driver.options import callbacks_of, check_options, check_parameters, check_start, check_starts
from constrain.driver.polish import polish as finish
from constrain.driver.routes import asks_otherwise, choose, make_solver, routes
from constrain.driver.searched import few_events, search_seconds, the_better
from constrain.driver.setup import Setup, floating_type, lowered, place, prepare, refuse_infinite
from constrain.errors import ConstrainError, ModelingError, RouteError
from constrain.language.data import suggest
from constrain.lowering.classify import Facts, classify
from constrain.runtime.decisions import precision
from constrain.solution import Status
from constrain.solvers.primal_dual import PrimalDual
from constrain.solvers.progress import Silent, TerminalProgress, Watched

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from constrain.language.data import Data
    from constrain.language.problem import Problem
    from constrain.lowering.program import Program
    from constrain.runtime.result import Ending, RawResult
    from constrain.solution import Solution
    from constrain.solvers.checkpoint import Checkpoint
    from constrain.solvers.closed import ClosedForm
    from constrain.solvers.progress import Progress, Round

__all__ = ["solve"]

CONVEX_TOLERANCE = 1e-6
TRAINING_TOLERANCE = 1e-3
"""Tolerance of the judgment: of deterministic methods, and of minibatch training."""
_STEPS = ("checkpoint", "resume", "callbacks", "polish")
"""What only methods with steps have: who asks for it asks for training."""
SOLVER_SHARE = 1e-2
"""Tolerance at which full-data methods stop, as a share of that of the judgment."""


def solve(  # noqa: PLR0913  # the public options
    problem: Problem,
    method: Any = "auto",
    *,
    data: Data | Mapping[str, Data] | None = None,
    holdout: Data | Mapping[str, Data] | None = None,
    params: Mapping[str, Any] | None = None,
    start: Solution | Mapping[str, Any] | None = None,
    batch: Mapping[str, int] | int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    time_limit: float | None = None,
    tolerance: float | None = None,
    device: Any = None,
    progress: bool = True,
    polish: bool = False,
    margin: Data | Mapping[str, float] | str | None = None,
    checkpoint: Checkpoint | str | Path | None = None,
    resume: bool | str | Path | None = None,
    callback: Callable[[Round], Any] | Sequence[Callable[[Round], Any]] | None = None,
    **options: Any,
) -> Solution:
    """Solves a problem and judges the result.

    Args:
        problem: what to solve. Models are trained in place, `Variable.value` is set.
        method: `"auto"` (see `problem.explain()`), `"cvxpy"`, `"pyomo"`, `"newton"`, `"augmented"`,
            `"lagrangian"`, `"cooper"`, or a solver object such as `AugmentedLagrangian(outer=20)` of
            `constrain.solvers.augmented`. `"augmented"` uses the full data, or minibatches when `batch=` or
            `epochs=` is given.
        data: replaces the samples of the problem (columns by name); one sample, or a mapping by name.
        holdout: data on which every constraint is judged as well, with intervals.
        params: values of parameters by name, for this solve.
        start: a solution whose multipliers to start from, or multipliers by part key. Decisions always
            start from the current weights and variable values.
        batch: rows per minibatch, for every sample or by the sample's name (asks for minibatch training).
        epochs: passes over the data of minibatch training.
        seed: of everything random; the same seed gives the same run.
        time_limit: in seconds.
        tolerance: of the judgment (scaled violation, stationarity, gap); 1e-6, or 1e-3 for minibatch
            training. The augmented Lagrangian on the full data stops at a hundredth of it.
        device: where to run; models are moved there. Left out: where the models are.
        progress: show a progress bar on standard error.
        polish: after minibatch training, continue on the full data with the multipliers that it found: the
            last layers and variables exactly where the problem is convex in them (CVXPY), then all decisions
            by Newton's method where that can take the problem; full-data methods need none.
        margin: tightens bounds and solves again from there, so that constraints hold beyond the sample:
            `"auto"` (one-sided 95 % for all of them together, from standard errors of their residuals; where
            models have more weights than the square root of the rows, a fifth of the rows is held back from
            training, and the gap to it is added), numbers by the name of the constraint, or a calibration
            sample, which adds the gap to it. The result is judged against the bounds as written;
            `solution.tightening` has the price.
        checkpoint: file in which the run is stored every 30 seconds, so that another process can continue it
            bit by bit; another interval by `Checkpoint(path, steps=..., seconds=...)` of
            `constrain.solvers.checkpoint`. For `"lagrangian"`, `"augmented"` and `"cooper"`.
        resume: the checkpoint to continue from; True for that of `checkpoint=`, if the file exists.
        callback: called with a `Round` after every epoch (or outer step), or several such functions; the run
            stops when one returns True. Methods without rounds (`"cvxpy"`, `"pyomo"`) never call it.
        options: options of the method, e.g. `lr=`, `optimizer=` of `"lagrangian"`, `solver="SCS"` of
            `"cvxpy"`.

    Returns:
        A `Solution`; a run that is interrupted returns its best iterate.

    Raises:
        ModelingError: the problem has no meaning, an option is unknown (E141), or a checkpoint does not exist
            (E185), belongs to another problem (E186) or was asked of a method without steps (E187).
        DataError: the data cannot be used (E124 and others).
        RouteError: E125, the method cannot take the problem; the message says why.
    """
    to, source = places(checkpoint, resume)
    callbacks = callbacks_of(callback)
    request = _Request(
        data, holdout, params, seed, time_limit, tolerance, device, progress, polish, to, source, callbacks
    )

    def once(
        asked: Problem,
        begin: Solution | Mapping[str, Any] | None,
        rows: Data | Mapping[str, Data] | None = data,
    ) -> Solution:
        own = replace(request, data=rows)
        with asked_once():
            return _dispatch(asked, method, own, begin, {"batch": batch, "epochs": epochs, **options})

    if margin is None:
        return once(problem, start)
    if to is not None or source is not None:
        raise ModelingError(
            "E141", "margin= solves several times, and a checkpoint holds one run", fix="margin= alone"
        )
    where: dict[str, Any] = {"holdout": holdout, "data": data, "params": params}
    return solve_with_margin(problem, margin, once, start, seed=seed, **where)


@dataclass(frozen=True)
class _Request:
    """What was asked of one solve, whatever the method; fields as in `solve`."""

    data: Data | Mapping[str, Data] | None
    holdout: Data | Mapping[str, Data] | None
    params: Mapping[str, Any] | None
    seed: int
    time_limit: float | None
    tolerance: float | None
    device: Any
    progress: bool
    polish: bool = False
    checkpoint: Checkpoint | None = None
    resume: Path | None = None
    callbacks: tuple[Callable[[Round], Any], ...] = ()


def _dispatch(
    problem: Problem,
    method: Any,
    request: _Request,
    start: Solution | Mapping[str, Any] | None,
    asked: Mapping[str, Any],
) -> Solution:
    """Analyzes, chooses and runs."""
    check_options({**asked, **vars(request)})
    program = lowered(problem, request.data)
    check_parameters(program, request.params)
    check_starts(program)
    facts = classify(program)
    own = installed_backend(method)
    solver = None if own is not None else installed_solver(method, asked, request.seed)
    if solver is not None:
        method, asked = solver, {"batch": None, "epochs": None}
    if method in ("newton", "augmented", "lagrangian", "cooper"):
        refusal = next(r for r in routes(program, facts) if r.method == method)
        if not refusal.open:
            text = f"{method} cannot take the problem: {refusal.reason}"
            raise RouteError("E125", text, fix='solve(method="auto")')
    wishes = {**asked, **{key: getattr(request, key) or None for key in _STEPS}}
    found = _by_formula(program, facts, method, request, start, wishes, asked)
    if found is not None:
        return found
    apart = _apart(problem, program, facts, request, start, wishes) if method == "auto" else None
    if apart is not None:
        return apart
    chosen, why = choose(program, facts, wishes) if method == "auto" else (method, "asked for")
    name = chosen if isinstance(chosen, str) else getattr(chosen, "name", type(chosen).__name__)
    by_name = name in ("lagrangian", "cooper") or any(asked[k] is not None for k in ("batch", "epochs"))
    minibatch = getattr(chosen, "minibatch", by_name)
    usual = TRAINING_TOLERANCE if minibatch else CONVEX_TOLERANCE
    tolerance = usual if request.tolerance is None else request.tolerance
    run = _Run(program, facts, f"{name}: {why}", request, tolerance)
    multipliers = _start(start)
    check_start(program, multipliers)
    refuse_without_steps(name, request.checkpoint, request.resume)
    if own is not None:
        return run.installed(name, own, asked)
    if chosen == "pyomo" and method == "auto" and not facts.integer and few_events(program, wishes):
        return run.searched(asked, multipliers)
    if chosen in ("cvxpy", "pyomo"):
        found = run.exact(chosen, asked, supported=method == "auto")
        failed = method == "auto" and run.ending == "error" and not asks_otherwise(wishes)
        return run.in_place_of(found, multipliers) if failed else found
    if chosen == "cooper":
        return run.cooper(asked, multipliers)
    extra: dict[str, Any] = {"seed": request.seed} if minibatch and isinstance(chosen, str) else {}
    if chosen in ("augmented", "newton") and not minibatch and request.tolerance is not None:
        extra["tolerance"] = SOLVER_SHARE * request.tolerance
    return run.loop(make_solver(chosen, {**asked, **extra}), multipliers, minibatch=minibatch)


def _by_formula(
    program: Program,
    facts: Facts,
    method: Any,
    request: _Request,
    start: Solution | Mapping[str, Any] | None,
    wishes: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> Solution | None:
    """The solution of a problem that has a formula; None for other problems and methods."""
    if method == "closed":
        form = asked_for_formula(program, asked, request.data, request.params)
    elif method == "auto" and not asks_otherwise(wishes) and all(v is None for v in asked.values()):
        form = formula_of(program, request.data, request.params)
    else:
        return None
    if isinstance(form, str):
        return None
    refuse_without_steps("closed", request.checkpoint, request.resume)
    multipliers = _start(start)
    check_start(program, multipliers)
    tolerance = CONVEX_TOLERANCE if request.tolerance is None else request.tolerance
    found = _Run(program, facts, f"closed: {form.reason}", request, tolerance).formula(form, multipliers)
    return found if method == "closed" or found.status is not Status.LIMIT else None


def _apart(
    problem: Problem,
    program: Program,
    facts: Facts,
    request: _Request,
    start: Solution | Mapping[str, Any] | None,
    wishes: Mapping[str, Any],
) -> Solution | None:
    """The solution of a problem whose blocks have routes of their own; None for other problems."""
    if len(components(problem)) < 2:
        return None
    try:
        joint = choose(program, facts, wishes)[0]
    except RouteError:
        joint = None
    named = None if request.data is None else rebind(program, request.data)
    blocks = blocks_of(problem, joint, wishes, named, request.params)
    if not blocks:
        return None
    multipliers, began, limit = _start(start), time.perf_counter(), request.time_limit
    check_start(program, multipliers)
    found: list[Solution] = []
    for block in in_order(blocks):
        own = replace(
            request,
            data=own_data(block.problem, named),
            holdout=None,
            params=own_params(block.problem, request.params),
            time_limit=None if limit is None else max(limit - (time.perf_counter() - began), 1.0),
        )
        begin = own_start(block.problem, multipliers)
        found.append(_dispatch(block.problem, "auto", own, begin, {"batch": None, "epochs": None}))
    trained = any(block.method == "lagrangian" for block in blocks)
    usual = TRAINING_TOLERANCE if trained else CONVEX_TOLERANCE
    tolerance = usual if request.tolerance is None else request.tolerance
    return _Run(program, facts, text_of(blocks), request, tolerance).together(found)


def _start(start: Solution | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    found: Any = getattr(start, "multipliers", start)
    if found is not None and not hasattr(found, "keys"):
        raise ModelingError("E141", "start= takes a Solution or multipliers by part key")
    return cast("Mapping[str, Any] | None", found)


class _Run:
    """The ingredients of one solve."""

    def __init__(
        self, program: Program, facts: Facts, route: str, request: _Request, tolerance: float
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
            hint = suggest(unknown[0], ("method", *(f.name for f in fields(_Request)), *allowed))
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
            raw = self._with(bar, solver, setup, multipliers)
            if self.polish:
                return self._polished(setup, raw, solver)
            return self._judge(setup, raw, _options_of(solver))
        with self._precise():
            setup = self._prepare(self._double())
            raw = self._with(bar, solver, setup, multipliers)
            return self._judge(setup, raw, _options_of(solver))

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
                found = finish(
                    self.program, self.facts, setup, raw, progress=bar, time_limit=self.time_limit,
                    tolerance=CONVEX_TOLERANCE,
                )  # fmt: skip
            finally:
                bar.close()
            if found.ending == "converged" and self.asked is None:
                self.tolerance = CONVEX_TOLERANCE
            return self._judge(setup, found, _options_of(solver))

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
        if solution.status in (Status.INFEASIBLE, Status.LIKELY_INFEASIBLE):
            return with_conflict(solution, self.program.problem, self.data, self.params)
        return solution


def _options_of(solver: Any) -> dict[str, Any]:
    """Plain settings of a solver object, for the record."""
    settings = cast("dict[str, Any]", vars(solver))
    return {k: v for k, v in settings.items() if isinstance(v, (bool, int, float, str))}
