"""The nearest decisions that hold the constraints: a last correction of what training ends with.

Steps on batches leave a trained point near its constraints and not on them: the rarer a group, the longer its
average takes to settle. With c the exact residuals of the constraints and J their gradients, of averages on
all rows, a correction d is the shortest step that meets them to first order,

    minimize |d|^2   subject to   c + J d <= 0  (== 0 for equalities),

whose dual is a least-squares problem with bounds in as many unknowns as there are constraints
(Gauss-Newton restoration: Nocedal and Wright, 2006, "Numerical Optimization", section 18.3). The gradients of
rates are those of their surrogates, and c is exact, so the step is repeated.

Where there are constraints per row, a step is as long as what it changes: with G the gradients of residuals
of rows over the whole sample, |d|^2 stands for |G d|^2 + t |d|^2 with a small t. Weights of a network act on
all rows, and the least change of weights that mends one row may spoil the others (Amari, 1998, "Natural
gradient works efficiently in learning").
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from scipy import optimize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.lowering.program import Part
    from constrain.runtime.evaluator import Evaluator, Outer

__all__ = ["MOST_ENTRIES", "correction", "descent"]

_Found = tuple[int, int, bool, float]
"""Position of a part, place in its residual, whether it is an equality, residual."""
_Residuals = dict[int, "tuple[NDArray[np.int64], NDArray[np.float64]]"]
"""By position of a part the places in its residual and the values there."""
MOST_ENTRIES = 200
"""Constraints, each of which needs a gradient on all rows, that a correction takes at most."""
MOST_NUMBERS = 20_000_000
"""Constraints times decisions up to which their gradients are held."""
INDEPENDENT = 1e-4
"""Of the largest singular value of gradients of length 1, the least that counts as another direction."""
ROUNDING = 1e-14
"""Of the largest price, one that is none."""
FREE = 1e-5
"""Length of a step that changes no row, in that of the one that changes them most: t above."""


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
        room: by position of the parts, on averages or per row, the violation that is none.
        units: by position what violations are compared in; None takes the room.
        margins: by position how far within its bound a step ends, 0 where there is none.

    Returns:
        A function that moves the decisions to this share of the step, from where they were; None where
        nothing is violated or their gradients are too much to hold.
    """
    residuals = _residuals(evaluator, room)
    entries = _entries(evaluator, residuals, room, room if units is None else units, margins or {})
    others = _everywhere(evaluator, residuals)
    size = sum(t.numel() for t in tensors)
    if not entries or (len(entries) + len(others)) * size > MOST_NUMBERS:
        return None
    own = [i for i, t in enumerate(evaluator.decisions.tensors) if any(t is moved for moved in tensors)]
    straight = _straight(_jacobian(evaluator, others, own), np.array([i for i, _ in others]))
    jacobian = straight(_jacobian(evaluator, [(i, k) for i, k, _, _ in entries], own))
    step = _step(jacobian, np.array([c for *_, c in entries]), [equal for _, _, equal, _ in entries])
    if not np.isfinite(step).all() or not step.any():
        return None
    return _mover(evaluator, own, straight(step))


def descent(
    evaluator: Evaluator, tensors: Sequence[Tensor], units: Mapping[int, float], worth: float
) -> Callable[[float], None] | None:
    """A projected gradient step of the objective: the constraints hold after it to first order.

    With g the gradient of the objective and t = worth / |g|^2, it is the d that minimizes |d + t g|^2 subject
    to c + J d <= 0 (Bertsekas, 1999, "Nonlinear Programming", section 2.3, with linearized constraints).

    Args:
        evaluator: a program with data.
        tensors: the decisions that may move.
        units: by position of the parts, on averages or per row, what residuals are compared in; of rows those
            nearest to their bounds are held.
        worth: by how much a whole step without constraints lowers the objective, to first order.

    Returns:
        Moves by a share of the step, as `correction`; None where there is none, or it is too much to hold.
    """
    residuals = _residuals(evaluator, units)
    per_row = evaluator.program.per_row
    averages = _listed(evaluator, {i: own for i, own in residuals.items() if i not in per_row})
    rows = _listed(evaluator, {i: own for i, own in residuals.items() if i in per_row})
    kept = rows.worst(rows.sizes(units), max(MOST_ENTRIES - len(averages), 0))
    entries = averages.entries() + kept.entries()
    others = _everywhere(evaluator, residuals)
    size = sum(t.numel() for t in tensors)
    if len(averages) > MOST_ENTRIES or (len(entries) + len(others) + 1) * size > MOST_NUMBERS:
        return None
    own = [i for i, t in enumerate(evaluator.decisions.tensors) if any(t is moved for moved in tensors)]
    straight = _straight(_jacobian(evaluator, others, own), np.array([i for i, _ in others]))
    _, gradients = evaluator.pull([lambda outer: outer.objective])[0]
    slope = straight(_flat([gradients[i] for i in own]).cpu().numpy())
    square = float(slope @ slope)
    if not (math.isfinite(square) and square > 0):
        return None
    down = -worth / square * slope
    jacobian = straight(_jacobian(evaluator, [(i, k) for i, k, _, _ in entries], own))
    equal = [same for _, _, same, _ in entries]
    step = down + _step(jacobian, np.array([c for *_, c in entries]) + jacobian @ down, equal)
    return _mover(evaluator, own, straight(step)) if np.isfinite(step).all() and step.any() else None


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


