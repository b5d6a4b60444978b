"""The nearest decisions that hold the constraints: a last correction of what training ends with.

Steps on batches leave a trained point near its constraints and not on them: the rarer a group, the longer its
average takes to settle. With c the exact residuals of the constraints on averages and J their gradients, on
all rows, a correction d is the shortest step that meets them to first order,

    minimize |d|^2   subject to   c + J d <= 0  (== 0 for equalities),

whose dual is a least-squares problem with bounds in as many unknowns as there are constraints
(Gauss-Newton restoration: Nocedal and Wright, 2006, "Numerical Optimization", section 18.3). The gradients of
rates are those of their surrogates, and c is exact, so the step is repeated.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from scipy import optimize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.runtime.evaluator import Evaluator, Outer

__all__ = ["MOST_ENTRIES", "correction", "descent"]

MOST_ENTRIES = 200
"""Constraints, each of which needs a gradient on all rows, that a correction takes at most."""
MOST_NUMBERS = 20_000_000
"""Constraints times decisions up to which their gradients are held."""
INDEPENDENT = 1e-5
"""Of the largest singular value of gradients of length 1, the least that counts as another direction."""
ROUNDING = 1e-14
"""Of the largest price, one that is none."""


def correction(
    evaluator: Evaluator,
    tensors: Sequence[Tensor],
    room: Mapping[int, float],
    units: Mapping[int, float] | None = None,
    margins: Mapping[int, float] | None = None,
) -> Callable[[float], None] | None:
    """The shortest step onto the constraints from the decisions as they are.

    Args:
        evaluator: a program with data.
        tensors: the decisions that may move.
        room: by position of the parts on averages, the violation that is none.
        units: by position what violations are compared in; None takes the room.
        margins: by position how far within its bound a step ends, 0 where there is none.

    Returns:
        A function that moves the decisions to this share of the step, from where they were; None where
        nothing is violated or their gradients are too much to hold.
    """
    entries = _entries(evaluator, room, room if units is None else units, margins or {})
    size = sum(t.numel() for t in tensors)
    if not entries or len(entries) * size > MOST_NUMBERS:
        return None
    own = [i for i, t in enumerate(evaluator.decisions.tensors) if any(t is moved for moved in tensors)]
    found = evaluator.pull([_entry(i, k) for i, k, _, _ in entries])
    rows = [torch.cat([gradients[i].double().reshape(-1) for i in own]) for _, gradients in found]
    jacobian = torch.stack(rows).cpu().numpy()
    step = _step(jacobian, np.array([c for *_, c in entries]), [equal for _, _, equal, _ in entries])
    if not np.isfinite(step).all() or not step.any():
        return None
    return _mover(evaluator, own, step)


def descent(
    evaluator: Evaluator, tensors: Sequence[Tensor], positions: Sequence[int], worth: float
) -> Callable[[float], None] | None:
    """A projected gradient step of the objective: the constraints on averages hold after it to first order.

    With g the gradient of the objective and t = worth / |g|^2, it is the d that minimizes |d + t g|^2 subject
    to c + J d <= 0 (Bertsekas, 1999, "Nonlinear Programming", section 2.3, with linearized constraints).

    Args:
        evaluator: a program with data.
        tensors: the decisions that may move.
        positions: of the parts on averages.
        worth: by how much a whole step without constraints lowers the objective, to first order.

    Returns:
        Moves by a share of the step, as `correction`; None where there is none, or it is too much to hold.
    """
    with torch.no_grad():
        residuals = evaluator.outer(evaluator.moments("exact"), "exact").residuals
    entries: list[tuple[int, int, bool, float]] = []
    for i in positions:
        residual = residuals[i]
        if residual is not None:
            equal = evaluator.program.parts[i].kind == "=="
            values = cast("list[float]", residual.detach().double().reshape(-1).tolist())
            entries += [(i, k, equal, c) for k, c in enumerate(values)]
    size = sum(t.numel() for t in tensors)
    if len(entries) > MOST_ENTRIES or (len(entries) + 1) * size > MOST_NUMBERS:
        return None
    own = [i for i, t in enumerate(evaluator.decisions.tensors) if any(t is moved for moved in tensors)]
    found = evaluator.pull([lambda outer: outer.objective, *(_entry(i, k) for i, k, _, _ in entries)])
    rows = [
        torch.cat([gradients[i].double().reshape(-1) for i in own]).cpu().numpy() for _, gradients in found
    ]
    square = float(rows[0] @ rows[0])
    if not (math.isfinite(square) and square > 0):
        return None
    down = -worth / square * rows[0]
    jacobian = np.stack(rows[1:])
    equal = [same for _, _, same, _ in entries]
    step = down + _step(jacobian, np.array([c for *_, c in entries]) + jacobian @ down, equal)
    return _mover(evaluator, own, step) if np.isfinite(step).all() and step.any() else None


def _mover(evaluator: Evaluator, own: Sequence[int], step: NDArray[np.float64]) -> Callable[[float], None]:
    """Moves these decisions to a share of a step from where they are now, within their bounds."""
    starts = [evaluator.decisions.tensors[i].detach().clone() for i in own]
    low, high = (torch.as_tensor(side) for side in evaluator.decisions.bounds())
    places = np.cumsum([0, *(t.numel() for t in evaluator.decisions.tensors)])

    def move(share: float) -> None:
        with torch.no_grad():
            at = 0
            for i, start in zip(own, starts, strict=True):
                piece = torch.as_tensor(share * step[at : at + start.numel()]).reshape(start.shape)
                sides = (
                    side[places[i] : places[i + 1]].reshape(start.shape).to(start) for side in (low, high)
                )
                moved = torch.minimum(torch.maximum(start + piece.to(start), next(sides)), next(sides))
                evaluator.decisions.tensors[i].copy_(moved)
                at += start.numel()

    return move


def _entries(
    evaluator: Evaluator,
    room: Mapping[int, float],
    units: Mapping[int, float],
    margins: Mapping[int, float],
) -> list[tuple[int, int, bool, float]]:
    """Part, entry, whether an equality, and residual of what is violated, or would be by a step like that.

    Residuals are those of bounds with their margins. Where there are too many, the largest.
    """
    with torch.no_grad():
        residuals = evaluator.outer(evaluator.moments("exact"), "exact").residuals
    found: list[tuple[int, int, bool, float, float]] = []
    violated = False
    for i, limit in room.items():
        residual = residuals[i]
        if residual is None:
            continue
        equal = evaluator.program.parts[i].kind == "=="
        values = cast("list[float]", residual.detach().double().reshape(-1).tolist())
        violated = violated or any((abs(c) if equal else c) > limit for c in values)
        values = [c + margins.get(i, 0.0) for c in values]
        found += [(i, k, equal, c, max(units[i], 1e-300)) for k, c in enumerate(values)]
    worst = max((abs(c) / unit if equal else c / unit for _, _, equal, c, unit in found), default=0.0)
    if not violated or not math.isfinite(worst):
        return []
    near = [(i, k, equal, c) for i, k, equal, c, unit in found if equal or c / unit > -worst]
    if len(near) > MOST_ENTRIES:  # the worst ones: the others have their turn in the next step
        near.sort(key=lambda entry: -_size(entry, units))
    return near[:MOST_ENTRIES]


def _size(entry: tuple[int, int, bool, float], units: Mapping[int, float]) -> float:
    """Violation of an entry in its unit, negative within the bound."""
    i, _, equal, c = entry
    return (abs(c) if equal else c) / max(units[i], 1e-300)


def _entry(part: int, place: int) -> Callable[[Outer], Tensor]:
    def function(outer: Outer) -> Tensor:
        residual = outer.residuals[part]
        assert residual is not None  # chosen so
        return residual.reshape(-1)[place]

    return function


def _step(
    jacobian: NDArray[np.float64], c: NDArray[np.float64], equal: Sequence[bool]
) -> NDArray[np.float64]:
    """The shortest d with c + J d <= 0, or = 0 for equalities; where there is none, that violates least.

    The dual minimizes |J' y|^2 / 2 - c' y with y >= 0 but for equalities, and tells which constraints the
    step ends on. The step is then the shortest solution of these as equations, in the least-squares sense. It
    is not taken as -J' y: prices of constraints that move together alike are large and cancel, and the
    rounding of J would become as large as the step. NaN where a gradient or a residual is not finite.
    """
    if not (np.isfinite(jacobian).all() and np.isfinite(c).all()):
        return np.full(jacobian.shape[1:], np.nan)
    scale = np.linalg.norm(jacobian, axis=1)
    scale[scale == 0] = 1.0
    target = c / scale
    basis, factor = np.linalg.qr((jacobian / scale[:, None]).T)
    prices = _prices(factor, target, equal)
    held = np.asarray(equal) | (prices > ROUNDING * np.abs(prices).max())
    solve = cast("Any", np.linalg.lstsq)
    return basis @ solve(factor.T[held], -target[held], rcond=INDEPENDENT)[0]


def _prices(
    factor: NDArray[np.float64], c: NDArray[np.float64], equal: Sequence[bool]
) -> NDArray[np.float64]:
    """The y that minimizes |A y|^2 / 2 + |w y|^2 / 2 - c' y, y >= 0 but for equalities, with a small w.

    With [A; w I] = Q R it is the least |R y - z|^2 with R' z = c: A' A, which has twice the digits of A, is
    not formed.
    """
    count = len(c)
    _, root = np.linalg.qr(np.concatenate([factor, INDEPENDENT * np.eye(count)]))
    lower = np.where(equal, -np.inf, 0.0)
    solve = cast("Any", optimize).lsq_linear
    aim = np.linalg.solve(root.T, c)
    return solve(root, aim, bounds=(lower, np.inf), method="bvls", tol=1e-14, max_iter=10 * count).x
