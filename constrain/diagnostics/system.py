"""The KKT system at a point: active entries, free coordinates, and second derivatives of the Lagrangian.

    L(theta) = f + sum_i multiplier_i * residual_i

It is what second-order conditions, standard errors of multipliers and sensitivities are computed from. All
rows enter one graph, so it is meant for problems of moderate size (`ties.WORK`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from constrain.diagnostics.point import array_of
from constrain.diagnostics.ties import fits_at_once
from constrain.runtime.derivatives import whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.diagnostics.jacobian import Entry
    from constrain.runtime.evaluator import Evaluator, Outer
    from constrain.runtime.rows import Index

__all__ = ["DENSE", "System"]

DENSE = 500
"""Most free coordinates for which a dense Hessian is formed."""

SMALL = 1e-6
"""Multipliers below this share of the largest count as zero."""


@dataclass(frozen=True)
class System:
    """What is active at a point.

    Attributes:
        evaluator: of the program as solvers see it, at the point.
        multipliers: per part key, all of them.
        entries: the binding ones.
        rows: (entries, decisions) their gradients.
        free: (decisions,) coordinates off their bounds.
        slopes: (decisions,) gradient of the Lagrangian.
        refusal: why nothing of second order can be said at this point; empty where it can.
    """

    evaluator: Evaluator
    multipliers: Mapping[str, NDArray[np.float64]]
    entries: Sequence[Entry]
    rows: NDArray[np.float64]
    free: NDArray[np.bool_]
    slopes: NDArray[np.float64]
    refusal: str

    @property
    def jacobian(self) -> NDArray[np.float64]:
        """(entries, free coordinates)."""
        return self.rows[:, self.free]

    @property
    def size(self) -> int:
        """Number of free coordinates."""
        return int(self.free.sum())

    @cached_property
    def strong(self) -> NDArray[np.bool_]:
        """(entries,) equalities, and inequalities with a multiplier that is clearly positive.

        An interior-point method leaves a multiplier and a slack of about the same size where both are 0.
        """
        sizes = np.array([abs(e.multiplier) for e in self.entries])
        largest = float(np.max(np.abs(self._all_multipliers), initial=0.0))
        equality = np.array([e.equality for e in self.entries], dtype=bool)
        rooms = np.array([abs(e.residual) for e in self.entries])
        return equality | ((sizes > SMALL * largest) & (sizes > 100 * rooms))

    @property
    def _all_multipliers(self) -> NDArray[np.float64]:
        return np.concatenate([np.zeros(0), *(np.ravel(m) for m in self.multipliers.values())])

    @property
    def weak(self) -> tuple[str, ...]:
        """Names of what is active without a force: entries without a multiplier, bounds without a pull."""
        names = [e.label for e, strong in zip(self.entries, self.strong, strict=True) if not strong]
        held = np.flatnonzero(~self.free)
        scale = 1.0 + float(np.max(np.abs(self.slopes), initial=0.0))
        loose = held[np.abs(self.slopes[held]) <= SMALL * scale]
        return (*names, *(["a bound of a variable"] if loose.size else []))

    # ---- the Lagrangian
    def terms(self) -> tuple[Callable[[Outer], Tensor], Callable[[int, Tensor, Index], Tensor] | None]:
        """L as a function of outer values, and what a row adds; for `Evaluator.hessian` and `whole`."""
        parts = self.evaluator.program.parts
        weights = [torch.as_tensor(self.multipliers[part.key]) for part in parts]

        def function(outer: Outer) -> Tensor:
            total = outer.objective.double()
            for residual, weight in zip(outer.residuals, weights, strict=True):
                if residual is not None:
                    total = total + (residual.double() * weight.to(residual.device)).sum()
            return total

        def row_term(i: int, residual: Tensor, index: Index) -> Tensor:
            chosen = weights[i][index if isinstance(index, slice) else index.cpu()]
            return (residual * chosen.to(residual)).sum()

        return function, row_term if any(part.rows is not None for part in parts) else None

    def hessian(self) -> NDArray[np.float64]:
        """(free, free) Hessian of the Lagrangian."""
        function, row_term = self.terms()
        found = array_of(self.evaluator.hessian(function, row_term))
        found = (found + found.T) / 2
        return found[np.ix_(self.free, self.free)]

    def product(self) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
        """v -> Hessian v on free coordinates, by differentiating the gradient once more."""
        function, row_term = self.terms()
        values = whole(self.evaluator, row_term)
        tensors = self.evaluator.decisions.tensors
        scalar = function(values.outer) + values.added
        first = torch.autograd.grad(scalar, tensors, create_graph=True, materialize_grads=True)
        flat = torch.cat([g.reshape(-1) for g in first])

        def times(v: NDArray[np.float64]) -> NDArray[np.float64]:
            full = np.zeros(self.free.size)
            full[self.free] = np.ravel(v)
            if not flat.requires_grad:
                return np.zeros(self.size)
            direction = torch.as_tensor(full).to(flat)
            second = torch.autograd.grad(
                flat, tensors, direction, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            return np.concatenate([array_of(g).reshape(-1) for g in second])[self.free]

        return times

    # ---- solving
    def inverse(self) -> NDArray[np.float64] | str:
        """Inverse of [[H, J'], [J, 0]] on free coordinates, or why it has none."""
        if self.refusal:
            return self.refusal
        if self.weak:
            return f"{self.weak[0]} is active without a force: a small change may go either way"
        if self.size > DENSE or not fits_at_once(self.evaluator):
            return f"{self.size:,} free decisions: more than are put into one system ({DENSE})"
        jacobian, count = self.jacobian, len(self.entries)
        matrix = np.zeros((self.size + count, self.size + count))
        matrix[: self.size, : self.size] = self.hessian()
        matrix[self.size :, : self.size] = jacobian
        matrix[: self.size, self.size :] = jacobian.T
        if not matrix.size:
            return matrix
        scale = 1 / np.sqrt(np.maximum(np.abs(matrix).max(axis=1), 1e-300))
        scaled = matrix * scale[:, None] * scale
        values = np.linalg.svd(scaled, compute_uv=False)
        if values[-1] <= 1e-10 * values[0]:
            return "the KKT system is singular there: multipliers or decisions are not unique"
        found: NDArray[np.float64] = cast("Any", np.linalg).solve(scaled, np.diag(scale))
        return found * scale[:, None]
