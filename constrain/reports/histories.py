"""What the history of a run shows: the objective, violations by constraint, multipliers by entry."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from constrain.reports.charts import Curve, curves

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from constrain.reports.elements import Markup
    from constrain.solution import Solution

__all__ = ["history_charts", "multiplier_curves", "objective_curve", "steps_of", "violation_curves"]


def steps_of(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], str]:
    """Places on the horizontal axis, and the word for it: steps, epochs, or the number of the record."""
    for key in ("step", "epoch"):
        places = [float(row.get(key, math.nan)) for row in rows]
        if all(b > a for a, b in pairwise(places)) and math.isfinite(places[0]):
            return places, key
    return [float(k) for k in range(len(rows))], "record"


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [float(row.get(key, math.nan)) for row in rows]


def objective_curve(s: Solution) -> Curve:
    """The objective on the training data."""
    return Curve("objective", _column(s.history, "objective"))


def violation_curves(s: Solution) -> list[Curve]:
    """Per constraint its largest violation over entries and sides, those that end largest first."""
    kinds = {part.key: part.kind for name in s.names for part in s[name].parts}
    found: dict[str, list[float]] = {}
    for key in (k for k in s.history[-1] if k.startswith("residual:")):
        entry = key.split(":", 1)[1]
        part = entry.split("[")[0]
        name = part.split(":")[0]
        sizes = _column(s.history, key)
        sizes = [abs(r) for r in sizes] if kinds.get(part) == "==" else [max(0.0, r) for r in sizes]
        old = found.get(name)
        found[name] = sizes if old is None else [_larger(a, b) for a, b in zip(old, sizes, strict=True)]
    if not found and "violation" in s.history[-1]:
        return [Curve("largest", _column(s.history, "violation"))]
    return sorted((Curve(*item) for item in found.items()), key=lambda c: -_last(c))


def _larger(a: float, b: float) -> float:
    return b if math.isnan(a) or b > a else a


def multiplier_curves(s: Solution) -> list[Curve]:
    """Per entry of a part its multiplier, those that end largest first; without the ones that stay at 0."""
    keys = [key for key in s.history[-1] if key.startswith("multiplier:")]
    found = [Curve(key.split(":", 1)[1], _column(s.history, key)) for key in keys]
    moving = [c for c in found if any(math.isfinite(v) and abs(v) > 0 for v in c.values)]
    return sorted(moving, key=lambda c: -abs(_last(c)))


def _last(curve: Curve) -> float:
    return next((v for v in reversed(curve.values) if math.isfinite(v)), 0.0)


def history_charts(s: Solution) -> list[Markup]:
    """The charts of the page; none for a route that has no iterates, or fewer than three."""
    if len(s.history) < 3:
        return []
    steps, word = steps_of(s.history)
    tolerance = s.record.tolerance
    drawn: list[Markup] = []
    if s.sense != "find":
        drawn.append(curves("Objective", steps, [objective_curve(s)], across=word))
    violations = violation_curves(s)
    if any(v > 0 for curve in violations for v in curve.values):
        note = f"dashed: tolerance {tolerance:.0e}"
        drawn.append(
            curves("Violation", steps, violations, logarithmic=True, rule=tolerance, note=note, across=word)
        )
    if multipliers := multiplier_curves(s):
        drawn.append(curves("Multipliers", steps, multipliers, across=word))
    if "stationarity" in s.history[-1]:
        line = Curve("stationarity", _column(s.history, "stationarity"))
        drawn.append(curves("Stationarity", steps, [line], logarithmic=True, across=word))
    return drawn
