"""Parametric paths and fronts as text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from constrain.diagnostics.table import aligned, cut, number, short, wrapped
from constrain.reports.whatif import agreement, leading

if TYPE_CHECKING:
    from constrain.solution import ParametricPath, ParetoFront

__all__ = ["front_text", "path_text"]


def path_text(path: ParametricPath) -> str:
    """One line per solve: the parameter, the value, its slope, and the largest multipliers."""
    keys = leading(path)
    rows: list[tuple[str, ...]] = [
        (path.parameter, "optimal value", "slope", "violation", "status", *(cut(key, 20) for key in keys))
    ]
    rows += [
        (
            f"{path.values[i]:.6g}",
            number(float(path.objectives[i]), 6),
            _or_dash(path.slopes[i]),
            short(float(path.violations[i])),
            path.statuses[i],
            *(_or_dash(path.multipliers[key][i]) for key in keys),
        )
        for i in range(len(path))
    ]
    return "\n".join([*aligned(rows, left=0), *wrapped("slopes", agreement(path))])


def front_text(front: ParetoFront) -> str:
    """One line per point: both objectives, and the slope of the front."""
    (first, beside), (alone, away) = front.ends
    words = zip(front.senses, (front.first, front.second), (first, away), (beside, alone), strict=True)
    lines = [
        line
        for label, (sense, text, own, other) in zip(("first", "second"), words, strict=True)
        for line in wrapped(
            label, f"{sense} {text}: {number(own, 6)} by itself, with {number(other, 6)} of the other one"
        )
    ]
    rows: list[tuple[str, ...]] = [("second", "first", "slope", "status")]
    points = zip(front.seconds, front.firsts, front.slopes, front.path.statuses, strict=True)
    rows += [(number(b, 6), number(a, 6), _or_dash(slope), status) for b, a, slope, status in points]
    return "\n".join([*lines, *aligned(rows, left=0), *wrapped("slopes", agreement(front.path))])


def _or_dash(value: float) -> str:
    return "-" if math.isnan(value) else number(float(value))
