"""`polish=True`: after training, the last digits on the full data, from the multipliers of the training."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from constrain.driver.routes import routes
from constrain.solution import Warn
from constrain.solvers.augmented import AugmentedLagrangian
from constrain.solvers.second_order import Newton

if TYPE_CHECKING:
    from constrain.driver.setup import Setup
    from constrain.lowering.classify import Facts
    from constrain.lowering.program import Program
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.result import RawResult
    from constrain.solvers.progress import Progress

__all__ = ["merit", "polish"]

_ENDED = {
    "limit": "came to its limit before it converged",
    "interrupted": "was interrupted",
    "likely_infeasible": "found no feasible point",
}
"""Endings of a full-data method, as the verb of its name."""


def polish(
    program: Program,
    facts: Facts,
    setup: Setup,
    trained: RawResult,
    *,
    progress: Progress,
    time_limit: float | None,
    tolerance: float,
) -> tuple[RawResult, list[Warn]]:
    """Newton's method, or the augmented Lagrangian where that cannot take the problem, from a trained point.

    The decisions of `setup` are at the trained point. They keep it when the full-data method does not
    converge, or converges to a point that is further from feasible, or has a worse objective.

    Args:
        program: the moment form.
        facts: of the analysis.
        setup: in float64.
        trained: how the training ended.
        progress: told of it.
        time_limit: in seconds.
        tolerance: of the violation that counts as none, in the units of the constraints.

    Returns:
        How the run ended, and W225 where the trained point was kept.
    """
    newton = next(route for route in routes(program, facts) if route.method == "newton")
    solver: Any = Newton() if newton.open else AugmentedLagrangian()
    kept, before = setup.decisions.snapshot(), merit(setup.evaluator, tolerance)
    found = solver.solve(
        setup.evaluator, progress=progress, multipliers=trained.multipliers, time_limit=time_limit
    )
    failure = _failure(found, setup.evaluator, before, tolerance)
    if failure:
        setup.decisions.restore(kept)
        words = f"polish=True kept the trained point: {found.solver} on all rows {failure}"
        start = f'solve("{solver.name}", start=solution) goes on from here, with options of its own'
        unpolished = replace(trained, message=f"{trained.message}; {words}".lstrip("; "))
        return unpolished, [Warn("W225", "not-polished", f"{words}; {start}")]
    steps = max((row.get("step", 0) for row in trained.history), default=0)
    later = [{**row, "step": row["step"] + steps} for row in found.history]
    polished = replace(
        found,
        solver=f"{trained.solver}, polished by {found.solver}",
        seconds=trained.seconds + found.seconds,
        iterations=trained.iterations + found.iterations,
        history=[*trained.history, *later],
    )
    return polished, []


def _failure(found: RawResult, evaluator: Evaluator, before: tuple[float, float], tolerance: float) -> str:
    """Why the point of the full-data method is no better than the trained one; empty where it is."""
    if found.ending != "converged":
        ended = _ENDED.get(found.ending, f"ended {found.ending}")
        return f"{ended} ({found.message})" if found.message else ended
    excess, objective = merit(evaluator, tolerance)
    if excess > before[0]:
        return f"came to a point that violates a constraint by {excess:.3g} more than {tolerance:g}"
    if excess == before[0] and objective > before[1] + tolerance * (1 + abs(before[1])):
        here, there = (evaluator.program.sign * value for value in (objective, before[1]))
        return f"came to a point of worse objective, {here:.6g} in place of {there:.6g}"
    return ""


def merit(evaluator: Evaluator, tolerance: float) -> tuple[float, float]:
    """The violation beyond the tolerance, then the objective of the program: smaller is better.

    Args:
        evaluator: at the point.
        tolerance: of the violation that counts as none, in the units of the constraints.
    """
    outer = evaluator.full("exact")
    worst = 0.0
    for i, (part, residual) in enumerate(zip(evaluator.program.parts, outer.residuals, strict=True)):
        found = residual
        if found is None:
            rows, mask = evaluator.row_residuals(i)
            found = rows if mask is None else rows[mask.bool()]
        if found.numel():
            off = found.abs() if part.kind == "==" else found.clamp(min=0)
            worst = max(worst, float(off.amax()))
    return max(worst - tolerance, 0.0), float(outer.objective)
