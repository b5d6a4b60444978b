"""Nearest points of simple sets, in a diagonal metric, with multipliers and a bound.

    minimize    sum_i  curvature_i x_i^2 / 2 + slope_i x_i
    subject to  lower <= x <= upper,   rows x <= bound   (or == bound)

where no entry is in two rows (boxes, half-spaces, simplices, boxes with budgets), or there are equalities and
no bounds (affine sets); and onto balls. The formulas are those of inner problems (`constrain.inner.closed`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from constrain.inner.closed import affine_set, ball, knapsack
from constrain.solvers.separable import NotSeparable

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BallForm", "Nearest", "NearestPoint", "name_of"]

Floats: TypeAlias = "NDArray[np.float64]"

EQUATIONS = 1_000
"""Most equations of an affine set."""


@dataclass(frozen=True)
class NearestPoint:
    """A solution.

    Attributes:
        x: (n,).
        prices: (k,) multipliers of the rows.
        bound: lower bound of the optimal value, from the prices; -inf without a feasible point.
        feasible: whether a point satisfies all rows and bounds.
    """

    x: Floats
    prices: Floats
    bound: float
    feasible: bool


def _tensor(values: Any) -> torch.Tensor:
    return torch.as_tensor(np.ascontiguousarray(values, dtype=np.float64))


@dataclass(frozen=True)
class Nearest:
    """The numbers of such a problem; see the formula of the module.

    Attributes:
        curvature: (n,) positive.
        slope: (n,).
        rows: (k, n) sparse, without zeros.
        bound: (k,).
        equal: (k,) whether a row is an equality.
        lower: (n,), -inf where open.
        upper: (n,), inf where open.
    """

    curvature: Floats
    slope: Floats
    rows: Any
    bound: Floats
    equal: NDArray[np.bool_]
    lower: Floats
    upper: Floats

    @property
    def separate(self) -> bool:
        """Whether no entry is in two rows."""
        return bool((np.bincount(self.rows.indices, minlength=len(self.slope)) <= 1).all())

    @property
    def open(self) -> bool:
        """Whether no entry has a bound."""
        return not (np.isfinite(self.lower).any() or np.isfinite(self.upper).any())

    def check(self) -> None:
        """Refuses what has no formula.

        Raises:
            NotSeparable: with the reason.
        """
        if self.separate:
            return
        if not (self.open and self.equal.all()):
            raise NotSeparable("constraints share entries that have bounds, or that are in inequalities")
        if len(self.bound) > EQUATIONS:
            raise NotSeparable(f"{len(self.bound):,} equations are more than {EQUATIONS:,}")

    def solve(self) -> NearestPoint:
        """The nearest point."""
        if (self.lower > self.upper).any():
            x = np.clip(-self.slope / self.curvature, self.lower, np.maximum(self.lower, self.upper))
            return NearestPoint(x, np.zeros(len(self.bound)), -math.inf, False)
        x, prices, feasible = self._affine() if not self.separate else self._budgets()
        return NearestPoint(x, prices, self._dual(prices) if feasible else -math.inf, feasible)

    def _affine(self) -> tuple[Floats, Floats, bool]:
        A, b = _tensor(self.rows.toarray())[None], _tensor(self.bound)[None]
        x, y, feasible = affine_set(_tensor(self.curvature), _tensor(self.slope)[None], A, b)
        return x[0].numpy(), y[0].numpy(), bool(feasible[0])

    def _budgets(self) -> tuple[Floats, Floats, bool]:
        """Row by row, rows of one length and kind at once."""
        x = np.clip(-self.slope / self.curvature, self.lower, self.upper)
        prices, feasible = np.zeros(len(self.bound)), True
        lengths = np.diff(self.rows.indptr)
        kinds = np.stack([lengths, self.equal], axis=1)
        for length, equality in np.unique(kinds, axis=0) if len(kinds) else ():
            chosen = np.flatnonzero((lengths == length) & (self.equal == bool(equality)))
            columns = self.rows.indices[self._places(chosen, length)]
            own = [_tensor(v[columns]) for v in (self.curvature, self.slope, self.lower, self.upper)]
            weights, b = _tensor(self.rows.data[self._places(chosen, length)]), _tensor(self.bound[chosen])
            near, price, ok, _ = knapsack(own[0], own[1], weights, b, own[2], own[3], equality=bool(equality))
            x[columns], prices[chosen] = near.numpy(), price.numpy()
            feasible = feasible and bool(ok.all())
        return x, prices, feasible

    def _places(self, rows: Any, length: int) -> Any:
        """(rows, length) positions of the entries of rows of this length."""
        return self.rows.indptr[rows][:, None] + np.arange(length)

    def _dual(self, prices: Floats) -> float:
        """The least value of the Lagrangian within the bounds: at most the optimal value for any prices."""
        pull = self.slope + self.rows.T @ prices
        x = np.clip(-pull / self.curvature, self.lower, self.upper)
        return float(self.curvature @ (x * x)) / 2 + float(pull @ x) - float(self.bound @ prices)


def name_of(given: Nearest) -> str:
    """The set, in the field's words."""
    count = len(given.bound)
    if not count:
        return "a box"
    if not given.separate:
        return "an affine set"
    if given.open:
        sets = ("hyperplane", "hyperplanes") if given.equal.all() else ("half-space", "half-spaces")
        return f"a {sets[0]}" if count == 1 else f"{count} {sets[1]} of different entries"
    whole = len(given.rows.indices) == len(given.slope) and given.equal.all()
    even = bool(np.ptp(given.rows.data) == 0)
    if whole and even and not given.lower.any() and np.isfinite(given.lower).all():
        if not np.isfinite(given.upper).any():
            return "the simplex" if count == 1 else f"{count} simplices"
        return "the capped simplex" if count == 1 else f"{count} capped simplices"
    return "a box with a budget" if count == 1 else f"a box with {count} budgets of different entries"


@dataclass(frozen=True)
class BallForm:
    """The nearest point of a ball |x - center| <= radius in the norm of order 2 or 1.

    Attributes:
        curvature: of the objective, the same for all entries.
        slope: (n,).
        center: (n,).
        radius: not negative.
        order: of the norm.
        unit: the residual is `unit` (|x - center| - radius), or `unit` (|x - center|^2 - radius^2).
        squared: whether it is the second one.
    """

    curvature: float
    slope: Floats
    center: Floats
    radius: float
    order: float
    unit: float
    squared: bool

    def solve(self) -> NearestPoint:
        """The nearest point; the price is that of the residual."""
        y = -self.slope / self.curvature
        near, price, _ = ball(
            _tensor(y)[None], _tensor(self.center)[None], _tensor([self.radius]), order=self.order
        )
        x, force = near[0].numpy(), self.curvature * float(price[0]) / self.unit
        if self.squared:
            force = force / (2 * self.radius)
        value = self.curvature * float(x @ x) / 2 + float(self.slope @ x)
        return NearestPoint(x, np.array([force]), value + force * self._residual(x), True)

    def _residual(self, x: Floats) -> float:
        size = float(np.linalg.norm(x - self.center, self.order))
        return self.unit * (size**2 - self.radius**2 if self.squared else size - self.radius)
