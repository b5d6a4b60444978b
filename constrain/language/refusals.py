"""What to write instead: the errors of values and operators that are no part of the language.

Each function looks at what the user wrote and returns the error, with the likeliest intention as its fix.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from constrain._lazy import language
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.data import Data, hidden_column
from constrain.language.expr import Constraint, Expr, code, is_flag, shown
from constrain.language.location import here

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.language.data import Subset

__all__ = [
    "column_of_a_subset",
    "compared_events",
    "compared_text",
    "first_text",
    "holds_expressions",
    "no_column_name",
    "no_event",
    "no_expression",
    "no_operator",
    "no_positions",
    "strict_error",
    "truth_error",
    "unnamed_columns",
]

_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
_ANYTHING = "a column (D.x), f(D.x), a Variable, a Parameter, a number, an array or a tensor"


# --------------------------------------------------------------------------------------------- values
def no_expression(value: Any) -> ModelingError:
    """E117 (E122 for a module) for a value that cannot be part of an expression."""
    if hasattr(value, "named_parameters"):
        return ModelingError(
            "E122",
            f"the module {type(value).__name__} entered an expression outside of any model",
            at=here(),
            fix='f = cn.Model(module, "f"), and f(D.x)',
        )
    if isinstance(value, complex) or "complex" in str(getattr(value, "dtype", "")):
        return ModelingError(
            "E117",
            f"{'a complex number' if isinstance(value, complex) else 'an array of complex numbers'} cannot "
            "be part of an expression: values and derivatives are real",
            at=here(),
            fix="the real and the imaginary part on their own: a.real @ x, a.imag @ x",
        )
    return ModelingError(
        "E117", f"a {type(value).__name__} cannot be part of an expression", at=here(), fix=_meant(value)
    )


def _meant(value: Any) -> str:
    """What a user who wrote `value` into an expression may have meant."""
    column = hidden_column(value)
    if column:
        return column
    if hasattr(getattr(value, "module", None), "named_parameters"):
        return f"{value.name}(D.x), the model applied to a column"
    if isinstance(value, Data):
        return f"one of its columns: {', '.join(f'{value.name}.{column}' for column in value.columns[:6])}"
    if isinstance(value, str):
        number = _NUMBER.fullmatch(value)
        return value.strip() if number else 'a number; texts are compared with columns: D.sex == "Female"'
    return _ANYTHING


def holds_expressions(values: Sequence[Any]) -> ModelingError | None:
    """E117 for a list with expressions in it: it is no array; None when there are none."""
    for value in values:
        if isinstance(value, (Expr, Constraint)):
            return ModelingError(
                "E117",
                f"a {type(values).__name__} that holds {shown(value)} cannot be part of an expression",
                at=here(),
                fix="cn.stack(a, b), which is one expression; of a sum, a + b",
            )
        if isinstance(value, (list, tuple)):
            inner = holds_expressions(value)  # pyright: ignore[reportUnknownArgumentType]
            if inner is not None:
                return inner
    return None


def no_operator(e: Expr, sign: str) -> ModelingError:
    """E117 for an operator of Python that the language lacks."""
    instead = {
        "//": "torch.floor(a / b)",
        "%": "torch.remainder(a, b)",
        "^": "a ** b for a power; (a & ~b) | (~a & b) for events of which one holds",
    }
    return ModelingError(
        "E117", f"the operator {sign} of {shown(e)} is no part of the language", at=here(), fix=instead[sign]
    )


# -------------------------------------------------------------------------------------------- samples
class NoColumnError(ModelingError, AttributeError):
    """E117 for a column of rows that a condition selects; an `AttributeError`, so that `hasattr` works."""


def unnamed_columns(name: str, value: Any) -> ModelingError:
    """E117 for a column without a name."""
    fix = f'cn.Data("{name}", x=X, y=y)'
    if isinstance(value, dict):
        fix = f'cn.Data("{name}", **dictionary)'
    elif hasattr(value, "columns"):
        fix = f'cn.Data.from_frame("{name}", frame)'
    what = "a dict" if isinstance(value, dict) else shown(value)
    return ModelingError(
        "E117", f"the columns of data {name!r} have names, got {what} without one", at=here(), fix=fix
    )


def no_column_name(data: Data, key: Any) -> ModelingError:
    """E117 for rows that are selected with brackets."""
    fix = f"{data.name}.{data.columns[0]}; some rows are {data.name}.rows([0, 1])"
    if isinstance(key, Expr) and key.type.event:
        event = code(key)
        fix = (
            f"given={event} in a statistic; forall({data.name}.where({event}), ...) for a constraint per row"
        )
    return ModelingError(
        "E117", f"{data.name}[...] takes the name of a column, got {shown(key)}", at=here(), fix=fix
    )


def no_positions(data: Data, index: Any) -> ModelingError:
    """E117 for a batch that is not given by positions."""
    fix = f"{data.name}.rows([{index}])" if type(index) is int else f"{data.name}.rows(range(64))"
    if isinstance(index, Expr):
        fix = "given= in a statistic, and D.where(event) in forall, for the rows where an event holds"
    return ModelingError(
        "E117", f"{data.name}.rows() takes positions of rows, got {shown(index)}", at=here(), fix=fix
    )


def column_of_a_subset(subset: Subset, column: str) -> Exception:
    """E117 for `D.where(event).x`."""
    if column.startswith("_"):
        return AttributeError(column)
    name, event = subset.data.name, code(Expr(subset.event))
    return NoColumnError(
        "E117",
        f"{name}.where(...) stands for rows of forall and has no attribute {column!r}",
        at=here(),
        fix=f"E({name}.{column}, given={event})",
    )


# --------------------------------------------------------------------------------------------- events
def no_event(value: Any, where: str) -> ModelingError:
    """E105 or E108 for what is no event of random variables."""
    if isinstance(value, Constraint):
        return ModelingError(
            "E108",
            f"{where} needs an event of random variables; {shown(value)} depends on no data column",
            at=here(),
            fix="a comparison of columns or models, such as f(D.x) > 0",
        )
    if isinstance(value, Expr) and isinstance(value.node, n.Between):
        lower, e, upper = (code(Expr(x)) for x in n.children(value.node))
        return ModelingError(
            "E105",
            f"{where} needs an event, got the relation {shown(value)}",
            at=here(),
            fix=f"({lower} <= {e}) & ({e} <= {upper})",
        )
    return ModelingError(
        "E105",
        f"{where} needs an event such as (f(D.x) > 0), got {shown(value)}",
        at=here(),
        fix=_meant_event(value),
    )


def _meant_event(value: Any) -> str:
    if value is False:
        return 'a comparison of columns or models; a column called "name" or like a method is D["name"]'
    if getattr(value, "shape", None) and not isinstance(value, Expr):
        return 'a comparison of columns: D = cn.Data("train", x=...), and D.x > 0 inside'
    if isinstance(value, Expr) and isinstance(value.node, n.Column):
        own, first = code(value), first_text(value.node)
        return f"{own} == {first!r}" if first else f"a comparison, such as {own} == 1 or {own} > 0"
    return "a comparison of columns or models; for an average write E(...)"


def first_text(column: n.Column) -> str | None:
    """The first entry of a text column, None for a column of something else."""
    values: Any = column.data.values(column.name)
    first = next(iter(values), None) if hasattr(values, "__iter__") else None
    return str(first) if isinstance(first, str) else None


def compared_events(op: str, lhs: Any, rhs: Any) -> ModelingError | None:
    """E105 for two events that are compared with each other: they agree, or they do not."""
    sides = [side for side in (lhs, rhs) if isinstance(side, Expr)]
    events = [side for side in sides if side.type.event]
    columns = [side for side in sides if isinstance(side.node, n.Column)]
    if op not in ("==", "!=") or not events or len(events) + len(columns) < 2:
        return None
    agree = "(a & b) | (~a & ~b)" if op == "==" else "(a & ~b) | (~a & b)"
    other, hint = "another event", ""
    if columns and not is_flag(columns[0]):
        other, hint = f"the column {shown(columns[0])}", f" with the event b = ({code(columns[0])} == 1)"
    return ModelingError(
        "E105",
        f"the event {shown(events[0])} is compared with {other}",
        at=here(),
        fix=f"{agree}{hint}, which holds where the two {'agree' if op == '==' else 'differ'}",
    )


def compared_text(column: n.Node, text: str) -> ModelingError:
    """E117 for a text that is compared with what is no column, or by an order."""
    return ModelingError(
        "E117",
        f"{shown(Expr(column))} is compared with the text {text!r}; only a column can be, by == or !=",
        at=here(),
        fix=f"the number {text.strip()}" if _NUMBER.fullmatch(text) else 'D.sex == "Female"',
    )


def strict_error(node: n.Comparison) -> ModelingError:
    """E109, or E103 where Python asked for the truth value of the comparison."""
    relation = Constraint(node)
    if language("source").truth_context():
        return truth_error(relation)
    allowed = "==" if node.op == "!=" else f"{node.op}="
    return ModelingError(
        "E109",
        f"{shown(relation)}: a constraint cannot be strict, its feasible set would not be closed",
        at=here(),
        fix=f"{allowed}" if node.op == "!=" else f"{allowed} (or a margin: e <= b - 1e-6)",
    )


# -------------------------------------------------------------------------------------- truth values
EITHER_OR = (
    "what is at least 0 where one of them holds: either=cn.maximum(t - 5, 2 - t) >= 0 for t >= 5 or t <= 2"
)
_INSTEAD = {
    "and": "(a > 0) & (b > 0), with the parentheses",
    "or": "(a > 0) | (b > 0), with the parentheses",
    "not": "~(a > 0), with the parentheses",
    "max": "cn.maximum(a, b), or cn.max(e) for the entries of one expression",
    "min": "cn.minimum(a, b), or cn.min(e) for the entries of one expression",
    "if": "cn.where(event, a, b), which chooses row by row",
    "assert": "a constraint of the problem; after a solve, solution['name'].value is a number",
    "any": "(a > 0) | (b > 0) for events; subject_to(first=..., second=...) for constraints",
    "all": "(a > 0) & (b > 0) for events; subject_to(first=..., second=...) for constraints",
}


def truth_error(what: Expr | Constraint) -> ModelingError:
    """E102 or E103, by looking at the user's source line."""
    context = str(language("source").truth_context())
    if context == "chain":
        return ModelingError(
            "E102",
            f"{shown(what)} has no truth value; a chained comparison would keep one of its sides only",
            at=here(),
            fix="cn.between(lower, e, upper), or two constraints; of events (a > 0) & (b == 1)",
        )
    asked = f"`{context}` asks for one" if context else "something asks for one"
    fix = _INSTEAD.get(context, "cn.maximum/cn.minimum for max/min, & | ~ for and/or/not, cn.where for if")
    if isinstance(what, Constraint) and context == "and":
        fix = "two constraints: subject_to(first=..., second=...)"
    if isinstance(what, Constraint) and context == "or":
        fix = EITHER_OR
    return ModelingError(
        "E103", f"{shown(what)} has no truth value before a solve, and {asked}", at=here(), fix=fix
    )
