"""A constraint per row in a few numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from constrain.solution.constraint import ConstraintResult

__all__ = ["QUANTILES", "Summary", "least", "summarize"]

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class Summary:
    """A constraint per row over the rows that it selects, in its own units.

    The room of a row is the least slack of its entries, and minus the size of the residual for an equality.

    Attributes:
        rows: number of selected rows.
        share_violated: share of them that are violated.
        max_violation: largest violation.
        share_relaxed: share of them that hold only by their slack; None when it must hold as written.
        max_relaxation: largest slack of a relaxed constraint; None when it must hold as written.
        quantiles: room by share of rows: 0.0 is the least, 0.5 the median.
        worst_rows: (count,) numbers of the rows with the least room, worst first.
        worst_room: (count,) their room.
        worst_multipliers: (count,) their multipliers, summed over entries; None when there are none.
        support: number of rows with a multiplier beyond rounding; None when there are none.
    """

    rows: int
    share_violated: float
    max_violation: float
    share_relaxed: float | None
    max_relaxation: float | None
    quantiles: dict[float, float]
    worst_rows: NDArray[np.int64]
    worst_room: NDArray[np.float64]
    worst_multipliers: NDArray[np.float64] | None
    support: int | None

    def __str__(self) -> str:
        lines = [
            f"{self.rows} rows, {self.share_violated:.3g} of them violated by up to {self.max_violation:.3g}"
        ]
        if self.share_relaxed is not None:
            lines.append(
                f"{self.share_relaxed:.3g} of them relaxed by up to {self.max_relaxation or 0.0:.3g}"
            )
        if self.quantiles:
            lines.append(
                "room " + ", ".join(f"{share:g}: {room:.3g}" for share, room in self.quantiles.items())
            )
        pairs = zip(self.worst_rows.tolist(), self.worst_room.tolist(), strict=True)
        lines.append("worst rows " + ", ".join(f"{row} ({room:.3g})" for row, room in pairs))
        if self.support is not None:
            lines.append(f"{self.support} rows with a multiplier")
        return "\n".join(lines)


def least(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Positions of the smallest values, smallest first; ties by position."""
    count = min(count, values.size)
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    limit = np.partition(values, count - 1)[count - 1]
    near = np.flatnonzero(values <= limit)
    return near[np.argsort(values[near], kind="stable")][:count].astype(np.int64)


def summarize(result: ConstraintResult, worst: int = 5) -> Summary:
    """The summary of a constraint per row; memory and time are linear in the rows.

    Args:
        result: of a constraint per row.
        worst: number of worst rows to list.
    """
    rows = np.zeros(0, dtype=np.int64) if result.rows is None else result.rows
    shape = (len(rows), int(np.prod(np.shape(result.slack)[1:])))
    slack = np.reshape(np.asarray(result.slack, dtype=np.float64), shape)
    room = (-np.abs(slack) if result.op == "==" else slack).min(axis=1, initial=np.inf)
    chosen = least(room, worst)
    multipliers = None
    if result.has_duals:
        multipliers = np.reshape(np.asarray(result.multiplier, dtype=np.float64), shape).sum(axis=1)
    relaxed = result.relaxation is not None
    support = None
    if multipliers is not None:
        size = np.abs(multipliers)
        support = int((size > 1e-6 * max(1.0, float(size.max(initial=0.0)))).sum())
    return Summary(
        rows=len(rows),
        share_violated=result.train.share or 0.0,
        max_violation=float(np.max(result.violation, initial=0.0)),
        share_relaxed=result.train.relaxed if relaxed else None,
        max_relaxation=float(np.max(np.asarray(result.relaxation), initial=0.0)) if relaxed else None,
        quantiles=dict(zip(QUANTILES, np.quantile(room, QUANTILES).tolist(), strict=True))
        if room.size
        else {},
        worst_rows=rows[chosen],
        worst_room=room[chosen],
        worst_multipliers=None if multipliers is None else multipliers[chosen],
        support=support,
    )
