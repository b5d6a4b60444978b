"""Plain records: status, warnings, statistics of a constraint on one sample, KKT quantities, provenance."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from constrain._lazy import diagnostics_report

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from constrain.solution.noise import GradientNoise

__all__ = ["KKT", "Estimate", "Number", "Provenance", "Sensitivity", "Status", "Warn", "plain"]

Number: TypeAlias = "float | NDArray[np.float64]"
"""A float, or an array over levels, entries or rows."""


def plain(value: Any) -> Number:
    """A float when there is a single number, else a float64 array."""
    array = np.asarray(value, dtype=np.float64)
    return float(array) if array.ndim == 0 else array


class Status(StrEnum):
    """How much is known about a solution. A point that is not feasible is never called solved.

    Of a feasibility problem (`cn.find()`) every feasible point is optimal.
    """

    OPTIMAL = "optimal"
    STATIONARY = "stationary"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    LIKELY_INFEASIBLE = "likely_infeasible"
    LIMIT = "limit"
    DIVERGED = "diverged"

    @property
    def meaning(self) -> str:
        """One sentence."""
        return _MEANINGS[self]

    @property
    def solved(self) -> bool:
        """Whether the constraints hold at the returned point."""
        return self in (Status.OPTIMAL, Status.STATIONARY, Status.FEASIBLE)


_MEANINGS: dict[Status, str] = {
    Status.OPTIMAL: "the gap to a proven bound (or of a certified convex problem) is within the tolerance",
    Status.STATIONARY: "the KKT residuals are within the tolerance; no better nearby point to first order",
    Status.FEASIBLE: "the constraints hold; the point is not stationary within the tolerance",
    Status.INFEASIBLE: "a certificate shows that no point satisfies all constraints",
    Status.LIKELY_INFEASIBLE: "multipliers grow without bound and the violation does not fall",
    Status.LIMIT: "a limit was reached before the constraints held",
    Status.DIVERGED: "a value became infinite or NaN; the last finite iterate is kept",
}


@dataclass(frozen=True)
class Warn:
    """Something a reader of the numbers must know.

    Attributes:
        code: stable, such as `"W203"`.
        name: the trap's name, such as `"redundant-constraints"`.
        message: what was seen, in the user's names, and what to do.
    """

    code: str
    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.code} {self.message}"


@dataclass(frozen=True)
class Estimate:
    """What one sample says about one constraint.

    Attributes:
        value: left-hand side as written, exact on the sample.
        bound: right-hand side; `(lower, upper)` for `between`.
        violation: how far it is from holding on the sample, >= 0, in the constraint's units.
        lower: lower end of the two-sided interval of `value`; NaN where it was not computed.
        upper: upper end.
        verdict: `holds`, `violated`, `undecided`, `compatible` (equalities), `relaxed` (holds, but not as
            written), `not judged` (a group that enters has no rows), for the constraint as a whole.
        verdicts: the same per level or entry; `not judged` also for those with most room in blocks of very
            many.
        smallest: rows of the smallest group that enters, 0 when no data does.
        rows_needed: rows of such data that would decide an undecided constraint, 0 when it is decided.
        share: for constraints per row, the share of the selected rows that are violated; else None.
        confidence: level of the interval.
        labels: names of the entries, empty for constraints per row.
        relaxed: of a relaxed constraint, the share of entries (selected rows) that hold only by their slack;
            else None. `bound` is the one as written, and `violation` what is left after relaxing.
    """

    value: Number
    bound: Number | tuple[Number, Number]
    violation: Number
    lower: Number
    upper: Number
    verdict: str
    verdicts: tuple[str, ...] = ()
    smallest: int = 0
    rows_needed: int = 0
    share: float | None = None
    confidence: float = 0.95
    labels: tuple[str, ...] = ()
    relaxed: float | None = None

    @property
    def interval(self) -> tuple[Number, Number]:
        """Lower and upper end. For constraints per row: of the share of violated rows."""
        return self.lower, self.upper

    @property
    def half_width(self) -> Number:
        """Half of the interval's length."""
        return plain((np.asarray(self.upper) - np.asarray(self.lower)) / 2)


@dataclass(frozen=True)
class Provenance:
    """Where a solution comes from.

    Attributes:
        versions: of this package and of those that took part.
        solver: name and version of the solver.
        route: the route and why it was taken.
        problem_class: what the analysis certified, such as `"LP"`.
        convex: certified convex in all decisions.
        source: `repr(problem)`.
        seed: of the random generators, None when none was set.
        seconds: wall time.
        iterations: solver steps.
        options: of the solve, as text.
        data: per sample its name, rows and a hash of the columns that were used.
        parameters: values of the problem's parameters.
        latex: the problem in mathematics; empty when it is very long.
    """

    versions: dict[str, str] = field(default_factory=dict[str, str])
    solver: str = ""
    route: str = ""
    problem_class: str = ""
    convex: bool = False
    source: str = ""
    seed: int | None = None
    seconds: float = 0.0
    iterations: int = 0
    options: dict[str, str] = field(default_factory=dict[str, str])
    data: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    parameters: dict[str, Number] = field(default_factory=dict[str, Number])
    latex: str = ""


@dataclass(frozen=True)
class Sensitivity:
    """Derivatives of an optimum in a parameter, valid while the same constraints stay active.

    Attributes:
        parameter: its name.
        value: of the optimal value in the user's sense, of the parameter's shape.
        decisions: per decision, of its shape followed by that of the parameter.
        multipliers: per active entry (`parity[sex=Female]`), in the sign of the program that minimizes.
    """

    parameter: str
    value: Number
    decisions: dict[str, NDArray[np.float64]]
    multipliers: dict[str, Number]


