"""Recognizes known traps in the KKT quantities of a point; each has a stable code, a name and advice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from constrain.solution.records import Warn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from constrain.diagnostics.jacobian import Qualification
    from constrain.diagnostics.point import Point
    from constrain.lowering.program import Program

__all__ = ["recognize"]


def recognize(program: Program, point: Point, qualification: Qualification, tolerance: float) -> list[Warn]:
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
    return found + _surrogate_gaps(program, point, tolerance)


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


def _surrogate_gaps(program: Program, point: Point, tolerance: float) -> list[Warn]:
    found: list[Warn] = []
    for form in program.forms:
        worst: tuple[float, float, float] = (0.0, 0.0, 0.0)
        for i, part in enumerate(program.parts):
            if part.constraint != form.name or point.surrogates[i] is point.residuals[i]:
                continue
            exact, soft = point.selected(i), point.surrogates[i]
            if not exact.size:
                continue
            gap = np.where(np.isfinite(exact), np.abs(exact - soft), 0.0)
            k = int(np.argmax(gap))
            if gap.flat[k] > worst[0]:
                worst = (float(gap.flat[k]), float(exact.flat[k]), float(soft.flat[k]))
        size, exact_value, soft_value = worst
        crossed = exact_value > tolerance >= soft_value and size > 0.01
        if size > 0.05 or crossed:
            found.append(
                Warn(
                    "C301",
                    "surrogate-gap",
                    f"{form.name}: its residual is {exact_value:+.3f} exactly and {soft_value:+.3f} for the "
                    "surrogate that gradients see; multipliers follow the exact one, gradients the other",
                )
            )
    return found
