"""Kinks that a point sits on, and the choice of slope there that balances best.

At a kink (|a| or max(a, 0) at a = 0, a norm where entries vanish, a largest value that several entries reach,
the threshold of a CVaR at a row, an optimal value with several multipliers) autograd returns one slope of a
set. A point is stationary when *some* choice of slopes balances (0 in Clarke's subdifferential), so the
choice that leaves the least gradient is the one to judge by. An argument a that is zero within `NEAR` counts
as zero: solvers return 1e-9 for 0.

Source: Clarke, Optimization and Nonsmooth Analysis (1983), chapter 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from constrain.diagnostics.inner_ties import of_value
from constrain.diagnostics.places import MOST, NEAR, Bundle, bent, reached
from constrain.diagnostics.point import array_of
from constrain.diagnostics.watching import Watch
from constrain.inner.watching import values_seen
from constrain.runtime.derivatives import whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.diagnostics.jacobian import Entry
    from constrain.diagnostics.places import Place
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
    count = sum(len(bundles[i].places) for i in used)
    if count > MOST:
        return no_ties(evaluator, entries, f"{count} slopes meet there, more than are chosen ({MOST})")
    return replace(_joined(evaluator, [bundles[i] for i in used], slopes[:, used]), note=note)


def _round(norms: Sequence[Tensor], scalars: Sequence[Tensor]) -> str:
    """What is said where a norm whose slopes at 0 are no polyhedron, such as that of order 2, is 0."""
    found = [
        Bundle(output, k, (), np.zeros((0, 0)))
        for output in norms
        for k in np.flatnonzero(array_of(output) <= NEAR)[:MOST].tolist()
    ]
    moving = found and any(any(_picked(s, found)) for s in scalars)
    return "a norm is 0, whose slopes there are not chosen (those of order 1 and inf are)" if moving else ""


def _joined(evaluator: Evaluator, bundles: Sequence[Bundle], slopes: NDArray[np.float64]) -> Ties:
    """The ties of bundles with these slopes, (1 + entries, bundles); bundles off their kink are left out."""
    gradients: list[NDArray[np.float64]] = []
    kept: list[tuple[int, Place]] = []
    held: list[NDArray[np.float64]] = []
    for i, bundle in enumerate(bundles):
        rows = [_gradient(evaluator, place) for place in bundle.places]
        near = [
            place.size <= NEAR * float(np.abs(row).max(initial=0.0))
            for place, row in zip(bundle.places, rows, strict=True)
        ]
        if sum(near) < min(2, len(near)) or not any(
            row.any() for row, at in zip(rows, near, strict=True) if at
        ):
            continue
        gradients += [row for row, at in zip(rows, near, strict=True) if at]
        kept += [(i, place) for place, at in zip(bundle.places, near, strict=True) if at]
        held.append(bundle.held[:, near])
    return Ties(
        np.array(gradients).reshape(-1, evaluator.decisions.size),
        slopes[:, [i for i, _ in kept]],
        np.array([place.lower for _, place in kept]),
        np.array([place.upper for _, place in kept]),
        _diagonal(held),
        len(held),
    )


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
