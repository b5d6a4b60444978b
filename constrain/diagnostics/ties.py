"""Kinks that a point sits on, and the choice of slope there that balances best.

At a kink (|a| or max(a, 0) at a = 0, a norm where entries vanish, a largest value that several entries reach,
the threshold of a CVaR at a row, an optimal value with several multipliers) autograd returns one slope of a
set. A point is stationary when *some* choice of slopes balances (0 in Clarke's subdifferential), so the
choice that leaves the least gradient is the one to judge by.

An argument a counts as zero where a step of `NEAR` in the decisions makes it zero, by its own gradient:
solvers return 1e-9 for 0. Other arguments have no say, however large. The slope s of a kink at |a| > 0 is
an epsilon-subgradient of a convex function: |b| >= |a| + s (b - a) - epsilon, epsilon = |s - sign(a)| |a|.
So the sum of these (`Ties.short`) belongs to the gap that such slopes certify.

Functions with the same kink (max(u, 0) - max(-u, 0) is u) do not choose their slopes apart: where they bend
to opposite sides, they are joined to one kink whose slopes are those of the sum on either side.

Source: Clarke, Optimization and Nonsmooth Analysis (1983), chapter 2; Hiriart-Urruty and Lemarechal, Convex
Analysis and Minimization Algorithms II (1993), chapter XI, for epsilon-subgradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from constrain.diagnostics.inner_ties import of_value
from constrain.diagnostics.jumps import lower_beyond
from constrain.diagnostics.places import FINE, MOST, NEAR, Bundle, Place, bent, reached
from constrain.diagnostics.point import array_of
from constrain.diagnostics.watching import Watch
from constrain.inner.watching import Valued, values_seen
from constrain.runtime.derivatives import whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.diagnostics.jacobian import Entry, Gradients
    from constrain.runtime.evaluator import Evaluator

__all__ = ["WORK", "Ties", "find_ties", "fits_at_once", "no_ties"]

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
        room: (ties,) what a number takes from the bound that slopes prove, per unit of it.
        shift: (1 + entries, decisions) what joined kinks add to the gradients that autograd took.
        count: number of kinks.
        jumps: entries of `cn.where` whose piece ends at the point, with a lower one beyond.
        note: why kinks were not resolved; empty when they were.
    """

    gradients: NDArray[np.float64]
    slopes: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    held: NDArray[np.float64]
    room: NDArray[np.float64]
    shift: NDArray[np.float64]
    count: int = 0
    jumps: int = 0
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

    def joined(self, found: Gradients) -> Gradients:
        """Gradients where joined kinks take the slope of one side, in the place of autograd's."""
        return replace(found, objective=found.objective + self.shift[0], rows=found.rows + self.shift[1:])

    def short(self, multipliers: NDArray[np.float64], choice: NDArray[np.float64]) -> float:
        """By how much a convex Lagrangian may lie below the plane of the chosen slopes: the epsilon of it."""
        weight = np.abs(self.slopes[0] + multipliers @ self.slopes[1:])
        return float(np.sum(weight * np.abs(choice) * self.room))


def no_ties(evaluator: Evaluator, entries: Sequence[Entry], note: str = "") -> Ties:
    """A point without kinks, or one whose kinks are not resolved for a reason."""
    none = np.zeros(0)
    gradients, scalars = np.zeros((0, evaluator.decisions.size)), 1 + len(entries)
    shift = np.zeros((scalars, evaluator.decisions.size))
    return Ties(gradients, np.zeros((scalars, 0)), none, none, np.zeros((0, 0)), none, shift, note=note)


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
    with Watch() as watch, values_seen() as values:
        scalars = _scalars(evaluator, entries)
    jumps = lower_beyond(watch.events.jumps, scalars, partial(_at_zero, evaluator))
    return replace(_kinks(evaluator, entries, watch, values, scalars), jumps=jumps)


