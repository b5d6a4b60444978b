"""The other doors to a compiled problem: your own loop, KKT at any point, CVXPY and Cooper objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from constrain._lazy import attribute, backend, language_printing
from constrain.diagnostics.alive import evaluation_of
from constrain.diagnostics.anywhere import by_part, settle
from constrain.diagnostics.confidence import judge_sample
from constrain.diagnostics.kkt import kkt as kkt_of
from constrain.driver.options import (
    check_numbers,
    check_options,
    check_parameters,
    check_start,
    check_starts,
    named,
)
from constrain.driver.setup import floating_type, lowered, place, prepare, taken_apart
from constrain.errors import ModelingError, RouteError
from constrain.language.data import suggest
from constrain.lowering.classify import classify
from constrain.lowering.lower import lower
from constrain.runtime.binding import as_array
from constrain.runtime.decisions import precision
from constrain.runtime.lagrangian import Lagrangian
from constrain.runtime.multipliers import multiplier_functions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from constrain.language.data import Data
    from constrain.language.problem import Problem
    from constrain.runtime.decisions import Decisions
    from constrain.solution import KKT, Evaluation, Solution
    from constrain.symbolic.derivation import Derivation

__all__ = ["compile", "derive", "evaluate", "kkt", "to_cooper", "to_cvxpy", "to_pyomo"]


@named
def compile(  # noqa: PLR0913  # the public word and options
    problem: Problem,
    *,
    data: Data | Mapping[str, Data] | None = None,
    params: Mapping[str, Any] | None = None,
    device: Any = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    rate: float = 0.03,
    gain: float = 0.3,
    estimator: Mapping[str, str] | str = "auto",
    multipliers: Mapping[str, Any] | None = None,
) -> Lagrangian:
    """The Lagrangian as a module for a training loop of your own.

    Args:
        problem: what to compile.
        data: replaces the samples of the problem.
        params: values of parameters by name.
        device: where to run; models are moved there.
        dtype: floating type of the data; that of the models when left out.
        seed: of the calibration of multiplier steps.
        rate: integral step of the multipliers per `ascend()`, dimensionless.
        gain: proportional gain, dimensionless; 0 gives plain gradient ascent.
        estimator: "auto", or "batch", "halves" or "running" for all terms, or by term ("objective", names of
            constraints); see `constrain.runtime.estimates`.
        multipliers: by name of a constraint per row, an expression such as `lam(D.x)` with a model of its own
            that gives its multipliers instead of a table.

    Returns:
        A module: `forward(batch)` gives the scalar to descend, `ascend()` moves the multipliers,
        `state_dict()` holds them by constraint name.
    """
    check_options({"seed": seed, "rate": rate, "gain": gain})
    program = taken_apart(lowered(problem, data), estimator)
    check_parameters(program, params)
    check_starts(program)
    if dtype is not None and not isinstance(dtype, torch.dtype):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ModelingError("E123", f"dtype={dtype!r} is no type of torch", fix="dtype=torch.float64")
    kind = floating_type(program) if dtype is None else dtype
    chosen = place(program, device)
    setup = prepare(program, device=chosen, dtype=kind, data=data, params=params, reach=True)
    functions = multiplier_functions(setup.evaluator, multipliers or {}, lr=1e-2)
    lagrangian = Lagrangian(setup.evaluator, rate=rate, gain=gain, estimator=estimator, functions=functions)
    setup.evaluator.modes.check(setup.evaluator, {})
    lagrangian.follows = setup.evaluator.follows and chosen.type != "meta"
    lagrangian.calibrate(torch.Generator().manual_seed(seed))
    return lagrangian


@named
def kkt(
    problem: Problem,
    point: Solution | Mapping[str, Any] | None = None,
    multipliers: Mapping[str, Any] | None = None,
    *,
    data: Data | Mapping[str, Data] | None = None,
    params: Mapping[str, Any] | None = None,
    tolerance: float = 1e-6,
    order: int = 1,
    batches: int | None = None,
) -> KKT:
    """KKT diagnostics at any point.

    Args:
        problem: what to judge.
        point: a solution, or values by name of variables, model parameters (`f.0.weight`) and whole models
            (`f`, its `state_dict()`); what is left out keeps its current value. Nothing of the user's is
            changed.
        multipliers: by constraint or part key, in the convention of semantics S10; best-fit ones when left
            out. That of a constraint with several sides belongs to the side closest to its bound.
        data: replaces the samples of the problem.
        params: values of parameters by name.
        tolerance: below which residuals count as zero.
        order: 2 for curvature and standard errors of multipliers as well.
        batches: for an estimate of |grad L| from so many batches, with what they cannot tell from 0; by
            default where a population is a distribution.

    Raises:
        ModelingError: E137 for an unknown name in `point`, E139 for one in `multipliers`.
    """
    program = lowered(problem, data)
    names = [form.name for form in program.forms]
    check_start(program, {key: value for key, value in (multipliers or {}).items() if key not in names})
    check_numbers(multipliers)
    facts = classify(program)
    before: dict[str, torch.Tensor] | None = None
    decisions: Decisions | None = None
    with precision(program, torch.float64):
        try:
            setup = prepare(
                program, device=place(program, None), dtype=torch.float64, data=data, params=params
            )
            decisions = setup.decisions
            before = decisions.snapshot()
            _set_point(decisions, _by_name(point))
            settle(setup.evaluator)
            given, certified = by_part(setup.evaluator, multipliers), facts.convex and not facts.integer
            how: dict[str, Any] = {"convex": certified, "order": order, "batches": batches}
            return kkt_of(setup.evaluator, given, tolerance, **how)
        finally:
            if decisions is not None and before is not None:
                decisions.restore(before)


@named
def evaluate(
    problem: Problem,
    data: Data | Mapping[str, Data] | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    bounded: Mapping[str, tuple[float, float]] | None = None,
) -> Evaluation:
    """The objective and both sides of every constraint at the current decisions, exactly on all rows.

    Nothing is solved and nothing of the user's is changed. Hidden decisions, such as the slack of a relaxed
    constraint, take their best values there.

    Args:
        problem: what to evaluate. Variables without a value are where a solve would start them.
        data: replaces the samples of the problem, with their own levels.
        params: values of parameters by name.
        bounded: by constraint the range of a row's value, for intervals that hold for every number of rows.

    Returns:
        What `solution.evaluate` returns: values, bounds, violations, and intervals for the sampling error.

    Raises:
        ModelingError: E122, E127, E138, E139, E141, E146, and others of `solve` on decisions and parameters.
        DataError: E106, E124, E135, E169.
    """
    program = lowered(problem, data)
    check_parameters(program, params)
    check_starts(program)
    before: dict[str, torch.Tensor] | None = None
    decisions: Decisions | None = None
    with precision(program, torch.float64):
        try:
            setup = prepare(
                program, device=place(program, None), dtype=torch.float64, data=data, params=params
            )
            decisions = setup.decisions
            before = decisions.snapshot()
            settle(setup.evaluator)
            written = {form.name: str(language_printing().text(form.relation)) for form in program.forms}
            return evaluation_of(setup.evaluator, judge_sample(setup.evaluator, bounded=bounded), written)
        finally:
            if decisions is not None and before is not None:
                decisions.restore(before)


def _by_name(point: Any) -> Any:
    """A point as values by name of decisions: solutions and states of models are taken apart."""
    if hasattr(point, "variables") and hasattr(point, "weights"):
        return {**point.variables, **point.weights}
    if not hasattr(point, "items"):
        return point or {}
    found: dict[str, Any] = {}
    for name, value in point.items():
        found |= {f"{name}.{k}": v for k, v in value.items()} if hasattr(value, "items") else {name: value}
    return found


def _set_point(decisions: Decisions, point: Mapping[str, Any]) -> None:
    known = {block.name: block.tensor for block in decisions.blocks}
    if not hasattr(point, "items"):
        raise ModelingError(
            "E137",
            f"a point gives values by name, got a {type(point).__name__}",
            fix=f'{{"{next(iter(known))}": ...}}',
        )
    buffers = {f"{m.name}.{k}": b for m in decisions.program.models for k, b in m.module.named_buffers()}
    known |= {name: buffer for name, buffer in buffers.items() if name not in known}
    for name, value in point.items():
        if name not in known:
            raise ModelingError(
                "E137",
                f"the problem has no decision {name!r}{suggest(name, known)}",
                fix=f"one of {', '.join(known)}",
            )
        given, wanted = as_array(value), tuple(known[name].shape)
        if given.shape != wanted:
            raise ModelingError("E137", f"{name!r} has shape {wanted}, the value given has {given.shape}")
        with torch.no_grad():
            known[name].copy_(torch.as_tensor(given.copy()))


@named
def derive(problem: Problem, *, written_out: int = 6) -> Derivation:
    """The Lagrangian and the optimality conditions as SymPy objects; see `constrain.symbolic`.

    Args:
        problem: what to derive. Data, arrays and parameters are symbols, models are functions of their
            parameters: nothing is computed.
        written_out: axes of up to so many entries are written out entry by entry, longer ones have an index.

    Raises:
        RouteError: E196 for rates of decisions, integers, and functions without a SymPy expression.
    """
    return attribute("constrain.symbolic.derivation:derive")(lower(problem), written_out)  # type: ignore[no-any-return]


@named
def to_cvxpy(problem: Problem, *, params: Mapping[str, Any] | None = None) -> Any:
    """The sample-average program as a `cvxpy.Problem`.

    Raises:
        RouteError: E125 with the reason when the problem is not certified convex.
    """
    cvxpy = backend("cvxpy")
    program = lower(problem)
    answer = cvxpy.support(program, classify(program))
    if not answer.ok:
        raise RouteError("E125", f"cvxpy cannot take the problem: {answer.reason}")
    return cvxpy.build(program, None, params, symbolic_parameters=True).problem


@named
def to_pyomo(problem: Problem, *, params: Mapping[str, Any] | None = None) -> Any:
    """The sample-average program as a `pyomo.ConcreteModel` that minimizes `model.objective`.

    Variables and constraints are components under the user's names; a constraint has one entry per number of
    its residual, `residual <= 0` or `residual == 0`. Parameters and data are numbers.

    Raises:
        RouteError: E125 with the reason when the problem has no form in Pyomo.
    """
    return backend("pyomo").build(lower(problem), None, params).model


def to_cooper(
    problem: Problem, *, formulation: str = "lagrangian", penalty: float = 1.0, **options: Any
) -> Any:
    """The problem as a `cooper.ConstrainedMinimizationProblem`; see `backends/cooper.py`.

    Args:
        problem: what to compile.
        formulation: `"lagrangian"` or `"augmented"`.
        penalty: of the augmented formulation, dimensionless.
        options: as in `compile`.

    Raises:
        ModelingError: E141 for an unknown formulation.
    """
    lagrangian = compile(problem, **options)
    return backend("cooper").export(lagrangian, formulation=formulation, penalty=penalty)
