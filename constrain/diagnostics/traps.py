"""Recognizes known traps in the KKT quantities of a point; each has a stable code, a name and advice."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from constrain.diagnostics.names import part_label
from constrain.lowering.reach import always_held
from constrain.solution.records import Warn

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from constrain.diagnostics.jacobian import Entry, Qualification
    from constrain.diagnostics.point import Point
    from constrain.lowering.program import Program
    from constrain.runtime.evaluator import Evaluator
    from constrain.runtime.result import RawResult
    from constrain.solution.records import KKT

__all__ = ["honest_bound", "recognize"]


def recognize(
    evaluator: Evaluator,
    point: Point,
    qualification: Qualification,
    entries: Sequence[Entry],
    record: KKT,
) -> list[Warn]:
    """W201 idle-constraint, W203 redundant-constraints, W204, W215, W226 no-multipliers, C301.

    Args:
        evaluator: of the judged program, at the point.
        point: values there.
        qualification: of the active gradients.
        entries: those whose gradients were formed, with the judged multipliers.
        record: of the point.
    """
    # with integers fixed, implied constraints are the rule (x <= b z at z = 0), and no price is claimed
    whole = bool(evaluator.decisions.integers().any())
    found: list[Warn] = []
    if record.fritz_john:
        found.append(_no_multipliers(record.fritz_john))
    elif qualification.dependent and not whole:
        found.append(_redundant(qualification))
    if record.feasible and not whole:
        found += _degenerate(evaluator.program, qualification, entries)
    if qualification.vanishing:
        names = _listed(dict.fromkeys(e.label for e in qualification.vanishing))
        found.append(
            Warn(
                "W204",
                "vanishing-gradient",
                f"the gradient of {names} vanishes where it holds, so that no finite multiplier need exist; "
                "write the quantity itself (r == 0, not E(r**2) == 0), or allow a tolerance",
            )
        )
    return found + _idle(evaluator) + _surrogate_gaps(evaluator, point, record.tolerance)


def _idle(evaluator: Evaluator) -> list[Warn]:
    """W201 for constraints that hold by construction, such as a share that may be 80."""
    if len(evaluator.program.forms) > MOST_IDLE:
        return []
    bound = {data.name: population.data for data, population in evaluator.populations.items()}
    names = always_held(evaluator.program, bound, evaluator.params)
    told = "whatever the decisions are, so that nothing is asked of them; a tighter bound, or leave it out"
    return [Warn("W201", "idle-constraint", f"{name} holds {told}") for name in names]


def _listed(names: Iterable[str], limit: int = 6) -> str:
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def _no_multipliers(alone: Mapping[str, float]) -> Warn:
    heaviest = sorted(alone.items(), key=lambda item: -abs(item[1]))
    weights = _listed(f"{weight:.2f} {name}" for name, weight in heaviest)
    return Warn(
        "W226",
        "no-multipliers",
        "no multipliers balance the objective at this point, which may be an optimum all the same: no "
        "constraint qualification holds, and gradients balance each other without it (Fritz John: "
        f"{weights}); there are no prices, as the best value changes ever faster towards these bounds",
    )


def _redundant(q: Qualification) -> Warn:
    names = _listed(entry.label for entry, _ in q.dependent)
    sure = all(entry.equality or entry.multiplier > 0 for entry, _ in q.dependent)
    word = "are" if sure else "may be"
    if q.rank == 0 or len(q.dependent) == 1:
        where = "vanish" if len(q.dependent) > 1 else "vanishes"
        return Warn(
            "W203",
            "redundant-constraints",
            f"the gradient of {names} {where} along every decision that is not at its bound, so its "
            f"multiplier and those of the bounds {word} not unique; leave out the constraint, or the bounds "
            "that imply it",
        )
    if q.parallel:
        what = f"the gradients of {names} are parallel"
    else:
        count = q.active - len(q.vanishing)
        what = f"the {count} active gradients have rank {q.rank}: {names} depend on each other"
    weights = ", ".join(f"{weight:.2f}" for _, weight in q.dependent[:6])
    more = ", …" if len(q.dependent) > 6 else ""
    return Warn(
        "W203",
        "redundant-constraints",
        f"{what}, so their multipliers {word} not unique (null direction {weights}{more}); "
        "drop one of them, or read their sums only",
    )


MOST_IDLE = 200
"""Constraints up to which the report looks for those that always hold; `problem.check()` looks at all."""
WEAK = 1e-7
"""Multipliers below this share of the largest one are none."""


def _degenerate(program: Program, q: Qualification, entries: Sequence[Entry]) -> list[Warn]:
    """Entries at their bound without a force, or a face of multipliers that balance alike."""
    largest = max((abs(e.multiplier) for e in entries), default=0.0)
    if program.feasibility or largest == 0.0:
        return []
    held = [e for e in entries if e.binding and not e.equality]
    weak = [e.label for e in held if abs(e.multiplier) <= WEAK * largest]
    face = q.active - len(q.vanishing) - q.rank
    if not weak or (face and len(weak) == len(held)):
        return []
    more = f"; multipliers form a face of dimension {face}" if face else ""
    return [
        Warn(
            "W215",
            "degenerate-duals",
            f"{_listed(dict.fromkeys(weak))}: at its bound with a multiplier of 0{more}, so prices hold in "
            "one direction only, and derivatives of the optimum need not be unique; leave such a constraint "
            "out, or add a small squared term to the objective",
        )
    ]


def honest_bound(
    program: Program, raw: RawResult, point: Point, tolerance: float
) -> tuple[RawResult, list[Warn]]:
    """The run with a bound that its own point does not contradict; W216 certificate-tolerance.

    A solver proves its bound up to its residuals. With multipliers and violations of the point,
    f + sum multiplier * violation is at least the optimal value to first order; a bound above it is moved
    below it by as much as it was above.
    """
    if raw.bound is None:
        return raw, []
    reach = point.objective
    for i, part in enumerate(program.parts):
        given = (raw.multipliers or {}).get(part.key)
        if given is None or part.rows is not None:
            continue
        residual = point.residuals[i]
        over = np.abs(residual) if part.kind == "==" else np.maximum(residual, 0.0)
        reach += float(np.sum(np.abs(np.asarray(given)) * over))
    excess = raw.bound - reach
    if not excess > 0:
        return raw, []
    moved = replace(raw, bound=reach - excess)
    if excess <= 0.1 * tolerance * (1 + abs(point.objective)):
        return moved, []
    message = (
        f"the solver's bound is {excess:.1e} beyond the value of its own point, so it is proven up to its "
        f"tolerance only; it was moved to {program.sign * (reach - excess):.6g}; a smaller tolerance of the "
        "solver makes it a better bound"
    )
    return moved, [Warn("W216", "certificate-tolerance", message)]


def _surrogate_gaps(evaluator: Evaluator, point: Point, tolerance: float) -> list[Warn]:
    """C301, for the entry of each constraint with the largest gap."""
    program = evaluator.program
    worst: dict[str, tuple[float, float, float, str]] = {}
    for i, part in enumerate(program.parts):
        exact, soft = point.selected(i), point.surrogates[i]
        if point.surrogates[i] is point.residuals[i] or not exact.size:
            continue
        gap = np.where(np.isfinite(exact), np.abs(exact - soft), 0.0)
        k = int(np.argmax(gap))
        if gap.flat[k] > worst.get(part.constraint, (0.0,))[0]:
            label = part_label(evaluator, i, k, exact.shape)
            worst[part.constraint] = float(gap.flat[k]), float(exact.flat[k]), float(soft.flat[k]), label
    return [
        Warn(
            "C301",
            "surrogate-gap",
            f"{label}: its residual is {exact:+.3f} exactly and {soft:+.3f} for the surrogate that gradients "
            "see; multipliers follow the exact one, gradients the other; "
            "surrogate=cn.surrogate.Sigmoid(temperature=0.05), or a margin in the bound, brings them closer",
        )
        for size, exact, soft, label in worst.values()
        if size > 0.05 or (exact > tolerance >= soft and size > 0.01)
    ]
