"""The result of one constraint, in the terms in which the user wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from constrain.errors import NoDualsError
from constrain.solution.summary import least, summarize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from constrain.solution.records import Estimate, Number
    from constrain.solution.summary import Summary

__all__ = ["ConstraintResult", "PartResult", "labels_of", "slack_of", "violation_of"]


def violation_of(op: str, value: Any, bound: Any) -> NDArray[np.float64]:
    """How far `value op bound` is from holding: >= 0, elementwise, in the constraint's units."""
    v = np.asarray(value, dtype=np.float64)
    if op == "==":
        return np.abs(v - bound)
    return np.maximum(0.0, -slack_of(op, v, bound))


def slack_of(op: str, value: Any, bound: Any) -> NDArray[np.float64]:
    """The room left, elementwise: b - c for `<=` and `==`, c - b for `>=`, the smaller one for `between`."""
    v = np.asarray(value, dtype=np.float64)
    if op == "between":
        return np.minimum(v - bound[0], bound[1] - v)
    return v - bound if op == ">=" else np.asarray(bound - v)


def labels_of(name: str, columns: Sequence[str], levels: Sequence[Any], shape: tuple[int, ...]) -> list[str]:
    """`parity[sex=Female]`, `flow[3]`, `rate[race=a, 0]`: a name per entry of an array of this shape."""
    if not shape:
        return [name]
    found: list[str] = []
    for place in np.ndindex(*shape):
        parts = [str(i) for i in place]
        if levels:
            level = levels[place[0]]
            values = cast("tuple[Any, ...]", level) if isinstance(level, tuple) else (level,)
            parts[0] = ", ".join(f"{c}={v}" for c, v in zip(columns, values, strict=False))
        found.append(f"{name}[{', '.join(parts)}]")
    return found


@dataclass(frozen=True)
class PartResult:
    """One side of a constraint that was split, such as the upper side of |e| <= b.

    Attributes:
        key: `parity:upper`, the key of multipliers in state dicts.
        side: `upper`, `lower`, ... or empty.
        kind: `<=` or `==`.
        residual: of the part (<= 0 when it holds).
        multiplier: of the part; >= 0 for `<=`; None when the solver has none.
        shadow_price: its part of the constraint's price, of the part's shape.
    """

    key: str
    side: str
    kind: str
    residual: Number
    multiplier: Number | None
    shadow_price: Number | None


