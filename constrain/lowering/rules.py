"""Rewrite rules. The first line of each docstring is the formula, the second says exact or approximate.

Rules on constraints return one-sided parts with the sign that pulls multipliers back. One law tests them all
(`tests/lowering/test_rules.py`): the same feasible set on random points, and the pulled-back multiplier is
the finite-difference shadow price.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from constrain.language import nodes as n
from constrain.language.regions import Region
from constrain.language.surrogates import DEFAULT
from constrain.language.types import type_of
from constrain.lowering.dependence import depends_on_decisions
from constrain.lowering.families import Hole, Picks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from constrain.language.data import Data
    from constrain.language.surrogates import Surrogate
    from constrain.lowering.program import Trace

__all__ = [
    "Listed",
    "Piece",
    "deviation",
    "epigraph",
    "flip",
    "gathered",
    "indicator_mean",
    "is_level",
    "is_share",
    "length",
    "level_of",
    "listed",
    "moment",
    "ratio",
    "split",
]

LARGEST_LEVEL = 2**24
"""Whole numbers below are exact in float32, so that a column can be looked up in a list of them."""


class Piece:
    """A one-sided piece under construction: `residual kind 0`, its side label and sign towards the rhs."""

    def __init__(self, residual: n.Node, side: str, rhs_sign: float) -> None:
        self.residual = residual
        self.side = side
        self.rhs_sign = rhs_sign

    def moved(self, residual: n.Node) -> Piece:
        """The piece with another residual."""
        return Piece(residual, self.side, self.rhs_sign)


def _sub(a: n.Node, b: n.Node) -> n.Node:
    return n.Apply("sub", (a, b), loc=a.loc)


def _neg(a: n.Node) -> n.Node:
    return n.Apply("neg", (a,), loc=a.loc)


def _full(reduction: n.Node) -> bool:
    """Whether a reduction runs over everything and leaves a single number."""
    return (
        isinstance(reduction, n.Apply)
        and reduction.option("axis") is None
        and not reduction.option("keepdims")
    )


def _single(rhs: n.Node) -> bool:
    """Whether a bound is one number."""
    kind = type_of(rhs)
    return kind.shape == () and not kind.lead


# ------------------------------------------------------------------------------------- statistics
def indicator_mean(node: n.Rate) -> n.Mean:
    """P(A | B) = E(1[A] | B).

    Exact; where A involves decisions the primal gradient of 1[A] is that of a surrogate.
    """
    surrogate = (node.surrogate or DEFAULT) if depends_on_decisions(node.event) else None
    return n.Mean(n.Indicator(node.event, surrogate, loc=node.loc), node.given, node.by, loc=node.loc)


def moment(node: n.Mean, data: Data) -> n.Moment:
    """E(g | A, level) = mean of g 1{A, level} / share(A, level).

    Exact: the shares are counted before solving, so the moment is linear in g and unbiased on minibatches.
    """
    return n.Moment(data, node.arg, node.given, node.by, loc=node.loc)


def is_share(node: n.Node) -> bool:
    """Whether an average is the share of rows of a condition that depends on decisions, which may be 0."""
    if not isinstance(node, n.Moment):
        return False
    mask = node.integrand
    while isinstance(mask, n.Apply) and mask.atom == "index":
        mask = mask.args[0]
    return isinstance(mask, n.Indicator) and mask.surrogate is not None


def ratio(node: n.Mean, data: Data, surrogate: Surrogate = DEFAULT) -> n.Node:
    """E(g | A) = E(g 1[A]) / E(1[A]) when the event A involves decisions; P(B | A) = P(B & A) / P(A).

    Exact; not affine in the averages, and the gradient of 1[A] is that of a surrogate.
    """
    assert node.given is not None  # narrows the type
    mask: n.Node = n.Indicator(node.given, surrogate, loc=node.loc)
    shape = type_of(node.arg).shape or ()
    weight = mask if not shape else n.Apply("index", (mask,), (("key", ("...", *(None for _ in shape))),))
    both: n.Node = n.Apply("mul", (node.arg, weight), loc=node.loc)
    if isinstance(node.arg, n.Indicator) and not shape:
        event = n.Logic("and", (node.arg.event, node.given), loc=node.loc)
        both = n.Indicator(event, surrogate, loc=node.loc)
    top = n.Moment(data, both, None, node.by, loc=node.loc)
    bottom: n.Node = n.Moment(data, weight, None, node.by, loc=node.loc)
    return n.Apply("div", (top, bottom), loc=node.loc)


def deviation(node: n.Node) -> n.Node:
    """sqrt(Var(g)) = |g - E[g]| in the norm of averages.

    Exact; convex in an affine g, as the square root of a convex function need not be.
    """
    match node:
        case n.Apply(atom="sqrt", args=(n.Apply(atom="variance", args=args),)):
            return n.Apply("deviation", args, loc=node.loc)
        case n.Apply(atom="pow", args=(n.Apply(atom="variance", args=args), n.Constant(value=0.5))):
            return n.Apply("deviation", args, loc=node.loc)
        case _:
            return node


def length(node: n.Node) -> n.Node:
    """sqrt(sum of e^2) = |e|, the norm of order 2.

    Exact; convex in an affine e, as the square root of a convex function need not be, with slopes at e = 0.
    """
    match node:
        case n.Apply(atom="sqrt", args=(n.Apply() as under,)):
            pass
        case n.Apply(atom="pow", args=(n.Apply() as under, n.Constant(value=0.5))):
            pass
        case _:
            return node
    match under:
        case n.Apply(atom="sum_squares", args=(e,)):
            pass
        case n.Apply(atom="sum", args=(n.Apply(atom="square", args=(e,)),)):
            pass
        case n.Apply(atom="sum", args=(n.Apply(atom="pow", args=(e, n.Constant(value=2))),)):
            pass
        case _:
            return node
    axes = under.option("axis")
    if axes is not None and len(axes) > 1:
        return node
    return n.Apply("norm", (e,), (*under.options, ("ord", 2.0)), loc=node.loc)


@dataclass(frozen=True)
class Listed:
    """An average that a family of constraints takes at one level each.

    Attributes:
        moment: as it stands in the form with holes.
        rest: what is left of its condition without the level.
        events: `column == level`, one per member.
    """

    moment: n.Moment
    rest: n.Node | None
    events: Sequence[n.Node]


def gathered(
    moments: Iterable[n.Moment], trace: Trace, families: Sequence[Listed] = ()
) -> tuple[Mapping[n.Node, n.Node], Mapping[n.Node, Picks]]:
    """E(g | A, c = k) for several k  =  E(g | A, c among these k)[k].

    Exact: the same weights, with one segment sum in place of a masked sum for each k. Levels of c that no
    condition names count nowhere, so that nothing is asked of them.

    Args:
        moments: of the whole program.
        trace: the rule is recorded there, once.
        families: averages that families of constraints take by level.

    Returns:
        What to write in the place of the moments that share their integrand and the rest of their condition,
        and of the averages of families.
    """
    places: dict[tuple[n.Node, n.Node | None, n.Node], dict[n.Moment, n.Comparison]] = {}
    for m in moments:
        for event, rest in _levels_of(m):
            places.setdefault((m.integrand, rest, event.lhs), {})[m] = event
    lists: dict[tuple[n.Node, n.Node | None, n.Node], list[Listed]] = {}
    for own in families:
        lists.setdefault((own.moment.integrand, own.rest, n.children(own.events[0])[0]), []).append(own)
    found: dict[n.Node, n.Node] = {}
    picks: dict[n.Node, Picks] = {}
    keys = sorted({**places, **lists}, key=lambda key: (key not in lists, -len(places.get(key, ()))))
    for key in keys:
        members = {m: event for m, event in places.get(key, {}).items() if m not in found}
        named = [event for own in lists.get(key, ()) for event in own.events]
        events: dict[Any, n.Comparison] = {}
        for event in (*named, *members.values()):
            assert isinstance(event, n.Comparison)  # made so
            events.setdefault(level_of(event), event)
        if len(events) < 2:
            continue
        order = {value: i for i, value in enumerate(events)}
        first = lists[key][0].moment if key in lists else next(iter(members))
        whole = n.Moment(first.data, key[0], key[1], (n.Among(tuple(events.values())),), loc=first.loc)
        for m, event in members.items():
            found[m] = n.Apply("pick_levels", (whole,), (("place", order[level_of(event)]),), loc=m.loc)
        for own in lists.get(key, ()):
            picks[own.moment] = Picks(whole, np.array([order[level_of(event)] for event in own.events]))
    if found or picks:
        trace.add("gather", "averages", "E(g | c = k) for several k are one sum by the levels of c")
    return found, picks


def listed(m: n.Moment, numbers: Mapping[Hole, Sequence[n.Node]]) -> Listed | None:
    """The average of a family at one level each, where its condition has a hole."""
    terms = [] if m.given is None else _terms(m.given)
    for i, term in enumerate(terms):
        right = term.rhs if isinstance(term, n.Comparison) else None
        if isinstance(right, n.Array) and isinstance(right.symbol, Hole):
            return Listed(m, _without(m.given, terms, i), numbers[right.symbol])
    return None


def level_of(event: n.Node) -> Any:
    """The level that a column is compared with, a number or a text."""
    assert isinstance(event, n.Comparison)  # callers check
    return event.rhs.symbol.value if isinstance(event.rhs, n.Array) else getattr(event.rhs, "value", None)


def _levels_of(m: n.Moment) -> list[tuple[n.Comparison, n.Node | None]]:
    """The comparisons of a column with a level in a condition, each with what is left of the condition."""
    if m.given is None or m.by or isinstance(m.data, Region):
        return []
    terms = _terms(m.given)
    return [
        (term, _without(m.given, terms, i))
        for i, term in enumerate(terms)
        if isinstance(term, n.Comparison) and is_level(term)
    ]


def _terms(given: n.Node) -> list[n.Node]:
    """What a condition joins by "and"."""
    terms: list[n.Node] = []
    stack = [given]
    while stack:
        node = stack.pop()
        if isinstance(node, n.Logic) and node.op == "and":
            stack.extend(reversed(node.args))
        else:
            terms.append(node)
    return terms


def _without(given: n.Node | None, terms: list[n.Node], i: int) -> n.Node | None:
    """A condition without one of its terms."""
    rest = (*terms[:i], *terms[i + 1 :])
    loc = None if given is None else given.loc
    return rest[0] if len(rest) == 1 else n.Logic("and", rest, loc=loc) if rest else None


def is_level(event: n.Comparison) -> bool:
    """Whether an event is a column of numbers or texts compared with a whole number or a text."""
    column, value = event.lhs, event.rhs
    if event.op != "==" or not isinstance(column, n.Column) or type_of(column).shape != ():
        return False
    if isinstance(value, n.Array):
        return isinstance(value.symbol.value, str)
    return (
        isinstance(value, n.Constant) and abs(value.value) < LARGEST_LEVEL and value.value == int(value.value)
    )


# ------------------------------------------------------------------------------------ constraints
def flip(lhs: n.Node, rhs: n.Node) -> Piece:
    """lhs >= b  <=>  b - lhs <= 0.

    Exact; the multiplier stays, the shadow price changes sign.
    """
    return Piece(_sub(rhs, lhs), "", 1.0)


def split(residual_of: n.Node, rhs: n.Node, label: str = "") -> list[Piece]:
    """|e| <= b  <=>  e <= b and -e <= b;  max(a, c) <= b  <=>  a <= b and c <= b;  levels likewise.

    Exact; the multipliers of the pieces add up. Splitting comes before estimation, so that affine pieces stay
    unbiased on minibatches (semantics S7).
    """

    def named(suffix: str) -> str:
        return f"{label} {suffix}".strip()

    match residual_of:
        case n.Apply(atom="abs", args=(e,)):
            return [*split(e, rhs, named("upper")), *split(_neg(e), rhs, named("lower"))]
        case n.Apply(atom="maximum", args=(a, b)):
            return [*split(a, rhs, named("first")), *split(b, rhs, named("second"))]
        case n.Apply(atom="max_levels" | "max", args=(e,)) if _full(residual_of) and _single(rhs):
            return split(e, rhs, label)
        case n.Apply(atom="neg", args=(n.Apply(atom="minimum", args=(a, b)),)):
            return [*split(_neg(a), rhs, named("first")), *split(_neg(b), rhs, named("second"))]
        case n.Apply(atom="neg", args=(n.Apply(atom="min_levels" | "min", args=(e,)) as inner,)) if _full(
            inner
        ) and _single(rhs):
            return split(_neg(e), rhs, label)
        case n.Apply(atom="neg", args=(n.Apply(atom="neg", args=(e,)),)):
            return split(e, rhs, label)
        case _:
            return [Piece(_sub(residual_of, rhs), label, -1.0)]


@dataclass(frozen=True)
class Bounded:
    """A largest value of the objective, and what bounds it.

    Attributes:
        bound: the hidden decision t.
        term: what t stands for: c max_i e_i with its constant c > 0.
        pieces: c e_i - t.
    """

    bound: n.VariableSymbol
    term: n.Node
    pieces: list[Piece]


def epigraph(
    objective: n.Node, make: Callable[[int], n.VariableSymbol], trace: Trace
) -> tuple[n.Node, list[Bounded]]:
    """min f + c max_i e_i  =  min f + t  subject to  c e_i <= t,  for c > 0; of several, each has its own t.

    Exact; the multipliers of the pieces of each are the weights of its e_i and sum to one. Also for |e|, and
    for the least of several e_i with c < 0. Next to other terms, those largest values that hold averages.

    Args:
        objective: to be minimized.
        make: the hidden decision of the k-th largest value, from 1.
        trace: what was rewritten is recorded there.

    Returns:
        The new objective and the largest values; none where there is no such term.
    """
    terms = _addends(objective)
    shares: dict[n.Node, n.Node] = {}
    found: list[Bounded] = []
    for node in dict.fromkeys(node for node, _ in terms):
        c = sum(own for other, own in terms if other == node)
        alone = len(terms) == 1 or n.mentions(node, n.Moment)
        if not c or not alone or not _is_largest(node, c):
            continue
        if any(node in n.postorder(other) for other, _ in terms if other != node):
            continue  # what else depends on it may fall in it
        bound, term = make(len(found) + 1), _scaled_inside(node, c)
        side: n.Node = n.Decision(bound, loc=node.loc)
        pieces = split(term, side)
        if len(pieces) == 1 and pieces[0].residual == _sub(term, side):
            continue
        found.append(Bounded(bound, term, pieces))
        shares[node] = side if c == 1.0 else n.Apply("mul", (n.Constant(1.0 / c), side), loc=node.loc)
    if not found:
        return objective, []

    def step(node: n.Node, new: tuple[n.Node, ...]) -> n.Node:
        return shares[node] if node in shares else n.rebuild(node, new)

    trace.add("epigraph", "objective", "min max_i e_i = min t subject to e_i <= t")
    return n.fold(objective, step), found


def _addends(objective: n.Node) -> list[tuple[n.Node, float]]:
    """The terms of a sum with constant coefficients, opened as far as it goes."""
    found: list[tuple[n.Node, float]] = []
    stack = [(objective, 1.0)]
    while stack:
        node, c = stack.pop()
        match node:
            case n.Apply(atom="add", args=(a, b)):
                stack += [(b, c), (a, c)]
            case n.Apply(atom="sub", args=(a, b)):
                stack += [(b, -c), (a, c)]
            case n.Apply(atom="neg", args=(a,)):
                stack.append((a, -c))
            case (
                n.Apply(atom="mul", args=(n.Constant(value=k), a))
                | n.Apply(atom="mul", args=(a, n.Constant(value=k)))
            ) if k:
                stack.append((a, c * k))
            case n.Apply(atom="div", args=(a, n.Constant(value=k))) if k:
                stack.append((a, c / k))
            case _:
                found.append((node, c))
    return found


def _is_largest(node: n.Node, c: float) -> bool:
    """Whether a term is a largest value that is to be small, or a least one that is to be large."""
    kinds = ("max", "max_levels", "maximum", "abs") if c > 0 else ("min", "min_levels", "minimum")
    kind = type_of(node)
    return isinstance(node, n.Apply) and node.atom in kinds and kind.shape == () and not kind.lead


def _scaled_inside(largest: n.Node, c: float) -> n.Node:
    """c max(e) as max(c e), and c min(e) for c < 0 as -min(-c e)."""
    assert isinstance(largest, n.Apply)  # callers check
    size = abs(c)
    scale = n.Constant(size)
    args = largest.args if size == 1.0 else tuple(n.Apply("mul", (scale, x), loc=x.loc) for x in largest.args)
    inside = n.rebuild(largest, args)
    return inside if c > 0 else _neg(inside)
