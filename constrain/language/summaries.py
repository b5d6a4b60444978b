"""Summaries beside the average: variance, covariance, correlation, tail average, quantile.

Like `E` they close the rows of their population, take `given=` and `by=`, and may stand in objectives and
constraints next to any other deterministic expression.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.expr import Constraint, Expr, as_expr, code, shown
from constrain.language.keywords import keywords
from constrain.language.location import here
from constrain.language.statistics import conditions, population_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.language.location import Location

__all__ = ["CVaR", "Corr", "Cov", "Quantile", "Var", "check_level"]

Given: TypeAlias = "Expr | Constraint | None"
By: TypeAlias = "Expr | Sequence[Expr] | None"


def _argument(value: Any, word: str) -> Expr:
    """A per-row number; an event is refused (E105)."""
    e = value if isinstance(value, Constraint) else as_expr(value)
    if isinstance(e, Constraint) or e.type.event:
        raise ModelingError(
            "E105", f"{word}() of the event {shown(e)}", at=here(), fix=f"{word}(cn.indicator({code(e)}))"
        )
    return e


def _level(level: Any, word: str) -> float | n.Knob:
    """A number in (0, 1), or a parameter whose value, if it has one, is such a number (E150)."""
    if isinstance(level, Expr) and isinstance(level.node, n.Knob) and level.node.symbol.shape == ():
        if level.node.symbol.value is not None:
            check_level(level.node.symbol.value, word, level.node.symbol.name)
        return level.node
    check_level(level, word)
    return float(level)


def check_level(value: Any, word: str, parameter: str | None = None, at: Location | None = None) -> None:
    """Refuses what is no level: a number between 0 and 1, both excluded.

    Args:
        value: a number, or what was given in its place.
        word: `cn.CVaR` or `cn.Quantile`.
        parameter: the name of the parameter with this value.
        at: where the statistic was written; the line that runs by default.

    Raises:
        ModelingError: E150.
    """
    written = isinstance(value, (Expr, Constraint))
    number = isinstance(value, (int, float)) or (not written and getattr(value, "shape", None) == ())
    if number and not isinstance(value, bool) and 0 < value < 1:
        return
    what = shown(value) if written else repr(value)
    meaning = "the worst 5 % of the rows" if word == "cn.CVaR" else "95 % of the rows are not above it"
    fix = f"{word}(g, 0.95): {meaning}"
    if parameter is not None:
        what, fix = f"the Parameter {parameter!r} = {what}", f"{parameter}.value = 0.95: {meaning}"
    elif isinstance(value, Expr) and n.mentions(value.node, n.Knob):
        fix = f'{word}(g, level), level = cn.Parameter("level", 0.95): a parameter alone'
    raise ModelingError(
        "E150", f"the level of {word} is a number between 0 and 1, got {what}", at=at or here(), fix=fix
    )


def _statistic(
    kind: n.StatisticKind, args: tuple[Any, ...], given: Given, by: By, level: float | n.Knob | None = None
) -> Expr:
    word = f"cn.{kind}"
    parts = [_argument(value, word) for value in args]
    populations = [population_of(part, word) for part in parts]
    event, columns = conditions(populations[0], given, by, word)
    nodes = tuple(part.node for part in parts)
    return Expr(n.Statistic(kind, nodes, event, columns, level, loc=here()))


@keywords
def Var(expr: Any, given: Given = None, by: By = None) -> Expr:  # noqa: N802  # the field's word
    """The variance of a per-row expression, E[(g - E[g])^2]: divided by n, not n - 1.

    Exact on the data and in full gradients; two half batches estimate it without bias. The variance of an
    affine expression is a convex quadratic, and `cn.sqrt(cn.Var(g))` a convex norm.

    Args:
        expr: one number per row, or an array per row (then entry by entry).
        given: over the rows where this event holds.
        by: one variance per level of the column, or per combination of several.

    Raises:
        ModelingError: E105 (an event), E107 (two populations), E108 (nothing random), E114 (a statistic
            inside), E118 (`by` is no column).
    """
    return _statistic("Var", (expr,), given, by)


@keywords
def Cov(first: Any, second: Any, given: Given = None, by: By = None) -> Expr:  # noqa: N802
    """The covariance of two per-row expressions, E[(g - E[g]) (h - E[h])]: divided by n.

    When one of them depends on no decision it is affine in the other's average, so that batches estimate it
    without bias and `abs(cn.Cov(f(D.x), D.s)) <= c` is convex for a linear `f` (Zafar et al. 2017, "Fairness
    Constraints: Mechanisms for Fair Classification").

    Args:
        first: one number per row, or an array per row (entry by entry with the other).
        second: the same.
        given: over the rows where this event holds.
        by: one covariance per level of the column.

    Raises:
        ModelingError: E105, E107, E108, E112 (shapes), E114, E118, as for `Var`.
    """
    return _statistic("Cov", (first, second), given, by)


@keywords
def Corr(first: Any, second: Any, given: Given = None, by: By = None) -> Expr:  # noqa: N802
    """Pearson's correlation of two per-row expressions: their covariance over both standard deviations.

    It does not exist (NaN) where one of them is constant.

    Args:
        first: one number per row, or an array per row (entry by entry with the other).
        second: the same.
        given: over the rows where this event holds.
        by: one correlation per level of the column.

    Raises:
        ModelingError: E105, E107, E108, E112 (shapes), E114, E118, as for `Var`.
    """
    return _statistic("Corr", (first, second), given, by)


@keywords
def CVaR(expr: Any, level: float | Expr, given: Given = None, by: By = None) -> Expr:
    """The conditional value at risk: the average of the worst (1 - level) part of the rows.

    min_t t + E[(g - t)+] / (1 - level) (Rockafellar & Uryasev 2000, "Optimization of conditional
    value-at-risk"). Large values are bad. Where smaller is what the problem asks for (`CVaR(g, a) <= b`, a
    minimized CVaR) the threshold t is a hidden decision, convex with the others; elsewhere it is held at the
    exact quantile, which gives the right value and gradient but no certificate of convexity. Reports always
    show the exact value, and `solution["name"].value_at_risk` the threshold.

    Args:
        expr: one number per row, or an array per row (then entry by entry).
        level: in (0, 1); 0.95 averages the worst 5 %. A `Parameter` may change between solves.
        given: over the rows where this event holds.
        by: one CVaR per level of the column, each with its own threshold.

    Raises:
        ModelingError: E150 (level), and E105, E107, E108, E114, E118, as for `Var`.
    """
    return _statistic("CVaR", (expr,), given, by, _level(level, "cn.CVaR"))


@keywords
def Quantile(expr: Any, level: float | Expr, given: Given = None, by: By = None) -> Expr:  # noqa: N802
    """The quantile of a per-row expression: the least value q with P(g <= q) >= level.

    This is the inverse of the empirical distribution function (`numpy.quantile` with
    `method="inverted_cdf"`): always the value of a row. Like a rate, a quantile has an exact value, which
    multipliers, status and reports use, and a surrogate gradient: near its value q it is
    q - (P(g <= q) - level) / density(q) (Bahadur 1966), whose gradient is the average of the gradients of the
    rows near the quantile (Hong 2009, "Estimating quantile sensitivities").

    Args:
        expr: one number per row, or an array per row (then entry by entry).
        level: in (0, 1); 0.5 is the median. A `Parameter` may change between solves.
        given: over the rows where this event holds.
        by: one quantile per level of the column.

    Raises:
        ModelingError: E150 (level), and E105, E107, E108, E114, E118, as for `Var`.
    """
    return _statistic("Quantile", (expr,), given, by, _level(level, "cn.Quantile"))