@dataclass(frozen=True)
class ConstraintResult:
    """A constraint at the solution. Scalars are floats; blocks are arrays over their levels, in order.

    Attributes:
        name: the user's.
        text: as written.
        op: `<=`, `>=`, `==` or `between`.
        value: left-hand side as written, exact on the training data; per selected row for `forall`.
        bound: right-hand side; `(lower, upper)` for `between`.
        slack: the room left (negative when violated or relaxed); for `==` bound - value.
        violation: how far it is from holding, >= 0; of a relaxed constraint, after it was relaxed.
        parts: the one-sided pieces with their own multipliers and prices.
        level_columns: columns of `by=`, empty when it is no block.
        levels: names of the levels, tuples for several columns.
        rows: row numbers of a constraint per row, else None.
        train: statistics on the training data.
        holdout: statistics on the hold-out, None without one.
        duals: the multiplier and the shadow price, None when there are none.
        no_duals: why there are none.
        value_at_risk: the threshold of its `CVaR`, exact on the training data, per level of a block; a tuple
            when it has several, None without.
        relaxation: of a relaxed constraint, how far it was relaxed, >= 0; per selected row for `forall`. None
            when it must hold as written.
        cost: what relaxing it cost, h summed over entries (selected rows); None when it must hold.
        scale: the unit that was given by `.scale(s)`, None without.
        uncertified: why the multiplier and the shadow price are no prices of an optimum, such as a run that
            stopped early; empty where they are.
        matrix: of a constraint on an extreme eigenvalue, such as `A >> B`, the dual matrix: positive
            semidefinite, and its trace is the multiplier. None for others, and where no solver found one.
    """

    name: str
    text: str
    op: str
    value: Number
    bound: Number | tuple[Number, Number]
    slack: Number
    violation: Number
    parts: tuple[PartResult, ...]
    level_columns: tuple[str, ...]
    levels: tuple[Any, ...]
    rows: NDArray[np.int64] | None
    train: Estimate
    holdout: Estimate | None = None
    duals: tuple[Number, Number] | None = None
    no_duals: str = ""
    value_at_risk: Number | tuple[Number, ...] | None = None
    relaxation: Number | None = None
    cost: float | None = None
    scale: float | None = None
    uncertified: str = ""
    matrix: NDArray[np.float64] | None = None

    def _dual(self, place: int) -> Number:
        if self.duals is None:
            raise NoDualsError(
                "E128",
                f"there is no multiplier of {self.name!r}: {self.no_duals or 'the solver returns none'}",
                fix="solution.kkt().fit has the best-fit multipliers of the returned point",
            )
        return self.duals[place]

    @property
    def has_duals(self) -> bool:
        """Whether `multiplier` and `shadow_price` can be read."""
        return self.duals is not None

    @property
    def multiplier(self) -> Number:
        """>= 0 for inequalities whichever way they are written; free for equalities (semantics S10).

        For a constraint that was split into parts it is their sum.

        Raises:
            NoDualsError: E128, with the reason.
        """
        return self._dual(0)

    @property
    def shadow_price(self) -> Number:
        """d(optimal value in the user's own sense) / d(right-hand side as written).

        For `between`, both bounds are shifted together.

        Raises:
            NoDualsError: E128, with the reason.
        """
        return self._dual(1)

    @property
    def interval(self) -> tuple[Number, Number]:
        """Two-sided interval of `value` on the training data."""
        return self.train.interval

    @property
    def verdict(self) -> str:
        """`holds`, `violated`, `undecided`, `compatible`, `relaxed`: on the hold-out when there is one."""
        return (self.holdout or self.train).verdict

    @property
    def labels(self) -> list[str]:
        """A name per entry of `value`: `parity[sex=Female]`."""
        if self.rows is not None:
            shape = np.shape(self.value)[1:]
            return [label for i in self.rows for label in labels_of(f"{self.name}[row {i}]", (), (), shape)]
        return labels_of(self.name, self.level_columns, self.levels, np.shape(self.value))

    # ---- summaries, mostly for constraints per row
    @property
    def max_violation(self) -> float:
        """Largest violation over levels, entries or rows."""
        return float(np.max(self.violation, initial=0.0))

    @property
    def share_violated(self) -> float:
        """Share of levels, entries or rows that are violated beyond rounding."""
        if self.train.share is not None:
            return self.train.share
        size = 1e-6 * (1 + np.abs(np.asarray(self.value, dtype=np.float64)))
        return float(np.mean(np.asarray(self.violation) > size)) if np.size(self.violation) else 0.0

    @property
    def summary(self) -> Summary | None:
        """Of a constraint per row: shares, quantiles of the room, worst rows; None for other constraints.

        `summarize(solution["fit"], worst=20)` of `constrain.solution` lists more rows.
        """
        return None if self.rows is None else summarize(self)

    def worst(self, count: int = 5) -> list[tuple[str, float]]:
        """Names and slacks of the entries with the least slack (of an equality, the largest residuals)."""
        slack = np.ravel(np.asarray(self.slack, dtype=np.float64))
        room = -np.abs(slack) if self.op == "==" else slack
        return [(self._label(i), float(slack[i])) for i in least(room, count).tolist()]

    def _label(self, i: int) -> str:
        """The name of entry `i`, counted through all of `value`."""
        shape = np.shape(self.value)
        if self.rows is None:
            return self.labels[i]
        size = int(np.prod(shape[1:]))
        return labels_of(f"{self.name}[row {self.rows[i // size]}]", (), (), shape[1:])[i % size]

    def __str__(self) -> str:
        shown = f"{self.name}: {self.text}; value {_short(self.value)}, {self.verdict}"
        if self.duals is None:
            return shown
        mark = f" (not certified: {self.uncertified})" if self.uncertified else ""
        return f"{shown}, multiplier {_short(self.multiplier)}{mark}"


def _short(value: Number) -> str:
    array = np.asarray(value)
    if array.ndim == 0:
        return f"{float(array):.6g}"
    listed = ", ".join(f"{x:.6g}" for x in array.ravel()[:6].tolist())
    return f"[{listed}{', …' if array.size > 6 else ''}]"
