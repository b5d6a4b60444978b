"""What a constraint can reach by construction: interval bounds of its sides, before any training.

An expression such as `E(sigmoid(8 * (p - 0.5)))` with `p` in (0, 1) lies in (0.018, 0.982) whatever the
decisions are, so that a bound of 0.99 cannot be met and multipliers would grow without end. The same holds
for the surrogate of a rate whose width is fixed in the units of a bounded margin.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from constrain._lazy import language_printing
from constrain.analysis.bounds import ANYTHING, Bounds, bounds_of_column, bounds_of_value
from constrain.analysis.curvature import analyze
from constrain.analysis.fact import Fact
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.surrogates import Hinge
from constrain.lowering.dependence import depends_on_decisions
from constrain.lowering.families import Family, Numbers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from constrain.language.data import Data
    from constrain.language.surrogates import Surrogate
    from constrain.lowering.program import Form, Part, Program

__all__ = ["always_held", "refuse_unreachable"]

ROUNDING = 1e-7
"""Relative distance from a bound that is taken for rounding."""
HALVINGS = 24
"""How often a width is halved in search of one that reaches the bound."""

Memo = dict[int, Fact]


def refuse_unreachable(
    program: Program, data: Mapping[str, Data] | None = None, params: Mapping[str, Any] | None = None
) -> None:
    """Refuses constraints that no decision can meet, and surrogates that cannot follow their constraint.

    Args:
        program: the moment form.
        data: samples that replace those of the problem, by their name.
        params: values of parameters by name.

    Raises:
        ModelingError: E172 when the ranges of the two sides of a constraint leave no value that meets it;
            E173 when that is so with the surrogates of rates in place of the rates, and a smaller width would
            help.
    """
    memo: Memo = {}
    table: dict[n.Node, n.Node] = {}
    known = program.shared
    doubtful = [family for family in known.families if _doubtful(family, data, params)]
    for form in (*known.singles, *(own.member(k) for own in doubtful for k in range(len(own)))):
        relation = n.intern(form.relation, table)  # what many constraints share is looked at once
        _seed(memo, relation, data, params)
        for low, high, every in _claims(relation):
            if _gap(low, high, memo, every=every) > 0:
                raise _unreachable(form, relation, memo)
    for form in (*known.singles, *known.families):
        _refuse_missed(form, data, params)


def _doubtful(family: Family, data: Mapping[str, Data] | None, params: Mapping[str, Any] | None) -> bool:
    """Whether some constraint of a family may be out of reach, so that each of them is looked at."""
    memo: Memo = {}
    vectors = family.written
    _seed(memo, vectors, data, params)
    moving = [x for x in n.postorder(vectors) if isinstance(x, n.Array) and isinstance(x.symbol, Numbers)]
    claims = _claims(vectors)
    if any(x is not side and any(x is y for y in n.postorder(side)) for low, high, _ in claims
           for side in (low, high) for x in moving):  # fmt: skip
        return True  # bounds of a sum say nothing about each of its entries
    return any(_gap(low, high, memo, every=True) > 0 for low, high, _ in claims)


def _refuse_missed(
    own: Form | Family, data: Mapping[str, Data] | None, params: Mapping[str, Any] | None
) -> None:
    """E173 for a surrogate of fixed width that cannot follow its constraint."""
    first = own.form if isinstance(own, Family) else own
    nodes = n.postorder(*(part.residual for part in first.parts))
    if not any(isinstance(x, n.Indicator) and _fixed(x) for x in nodes):
        return
    for form in [own.member(k) for k in range(len(own))] if isinstance(own, Family) else [own]:
        for part in form.parts:
            fixed = [x for x in n.postorder(part.residual) if isinstance(x, n.Indicator) and _fixed(x)]
            if fixed:
                known: Memo = {}
                _seed(known, part.residual, data, params)
                if _missed(part, known, 1.0):
                    _refuse_surrogates(form, part, fixed[0].surrogate, known)


def always_held(
    program: Program, data: Mapping[str, Data] | None = None, params: Mapping[str, Any] | None = None
) -> list[str]:
    """Names of the constraints that hold by construction, whatever the decisions are.

    Arguments as in `refuse_unreachable`. Equalities, and constraints without decisions, are left out.
    """
    memo: Memo = {}
    table: dict[n.Node, n.Node] = {}
    found: list[str] = []
    for form in program.forms:
        relation = n.intern(form.relation, table)
        _seed(memo, relation, data, params)
        claims = _claims(relation)
        moving = any(depends_on_decisions(x) for claim in claims for x in claim[:2])
        ends = [(analyze(low, memo).bounds.high, analyze(high, memo).bounds.low) for low, high, _ in claims]
        if form.op != "==" and moving and all(a <= b for a, b in ends):
            found.append(form.name)
    return found


# ------------------------------------------------------------------------------------------- ranges
def _seed(
    memo: Memo, root: n.Node, data: Mapping[str, Data] | None, params: Mapping[str, Any] | None
) -> None:
    """Facts of the columns and parameters under `root` that a solve replaces."""
    for x in n.postorder(root) if data or params else ():
        if isinstance(x, n.Column) and data and x.data.name in data:
            other = data[x.data.name]
            known = bounds_of_column(other, x.name) if x.name in other.columns else ANYTHING
            memo[id(x)] = Fact("constant", bounds=known)
        if isinstance(x, n.Knob) and params and x.symbol.name in params:
            memo[id(x)] = Fact("constant", bounds=bounds_of_value(params[x.symbol.name]))


def _claims(relation: n.Node) -> list[tuple[n.Node, n.Node, bool]]:
    """The pairs `a <= b` that a constraint as written asks for, and whether it does so of every entry."""
    every = True
    while isinstance(relation, (n.ForAll, n.Scaled)):
        if isinstance(relation, n.ForAll):
            every = relation.where is None
        relation = relation.relation
    match relation:  # what is relaxed can always hold
        case n.Between(lower=lower, arg=arg, upper=upper):
            return [(lower, arg, every), (arg, upper, every)]
        case n.Comparison(op="<=", lhs=lhs, rhs=rhs):
            return [(lhs, rhs, every)]
        case n.Comparison(op=">=", lhs=lhs, rhs=rhs):
            return [(rhs, lhs, every)]
        case n.Comparison(op="==", lhs=lhs, rhs=rhs):
            return [(lhs, rhs, every), (rhs, lhs, every)]
        case _:
            return []


def _gap(a: n.Node, b: n.Node, memo: Memo, *, every: bool) -> float:
    """By how much `a <= b` fails at best, 0 where it can hold; of an array bound every entry counts."""
    left, right = analyze(a, memo), analyze(b, memo)
    if left.constant and right.constant:
        return 0.0
    low, high = left.bounds.low, right.bounds.high
    if every and left.constant:
        low = left.bounds.high
    if every and right.constant:
        high = right.bounds.low
    room = ROUNDING * (1 + min(abs(low), abs(high)))
    return low - high if low > high + room else 0.0


# --------------------------------------------------------------------------------------- surrogates
def _fixed(node: n.Indicator) -> bool:
    return node.surrogate is not None and node.surrogate.scale is not None


def _missed(part: Part, memo: Memo, factor: float) -> float:
    """By how much a residual misses its constraint at best; fixed widths of surrogates times `factor`."""
    own: Memo = dict(memo)
    for x in n.postorder(part.residual):
        if isinstance(x, n.Indicator) and x.surrogate is not None:
            event = analyze(x.event, own)
            own[id(x)] = replace(event, bounds=_range(x.event, x.surrogate, own, factor))
    found = analyze(part.residual, own).bounds
    off = max(found.low, -found.high if part.kind == "==" else 0.0)
    return off if off > ROUNDING else 0.0


def _range(event: n.Node, surrogate: Surrogate, memo: Memo, factor: float) -> Bounds:
    """Range of the surrogate of an event; `a & b` is the least of its parts, `a | b` the largest."""
    if surrogate.scale is None:
        return Bounds(0.0, math.inf if isinstance(surrogate, Hinge) else 1.0)
    width = surrogate.scale * factor
    sides: dict[int, tuple[Bounds, Bounds]] = {}
    for node in n.postorder(event):
        match node:
            case n.Comparison() if depends_on_decisions(node):
                a, b = (node.lhs, node.rhs) if node.op in (">", ">=") else (node.rhs, node.lhs)
                margin = analyze(n.Apply("sub", (a, b)), dict(memo)).bounds
                holds = Bounds(surrogate.at(margin.low / width), surrogate.at(margin.high / width))
                fails = Bounds(surrogate.at(-margin.high / width), surrogate.at(-margin.low / width))
                sides[id(node)] = holds, fails
            case n.Comparison():
                sides[id(node)] = Bounds(0.0, 1.0), Bounds(0.0, 1.0)
            case n.Logic(op="not", args=args):
                sides[id(node)] = sides[id(args[0])][1], sides[id(args[0])][0]
            case n.Logic(op=op, args=args):
                holds = _joined([sides[id(x)][0] for x in args], least=op == "and")
                fails = _joined([sides[id(x)][1] for x in args], least=op == "or")
                sides[id(node)] = holds, fails
            case _:
                pass
    return sides[id(event)][0]


def _joined(parts: Sequence[Bounds], *, least: bool) -> Bounds:
    lows, highs = [p.low for p in parts], [p.high for p in parts]
    return Bounds(min(lows), min(highs)) if least else Bounds(max(lows), max(highs))


# ----------------------------------------------------------------------------------------- messages
def _shown(node: n.Node) -> str:
    return str(language_printing().text(node, limit=80))


def _interval(bounds: Bounds) -> str:
    return f"[{bounds.low:.3g}, {bounds.high:.3g}]"


def _unreachable(form: Form, relation: n.Node, memo: Memo) -> ModelingError:
    claims = _claims(relation)
    sides = [claims[0][0], claims[0][1]] if len(claims) == 1 or form.op == "==" else [claims[0][1]]
    if form.op == ">=":
        sides.reverse()
    words = ("middle",) if len(sides) == 1 else ("left side", "right side")
    found = [(word, analyze(x, memo)) for word, x in zip(words, sides, strict=True)]
    event = _decided(relation, memo)
    if event is not None:
        raised = analyze(event, memo).bounds.low > 0
        return ModelingError(
            "E172",
            f"the constraint {form.name!r}, {_shown(form.relation)}, cannot hold: {_shown(event)} "
            f"{'holds' if raised else 'fails'} for every row, whatever the decisions are",
            at=form.relation.loc,
            fix="a threshold inside of the range of values, such as 0.5 of a probability, or 0 of the score",
        )
    ranges = [f"its {word} lies in {_interval(fact.bounds)}" for word, fact in found if not fact.constant]
    return ModelingError(
        "E172",
        f"the constraint {form.name!r}, {_shown(form.relation)}, cannot hold: whatever the decisions are, "
        f"{' and '.join(ranges)}",
        at=form.relation.loc,
        fix="a bound inside of that range, or an expression that reaches further",
    )


def _decided(relation: n.Node, memo: Memo) -> n.Node | None:
    """An event under a constraint that always holds, or never does, whatever the decisions are."""
    for x in n.postorder(relation):
        if isinstance(x, (n.Rate, n.Indicator)) and depends_on_decisions(x.event):
            bounds = analyze(x.event, memo).bounds
            if bounds.low == bounds.high:
                return x.event
    return None


def _refuse_surrogates(form: Form, part: Part, surrogate: Surrogate | None, memo: Memo) -> None:
    """E173 where a smaller width comes to the bound."""
    assert surrogate is not None  # chosen so
    assert surrogate.scale is not None
    factor = next((0.5**k for k in range(1, HALVINGS) if not _missed(part, memo, 0.5**k)), None)
    if factor is None:
        return
    sharper = replace(surrogate, scale=_rounded(surrogate.scale * factor))
    raise ModelingError(
        "E173",
        f"the constraint {form.name!r}, {_shown(form.relation)}, is out of reach of the surrogate "
        f"{surrogate!r}: with it in place of the rate, the constraint is missed by at least "
        f"{_missed(part, memo, 1.0):.2g} whatever the decisions are",
        at=form.relation.loc,
        fix=f"surrogate=cn.surrogate.{sharper!r}, or one without scale=, whose width follows the margin",
    )


def _rounded(x: float) -> float:
    """Two digits, rounded down."""
    digits = 1 - math.floor(math.log10(x))
    return math.floor(x * 10**digits) / 10**digits
