"""Exact values of a program at its current decisions, and multipliers brought to their shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from constrain.diagnostics.relaxed import as_written, decided, judged, loosened, row_slack
from constrain.lowering.lower import EPIGRAPH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.lowering.program import Part, Program
    from constrain.runtime.evaluator import Evaluator

__all__ = ["Point", "align", "array_of", "bound_scale", "read_point", "reduce_to", "user_objective"]


def array_of(value: Any) -> NDArray[np.float64]:
    """A tensor as a float64 array on the host."""
    return (
        value.detach().cpu().double().numpy()
        if isinstance(value, torch.Tensor)
        else np.asarray(value, np.float64)
    )


@dataclass(frozen=True)
class Point:
    """Exact values at one point.

    Attributes:
        objective: of the program, which minimizes.
        residuals: per part; of a constraint per row one entry per row of its sample.
        surrogates: the same with the surrogates of rates in place of the rates; the same arrays without
            rates.
        masks: per part the rows that it selects, (rows,) bool; None for all, and for parts that are not per
            row.
        sides: per form its left side as written and the bounds that count: as written, moved by the slack of
            a relaxed constraint; of a constraint per row one entry per row.
        slack: per relaxed constraint how far it was relaxed, per entry; of an equality, to which side.
        written: per relaxed constraint its bounds as written.
        moments: exact.
    """

    objective: float
    residuals: list[NDArray[np.float64]]
    surrogates: list[NDArray[np.float64]]
    masks: list[NDArray[np.bool_] | None]
    sides: list[tuple[NDArray[np.float64], ...]]
    slack: dict[str, NDArray[np.float64]]
    written: dict[str, tuple[NDArray[np.float64], ...]]
    moments: tuple[Tensor, ...]

    def within(self, program: Program) -> Point:
        """The same point with the parts of the program that solvers see (not those of `Program.judged`)."""
        keys = {part.key for part in program.parts}
        kept = [i for i, part in enumerate(program.judged.parts) if part.key in keys]
        return replace(
            self,
            residuals=[self.residuals[i] for i in kept],
            surrogates=[self.surrogates[i] for i in kept],
            masks=[self.masks[i] for i in kept],
        )

    def selected(self, i: int) -> NDArray[np.float64]:
        """Residuals of part `i`; -inf for rows that it does not select (they can never be violated)."""
        mask = self.masks[i]
        if mask is None:
            return self.residuals[i]
        return np.where(_spread(mask, self.residuals[i].ndim), self.residuals[i], -np.inf)

    def rows_of(self, k: int, i: int) -> tuple[list[NDArray[np.float64]], NDArray[np.int64]]:
        """Sides of form `k`, a constraint per row, on the rows that its part `i` selects; their numbers."""
        sides = self.sides[k]
        shape = np.broadcast_shapes(*(side.shape for side in sides))
        mask = self.masks[i]
        rows: NDArray[np.int64] = np.flatnonzero(np.ones(shape[0]) if mask is None else mask)
        return [np.array(np.broadcast_to(side, shape)[rows]) for side in sides], rows


def _spread(mask: NDArray[np.bool_], dimensions: int) -> NDArray[np.bool_]:
    return mask.reshape(-1, *(1 for _ in range(dimensions - 1)))


def read_point(evaluator: Evaluator) -> Point:
    """Exact values of everything, by full passes over the data; parts are those of the judged program."""
    view = judged(evaluator)
    program = view.program
    moments = tuple(view.moments("exact"))
    with torch.no_grad():
        outer = view.outer(moments, "exact").detach()
        own = outer if view is evaluator else evaluator.outer(moments, "exact").detach()
    objective = float(own.objective)
    soft = view.full("primal") if program.has_rates else outer
    residuals: list[NDArray[np.float64]] = []
    surrogates: list[NDArray[np.float64]] = []
    masks: list[NDArray[np.bool_] | None] = []
    for i, part in enumerate(program.parts):
        if part.rows is None:
            residuals.append(array_of(outer.residuals[i]))
            surrogates.append(array_of(soft.residuals[i]))
            masks.append(None)
            continue
        exact, mask = view.row_residuals(i, "exact")
        residuals.append(array_of(exact))
        surrogates.append(
            array_of(view.row_residuals(i, "primal")[0]) if program.has_rates else residuals[-1]
        )
        masks.append(None if mask is None else mask.cpu().numpy().astype(bool))
    sides = [tuple(array_of(side) for side in form) for form in view.sides(moments)]
    point = Point(objective, residuals, surrogates, masks, sides, {}, {}, moments)
    for k, form in enumerate(program.forms):
        if form.relaxation is not None:
            _relax(view, point, k)
    return point


def _relax(view: Evaluator, point: Point, k: int) -> None:
    """Enters what form `k` was relaxed by; where the slack was eliminated, into residuals and bounds too."""
    form = view.program.forms[k]
    assert form.relaxation is not None  # callers check
    left, *bounds = point.sides[k]
    if form.rows is None:
        slack = point.slack[form.name] = decided(view, form.relaxation)
        point.written[form.name] = as_written(form, bounds, slack)
        return
    own = [i for i, part in enumerate(view.program.parts) if part.constraint == form.name]
    slack = row_slack(form.op, [point.residuals[i] for i in own], point.masks[own[0]])
    for i in own:
        same = point.surrogates[i] is point.residuals[i]
        point.residuals[i] = point.residuals[i] - slack
        point.surrogates[i] = point.residuals[i] if same else point.surrogates[i] - slack
    point.slack[form.name] = slack
    point.written[form.name] = tuple(bounds)
    point.sides[k] = (left, *loosened(form.op, bounds, slack))


def user_objective(evaluator: Evaluator, point: Point) -> float:
    """The objective as written, with the costs of relaxing: in the user's sense, and exact.

    Of the epigraph rule's bound variables the maxima that they stand for are taken.
    """
    program = evaluator.program
    forms = zip(program.forms, point.sides, strict=True)
    room = sum(float(sides[0]) - float(sides[1]) for form, sides in forms if form.name == EPIGRAPH)
    return program.sign * (point.objective + room)


def align(
    part: Part, given: Mapping[str, Any] | None, residual: NDArray[np.float64], mask: NDArray[np.bool_] | None
) -> NDArray[np.float64] | None:
    """Multipliers of a part in the shape of its residual: 0 for rows not selected; None when not given."""
    if given is None or given.get(part.key) is None:
        return None
    value = array_of(given[part.key])
    if mask is not None and value.shape[:1] != residual.shape[:1] and value.shape[:1] == (int(mask.sum()),):
        scattered = np.zeros(residual.shape)
        scattered[mask] = value
        return scattered
    full = np.array(np.broadcast_to(value, residual.shape))
    if mask is not None:
        full[~mask] = 0.0
    return full


def reduce_to(
    shape: tuple[int, ...], values: NDArray[np.float64], *, lead: bool, how: np.ufunc = np.add
) -> NDArray[np.float64]:
    """Combines the entries of a part to the shape of the constraint as written, by `how` (a sum by default).

    A worst-case constraint has one multiplier, the sum over the cases. With `lead`, the first axis (levels or
    rows) is one of the constraint as written, and the cases are trailing axes; else they are leading ones.
    """
    extra = values.ndim - len(shape)
    if extra > 0:
        axes = range(len(shape), values.ndim) if lead else range(extra)
        values = how.reduce(values, axis=tuple(axes))
    broad = tuple(
        i for i, (have, want) in enumerate(zip(values.shape, shape, strict=False)) if want == 1 < have
    )
    if broad:
        values = how.reduce(values, axis=broad, keepdims=True)
    if values.shape == shape:
        return values
    # one piece for several entries as written (max(x, y) <= b with y a number): they share its multiplier
    copies = max(int(np.prod(shape)), 1) / max(values.size, 1)
    spread = np.array(np.broadcast_to(values, shape))
    return spread / copies if how is np.add else spread


def bound_scale(
    sides: tuple[NDArray[np.float64], ...], shape: tuple[int, ...], unit: float | None = None
) -> NDArray[np.float64]:
    """The unit of each entry of a part's residual: the one the user gave, else 1 + |bound|.

    Entries share the largest bound where shapes differ.
    """
    if unit is not None:
        return np.full(shape, unit)
    size: NDArray[np.float64] = np.zeros(())
    for side in sides[1:]:
        size = np.maximum(
            size, np.abs(side) if side.shape in ((), shape) else np.max(np.abs(side), initial=0.0)
        )
    return 1.0 + np.broadcast_to(size, shape)
