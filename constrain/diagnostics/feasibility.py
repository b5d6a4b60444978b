"""Feasibility and complementarity at a point: the numbers of each part, those of many small ones at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from constrain.diagnostics.point import Point, bound_scale
from constrain.diagnostics.relaxed import judged
from constrain.lowering.lower import EPIGRAPH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from constrain.runtime.evaluator import Evaluator

__all__ = ["Values", "largest_violation", "scales_of", "values_of"]


def scales_of(evaluator: Evaluator, point: Point) -> list[NDArray[np.float64]]:
    """The unit of each entry of each part: the one the user gave, else 1 + |bound|."""
    sides = dict(zip((form.name for form in evaluator.program.forms), point.sides, strict=True))
    parts = zip(evaluator.program.parts, point.residuals, strict=True)
    return [bound_scale(sides[part.constraint], r.shape, part.scale) for part, r in parts]


def largest_violation(evaluator: Evaluator, point: Point) -> float:
    """The largest violation in the units of its constraint: `KKT.feasibility_scaled` without any gradient."""
    view = judged(evaluator)
    none: list[NDArray[np.float64] | None] = [None] * len(view.program.parts)
    return values_of(view, point, none, scales_of(view, point)).scaled


@dataclass
class Values:
    """Feasibility and complementarity.

    Attributes:
        violations: largest per constraint, in its units.
        scaled: largest violation / (1 + |bound|).
        worst: its constraint.
        dual: least multiplier of an inequality, at most 0.
        products: largest |multiplier * residual| per constraint.
        complementarity: largest of those of inequalities.
        total: |sum multiplier * residual|.
        strict: strict complementarity margin.
    """

    violations: dict[str, float]
    scaled: float
    worst: str
    dual: float
    products: dict[str, float]
    complementarity: float
    total: float
    strict: float


def _measured(
    equality: NDArray[np.bool_],
    residual: NDArray[np.float64],
    given: NDArray[np.float64],
    scale: NDArray[np.float64],
    largest: float,
) -> tuple[NDArray[np.float64], ...]:
    """Numbers of parts with as many entries each; all arrays (parts, entries), NaN for no multipliers.

    Returns:
        Per part the largest violation, in its units and scaled, the largest |multiplier * residual| and the
        sum of these products, the least multiplier, and the least margin of strict complementarity.
    """
    violation = np.where(equality, np.abs(residual), np.maximum(0.0, residual))
    product = np.where(np.isfinite(residual), given * np.where(np.isfinite(residual), residual, 0.0), 0.0)
    return (
        np.max(violation, axis=1, initial=0.0),
        np.max(violation / scale, axis=1, initial=0.0),
        np.max(np.abs(product), axis=1, initial=0.0),
        product.sum(axis=1),
        np.min(given, axis=1, initial=0.0),
        np.min(np.maximum(given / (largest or 1.0), -residual / scale), axis=1, initial=np.inf),
    )


def _each_measured(
    evaluator: Evaluator,
    point: Point,
    multipliers: Sequence[NDArray[np.float64] | None],
    scales: Sequence[NDArray[np.float64]],
    largest: float,
) -> list[tuple[float, ...]]:
    """The numbers of every part, in the order of `_measured`; those of single numbers at once."""
    equality = np.array([part.kind == "==" for part in evaluator.program.parts], dtype=bool)
    residuals = [point.selected(i) for i in range(len(equality))]
    single = [i for i, r in enumerate(residuals) if r.ndim == 0]
    found: dict[int, tuple[float, ...]] = {}
    for group in (single, *([i] for i, r in enumerate(residuals) if r.ndim > 0)):
        if not group:
            continue
        given = [np.full(residuals[i].shape, np.nan) if (m := multipliers[i]) is None else m for i in group]

        def table(columns: Sequence[NDArray[np.float64]], count: int = len(group)) -> NDArray[np.float64]:
            return np.array(columns).reshape(count, -1)

        residual, scale = table([residuals[i] for i in group]), table([scales[i] for i in group])
        own = _measured(equality[group][:, None], residual, table(given), scale, largest)
        numbers = zip(*(column.tolist() for column in own), strict=True)
        found |= zip(group, numbers, strict=True)
    return [found[i] for i in range(len(equality))]


def values_of(
    evaluator: Evaluator,
    point: Point,
    multipliers: Sequence[NDArray[np.float64] | None],
    scales: Sequence[NDArray[np.float64]],
) -> Values:
    """Feasibility and complementarity with these multipliers per part, in these units of its entries."""
    result = Values({}, 0.0, "", 0.0, {}, 0.0, 0.0, float("nan"))
    largest = max((float(np.max(np.abs(m), initial=0.0)) for m in multipliers if m is not None), default=0.0)
    signed_sum = 0.0
    numbers = _each_measured(evaluator, point, multipliers, scales, largest)
    for part, given, own in zip(evaluator.program.parts, multipliers, numbers, strict=True):
        size, scaled, biggest, signed, least, margin = own
        name = "objective" if part.constraint == EPIGRAPH else part.constraint
        result.violations[name] = max(result.violations.get(name, 0.0), size)
        if scaled > result.scaled or not result.worst or math.isnan(scaled):
            result.scaled, result.worst = scaled, name
        if given is None:
            continue
        signed_sum += signed
        result.products[name] = max(result.products.get(name, 0.0), biggest)
        if part.kind == "<=":
            result.complementarity = max(result.complementarity, biggest)
            result.dual = min(result.dual, least)
            result.strict = float(np.fmin(result.strict, margin))
    result.total = abs(signed_sum)
    return result