@dataclass(frozen=True)
class KKT:
    """First-order optimality conditions at a point, on the full data, of the program that minimizes.

    L = f + sum_i multiplier_i * residual_i. All values are exact; when `surrogate` is set, gradients are
    those of the surrogates of rates.

    Attributes:
        stationarity: largest entry of |grad L|, projected at active bounds.
        stationarity_scaled: the same over |grad f| + sum_i |multiplier_i| |grad c_i| (largest entries).
        blocks: per decision block its largest entry, and that entry over the scale of all.
        force_balance: 1 - |grad L|^2 / |grad f|^2: the share of the objective's pull that constraints
            balance; NaN where that is below 0, since then the pulls do not balance.
        feasibility: largest violation, in the units of the constraint `worst`.
        feasibility_scaled: largest violation / (1 + |bound|).
        worst: the constraint of the largest scaled violation, empty without constraints.
        violations: largest violation per constraint, in its own units.
        dual_feasibility: least multiplier of an inequality, or 0 when none is negative.
        complementarity: largest |multiplier * residual| of an inequality.
        complementarity_scaled: the same over 1 + |objective|.
        products: largest |multiplier * residual| per constraint.
        gap: |f - bound| where a bound is proven, else |sum_i multiplier_i * residual_i|, plus what slopes
            take from it that are chosen near a kink, not at it (their epsilon as epsilon-subgradients).
        gap_scaled: the same over 1 + |objective|.
        gap_kind: `certified`, or `estimate, not a bound`.
        multipliers: per part key, those that were judged.
        origin: `given`, `best fit` (nonnegative least squares) or `none`.
        fit: best-fit multipliers per part key, NaN where they were not fitted.
        fit_stationarity: |grad L| with the best-fit multipliers.
        fit_distance: largest difference of the two sets of multipliers; NaN when one is missing.
        singular_values: of the active Jacobian with rows of norm 1, on coordinates off their bounds.
        rank: its rank.
        active: number of its rows.
        dependent: names of rows that depend on each other.
        vanishing: names of active constraints whose gradient vanishes.
        truncated: active rows that were left out.
        strict_complementarity: least over inequalities of max(multiplier, slack), both scaled; NaN without
            any.
        surrogate: gradients are those of surrogates.
        warnings: what was recognized.
        tolerance: that of the judgment.
        kinks: entries at a kink of the objective or of a constraint; `stationarity` is that of the slopes
            there that leave least.
        jumps: entries of `cn.where` whose piece ends at the point, while the one beyond has a lower value.
        nonsmooth: why such slopes could not be chosen, so that `stationarity` says little; else empty.
        qualified: whether the Mangasarian-Fromovitz qualification holds, so that multipliers are bounded;
            None where it was not checked.
        fritz_john: where no multipliers balance the objective, weights by the names of constraints and bounds
            with which their gradients balance each other, sizes adding up to 1: the conditions of Fritz John
            with weight 0 of the objective. Empty where multipliers exist, or that is not known.
        second_order: with `order=2`, `second order sufficient`, `saddle direction`, `not decided (why)` or
            `not checked (why)`; else empty.
        curvature: with `order=2`, the least curvature of L along directions that keep what is active; NaN
            without such a direction.
        standard_errors: with `order=2`, per part key the standard errors of multipliers; NaN where none is
            valid, and empty where there are none at all.
        no_errors: why standard errors are missing, or some of them.
        noise: what independent batches say about |grad L|; None where it was not asked for.
        acting: layers that act in training steps only, such as `dropout of f`. The gradient here is that of
            evaluation mode, which such steps do not follow.
    """

    stationarity: float
    stationarity_scaled: float
    blocks: dict[str, tuple[float, float]]
    force_balance: float
    feasibility: float
    feasibility_scaled: float
    worst: str
    violations: dict[str, float]
    dual_feasibility: float
    complementarity: float
    complementarity_scaled: float
    products: dict[str, float]
    gap: float
    gap_scaled: float
    gap_kind: str
    multipliers: dict[str, NDArray[np.float64]]
    origin: str
    fit: dict[str, NDArray[np.float64]]
    fit_stationarity: float
    fit_distance: float
    singular_values: NDArray[np.float64]
    rank: int
    active: int
    dependent: tuple[str, ...]
    vanishing: tuple[str, ...]
    truncated: int
    strict_complementarity: float
    surrogate: bool
    warnings: tuple[Warn, ...]
    tolerance: float
    kinks: int = 0
    jumps: int = 0
    nonsmooth: str = ""
    qualified: bool | None = None
    fritz_john: dict[str, float] = field(default_factory=dict[str, float])
    second_order: str = ""
    curvature: float = float("nan")
    standard_errors: dict[str, NDArray[np.float64]] = field(default_factory=dict[str, "NDArray[np.float64]"])
    no_errors: str = ""
    noise: GradientNoise | None = None
    acting: str = ""

    def interval(self, key: str, z: float = 1.959964) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Normal interval of the multipliers of a part; NaN where there is no standard error.

        Args:
            key: of the part, such as `parity:upper`.
            z: quantile; the default is that of 95 %.
        """
        value = self.multipliers[key]
        error = self.standard_errors.get(key, np.full(np.shape(value), np.nan))
        return value - z * error, value + z * error

    @property
    def stationary(self) -> bool:
        """Stationarity, absolute or scaled, is within the tolerance."""
        return min(self.stationarity, self.stationarity_scaled) <= self.tolerance

    @property
    def feasible(self) -> bool:
        """The largest scaled violation is within the tolerance."""
        return self.feasibility_scaled <= self.tolerance

    def __str__(self) -> str:
        return str(diagnostics_report().kkt_text(self))