def _kinks(
    evaluator: Evaluator,
    entries: Sequence[Entry],
    watch: Watch,
    values: Sequence[Valued],
    scalars: Sequence[Tensor],
) -> Ties:
    """The kinks among what was recorded."""
    bundles = [bundle for bend in watch.bends for bundle in bent(bend)]
    bundles += [bundle for largest in watch.largest for bundle in reached(largest)]
    for seen in values:
        own, note = of_value(seen)
        if note:
            return no_ties(evaluator, entries, note)
        bundles += own
    note = _round(watch.round, scalars)
    if not bundles:
        return no_ties(evaluator, entries, note)
    slopes = np.array([_picked(s, bundles) for s in scalars])
    used = np.flatnonzero(np.abs(slopes).max(axis=0) > 0).tolist()
    kept, left = _nearest([bundles[i] for i in used])
    chosen = [_Kink.of(evaluator, bundles[used[i]], slopes[:, used[i]]) for i in kept]
    if left and all(kink is not None for kink in chosen[-1:]):
        count = sum(len(bundles[i].places) for i in used)
        return no_ties(evaluator, entries, f"{count} slopes meet there, more than are chosen ({MOST})")
    note = note or _nested([bundles[used[i]] for i in kept], chosen, bundles)
    found = [kink for kink in chosen if kink is not None]
    return replace(_joined(evaluator, found, len(scalars)), count=len(found), note=note)


def _nearest(bundles: Sequence[Bundle]) -> tuple[list[int], bool]:
    """The kinks that are nearest, nearest first, as many as are chosen; and whether there are others."""
    sizes = [max((place.size for place in bundle.places), default=0.0) for bundle in bundles]
    order: list[int] = np.argsort(sizes, kind="stable").tolist()
    total = np.cumsum([len(bundles[i].places) for i in order], dtype=np.int64)
    fitting = int((total <= MOST).sum())
    return order[:fitting], fitting < len(order)


def _round(norms: Sequence[Tensor], scalars: Sequence[Tensor]) -> str:
    """What is said where a norm whose slopes at 0 are no polyhedron, such as that of order 2, is 0."""
    found = [
        Bundle(output, k, (), np.zeros((0, 0)))
        for output in norms
        for k in np.flatnonzero(array_of(output) <= NEAR)[:MOST].tolist()
    ]
    moving = found and any(any(_picked(s, found)) for s in scalars)
    if not moving:
        return ""
    return (
        "a norm is 0, or a singular value, whose slopes there are not chosen (those of order 1 and inf are)"
    )


@dataclass(frozen=True)
class _Kink:
    """A kink that the point sits on.

    Attributes:
        places: numbers of those arguments that are zero.
        gradients: (places, decisions) of these.
        held: (conditions, places) sums that are 0.
        slopes: (1 + entries,) of the objective and of entries in its output.
    """

    places: tuple[Place, ...]
    gradients: NDArray[np.float64]
    held: NDArray[np.float64]
    slopes: NDArray[np.float64]

    @classmethod
    def of(cls, evaluator: Evaluator, bundle: Bundle, slopes: NDArray[np.float64]) -> _Kink | None:
        """The kink of a bundle; None where the point is off it."""
        rows = np.array([_gradient(evaluator, place) for place in bundle.places])
        sizes = np.array([place.size for place in bundle.places])
        apart = rows - rows[int(np.argmin(sizes))] if len(rows) > 1 else rows
        near = sizes <= np.linalg.norm(apart * _unit(evaluator), axis=1)
        if near.sum() < min(2, len(near)) or not rows[near].any():
            return None
        places = tuple(place for place, at in zip(bundle.places, near, strict=True) if at)
        return cls(places, rows[near], bundle.held[:, near], slopes)

    @property
    def sides(self) -> tuple[float, float]:
        """Of a kink of one argument: its numbers where the argument is negative, and where it is positive."""
        (place,) = self.places
        return (place.lower, place.upper) if place.rising else (place.upper, place.lower)


def _joined(evaluator: Evaluator, kinks: Sequence[_Kink], scalars: int) -> Ties:
    """The numbers of all kinks; those of the same kink that bend to opposite sides are joined."""
    size = evaluator.decisions.size
    shift = np.zeros((scalars, size))
    joined: list[_Kink] = []
    for group in _same(kinks):
        one, moved = _opposed(group)
        joined += group if one is None else [one]
        shift += moved
    places = [place for kink in joined for place in kink.places]
    return Ties(
        np.array([row for kink in joined for row in kink.gradients]).reshape(-1, size),
        np.array([kink.slopes for kink in joined for _ in kink.places]).reshape(-1, scalars).T,
        np.array([place.lower for place in places]),
        np.array([place.upper for place in places]),
        _diagonal([kink.held for kink in joined]),
        np.array([place.room for place in places]),
        shift,
    )


