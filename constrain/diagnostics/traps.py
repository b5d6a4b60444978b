"""Recognizes known traps in the KKT quantities of a point; each has a stable code, a name and advice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from constrain.diagnostics.names import part_label
from constrain.solution.records import Warn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from constrain.diagnostics.jacobian import Qualification
    from constrain.diagnostics.point import Point
    from constrain.runtime.evaluator import Evaluator

__all__ = ["recognize"]


def recognize(
    evaluator: Evaluator, point: Point, qualification: Qualification, tolerance: float
) -> list[Warn]:
    """W203 redundant-constraints, W204 vanishing-gradient, C301 surrogate-gap."""
    found: list[Warn] = []
    if qualification.dependent:
        found.append(_redundant(qualification))
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
    return found + _surrogate_gaps(evaluator, point, tolerance)


def _listed(names: Iterable[str], limit: int = 6) -> str:
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def _redundant(q: Qualification) -> Warn:
    names = _listed(entry.label for entry, _ in q.dependent)
    sure = all(entry.equality or entry.multiplier > 0 for entry, _ in q.dependent)
    word = "are" if sure else "may be"
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
            "see; multipliers follow the exact one, gradients the other; surrogate="
            "cn.Sigmoid(0.05), or a margin in the bound, brings them closer",
        )
        for size, exact, soft, label in worst.values()
        if size > 0.05 or (exact > tolerance >= soft and size > 0.01)
    ]
