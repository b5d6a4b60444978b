"""Slopes that may be chosen at a kink: which numbers may be added to those that autograd took.

A `Bundle` belongs to one entry of an output. Its numbers d lie within limits, and some sums of them are 0.
There is one number for a kink of one argument; for a largest value one per entry that reaches it, and they
add up to 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from constrain.diagnostics.point import array_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.diagnostics.watching import Bend, Largest

__all__ = ["FINE", "MOST", "NEAR", "Bundle", "Place", "bent", "reached"]

NEAR = 1e-6
"""Arguments of kinks count as zero where a step of this size in the decisions reaches the kink (as
`jacobian.NEAR_BOUND` is for bounds)."""

FINE = 1e-9
"""The same, relative to the size of each decision: the noise of solvers whose decisions are large."""

MOST = 400
"""Kinks whose slopes are chosen."""


@dataclass(frozen=True)
class Place:
    """One number d: the gradient of the output changes by d times that of an entry of the argument.

    Attributes:
        argument: what the output changes with; None for a number that only conditions know.
        k: its entry.
        lower: least d.
        upper: largest d.
        size: how far the point is from the kink, in units of the argument; 0 where it is at it for certain.
        room: by how much the convex function falls short of its linear piece per unit of d: the same size,
            but for a multiplier the room of its constraint.
        rising: the largest d is the slope where the argument is positive.
    """

    argument: Tensor | None
    k: int
    lower: float
    upper: float
    size: float = 0.0
    room: float = 0.0
    rising: bool = True


@dataclass(frozen=True)
class Bundle:
    """The numbers of one kink.

    Attributes:
        output: of the kink.
        at: its entry.
        places: the numbers.
        held: (conditions, places) sums of them that are 0.
    """

    output: Tensor
    at: int
    places: tuple[Place, ...]
    held: NDArray[np.float64]


def bent(bend: Bend) -> list[Bundle]:
    """Entries whose argument may count as zero."""
    argument = array_of(bend.argument).reshape(-1)
    size = np.abs(argument)
    low, high = sorted((bend.before, bend.after))
    taken = np.where(argument > 0, bend.after, np.where(argument < 0, bend.before, bend.at_zero))
    found: list[Bundle] = []
    for k in _candidates(size, size).tolist():
        own, off = float(taken[k]), float(size[k])
        rising = bend.after >= bend.before
        place = Place(bend.argument, k, low - own, high - own, off, off, rising)
        found.append(Bundle(bend.output, k, (place,), np.zeros((0, 1))))
    return found


def reached(found: Largest) -> list[Bundle]:
    """Largest values that several entries reach."""
    values = array_of(found.argument)
    top: NDArray[np.float64] = (np.min if found.least else np.max)(values, axis=found.axes, keepdims=True)
    off = np.abs(top - values)
    if found.index is None:  # equal entries share the slope
        taken = (off == 0) / np.maximum((off == 0).sum(axis=found.axes, keepdims=True), 1)
    else:
        taken = np.zeros(values.shape)
        np.put_along_axis(taken, found.index.detach().cpu().numpy(), 1.0, axis=found.axes[0])
    owner = np.broadcast_to(np.arange(top.size).reshape(top.shape), values.shape).reshape(-1)
    flat, weight = off.reshape(-1), taken.reshape(-1)
    members: dict[int, list[Place]] = {}
    for k in _candidates(off.reshape(-1), np.abs(values)).tolist():
        own, size = float(weight[k]), float(flat[k])
        members.setdefault(int(owner[k]), []).append(Place(found.argument, k, -own, 1.0 - own, size, size))
    several = [(at, tuple(own)) for at, own in members.items() if len(own) > 1]
    return [Bundle(found.output, at, own, np.ones((1, len(own)))) for at, own in several]


def _candidates(size: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Entries that may be at a kink, in order: whether they are, their own gradient tells.

    The largest value of a tensor only limits for how many a gradient is formed; it decides nothing.
    """
    largest = float(np.max(values, initial=0.0, where=np.isfinite(values)))
    found = np.flatnonzero(size <= NEAR * max(1.0, largest))
    return np.sort(found[np.argsort(size[found], kind="stable")[: MOST + 1]])
