"""Intervals of bounded statistics that hold for every sample size: empirical Bernstein bounds.

The delta method relies on a normal limit, which small groups and rare large values are far from. Where rows
lie in a known range of width R, with sample variance V, an average over n of them is off by more than
sqrt(2 V L / n) + 7 R L / (3 (n - 1)) with a probability below 2 exp(-L) on either side, for every n. A
constraint on a weighted sum of k averages gets the sum of their bounds, each at a k-th of the level.

Source: Maurer & Pontil, Empirical Bernstein bounds and sample-variance penalization, COLT 2009, theorem 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from scipy import stats

from constrain.diagnostics.influence import jacobian_of, spread
from constrain.diagnostics.point import array_of
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.data import suggest
from constrain.lowering.lower import EPIGRAPH
from constrain.solution.constraint import slack_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.lowering.program import Form
    from constrain.runtime.evaluator import Evaluator

__all__ = ["Bounded", "bounded_interval", "checked_ranges"]

PROBES = (1.0, -3.0, 1e3)
"""Distances at which the slopes of a statistic are compared: those of a weighted sum stay as they are."""


@dataclass(frozen=True)
class Bounded:
    """An interval, and where the bound of the constraint lies in its terms; arrays of the constraint's shape.

    Attributes:
        lower: end of the interval of the left side.
        upper: other end.
        ratio: the residual as a normal deviate of the same two-sided probability.
    """

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    ratio: NDArray[np.float64]


def checked_ranges(
    evaluator: Evaluator, ranges: Mapping[str, tuple[float, float]] | None
) -> Mapping[str, tuple[float, float]]:
    """The ranges by constraint, none where there are none.

    Raises:
        ModelingError: E139 for a name that is no constraint on averages, E141 for what is no range.
    """
    known = [form.name for form in evaluator.program.forms if form.rows is None and form.name != EPIGRAPH]
    for name, limits in (ranges or {}).items():
        if name not in known:
            hint = suggest(name, known)
            raise ModelingError("E139", f"there is no constraint on averages called {name!r}{hint}")
        given: Any = limits
        pair = cast("tuple[Any, ...]", given) if isinstance(given, (tuple, list)) else ()
        if len(pair) != 2 or not all(isinstance(x, (int, float)) for x in pair) or not pair[0] < pair[1]:
            raise ModelingError(
                "E141",
                f"bounded[{name!r}]={given!r} is no range",
                fix=f"bounded={{{name!r}: (0.0, 1.0)}}, the least and the largest value of a row",
            )
    return ranges or {}


def bounded_interval(
    evaluator: Evaluator,
    moments: Sequence[Tensor],
    k: int,
    limits: tuple[float, float],
    confidence: float,
) -> Bounded:
    """The interval of the left side of form `k`.

    Args:
        evaluator: of the judged program, with the sample.
        moments: exact leaves that require gradients.
        k: position of the form, a constraint on averages.
        limits: least and largest value of every averaged quantity in it; events have 0 and 1.
        confidence: two-sided level.

    Raises:
        ModelingError: E141 where the left side is no weighted sum of averages (ratios, `CVaR`, variances),
            where the bound depends on data, and where a row lies outside of the limits.
    """
    form = evaluator.program.forms[k]
    sides = evaluator.sides_at(moments)[k]
    assert sides is not None  # a constraint on averages
    left, right = sides[0], sides[1:]
    if any(n.mentions(side, n.Moment) for side in form.rhs):
        raise _refused(form, "its bound depends on data")
    slopes = _slopes(evaluator, moments, k)
    noise, range_part, terms = (np.zeros(left.numel()) for _ in range(3))
    for i, slope in slopes.items():
        size, rows = _moment(evaluator, moments, i)
        width = _width(evaluator, form, i, limits)
        with np.errstate(divide="ignore", invalid="ignore"):
            noise += np.nan_to_num(slope * math.sqrt(2) * size, nan=0.0).sum(axis=1)
            tail = np.where(slope > 0, slope * 7 * width / (3 * (rows - 1)), 0.0)
        range_part += np.where(np.isnan(tail), np.inf, tail).sum(axis=1)
        terms += (slope > 0).sum(axis=1)
    level = np.log(4 * np.maximum(terms, 1) / (1 - confidence))
    half = (noise * np.sqrt(level) + range_part * level).reshape(left.shape)
    value = array_of(left)
    bounds = [array_of(side) for side in right]
    if form.op == "==":
        residual = np.abs(value - bounds[0])
    else:
        residual = -slack_of(form.op, value, bounds if form.op == "between" else bounds[0])
    shape = np.broadcast_shapes(value.shape, residual.shape)
    parts = [np.broadcast_to(x.reshape(left.shape), shape) for x in (noise, range_part, terms)]
    lower, upper = (np.broadcast_to(x, shape) for x in (value - half, value + half))
    if isinstance(form.lhs, n.Apply) and form.lhs.atom == "abs":
        lower = np.maximum(0.0, lower)
    return Bounded(np.array(lower), np.array(upper), np.sign(residual) * _deviate(np.abs(residual), *parts))


def _deviate(
    gap: NDArray[np.float64],
    noise: NDArray[np.float64],
    range_part: NDArray[np.float64],
    terms: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The level at which an interval just reaches over a gap, as a normal deviate.

    noise * sqrt(L) + range_part * L = gap is a quadratic equation in sqrt(L).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        root = 2 * gap / (noise + np.sqrt(noise**2 + 4 * range_part * gap))
    root = np.where(np.isnan(root), 0.0, root)
    logarithm = np.log(4 * np.maximum(terms, 1)) - root**2
    return np.asarray(stats.norm.isf(np.exp(np.minimum(logarithm, 0.0)) / 2))


def _slopes(evaluator: Evaluator, moments: Sequence[Tensor], k: int) -> dict[int, NDArray[np.float64]]:
    """Per moment that enters the left side |slope|, (entries, entries of the moment): the same everywhere."""
    found: list[list[NDArray[np.float64]]] = []
    for distance in (0.0, *PROBES):
        moved = [(m.detach() + distance * _apart(m)).requires_grad_(True) for m in moments]
        sides = evaluator.sides_at(moved)[k]
        assert sides is not None  # a constraint on averages
        scalars = list(sides[0].reshape(-1))
        jacobian = jacobian_of(moved, scalars)
        found.append([np.abs(array_of(j)).reshape(len(scalars), -1) for j in jacobian])
    form = evaluator.program.forms[k]
    for other in found[1:]:
        if not all(np.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(found[0], other, strict=True)):
            raise _refused(form, "its left side is no weighted sum of averages")
    return {i: slope for i, slope in enumerate(found[0]) if slope.any()}


def _apart(m: Tensor) -> Tensor:
    """Numbers between 0.5 and 1 that differ from entry to entry."""
    steps = torch.arange(m.numel(), dtype=m.dtype, device=m.device).reshape(m.shape)
    return 0.5 + 0.5 * torch.sin(1 + steps).abs()


def _moment(
    evaluator: Evaluator, moments: Sequence[Tensor], i: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per entry of a moment its sample standard deviation over sqrt(rows), and these rows."""
    (own,) = spread(evaluator, moments, [moments[i]], [np.zeros(tuple(moments[i].shape))])
    moment = evaluator.program.moments[i]
    counts = array_of(evaluator.populations[moment.data].stratum(moment.given, moment.by).counts)
    wide = counts.reshape(counts.shape + (1,) * (moments[i].dim() - counts.ndim))
    return own.error.reshape(-1), np.broadcast_to(wide, own.error.shape).reshape(-1)