@dataclass(frozen=True)
class _Listed:
    """Entries of constraints, which may be as many as rows.

    Attributes:
        part: position of the part of each.
        place: in the residual of its part.
        equal: whether it is an equality.
        c: residual.
    """

    part: NDArray[np.int64]
    place: NDArray[np.int64]
    equal: NDArray[np.bool_]
    c: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.c)

    def sizes(self, units: Mapping[int, float]) -> NDArray[np.float64]:
        """Violation of each in its unit, negative within the bound."""
        unit = {i: max(units[i], 1e-300) for i in np.unique(self.part).tolist()}
        return np.where(self.equal, np.abs(self.c), self.c) / _each(self.part, unit)

    def chosen(self, places: NDArray[Any]) -> _Listed:
        """Some of them."""
        return _Listed(self.part[places], self.place[places], self.equal[places], self.c[places])

    def worst(self, sizes: NDArray[np.float64], most: int) -> _Listed:
        """The largest ones, at most this many, where these are their sizes."""
        if len(self) <= most:
            return self
        return self.chosen(np.argsort(-sizes, kind="stable")[:most])

    def entries(self) -> list[_Found]:
        """One tuple for each."""
        columns = (self.part, self.place, self.equal, self.c)
        return list(zip(*(column.tolist() for column in columns), strict=True))


def _each(parts: NDArray[np.int64], known: Mapping[int, float]) -> NDArray[np.float64]:
    """The number of the part of each entry."""
    table = np.zeros(max(known, default=0) + 1)
    table[list(known)] = list(known.values())
    return table[parts]


def _listed(evaluator: Evaluator, residuals: _Residuals) -> _Listed:
    """All entries of these parts, in order."""
    counts = [len(c) for _, c in residuals.values()]
    equal = [evaluator.program.parts[i].kind == "==" for i in residuals]
    return _Listed(
        np.repeat(np.array(list(residuals), dtype=np.int64), counts),
        np.concatenate([np.zeros(0, dtype=np.int64), *(places for places, _ in residuals.values())]),
        np.repeat(np.array(equal, dtype=bool), counts),
        np.concatenate([np.zeros(0), *(c for _, c in residuals.values())]),
    )


def _entries(
    evaluator: Evaluator,
    residuals: _Residuals,
    room: Mapping[int, float],
    units: Mapping[int, float],
    margins: Mapping[int, float],
) -> list[_Found]:
    """Part, entry, whether an equality, and residual of what is violated, or would be by a step like that.

    Residuals are those of bounds with their margins. Where there are too many, the largest.
    """
    exact = _listed(evaluator, residuals)
    own = np.unique(exact.part).tolist()
    over = np.where(exact.equal, np.abs(exact.c), exact.c) > _each(exact.part, {i: room[i] for i in own})
    aimed = exact.c + _each(exact.part, {i: margins.get(i, 0.0) for i in own})
    listed = replace(exact, c=aimed)
    sizes = listed.sizes(units)
    worst = float(sizes.max(initial=0.0))
    if not over.any() or not math.isfinite(worst):
        return []
    near = listed.equal | (sizes > -worst)
    # the worst ones: the others have their turn in the next step
    return listed.chosen(near).worst(sizes[near], MOST_ENTRIES).entries()


def _residuals(evaluator: Evaluator, positions: Iterable[int]) -> _Residuals:
    """By position of the part the places in its residual and the values there; of rows those it selects.

    Of constraints per row that are the same the first one stands for all.
    """
    with torch.no_grad():
        residuals = evaluator.outer(evaluator.moments("exact"), "exact").residuals
    found: _Residuals = {}
    first = {_content(part): i for i, part in reversed(evaluator.program.per_row.items())}
    rowwise = [i for i in positions if residuals[i] is None]
    rowwise = [i for i in rowwise if first[_content(evaluator.program.per_row[i])] == i]
    known = {i: (residual, mask) for i, residual, mask in evaluator.all_row_residuals(rowwise)}
    for i in positions:
        residual, mask = known.get(i, (residuals[i], None))
        if residual is None:  # that of another one
            continue
        values = residual.detach().double().reshape(-1).cpu().numpy()
        places = np.arange(len(values))
        if mask is not None:
            width = len(values) // max(len(mask), 1)
            places = np.flatnonzero(mask.reshape(-1).repeat_interleave(width).cpu().numpy())
        found[i] = places, values[places]
    return found


