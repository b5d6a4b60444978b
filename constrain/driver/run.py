"""`solve`: route, run, judge."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from constrain.analysis.once import asked_once
from constrain.diagnostics.alive import rebind
from constrain.driver.blocks import blocks_of, components, in_order, own_data, own_params, own_start, text_of
from constrain.driver.checkpoints import places, refuse_without_steps
from constrain.driver.formulas import asked_for_formula, formula_of
from constrain.driver.installed import installed_backend, installed_solver
from constrain.driver.margins import solve_with_margin
from constrain.driver.options import callbacks_of, check_options, check_parameters, check_start, check_starts
from constrain.driver.request import Request, multipliers_of
from constrain.driver.routes import asks_otherwise, choose, make_solver, routes
from constrain.driver.running import CONVEX_TOLERANCE, TRAINING_TOLERANCE, Run
from constrain.driver.searched import few_events
from constrain.driver.setup import lowered, taken_apart
from constrain.errors import ModelingError, RouteError
from constrain.lowering.classify import Facts, classify
from constrain.solution import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from constrain.language.data import Data
    from constrain.language.problem import Problem
    from constrain.lowering.program import Program
    from constrain.solution import Solution
    from constrain.solvers.checkpoint import Checkpoint
    from constrain.solvers.progress import Round

__all__ = ["solve"]

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
    """Solves a problem and judges the result; `constrain.driver.request.Request` says more of some options.

    After a run that diverged, models and variables are as they were at its start, and `solution.variables`
    tells where it stopped. Training on minibatches leaves its last good state.

    Args:
        problem: what to solve. Models are trained in place, `Variable.value` is set.
        method: `"auto"` (see `problem.explain()`), one of `constrain.driver.routes.METHODS`, or a solver
            object such as `AugmentedLagrangian(outer=20)`.
        data: replaces the samples of the problem; one sample, or a mapping by name.
        holdout: data on which every constraint is judged as well, with intervals.
        params: values of parameters by name, for this solve.
        start: a solution, or multipliers by part key, to start from; decisions start as they are now.
        batch: rows per minibatch, of every sample or by its name (asks for minibatch training).
        epochs: passes over the data of minibatch training.
        seed: of everything random; the same seed gives the same run.
        time_limit: in seconds.
        tolerance: of the judgment; 1e-6, or 1e-3 for minibatch training.
        device: where to run; models are moved there. Left out: where the models are.
        progress: show a progress bar on standard error.
        polish: after minibatch training, finish on the full data.
        margin: tightens bounds so that they hold beyond the sample: see `constrain.driver.margins`.
        checkpoint: file in which the run is stored every 30 seconds; or a `Checkpoint`.
        resume: the checkpoint to continue from; True for that of `checkpoint=`, if the file exists.
        callback: called with a `Round` after every round; the run stops when one returns True.
        options: options of the method, e.g. `lr=` of `"lagrangian"`, `solver="SCS"` of `"cvxpy"`.

    Raises:
        ModelingError: the problem has no meaning, an option is unknown (E141), E185 to E187 of checkpoints.
        DataError: the data cannot be used (E124 and others).
        RouteError: E125, the method cannot take the problem; the message says why.
    """
    to, source = places(checkpoint, resume)
    called = callbacks_of(callback)
    request = Request(
        data, holdout, params, seed, time_limit, tolerance, device, progress, polish, to, source, called
    )
    return _solved(problem, method, request, start, margin, {"batch": batch, "epochs": epochs, **options})


def _solved(
    problem: Problem,
    method: Any,
    request: Request,
    start: Solution | Mapping[str, Any] | None,
    margin: Data | Mapping[str, float] | str | None,
    asked: Mapping[str, Any],
) -> Solution:
    """One solve, or several ones with tighter bounds."""

    def once(
        problem: Problem,
        begin: Solution | Mapping[str, Any] | None,
        rows: Data | Mapping[str, Data] | None = request.data,
    ) -> Solution:
        with asked_once(), torch.inference_mode(mode=False), torch.enable_grad():  # whatever the caller set
            return _dispatch(problem, method, replace(request, data=rows), begin, asked)

    if margin is None:
        return once(problem, start)
    if request.checkpoint is not None or request.resume is not None:
        raise ModelingError(
            "E141", "margin= solves several times, and a checkpoint holds one run", fix="margin= alone"
        )
    where: dict[str, Any] = {"holdout": request.holdout, "data": request.data, "params": request.params}
    return solve_with_margin(problem, margin, once, start, seed=request.seed, **where)


def _dispatch(
    problem: Problem,
    method: Any,
    request: Request,
    start: Solution | Mapping[str, Any] | None,
    asked: Mapping[str, Any],
) -> Solution:
    """Analyzes, chooses and runs."""
    check_options({**asked, **vars(request)})
    program = taken_apart(
        lowered(problem, request.data), asked.get("estimator") or getattr(method, "estimator", None)
    )
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
    run = Run(program, facts, f"{name}: {why}", request, tolerance)
    multipliers = multipliers_of(start)
    check_start(program, multipliers)
    refuse_without_steps(name, request.checkpoint, request.resume)
    if own is not None:
        return run.installed(name, own, asked)
    if chosen == "pyomo" and method == "auto" and not facts.integer and few_events(program, wishes):
        return run.searched(asked, multipliers)
    if chosen in ("cvxpy", "pyomo"):
        found = run.exact(chosen, asked, supported=method == "auto")
        failed = method == "auto" and run.ending == "error" and not asks_otherwise(wishes)
        if failed:
            return run.in_place_of(found, multipliers)
        own = method == "auto" and chosen == "cvxpy" and not asks_otherwise(wishes)
        return run.with_last_digits(found) if own else found
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
    request: Request,
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
    multipliers = multipliers_of(start)
    check_start(program, multipliers)
    tolerance = CONVEX_TOLERANCE if request.tolerance is None else request.tolerance
    found = Run(program, facts, f"closed: {form.reason}", request, tolerance).formula(form, multipliers)
    return found if method == "closed" or found.status is not Status.LIMIT else None


def _apart(
    problem: Problem,
    program: Program,
    facts: Facts,
    request: Request,
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
    multipliers, began, limit = multipliers_of(start), time.perf_counter(), request.time_limit
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
    return Run(program, facts, text_of(blocks), request, tolerance).together(found)
