"""A program at a point that no solver produced: hidden decisions, and multipliers by the user's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from constrain.diagnostics.point import array_of, read_point
from constrain.errors import ModelingError
from constrain.language.data import suggest
from constrain.lowering.lower import EPIGRAPH
from constrain.runtime.largest import bound_of
from constrain.runtime.tails import set_thresholds
from constrain.solution.constraint import violation_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from constrain.diagnostics.point import Point
    from constrain.lowering.program import Form
    from constrain.runtime.evaluator import Evaluator

__all__ = ["by_part", "settle"]


def settle(evaluator: Evaluator) -> None:
    """Gives the hidden decisions the values that are best for the user's: what a point leaves open.

    Thresholds of CVaRs are the quantiles, slacks of relaxed constraints the least ones that hold, and the
    bound of a largest value is that value.
    """
    set_thresholds(evaluator)
    variables = evaluator.decisions.variables
    for form in evaluator.program.forms:
        for symbol in () if form.relaxation is None else form.relaxation.slacks:
            with torch.no_grad():
                variables[symbol].zero_()
    for form, sides in zip(evaluator.program.forms, evaluator.sides(), strict=True):
        with torch.no_grad():
            if form.name == EPIGRAPH:
                bound_of(form, evaluator.decisions).copy_(sides[0].reshape(()))
            elif form.relaxation is not None and form.relaxation.slacks:
                left, *bounds = (array_of(side) for side in sides)
                for symbol, needed in zip(form.relaxation.slacks, _needed(form, left, bounds), strict=True):
                    tensor = variables[symbol]
                    tensor.copy_(torch.as_tensor(needed.reshape(tensor.shape)).to(tensor))


def _needed(
    form: Form, left: NDArray[np.float64], bounds: list[NDArray[np.float64]]
) -> list[NDArray[np.float64]]:
    """The least slack per entry; of an equality, the one above and the one below."""
    if form.op == "==":
        return [np.maximum(0.0, left - bounds[0]), np.maximum(0.0, bounds[0] - left)]
    return [violation_of(form.op, left, bounds if form.op == "between" else bounds[0])]


def by_part(evaluator: Evaluator, multipliers: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Multipliers per part key, of some that are given by constraint or by part.

    The multiplier of a constraint that was split into several sides, such as `abs(e) <= b`, belongs to the
    side that is closest to its bound, entry by entry; that of a largest value belongs to the largest one.

    Raises:
        ModelingError: E139 for a name that the problem does not have, E112 for a shape that is neither that
            of the constraint nor that of its sides.
    """
    if multipliers is None:
        return None
    program = evaluator.program.judged
    keys = {part.key for part in program.parts}
    point = read_point(evaluator)
    single = {
        form.name
        for form, sides in zip(program.forms, point.sides, strict=True)
        if form.rows is None and np.broadcast_shapes(*(side.shape for side in sides)) == ()
    }
    found: dict[str, Any] = {}
    for name, value in multipliers.items():
        if name in keys and name not in single:
            found[name] = value
        else:
            found |= _sides(evaluator, point, name, array_of(value))
    return found


def _sides(
    evaluator: Evaluator, point: Point, name: str, value: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    parts = evaluator.program.judged.parts
    own = [i for i, part in enumerate(parts) if name in (part.key, part.constraint)]
    if not own:
        known = [part.key for part in parts]
        raise ModelingError("E139", f"there is no constraint {name!r}{suggest(name, known)}")
    residuals = [point.selected(i) for i in own]
    result = {parts[i].key: np.zeros(r.shape) for i, r in zip(own, residuals, strict=True)}
    targets = list(result.values())
    if {r.shape for r in residuals} == {value.shape}:
        side = np.argmax(np.stack(residuals), axis=0)
        for k, target in enumerate(targets):
            target[...] = np.where(side == k, value, 0.0)
        return result
    if value.size != 1:
        raise ModelingError(
            "E112",
            f"the multiplier of {name!r} has shape {value.shape}, its sides have {residuals[0].shape}",
            fix=f"one by side: {', '.join(result)}",
        )
    most = [float(np.max(r, initial=-np.inf)) for r in residuals]
    k = int(np.argmax(most))
    targets[k].reshape(-1)[int(np.argmax(residuals[k]))] = float(value.reshape(()))
    return result