def _same(kinks: Sequence[_Kink]) -> list[list[_Kink]]:
    """Groups of kinks of one argument whose gradients are parallel; each other kink is alone."""
    groups: dict[bytes, list[_Kink]] = {}
    for i, kink in enumerate(kinks):
        key = str(i).encode()
        if len(kink.places) == 1 and np.isfinite(kink.sides).all():
            row: NDArray[np.float64] = kink.gradients[0]
            direction = row / float(row[int(np.argmax(np.abs(row)))])
            key = (direction.round(9) + 0.0).tobytes()  # -0.0 is 0.0
        groups.setdefault(key, []).append(kink)
    return list(groups.values())


def _opposed(group: Sequence[_Kink]) -> tuple[_Kink | None, NDArray[np.float64]]:
    """Kinks with parallel gradients as one, and what it adds to the gradients that autograd took.

    None where they bend to the same side: then their slopes may be chosen apart, and add up to the same.
    """
    scalars, size = len(group[0].slopes), group[0].gradients.shape[1]
    if len(group) < 2:
        return None, np.zeros((scalars, size))
    unit = group[0].gradients[0]
    factors = [float(kink.gradients[0] @ unit) / float(unit @ unit) for kink in group]
    below, above, apart = np.zeros(scalars), np.zeros(scalars), np.zeros(scalars)
    for kink, factor in zip(group, factors, strict=True):
        before, after = kink.sides if factor > 0 else kink.sides[::-1]
        below += factor * before * kink.slopes
        above += factor * after * kink.slopes
        apart += abs(factor * (after - before)) * np.abs(kink.slopes)
    if (np.abs(above - below) >= (1 - 1e-9) * apart).all():
        return None, np.zeros((scalars, size))
    room = max(kink.places[0].room / abs(factor) for kink, factor in zip(group, factors, strict=True))
    place = Place(None, 0, 0.0, 1.0, room=room)
    return _Kink((place,), unit[None], np.zeros((0, 1)), above - below), below[:, None] * unit


def _nested(near: Sequence[Bundle], chosen: Sequence[_Kink | None], bundles: Sequence[Bundle]) -> str:
    """What is said where autograd returns no gradient of an argument, because that sits on a kink itself."""
    for bundle, kink in zip(near, chosen, strict=True):
        place = bundle.places[0] if len(bundle.places) == 1 else None
        if kink is not None or place is None or place.argument is None or place.size > NEAR:
            continue
        inner = [b for b in bundles if b.output is not bundle.output]
        if inner and any(_picked(place.argument.reshape(-1)[place.k], inner)):
            return "kinks sit inside of kinks, and slopes there are not chosen"
    return ""


def _diagonal(blocks: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Blocks beside and below each other, zeros elsewhere."""
    whole = np.zeros((sum(len(b) for b in blocks), sum(b.shape[1] for b in blocks)))
    row = column = 0
    for block in blocks:
        whole[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    return whole


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


def _picked(scalar: Tensor, bundles: Sequence[Bundle]) -> list[float]:
    """d scalar / d output of these bundles."""
    if not scalar.requires_grad:
        return [0.0] * len(bundles)
    outputs = {id(b.output): b.output for b in bundles}
    grads = torch.autograd.grad(
        scalar, list(outputs.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    flat = {key: array_of(g).reshape(-1) for key, g in zip(outputs, grads, strict=True)}
    return [float(flat[id(b.output)][b.at]) for b in bundles]


def _at_zero(evaluator: Evaluator, argument: Tensor) -> NDArray[np.bool_]:
    """Entries of an argument that a step of `NEAR` in the decisions makes zero, by their own gradients."""
    size = np.abs(array_of(argument))
    near = np.zeros(size.shape, dtype=bool)
    for k in np.flatnonzero(size <= NEAR * max(1.0, float(size.max(initial=0.0))))[:MOST].tolist():
        slope = _gradient(evaluator, Place(argument, k, 0.0, 0.0))
        near.flat[k] = size.flat[k] <= float(np.linalg.norm(slope * _unit(evaluator)))
    return near


def _unit(evaluator: Evaluator) -> NDArray[np.float64]:
    """(decisions,) steps that count as none."""
    return NEAR + FINE * np.abs(np.concatenate([array_of(t).ravel() for t in evaluator.decisions.tensors]))


def _gradient(evaluator: Evaluator, place: Place) -> NDArray[np.float64]:
    """(decisions,) gradient of an entry of an argument."""
    if place.argument is None or not place.argument.requires_grad:
        return np.zeros(evaluator.decisions.size)
    grads = torch.autograd.grad(
        place.argument.reshape(-1)[place.k],
        evaluator.decisions.tensors,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return np.concatenate([array_of(g).reshape(-1) for g in grads])
