"""Statistics: what closes the axis of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from constrain.errors import DataError, ModelingError
from constrain.language import nodes as n
from constrain.language.data import Data, Subset, as_list, hidden_column
from constrain.language.expr import Constraint, Expr, as_event, as_expr, as_number, code, is_flag, shown
from constrain.language.keywords import keywords
from constrain.language.location import here
from constrain.language.refusals import first_text
from constrain.language.regions import Coordinate, Region
from constrain.language.surrogates import DEFAULT, surrogate_of
from constrain.language.types import type_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.language.surrogates import Surrogate

__all__ = ["E", "P", "between", "conditions", "forall", "indicator", "population_of"]


def conditions(
    population: Data, given: Any, by: Any, word: str
) -> tuple[n.Node | None, tuple[n.Column, ...]]:
    """The event of `given=` and the columns of `by=`, checked against the population of a statistic.

    Raises:
        ModelingError: E105 (no event), E107 (another population), E118 (`by` is no column).
    """
    event = None if given is None else as_event(given, f"{word}(..., given=)")
    if event is not None and event.type.rows is not population:
        named = event.type.rows.name if event.type.rows is not None else "no data"
        raise ModelingError(
            "E107",
            f"{word}: the expression lives on {population.name!r} and given={shown(event)} on {named!r}",
            at=here(),
            fix="one population per statistic",
        )
    columns: list[n.Column] = []
    for item in () if by is None else as_list(by):
        node = item.node if isinstance(item, Expr) else None
        if not isinstance(node, n.Column) or node.data.row_shape(node.name) != ():
            raise ModelingError(
                "E118",
                f"{word}(..., by=) needs columns with one value per row, got {shown(item)}",
                at=here(),
                fix=hidden_column(item) or "by=D.sex, or by=(D.sex, D.race) for their combinations",
            )
        if isinstance(node.data, Region) and node.data.law.kind != "grid":
            raise ModelingError(
                "E118",
                f"{word}(..., by=) needs columns with levels; {shown(item)} is continuous",
                at=here(),
                fix=f"a condition: given=({shown(item)} > 0.5)",
            )
        if node.data is not population:
            raise ModelingError(
                "E107",
                f"{word}: the expression lives on {population.name!r} and by={node.name} on "
                f"{node.data.name!r}",
                at=here(),
                fix="one population per statistic",
            )
        columns.append(node)
    return None if event is None else event.node, tuple(columns)


def population_of(e: Expr, word: str) -> Data:
    """The population whose rows a statistic closes.

    Raises:
        ModelingError: E108 (nothing random), E114 (a statistic inside).
    """
    if e.type.rows is None:
        raise ModelingError(
            "E108",
            f"{word}({shown(e)}) has nothing to average over: it depends on no data column",
            at=here(),
            fix=_without_rows(e, word),
        )
    nested = next((x for x in n.postorder(e.node) if isinstance(x, (n.Mean, n.Rate, n.Statistic))), None)
    if nested is not None:
        raise ModelingError(
            "E114",
            f"{word}({shown(e)}) contains the statistic {shown(Expr(nested))}; "
            "a statistic inside a statistic is not supported",
            at=here(),
            fix="expand it: E(g * E(h)) is E(g) * E(h); a variance is cn.Var(g)",
        )
    return e.type.rows


def _without_rows(e: Expr, word: str) -> str:
    """What a statistic of something that is not random may have been meant to be."""
    arrays = [x for x in n.postorder(e.node) if isinstance(x, n.Array) and x.symbol.shape]
    if arrays and not isinstance(e.node, n.Apply):
        name = arrays[0].symbol.name or "x"
        return f'columns of a sample: D = cn.Data("train", {name}={name}), and D.{name} in its place'
    return f"{code(e)} itself, without {word}"


def _brackets(word: str, argument: str) -> ModelingError:
    return ModelingError(
        "E104",
        f"{word}[...] is how results are printed, not how they are written",
        at=here(),
        fix=f"{word}({argument}), or {word}({argument}, given=D.a == 1)",
    )


class _Expectation:
    """`E(g)`, `E(g, given=event)`, `E(g, by=column)`: averages over rows.

    * `E(g)`: over all rows of the population.
    * `given`: over the rows where the event holds. When the event involves no decision its share is counted
      once, else the result is the ratio of two averages (semantics S4).
    * `by`: one average per level of the column, as one block. Several columns: their combinations.

    `g` has one value (or one array of any shape) per row.

    Raises:
        ModelingError: E104, E105 (an event: write P), E107 (two populations), E108 (nothing random), E114
            (statistic inside a statistic), E118 (`by` is no column).
    """

    @keywords
    def __call__(
        self, expr: Any, given: Expr | Constraint | None = None, by: Expr | Sequence[Expr] | None = None
    ) -> Expr:
        e = as_expr(expr) if not isinstance(expr, Constraint) else expr
        if isinstance(e, Constraint) or e.type.event:
            raise ModelingError("E105", f"E() of the event {shown(e)}", at=here(), fix=f"P({code(e)})")
        population = population_of(e, "E")
        event, columns = conditions(population, given, by, "E")
        return Expr(n.Mean(e.node, event, columns, loc=here()))

    def __getitem__(self, item: Any) -> Any:
        raise _brackets("E", "g")

    def __repr__(self) -> str:
        return "E"


class _Probability:
    """`P(event, given=, by=, surrogate=)`: the share of rows where an event holds (semantics S5).

    Its exact value drives multiplier updates, status and reports; the primal gradient uses a differentiable
    surrogate of the event's margin, scaled to the margin's spread over the data.

    Args:
        event: a comparison such as `f(D.x) > 0`, or events joined by `&`, `|`, `~`.
        given: condition on the rows where this event holds.
        by: one rate per level.
        surrogate: `"sigmoid"` (default), `"hinge"`, `"power"`, or one of these with options, such as
            `cn.surrogate.Sigmoid(temperature=0.05)` or `cn.surrogate.Hinge(scale=1.0)`.

    Raises:
        ModelingError: E104, E105 (no event: write E), E107, E118, E119 (unknown surrogate).
    """

    @keywords
    def __call__(
        self,
        event: Any,
        given: Expr | Constraint | None = None,
        by: Expr | Sequence[Expr] | None = None,
        surrogate: Surrogate | str | None = None,
    ) -> Expr:
        if isinstance(event, Expr) and not event.type.event and not is_flag(event):
            text = first_text(event.node) if isinstance(event.node, n.Column) else None
            example = f"== {text!r}" if text else "> 0"
            raise ModelingError(
                "E105",
                f"P() takes an event such as ({shown(event)} {example}), got {shown(event)}",
                at=here(),
                fix=f"P({code(event)} {example})"
                + ("" if text else f", or E({code(event)}) for the average"),
            )
        e = as_event(event, "P()")
        population = population_of(e, "P")
        condition, columns = conditions(population, given, by, "P")
        return Expr(n.Rate(e.node, condition, columns, surrogate_of(surrogate), loc=here()))

    def __getitem__(self, item: Any) -> Any:
        raise _brackets("P", "event")

    def __repr__(self) -> str:
        return "P"


E = _Expectation()
P = _Probability()


@keywords
def indicator(event: Expr, surrogate: Surrogate | str | None = None) -> Expr:
    """1 where the event holds, else 0, as a number per row.

    In `E(indicator(a) * cost)` the primal gradient sees the same surrogate that `P(a)` uses.

    Raises:
        ModelingError: E104, E105 (no event), E119 (unknown surrogate).
    """
    chosen = surrogate_of(surrogate) or DEFAULT
    return Expr(n.Indicator(as_event(event, "indicator()").node, chosen, loc=here()))


@keywords
def forall(where: Data | Subset | Coordinate, relation: Expr | Constraint | Any = None) -> Constraint:
    """One constraint per row of a sample (per point of a region), each with its own multiplier.

    Args:
        where: a sample, or `D.where(event)` for some of its rows; a coordinate of a continuous population
            for the points of its support.
        relation: a comparison (`<=`, `>=`, `==`) or `cn.between` of per-row expressions.

    Raises:
        ModelingError: E107 (another population), E108 (no population), E109 (strict), E110 (a Python bool),
            E111.
    """
    if isinstance(where, Coordinate):
        where = where.region
    if not isinstance(where, (Data, Subset)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise _no_sample(where, relation)
    data = where if isinstance(where, Data) else where.data
    if relation is None:
        raise ModelingError(
            "E117", f"forall({data.name}) lacks its relation", at=here(), fix=f"forall({data.name}, relation)"
        )
    event = None if isinstance(where, Data) else where.event
    if not data.positions:
        raise DataError(
            "E166",
            f"forall({data.name}, ...) has a multiplier for every row, and the loader of {data.name!r} does "
            "not say which row is which",
            at=here(),
            fix=f'cn.Data.from_dataset("{data.name}", dataset, columns=...), whose rows have positions',
        )
    node = _relation(data, relation)
    rows = type_of(node).rows
    if rows is not data:
        raise ModelingError(
            "E108" if rows is None else "E107",
            f"the relation {shown(relation)} depends on "
            + ("no data column" if rows is None else f"the rows of {rows.name!r}, not of {data.name!r}"),
            at=here(),
            fix="the relation itself, without forall" if rows is None else f"forall over {rows.name!r}",
        )
    return Constraint(n.ForAll(data, event, node, loc=here()))


def _relation(data: Data, relation: Any) -> n.Comparison | n.Between:
    """The relation of a forall, which a constraint can have."""
    if isinstance(relation, bool):
        raise ModelingError(
            "E110",
            f"the relation of forall is the Python bool {relation}: both sides were plain numbers, "
            "so Python compared them first",
            at=here(),
            fix="an expression with a column on one side",
        )
    node = relation.node if isinstance(relation, (Expr, Constraint)) else None
    if not isinstance(node, (n.Comparison, n.Between)):
        raise ModelingError(
            "E111",
            f"forall({data.name}, ...) needs a comparison per row, got {shown(relation)}",
            at=here(),
            fix="add <= 0, >= 0 or == 0",
        )
    if isinstance(node, n.Comparison) and node.op in ("<", ">", "!="):
        raise ModelingError(
            "E109",
            f"{shown(relation)}: a constraint cannot be strict, its feasible set would not be closed",
            at=here(),
            fix="<=, >= or ==",
        )
    return node


def _no_sample(where: Any, relation: Any) -> ModelingError:
    """E117 for a `forall` without a sample; a relation or an event names the one that was meant."""
    data = where.type.rows if isinstance(where, Expr) else None
    fix = "forall(D, relation)"
    if data is not None:
        event = code(where)
        fix = f"forall({data.name}, {event})"
        if isinstance(relation, (Expr, Constraint)):
            fix = f"forall({data.name}.where({event}), {code(relation)}), for the rows where the event holds"
    return ModelingError("E117", "forall needs a sample first", at=here(), fix=fix)


@keywords
def between(lower: Any, e: Any, upper: Any) -> Constraint | Expr:
    """`lower <= e <= upper` as one constraint (split into its sides before estimation, semantics S7).

    With random arguments it is meant for `forall`.
    """
    node = n.Between(as_number(lower), as_number(e), as_number(upper), loc=here())
    low, high = node.lower, node.upper
    if isinstance(low, n.Constant) and isinstance(high, n.Constant) and low.value > high.value:
        raise ModelingError(
            "E136",
            f"no number is at least {low.value} and at most {high.value}",
            at=here(),
            fix=f"cn.between({high.value}, {code(Expr(node.arg))}, {low.value})",
        )
    return Expr(node) if type_of(node).random else Constraint(node)