def _content(part: Part) -> Any:
    """What a constraint per row says."""
    return part.kind, part.rows, part.residual, part.where


def _everywhere(evaluator: Evaluator, residuals: _Residuals) -> list[tuple[int, int]]:
    """Part and place of constraints per row, spread evenly over all rows."""
    found: list[tuple[int, int]] = []
    own = [i for i in evaluator.program.per_row if i in residuals]
    for i in own:
        places, _ = residuals[i]
        count = min(len(places), max(MOST_ENTRIES // len(own), 1))
        chosen = np.linspace(0, max(len(places) - 1, 0), count).astype(int)
        found += [(i, k) for k in places[np.unique(chosen)].tolist()]
    return found


def _straight(
    everywhere: NDArray[np.float64], parts: NDArray[np.int64]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The symmetric map M that makes M d the shortest step for the least |d|.

    Lengths are |G M d|^2 + t |M d|^2 = t |d|^2. With G = U S V' it is
    M = sqrt(t) (G' G + t)^(-1/2) = 1 - V (1 - sqrt(t / (S^2 + t))) V', which is symmetric, and so maps the
    gradient of a function of M d to that with respect to d.

    Args:
        everywhere: (rows, numbers) G, up to the units of its parts: the steepest row of each has length 1.
        parts: (rows,) position of the part of each.
    """
    if not everywhere.any() or not np.isfinite(everywhere).all():
        return lambda vectors: vectors
    lengths = np.linalg.norm(everywhere, axis=1)
    steepest = np.array([lengths[parts == i].max() for i in parts])
    everywhere = everywhere / np.where(steepest > 0, steepest, 1.0)[:, None]
    _, sizes, directions = np.linalg.svd(everywhere, full_matrices=False)
    free = FREE * float(sizes.max()) ** 2
    shrunk = 1 - np.sqrt(free / (sizes**2 + free))
    return lambda vectors: vectors - (vectors @ directions.T * shrunk) @ directions


def _jacobian(
    evaluator: Evaluator, entries: Sequence[tuple[int, int]], own: Sequence[int]
) -> NDArray[np.float64]:
    """(entries, numbers) gradients of residuals with respect to these decisions.

    Args:
        evaluator: a program with data.
        entries: position of the part, and place in its residual.
        own: positions of the decisions.
    """
    found: dict[tuple[int, int], Tensor] = {}
    averaged = [entry for entry in entries if entry[0] not in evaluator.program.per_row]
    pulled = evaluator.pull([_entry(*entry) for entry in averaged]) if averaged else []
    for entry, (_, gradients) in zip(averaged, pulled, strict=True):
        found[entry] = _flat([gradients[i] for i in own])
    tensors = [evaluator.decisions.tensors[i] for i in own]
    for part in evaluator.program.per_row:
        places = [k for i, k in entries if i == part]
        for k, value in zip(places, _of_rows(evaluator, part, places), strict=True):
            if value.requires_grad:
                found[part, k] = _flat(
                    torch.autograd.grad(
                        value, tensors, retain_graph=True, allow_unused=True, materialize_grads=True
                    )
                )
    nothing = torch.zeros(sum(t.numel() for t in tensors), dtype=torch.float64, device=evaluator.device)
    rows = [found.get(entry, nothing) for entry in entries]
    return torch.stack(rows).cpu().numpy() if rows else np.zeros((0, len(nothing)))


def _of_rows(evaluator: Evaluator, i: int, places: Sequence[int]) -> Sequence[Tensor]:
    """Residuals of a constraint per row with their gradients, at places counted row by row."""
    if not places:
        return ()
    part = evaluator.program.per_row[i]
    job = next(job for job in evaluator.jobs if job.data is part.rows)
    population, place = evaluator.populations[job.data], len(job.moments) + job.parts.index(i)
    with torch.no_grad():
        width = evaluator.rows(job, population.take(slice(0, 1)), "primal")[place].numel()
    at = torch.tensor(places, device=evaluator.device)
    values = evaluator.rows(job, population.take(at // width), "primal")[place].reshape(len(places), width)
    return values.gather(1, (at % width).reshape(-1, 1)).reshape(-1).unbind()


def _flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.detach().double().reshape(-1) for g in gradients])


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
