"""Kinks that a point sits on, and the choice of slope there that balances best.

At a kink (|a| or max(a, 0) at a = 0, a norm where entries vanish, a largest value that several entries reach,
the threshold of a CVaR at a row) autograd returns one slope of a set. A point is stationary when *some*
choice of slopes balances (0 in Clarke's subdifferential), so the choice that leaves the least gradient is the
one to judge by. An argument a that is zero within `NEAR` counts as zero: solvers return 1e-9 for 0.

Source: Clarke, Optimization and Nonsmooth Analysis (1983), chapter 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from constrain.diagnostics.point import array_of
from constrain.diagnostics.watching import Watch
from constrain.runtime.derivatives import whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.diagnostics.jacobian import Entry
    from constrain.diagnostics.watching import Bend, Largest
    from constrain.runtime.evaluator import Evaluator

__all__ = ["WORK", "Ties", "find_ties", "fits_at_once", "no_ties"]

NEAR = 1e-6
"""Arguments of kinks this small count as zero: relative to the largest of their tensor, or to their gradient,
which then is a step of this size in the decisions (as `jacobian.NEAR_BOUND` is for bounds)."""

MOST = 400
"""Kinks whose slopes are chosen."""

WORK = 20_000_000
"""Rows times decisions up to which all rows are put into one graph."""


@dataclass(frozen=True)
class Ties:
    """Kinks that the point sits on, as numbers that may be added to the slopes which autograd chose.

    Attributes:
        gradients: (ties, decisions) of the kinks' arguments.
        slopes: (1 + entries, ties) derivative of the objective, and of each entry, in the kinks' outputs.
        lower: (ties,) least number that can be added to the slope that autograd chose.
        upper: (ties,) largest one.
        held: (conditions, ties) sums of the numbers that must be 0: the slopes of a largest value are
            averages of those of the entries that reach it.
        count: number of kinks.
        note: why kinks were not resolved; empty when they were.
    """

    gradients: NDArray[np.float64]
    slopes: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    held: NDArray[np.float64]
    count: int = 0
    note: str = ""

    @property
    def limits(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Least and largest numbers that can be added."""
        return self.lower, self.upper

    def rows(self, multipliers: NDArray[np.float64]) -> NDArray[np.float64]:
        """(ties, decisions) how the gradient of the Lagrangian changes with each slope."""
        return (self.slopes[0] + multipliers @ self.slopes[1:])[:, None] * self.gradients

    def moved(self, choice: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What a choice of slopes adds to the gradients of the objective and of the entries."""
        change = (self.slopes * choice) @ self.gradients
        return change[0], change[1:]


def no_ties(evaluator: Evaluator, entries: Sequence[Entry], note: str = "") -> Ties:
    """A point without kinks, or one whose kinks are not resolved for a reason."""
    none = np.zeros(0)
    gradients = np.zeros((0, evaluator.decisions.size))
    return Ties(gradients, np.zeros((1 + len(entries), 0)), none, none, np.zeros((0, 0)), note=note)


# ------------------------------------------------------------------------------------------- places
@dataclass(frozen=True)
class _Place:
    """One slope that may be chosen: entry `at` of the output of a kink moves with entry `k` of an argument.

    Attributes:
        output: of the kink.
        at: its entry.
        argument: what the output changes with.
        k: its entry.
        size: how far the point is from the kink, in units of the argument.
        lower: least number that can be added to the slope that autograd chose.
        upper: largest one.
        sure: whether the distance counts as zero whatever the gradient of the argument.
        shared: slopes of one output of a largest value average: they add up to 1.
    """

    output: Tensor
    at: int
    argument: Tensor
    k: int
    size: float
    lower: float
    upper: float
    sure: bool
    shared: bool = False


def _bent(bend: Bend) -> list[_Place]:
    """Entries whose argument may count as zero."""
    argument = array_of(bend.argument).reshape(-1)
    size = np.abs(argument)
    sure, near = _near(size, size)
    ends = sorted((bend.before, bend.after))
    chosen = np.where(argument > 0, bend.after, np.where(argument < 0, bend.before, bend.at_zero))
    return [
        _Place(
            bend.output,
            k,
            bend.argument,
            k,
            float(size[k]),
            ends[0] - float(chosen[k]),
            ends[1] - float(chosen[k]),
            bool(sure[k]),
        )
        for k in np.flatnonzero(near).tolist()
    ]


def _reached(found: Largest) -> list[_Place]:
    """Entries that reach a largest value which more than one of them reaches."""
    values = array_of(found.argument)
    top = (values.min if found.least else values.max)(axis=found.axes, keepdims=True)
    distance = np.abs(top - values)
    sure, near = _near(distance, np.abs(values))
    near &= near.sum(axis=found.axes, keepdims=True) > 1
    if found.index is None:
        chosen = (distance == 0) / np.maximum((distance == 0).sum(axis=found.axes, keepdims=True), 1)
    else:
        chosen = np.zeros(values.shape)
        np.put_along_axis(chosen, found.index.detach().cpu().numpy(), 1.0, axis=found.axes[0])
    places: NDArray[np.int64] = np.arange(top.size).reshape(top.shape)
    owner = np.broadcast_to(places, values.shape).reshape(-1)
    chosen, distance, sure = chosen.reshape(-1), distance.reshape(-1), sure.reshape(-1)
    return [
        _Place(
            found.output,
            int(owner[k]),
            found.argument,
            k,
            float(distance[k]),
            -float(chosen[k]),
            1.0 - float(chosen[k]),
            bool(sure[k]),
            shared=True,
        )
        for k in np.flatnonzero(near).tolist()
    ]


def _near(
    size: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which distances from a kink count as zero beside the largest value, and which others may."""
    largest = float(np.max(values, initial=0.0, where=np.isfinite(values)))
    sure = size <= NEAR * largest
    loose = size <= NEAR * max(1.0, largest)
    return sure, loose if int(loose.sum()) <= MOST else sure


# ------------------------------------------------------------------------------------------- finding
def fits_at_once(evaluator: Evaluator) -> bool:
    """Whether all rows may be put into one graph."""
    rows = max([p.rows for p in evaluator.populations.values()], default=1)
    streamed = any(p.data.streamed for p in evaluator.populations.values())
    return not streamed and rows * evaluator.decisions.size <= WORK


def find_ties(evaluator: Evaluator, entries: Sequence[Entry]) -> Ties:
    """The kinks that the current decisions sit on, in the objective and in entries.

    Args:
        evaluator: the (judged) program with data.
        entries: whose gradients were formed.
    """
    if not fits_at_once(evaluator):
        tails = [t for t in evaluator.program.tails if t.kind == "CVaR"]
        what = "the threshold of a CVaR sits at a row, and there are too many rows to choose its slope"
        return no_ties(evaluator, entries, what if tails else "")
    watch = Watch()
    with watch:
        scalars = _scalars(evaluator, entries)
    places = [p for bend in watch.bends for p in _bent(bend)]
    places += [p for largest in watch.largest for p in _reached(largest)]
    if not places:
        return no_ties(evaluator, entries)
    slopes = np.array([_picked(s, places) for s in scalars])
    used = np.flatnonzero(np.abs(slopes).max(axis=0) > 0)
    if len(used) > MOST:
        return no_ties(evaluator, entries, f"{len(used)} kinks meet there, more than are resolved ({MOST})")
    gradients = [_gradient(evaluator, places[i]) for i in used]
    close = [
        places[i].sure or places[i].size <= NEAR * float(np.abs(g).max(initial=0.0))
        for i, g in zip(used, gradients, strict=True)
    ]
    kept = [i for i, near in zip(used, close, strict=True) if near]
    return Ties(
        np.array([g for g, near in zip(gradients, close, strict=True) if near]).reshape(
            -1, evaluator.decisions.size
        ),
        slopes[:, kept],
        np.array([places[i].lower for i in kept]),
        np.array([places[i].upper for i in kept]),
        *_shared([places[i] for i in kept]),
    )


def _scalars(evaluator: Evaluator, entries: Sequence[Entry]) -> list[Tensor]:
    """The objective and the residual of each entry, with all rows in one graph."""
    per_row: dict[int, Tensor] = {}

    def keep(i: int, residual: Tensor, _index: Tensor | slice) -> Tensor:
        per_row[i] = residual
        return residual.new_zeros(())

    outer = whole(evaluator, keep).outer
    scalars = [outer.objective]
    for e in entries:
        residual = outer.residuals[e.part]
        residual = per_row[e.part] if residual is None else residual
        scalars.append(residual.reshape(-1)[e.index])
    return scalars


def _shared(places: Sequence[_Place]) -> tuple[NDArray[np.float64], int]:
    """Which sums of slopes are fixed, (conditions, ties), and the number of kinks."""
    owners = [(id(p.output), p.at) for p in places if p.shared]
    owned = list(dict.fromkeys(owners))
    held = np.array(
        [[p.shared and (id(p.output), p.at) == own for p in places] for own in owned], dtype=float
    )
    return held.reshape(len(owned), len(places)), len(places) - len(owners) + len(owned)


def _picked(scalar: Tensor, places: Sequence[_Place]) -> list[float]:
    """d scalar / d output at these places."""
    if not scalar.requires_grad:
        return [0.0] * len(places)
    outputs = {id(p.output): p.output for p in places}
    grads = torch.autograd.grad(
        scalar, list(outputs.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    flat = {key: array_of(g).reshape(-1) for key, g in zip(outputs, grads, strict=True)}
    return [float(flat[id(p.output)][p.at]) for p in places]


def _gradient(evaluator: Evaluator, place: _Place) -> NDArray[np.float64]:
    """(decisions,) gradient of an entry of an argument."""
    grads = torch.autograd.grad(
        place.argument.reshape(-1)[place.k],
        evaluator.decisions.tensors,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return np.concatenate([array_of(g).reshape(-1) for g in grads])
