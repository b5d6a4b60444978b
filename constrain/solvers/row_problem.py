"""A problem with slack variables or constraints for every row: what Newton's method sees of it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from constrain.runtime.derivatives import jacobian, largest, whole
from constrain.solvers.row_system import RowBlock, RowHessian, RowJacobian, RowLayout
from constrain.solvers.second_order import Scaled, usable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.language.data import Data
    from constrain.runtime.evaluator import Evaluator
    from constrain.solvers.kinks import Kink

    Vector = NDArray[np.float64]
    Places = NDArray[np.int64]

__all__ = ["RowScaled"]


@dataclass(frozen=True)
class _Sample:
    """What belongs to the rows of one sample.

    Attributes:
        rows: their number.
        parts: positions of the constraints per row.
        tensors: slack variables, with the rows as first axis.
    """

    rows: int
    parts: list[int]
    tensors: list[Tensor]


class RowScaled(Scaled):
    """The problem in flat vectors, with derivatives by rows.

    Args:
        evaluator: of a program whose kinks of every row are slack variables.
        kinks: these.
    """

    def __init__(self, evaluator: Evaluator, kinks: Sequence[Kink]) -> None:
        super().__init__(evaluator)
        self.kinks = kinks
        self.samples = _samples(evaluator, kinks)
        tensors = evaluator.decisions.tensors
        ends = np.cumsum([0, *(t.numel() for t in tensors)])
        self.starts = {id(t): int(start) for t, start in zip(tensors, ends[:-1], strict=True)}
        slack = {id(t) for sample in self.samples for t in sample.tensors}
        self.others = [t for t in tensors if id(t) not in slack]
        self._leave_out_rows(kinks)
        self.layout = self._layout_of_rows()
        self.bounds = [
            [i for i, part in enumerate(self.parts) if part.constraint == kink.slack.name] for kink in kinks
        ]
        self.widths = self._pushed_inside()

    def prepare(self) -> None:
        """Nothing: derivatives are by rows."""

    def merge(self, x: Vector) -> None:
        """Copies of constraints stay: rows are too many to compare."""

    def _leave_out_rows(self, kinks: Sequence[Kink]) -> None:
        """Slack variables of rows that no average counts are no decisions."""
        for kink in kinks:
            i = next(i for i, part in enumerate(self.parts) if part.constraint == kink.slack.name)
            u = self.evaluator.decisions.variables[kink.slack]
            start = self.starts[id(u)]
            self.free[start : start + u.numel()] = self.selected[i].reshape(-1)
        low, high = self.evaluator.decisions.bounds()
        self.low, self.high = low[self.free], high[self.free]

    def _layout_of_rows(self) -> RowLayout:
        decisions = np.where(self.free, np.cumsum(self.free) - 1, -1)
        blocks: list[RowBlock] = []
        for sample in self.samples:
            u = [self._block(decisions, t, sample.rows) for t in sample.tensors]
            c = [self._entries(i).reshape(sample.rows, -1) for i in sample.parts]
            empty = np.zeros((sample.rows, 0), dtype=np.int64)
            blocks.append(RowBlock(np.concatenate([empty, *u], 1), np.concatenate([empty, *c], 1)))
        n, m = int(self.free.sum()), len(self.equal)
        x, d = np.ones(n, dtype=bool), np.ones(m, dtype=bool)
        for block in blocks:
            x[block.u[block.u >= 0]] = False
            d[block.c[block.c >= 0]] = False
        return RowLayout(n, m, np.flatnonzero(x), np.flatnonzero(d), blocks)

    def _block(self, decisions: Places, t: Tensor, rows: int) -> Places:
        start = self.starts[id(t)]
        return decisions[start : start + t.numel()].reshape(rows, -1)

    def _entries(self, i: int) -> Places:
        """Places of a part's entries among the constraints; -1 for rows that it does not select."""
        chosen = self.selected[i]
        places = np.full(chosen.shape, -1, dtype=np.int64)
        places[chosen] = np.arange(self.ends[i], self.ends[i + 1])
        return places

    def _pushed_inside(self) -> list[float]:
        """Moves slack variables off their bounds, by a half of the width of their kink; returns the widths.

        The width is the mean distance of the bounds, or a step of the other decisions of a tenth where this
        is larger. Newton's method starts inside of all bounds, and from next to them its steps are short.
        """
        lengths = self._at(self.whole[self.free])[1].norms()
        widths: list[float] = []
        for kink, bounds in zip(self.kinks, self.bounds, strict=True):
            residuals = [self.evaluator.row_residuals(i, "primal")[0] for i in bounds]
            distance = float((torch.stack(residuals).amax(0) - torch.stack(residuals).amin(0)).mean())
            steps = [lengths[self.ends[i] : self.ends[i + 1]].mean() for i in bounds]
            widths.append(max(distance, 0.1 * float(max(steps)), 1e-8))
            with torch.no_grad():
                self.evaluator.decisions.variables[kink.slack].add_(0.5 * kink.side * widths[-1])
        self.whole = self.evaluator.decisions.get()
        return widths

    def measure(self, x: Vector) -> tuple[float, Vector]:
        """Scales in which slack variables of rows, and their multipliers, are about 1.

        A bound of a slack variable has the width of its kink as unit, and the objective what moving one
        slack variable by its width does to it: 1 / rows of an average. In a constraint, that counts at the
        ratio of the two gradients, which a multiplier may have.
        """
        gradient, J = self._at(x)
        f_scale, scales = super().measure(x)
        columns = np.concatenate([gradient[None], np.zeros((len(J.layout.d), len(x)))])
        for block, across in zip(J.layout.blocks, J.across, strict=True):
            columns[1:, block.u[block.u >= 0]] = across[:, block.u >= 0]
        columns[1:] *= f_scale / scales[J.layout.d, None]
        moved = 0.0
        for kink, bounds, width in zip(self.kinks, self.bounds, self.widths, strict=True):
            for i in bounds:
                scales[self.ends[i] : self.ends[i + 1]] = width
            at = self._entries(bounds[0])
            u = self._block(np.cumsum(self.free) - 1, self.evaluator.decisions.variables[kink.slack], len(at))
            own = columns[:, u.reshape(at.shape)[at >= 0]]
            moved = max(moved, width * float(np.abs(own).max(initial=0.0)))
        return (usable(moved) if moved > 0 else f_scale), scales

    # ---- derivatives
    def _at(self, x: Vector) -> tuple[Vector, RowJacobian]:
        gradient, J = self.linearized(x)
        assert isinstance(J, RowJacobian)  # by `_differentiated`
        return gradient, J

    def _differentiated(self) -> tuple[Vector, RowJacobian]:
        per_row: dict[int, Tensor] = {}

        def keep(i: int, residual: Tensor, _index: Tensor | slice) -> Tensor:
            per_row[i] = residual
            return residual.new_zeros(())

        outer = whole(self.evaluator, keep).outer
        flat = [r.reshape(-1) for r in outer.residuals if r is not None]
        values = torch.cat([outer.objective.reshape(1), *flat])
        rows, tensors = largest(self.evaluator), self.evaluator.decisions.tensors
        found = _array(jacobian(values, tensors, rows, self.on_time))[:, self.free]
        at = self.layout
        across = [np.where(block.u >= 0, found[1:, block.u], 0.0) for block in at.blocks]
        pairs = [self._of_rows(sample, per_row) for sample in self.samples]
        a, b = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        return found[0], RowJacobian(at, found[1:, at.x], across, a, b)

    def _of_rows(self, sample: _Sample, per_row: dict[int, Tensor]) -> tuple[Vector, Vector]:
        """Derivatives of the constraints of rows in the other decisions and in the slack variables."""
        residuals = torch.cat([per_row[i].reshape(sample.rows, -1) for i in sample.parts], 1)
        p = residuals.shape[1]
        return self._in_others(residuals), _in_slacks([residuals[:, j] for j in range(p)], sample)

    def _in_others(self, residuals: Tensor) -> Vector:
        """(rows, p, x): pulled back with unknown weights, the result is differentiated in these.

        It takes a backward pass per decision, not one per row.
        """
        weights = torch.ones_like(residuals).requires_grad_(True)
        chosen = self._chosen()
        if not residuals.requires_grad or not self.others:
            return np.zeros((*residuals.shape, int(chosen.sum())))
        pulled = torch.autograd.grad(
            residuals, self.others, weights, create_graph=True, materialize_grads=True
        )
        flat = torch.cat([g.reshape(-1) for g in pulled])
        found = _array(jacobian(flat, [weights], len(residuals), self.on_time))[chosen]
        return np.ascontiguousarray(found.T).reshape(*residuals.shape, -1)

    def _chosen(self) -> NDArray[np.bool_]:
        """Which entries of the other decisions are free."""
        starts = [(self.starts[id(t)], t.numel()) for t in self.others]
        return np.concatenate([np.zeros(0, bool), *(self.free[at : at + size] for at, size in starts)])

    def hessian(self, x: Vector, y: Vector) -> RowHessian:
        """Hessian of the scaled Lagrangian."""
        self.place(x)
        first = self._gradient(y)
        chosen, rows = self._chosen(), largest(self.evaluator)
        flat = torch.cat([first[id(t)].reshape(-1) for t in self.others])
        slacks = [t for sample in self.samples for t in sample.tensors]
        found = _array(jacobian(flat, [*self.others, *slacks], rows, self.on_time))[chosen]
        size, start = len(chosen), len(chosen)
        ux: list[Vector] = []
        uu: list[Vector] = []
        for sample in self.samples:
            pieces = [first[id(t)].reshape(sample.rows, -1) for t in sample.tensors]
            width = sum(piece.numel() for piece in pieces)
            ux.append(_by_rows(found[:, start : start + width], pieces, sample.rows))
            uu.append(_in_slacks([piece[:, j] for piece in pieces for j in range(piece.shape[1])], sample))
            start += width
        return RowHessian(found[:, :size][:, chosen], ux, uu)

    def _gradient(self, y: Vector) -> dict[int, Tensor]:
        """Gradient of the Lagrangian with its graph, by `id` of the tensor."""
        lagrangian, per_row = self.lagrangian(y)
        values = whole(self.evaluator, per_row)
        scalar = lagrangian(values.outer) + values.added
        tensors = self.evaluator.decisions.tensors
        found = torch.autograd.grad(scalar, tensors, create_graph=True, materialize_grads=True)
        return {id(t): g for t, g in zip(tensors, found, strict=True)}


