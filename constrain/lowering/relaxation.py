"""The rule of `relax`: constraints that may be exceeded at a cost.

    min f  s.t.  c <= 0, relaxed at h      becomes      min f + sum h(z)  s.t.  c <= z, z >= 0

Exact. The slacks of deterministic constraints are hidden decisions, one per entry of the constraint as
written, so that averages enter linearly and stay unbiased on minibatches. The slacks of a constraint per row
are eliminated: min over z >= c, z >= 0 of h(z) is h(max(c, 0)), since h is nondecreasing, and what is left is
one average of the rows, times their number. An equality has a slack on either side, c = z_up - z_down, and
per row costs h(|c|).

Multipliers: L = f + h(z) + lambda (c - z) is stationary in z where lambda = h'(z) (lambda <= h'(0) where
z = 0), so the parts' multipliers are those of the constraint as written. Of an eliminated slack the
multiplier is h'(z); at z = 0 it is determined by the balance of gradients alone when h has a kink there.

Source: Hounie, Porras-Valls, Chamon and Ribeiro (2023), Resilient Constrained Learning, NeurIPS.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from constrain._lazy import language_printing
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.regions import Region
from constrain.language.relations import check_weight
from constrain.language.types import Type, type_of
from constrain.lowering.program import Form, Part, Relaxation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from constrain.language.data import Data
    from constrain.lowering.program import Program, Trace
    from constrain.lowering.rules import Piece

__all__ = ["check_weights", "loosened", "per_row", "rows_of", "slack_name"]

Op = Literal["<=", ">=", "==", "between"]


def slack_name(constraint: str, side: str = "") -> str:
    """Name of a hidden slack in reports on decisions; no user can choose it."""
    return f"(relaxation{f' {side}' if side else ''} of {constraint})"


def _apply(atom: str, *args: n.Node, **options: Any) -> n.Node:
    return n.Apply(atom, args, tuple(sorted(options.items())), loc=args[0].loc)


def _plus(terms: Sequence[n.Node]) -> n.Node:
    total = terms[0]
    for term in terms[1:]:
        total = _apply("add", total, term)
    return total


def _total(node: n.Node) -> n.Node:
    """The sum of all entries (of one row, where it has rows)."""
    kind = type_of(node)
    if kind.shape != ():
        node = _apply("sum", node, axis=None, keepdims=False)
    return _apply("sum_levels", node) if kind.levels is not None else node


def _times(weight: n.Node, factor: float, node: n.Node) -> n.Node:
    if isinstance(weight, n.Constant):
        return _apply("mul", n.Constant(float(weight.value) * factor, loc=weight.loc), node)
    if isinstance(weight, n.Knob) and weight.symbol.value is None:
        weight = _apply("relu", weight)  # its value is checked before a solve; the analysis needs its sign
    return _apply("mul", weight if factor == 1.0 else _apply("mul", weight, n.Constant(factor)), node)


def _cost(relaxed: n.Relaxed, excess: n.Node, close: Callable[[n.Node], n.Node]) -> n.Node:
    """h of an excess >= 0 (or of the size of what may have both signs), closed to a number term by term."""
    terms: list[n.Node] = []
    signed = isinstance(excess, n.Apply) and excess.atom == "sub"
    for kind, weight in zip(relaxed.cost, relaxed.weight, strict=True):
        if kind == "squared":
            terms.append(_times(weight, 0.5, close(_apply("square", excess))))
        else:
            terms.append(_times(weight, 1.0, close(_apply("abs", excess) if signed else excess)))
    return _plus(terms)


# ------------------------------------------------------------------------------- one slack per entry
def _slack_type(name: str, relaxed: n.Relaxed, sides: Sequence[n.Node]) -> Type:
    """The axis of levels and the shape of the constraint as written.

    Raises:
        ModelingError: E158 where only running a model can tell the shape.
    """
    kinds = [type_of(side) for side in sides]
    levels = next((kind.levels for kind in kinds if kind.levels is not None), None)
    shapes = [kind.shape for kind in kinds]
    if any(shape is None for shape in shapes):
        raise ModelingError(
            "E158",
            f"the constraint {name!r} is relaxed, and how many entries it has is known only when it runs",
            at=relaxed.loc,
            fix="a constraint on one number: cn.max(e) <= b, or cn.sum(e) <= b",
        )
    known = [shape for shape in shapes if shape is not None]
    rank = max(map(len, known))
    padded = [(1,) * (rank - len(shape)) + shape for shape in known]
    return Type(levels=levels, shape=tuple(max(sizes) for sizes in zip(*padded, strict=True)))


def _slack(name: str, kind: Type, bound: Mapping[str, Data]) -> n.VariableSymbol:
    """A hidden decision >= 0 that starts at 0; its first axis is that of the levels, if there are any."""
    shape = kind.shape or ()
    if kind.levels is not None:
        data = bound.get(kind.levels.data.name, kind.levels.data)
        shape = (len(data.levels(*kind.levels.columns)), *shape)
    return n.VariableSymbol(name, shape, nonneg=True, value=np.zeros(shape), levels=kind.levels)


def loosened(
    form: Form,
    relaxed: n.Relaxed,
    pieces: Sequence[Piece],
    bound: Mapping[str, Data],
    trace: Trace,
) -> tuple[tuple[Piece, ...], Form]:
    """c <= z, z >= 0 with h(z) in the objective; c == z_up - z_down for equalities.

    Exact; the multipliers stay those of the constraint as written.

    Args:
        form: the deterministic constraint without its parts.
        relaxed: the relaxation, with lowered weights.
        pieces: its one-sided pieces.
        bound: samples that replace those of the problem, by name (they have the levels).
        trace: told of it.

    Returns:
        The pieces with the slack in them, and the form with relaxed sides.
    """
    name = form.name
    kind = _slack_type(name, relaxed, (form.lhs, *form.rhs))
    both = form.op == "=="
    symbols = [_slack(slack_name(name, side), kind, bound) for side in (("up", "down") if both else ("",))]
    slacks = [n.Decision(symbol, loc=relaxed.loc) for symbol in symbols]
    z = _apply("sub", *slacks) if both else slacks[0]
    penalty = _plus([_cost(relaxed, slack, _total) for slack in slacks])
    formula = "c == z - z', z and z' >= 0, cost h(z) + h(z')" if both else "c <= z, z >= 0, cost h(z)"
    trace.add("relax", name, formula)
    moved = tuple(piece.moved(_apply("sub", piece.residual, z)) for piece in pieces)
    match form.op:
        case "between":
            sides = (_apply("sub", form.rhs[0], z), _apply("add", form.rhs[1], z))
        case ">=":
            sides = (_apply("sub", form.rhs[0], z),)
        case _:
            sides = (_apply("add", form.rhs[0], z),)
    relaxation = Relaxation(relaxed.cost, relaxed.weight, penalty, form.rhs, tuple(symbols))
    return moved, replace(form, rhs=sides, relaxation=relaxation)


# --------------------------------------------------------------------------------- one slack per row
def _excess(op: Op, lhs: n.Node, rhs: tuple[n.Node, ...]) -> n.Node:
    """How far a row is from holding: max(c, 0), or c for an equality."""
    if op == "==":
        return _apply("sub", lhs, rhs[0])
    if op == "between":
        return _apply("relu", _apply("maximum", _apply("sub", lhs, rhs[1]), _apply("sub", rhs[0], lhs)))
    return _apply("relu", _apply("sub", *((rhs[0], lhs) if op == ">=" else (lhs, rhs[0]))))


def per_row(form: Form, relaxed: n.Relaxed, bound: Mapping[str, Data], trace: Trace) -> Form:
    """The sum over rows of h(max(c, 0)) in the place of one constraint per row.

    Exact; the multiplier of a row is h'(max(c, 0)). Over a continuous population the costs are averaged.

    Args:
        form: the constraint per row without its parts.
        relaxed: the relaxation, with lowered weights.
        bound: samples that replace those of the problem, by name (they have the rows).
        trace: told of it.
    """
    data = form.rows
    assert data is not None  # callers check
    excess = _excess(form.op, form.lhs, form.rhs)
    count = rows_of(bound.get(data.name, data))

    def close(node: n.Node) -> n.Node:
        integrand = _total(node)
        if form.where is not None:
            integrand = _apply("where", form.where, integrand, n.Constant(0.0))
        moment = n.Moment(data, integrand, loc=relaxed.loc)
        return moment if count is None else _apply("mul", n.Constant(float(count)), moment)

    penalty = _cost(relaxed, excess, close)
    trace.add("relax", form.name, "sum over rows of h(max(c, 0)): the slack of every row is eliminated")
    kind: Literal["<=", "=="] = "==" if form.op == "==" else "<="
    sub = [("", form.lhs, form.rhs[0], -1.0)]
    if form.op == ">=":
        sub = [("", form.rhs[0], form.lhs, 1.0)]
    if form.op == "between":
        sub = [("upper", form.lhs, form.rhs[1], -1.0), ("lower", form.rhs[0], form.lhs, 1.0)]
    parts = tuple(
        Part(form.name, side, kind, _apply("sub", a, b), sign, data, form.where, form.scale)
        for side, a, b, sign in sub
    )
    relaxation = Relaxation(relaxed.cost, relaxed.weight, penalty, form.rhs, (), parts)
    return replace(form, relaxation=relaxation)


def rows_of(data: Data) -> int | None:
    """Number of rows of a sample; None of a continuous population, whose points are no rows."""
    return None if isinstance(data, Region) else len(data)


# ------------------------------------------------------------------------------------------- checking
def check_weights(program: Program, values: Mapping[n.ParameterSymbol, Any]) -> None:
    """Refuses parameters that are weights of costs and are not positive (E157), before a solve.

    Args:
        program: the moment form.
        values: of its parameters.
    """
    for form in program.shared.singles:
        if form.relaxation is None:
            continue
        for weight in form.relaxation.weights:
            if isinstance(weight, n.Knob) and weight.symbol in values:
                what = f"the cost of {form.name!r} ({language_printing().text(weight)})"
                value = float(values[weight.symbol])
                check_weight(value if not math.isnan(value) else math.inf, what, weight.loc)