def _width(evaluator: Evaluator, form: Form, i: int, limits: tuple[float, float]) -> float:
    """The width of the range of an averaged quantity; every row was looked at."""
    moment = evaluator.program.moments[i]
    if isinstance(moment.integrand, n.Indicator):
        return 1.0
    job = next(job for job in evaluator.jobs if i in job.moments)
    population = evaluator.populations[job.data]
    if not population.sampled:
        raise _refused(form, f"{job.data.name} has no rows that were drawn")
    stratum = population.stratum(moment.given, moment.by)
    with torch.no_grad():
        for rows in population.chunks(evaluator.chunk):
            values = evaluator.real(evaluator.rows(job, rows, "exact")[job.moments.index(i)])
            weight, _ = population.conditions(stratum, rows)
            counted = values if weight is None else values[weight > 0]
            for value in counted.aminmax() if counted.numel() else ():
                if not limits[0] <= float(value) <= limits[1]:
                    raise _refused(form, f"a row has the value {float(value):.6g}, outside of {limits}")
    return limits[1] - limits[0]


def _refused(form: Form, why: str) -> ModelingError:
    return ModelingError(
        "E141",
        f"bounded={{{form.name!r}: ...}} gives no interval: {why}",
        at=form.relation.loc,
        fix="leave it out, for an interval by the delta method",
    )