def _samples(evaluator: Evaluator, kinks: Sequence[Kink]) -> list[_Sample]:
    """The samples with slack variables or constraints of rows."""
    tensors: dict[Data, list[Tensor]] = {}
    parts: dict[Data, list[int]] = {}
    for kink in kinks:
        assert kink.rows is not None  # kinks of rows only
        tensors.setdefault(kink.rows, []).append(evaluator.decisions.variables[kink.slack])
    for i, part in enumerate(evaluator.program.parts):
        if part.rows is not None:
            parts.setdefault(part.rows, []).append(i)
    return [
        _Sample(evaluator.populations[data].rows, own, tensors.get(data, [])) for data, own in parts.items()
    ]


def _in_slacks(columns: Sequence[Tensor], sample: _Sample) -> Vector:
    """(rows, columns, k): derivatives of numbers per row in the slack variables of the same row."""
    pieces: list[Vector] = []
    empty = np.zeros((sample.rows, 0))
    for column in columns:
        found = [None] * len(sample.tensors)
        if column.requires_grad and sample.tensors:
            found = torch.autograd.grad(column.sum(), sample.tensors, retain_graph=True, allow_unused=True)
        own = [
            np.zeros((sample.rows, t.numel() // sample.rows)) if g is None
            else _array(g).reshape(sample.rows, -1)
            for t, g in zip(sample.tensors, found, strict=True)
        ]  # fmt: skip
        pieces.append(np.concatenate([empty, *own], 1))
    k = sum(t.numel() // sample.rows for t in sample.tensors)
    return np.stack(pieces, 1) if pieces else np.zeros((sample.rows, 0, k))


def _by_rows(found: Vector, pieces: Sequence[Tensor], rows: int) -> Vector:
    """(rows, k, x) of (x, all entries of the pieces one after the other)."""
    ends = np.cumsum([0, *(piece.numel() for piece in pieces)])
    parts = [found[:, start:stop].reshape(len(found), rows, -1) for start, stop in pairwise(ends)]
    whole = np.concatenate([np.zeros((len(found), rows, 0)), *parts], 2)
    return np.ascontiguousarray(whole.transpose(1, 2, 0))


def _array(t: Tensor) -> Vector:
    return t.detach().cpu().double().numpy()
