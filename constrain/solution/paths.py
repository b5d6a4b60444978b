"""Records of a problem solved for many values of a parameter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from constrain._lazy import reports
from constrain.solution.frames import frame_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ParametricPath", "ParetoFront"]


@dataclass(frozen=True)
class ParametricPath:
    """The optimal value and the multipliers along a parameter.

    Attributes:
        parameter: its name.
        values: (n,) of the parameter, increasing.
        objectives: (n,) optimal values, in the user's sense.
        slopes: (n,) d(optimal value)/d(parameter) from the multipliers (envelope theorem); NaN where there
            are no multipliers, or where they are no prices.
        statuses: (n,) status of each solve.
        violations: (n,) largest violation of a constraint as written.
        multipliers: per entry of a constraint, such as `parity[sex=f]`, (n,) in the sign of
            `ConstraintResult.multiplier`; of a constraint per row their sum. NaN where there are none.
        entries: per entry (n,) its value; of a constraint per row the share of violated rows.
        sense: `minimize` or `maximize`.
        tolerance: of the judgment of the solves.
    """

    parameter: str
    values: NDArray[np.float64]
    objectives: NDArray[np.float64]
    slopes: NDArray[np.float64]
    statuses: tuple[str, ...]
    violations: NDArray[np.float64]
    multipliers: dict[str, NDArray[np.float64]] = field(default_factory=dict[str, "NDArray[np.float64]"])
    entries: dict[str, NDArray[np.float64]] = field(default_factory=dict[str, "NDArray[np.float64]"])
    sense: str = "minimize"
    tolerance: float = 1e-6

    def __len__(self) -> int:
        return int(self.values.size)

    @property
    def secants(self) -> NDArray[np.float64]:
        """(n-1,) differences of the optimal values over those of the parameter."""
        return np.diff(self.objectives) / np.diff(self.values)

    @property
    def mismatch(self) -> NDArray[np.float64]:
        """(n-1,) how far each secant lies outside of the slopes at its two ends; NaN without slopes.

        Between two solves the value changes by the mean of its slopes (fundamental theorem of calculus).
        Where the value is convex or concave in the parameter on the stretch, as it is for the right-hand side
        of a convex problem, this mean lies between the two slopes, whatever kinks there are.
        """
        one, other, secants = self.slopes[:-1], self.slopes[1:], self.secants
        return np.maximum(0.0, np.maximum(np.minimum(one, other) - secants, secants - np.maximum(one, other)))

    @property
    def noise(self) -> NDArray[np.float64]:
        """(n-1,) error of each secant from solving to a tolerance, plus 1 % of the slopes there."""
        size = np.maximum(np.abs(self.slopes[:-1]), np.abs(self.slopes[1:]))
        rounding = self.tolerance * (1 + np.abs(self.objectives[:-1]) + np.abs(self.objectives[1:]))
        return np.asarray(rounding / np.diff(self.values) + 0.01 * size)

    @property
    def agrees(self) -> bool | None:
        """Whether the slopes explain the differences of the values, up to `noise`; None without slopes."""
        known = np.isfinite(self.mismatch)
        return bool(np.all(self.mismatch[known] <= self.noise[known])) if known.any() else None

    def rows(self) -> list[dict[str, Any]]:
        """One plain record per value of the parameter."""
        columns: dict[str, list[Any]] = {
            self.parameter: self.values.tolist(),
            "objective": self.objectives.tolist(),
            "slope": self.slopes.tolist(),
            "status": list(self.statuses),
            "violation": self.violations.tolist(),
            **{f"multiplier:{key}": numbers.tolist() for key, numbers in self.multipliers.items()},
            **{f"value:{key}": numbers.tolist() for key, numbers in self.entries.items()},
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def to_frame(self) -> Any:
        """A pandas frame with one row per value.

        Raises:
            ModelingError: E143 without pandas.
        """
        return frame_of(self.rows())

    def plot(self) -> Any:
        """The optimal value with its slopes, and the multipliers, as a matplotlib figure.

        Raises:
            ModelingError: E143 without matplotlib.
        """
        return reports("plots").path_figure(self)

    def __str__(self) -> str:
        return str(reports("paths").path_text(self))


@dataclass(frozen=True)
class ParetoFront:
    """Two objectives against each other: the best value of the first for bounds on the second.

    Attributes:
        first: text of the first objective.
        second: text of the second one.
        path: the first objective along the bound on the second, with its slopes.
        seconds: (n,) value of the second objective at each point.
        ends: the best value of the first objective alone, with the second one there; and the best value of
            the second alone, with the first one there.
        senses: `minimize` or `maximize` of each.
    """

    first: str
    second: str
    path: ParametricPath
    seconds: NDArray[np.float64]
    ends: tuple[tuple[float, float], tuple[float, float]]
    senses: tuple[str, str]

    def __len__(self) -> int:
        return len(self.path)

    @property
    def firsts(self) -> NDArray[np.float64]:
        """(n,) value of the first objective at each point."""
        return self.path.objectives

    @property
    def slopes(self) -> NDArray[np.float64]:
        """(n,) d(first)/d(second) along the front, from the multiplier of the bound."""
        return self.path.slopes

    def rows(self) -> list[dict[str, Any]]:
        """One plain record per point."""
        names = ("first", "second", "slope", "status")
        columns = (self.firsts.tolist(), self.seconds.tolist(), self.slopes.tolist(), self.path.statuses)
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def to_frame(self) -> Any:
        """A pandas frame with one row per point.

        Raises:
            ModelingError: E143 without pandas.
        """
        return frame_of(self.rows())

    def plot(self) -> Any:
        """The front with its slopes as a matplotlib figure.

        Raises:
            ModelingError: E143 without matplotlib.
        """
        return reports("plots").front_figure(self)

    def __str__(self) -> str:
        return str(reports("paths").front_text(self))
