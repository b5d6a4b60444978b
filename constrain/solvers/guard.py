"""What a training run does about cycles, in the place of a person who watches it.

Violations that come back, without getting smaller, mean that multipliers follow too late. From then on the
proportional part of their rule is larger and reads a shorter past, and the integral part is half as fast. Of
the changes that were tried (a doubled gain, half the rate, optimistic multipliers, this one) it was the one
that left the smallest error on linear and quadratic problems with SGD and Adam at several step sizes.

It looks at averages after every epoch, and acts only where the user has left the rule to the library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.solvers.primal_dual import Training

__all__ = ["SWINGS", "Guard", "cycle_length"]

SWINGS = 4
"""Passages from one side of the trend to the other that make two cycles."""
RELATED = 0.6
"""Autocorrelation at lag one, in size, below which a series is noise."""
WINDOW = 24
"""Epochs that are looked at together."""
MOST_ENTRIES = 64
"""Entries of averages beyond which nothing is recorded."""
LASTING = 0.7
"""Share of the swing of the first half of the window that the second half keeps, in a cycle."""
VISIBLE = 0.05
"""Swing of a residual, in spreads of a row's contribution, below which a cycle does not matter."""
DAMPED_GAIN, DAMPED_MEMORY = 0.6, 0.8
"""Least proportional gain, and decay of the running residual that it reads, after cycles were seen."""
MOST_CHANGES = 3
"""Times that a run is changed."""


class Guard:
    """Watches the residuals of the averages of one run.

    Args:
        acts: whether the user has left the rule of the multipliers to the library.

    Attributes:
        notes: what it changed, in words.
    """

    def __init__(self, *, acts: bool) -> None:
        self.acts = acts
        self.notes: list[str] = []
        self._residuals: list[list[float]] = []

    def observe(self, run: Training, residuals: Mapping[int, Tensor]) -> None:
        """Looks at one epoch, and acts where it has to.

        Args:
            run: after the epoch.
            residuals: exact, by part position.
        """
        lagrangian = run.lagrangian
        count = len(lagrangian.values)
        if not self.acts or run.resting or not 0 < count <= MOST_ENTRIES or len(self.notes) == MOST_CHANGES:
            return
        spreads = (lagrangian.units / lagrangian.scales).double().cpu().numpy()
        found = np.concatenate([residuals[i].reshape(-1).double().cpu().numpy() for i in sorted(residuals)])
        self._residuals.append((found / spreads).tolist())
        del self._residuals[:-WINDOW]
        series = np.array(self._residuals)
        if len(series) < WINDOW or not any(_lasting(series[:, j]) for j in range(count)):
            return
        run.damp(max(DAMPED_GAIN, lagrangian.gain), DAMPED_MEMORY, run.rate / 2)
        change = f"gain {lagrangian.gain:g}, memory {lagrangian.memory:g}, rate {run.rate:.3g}"
        self.notes.append(f"violations came back in cycles: {change} after step {run.steps}")
        self._residuals.clear()


def _lasting(values: NDArray[np.float64]) -> bool:
    """Whether a scaled residual cycles visibly, and does not come to rest."""
    early, late = (float(np.std(half)) for half in np.array_split(values, 2))
    return min(early, late) > VISIBLE and late > LASTING * early and cycle_length(values) > 0


def cycle_length(values: Sequence[float] | NDArray[Any]) -> int:
    """Records per cycle of a series that swings around its trend twice or more; 0 without a cycle.

    Cycles are smooth, or flip from record to record, and sampling noise is neither: its autocorrelation at
    lag one is near 0.
    """
    series = np.asarray(values, dtype=np.float64)
    line = np.polyval(np.polyfit(np.arange(series.size), series, 1), np.arange(series.size))
    x = series - line
    power = float(x @ x)
    if not np.isfinite(power) or power <= 1e-24 or abs(float(x[:-1] @ x[1:])) < RELATED * power:
        return 0
    sides = np.sign(x[np.abs(x) > 0.5 * float(np.std(x))])
    swings = int((np.diff(sides) != 0).sum())
    return round(2 * series.size / swings) if swings >= SWINGS else 0
