"""`polish=True`: after training, the last digits on the full data, from the multipliers of the training."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from constrain.driver.routes import routes
from constrain.solvers.augmented import AugmentedLagrangian
from constrain.solvers.second_order import Newton

if TYPE_CHECKING:
    from constrain.driver.setup import Setup
    from constrain.lowering.classify import Facts
    from constrain.lowering.program import Program
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.result import RawResult
    from constrain.solvers.progress import Progress

__all__ = ["polish", "violation"]


def polish(
    program: Program,
    facts: Facts,
    setup: Setup,
    trained: RawResult,
    *,
    progress: Progress,
    time_limit: float | None,
    tolerance: float,
) -> RawResult:
    """Newton's method, or the augmented Lagrangian where that cannot take the problem, from a trained point.

    The decisions of `setup` are at the trained point. They keep it when the full-data method does not
    converge, or converges to a point that is further from feasible.

    Args:
        program: the moment form.
        facts: of the analysis.
        setup: in float64.
        trained: how the training ended.
        progress: told of it.
        time_limit: in seconds.
        tolerance: of the violation that counts as none, in the units of the constraints.
    """
    newton = next(route for route in routes(program, facts) if route.method == "newton")
    solver: Any = Newton() if newton.open else AugmentedLagrangian()
    kept, before = setup.decisions.snapshot(), violation(setup.evaluator)
    found = solver.solve(
        setup.evaluator, progress=progress, multipliers=trained.multipliers, time_limit=time_limit
    )
    if found.ending != "converged" or violation(setup.evaluator) > max(before, tolerance):
        setup.decisions.restore(kept)
        said = f"; {found.message}" if found.message else ""
        return replace(trained, message=f"{trained.message}; polish ended {found.ending}{said}".lstrip("; "))
    steps = max((row.get("step", 0) for row in trained.history), default=0)
    later = [{**row, "step": row["step"] + steps} for row in found.history]
    return replace(
        found,
        solver=f"{trained.solver}, polished by {found.solver}",
        seconds=trained.seconds + found.seconds,
        iterations=trained.iterations + found.iterations,
        history=[*trained.history, *later],
    )


def violation(evaluator: Evaluator) -> float:
    """The largest exact violation, in the units of the constraints."""
    residuals = evaluator.full("exact").residuals
    worst = 0.0
    for i, (part, residual) in enumerate(zip(evaluator.program.parts, residuals, strict=True)):
        found = residual
        if found is None:
            rows, mask = evaluator.row_residuals(i)
            found = rows if mask is None else rows[mask.bool()]
        if found.numel():
            off = found.abs() if part.kind == "==" else found.clamp(min=0)
            worst = max(worst, float(off.amax()))
    return worst
