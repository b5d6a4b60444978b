"""Functions with kinks and jumps, by auxiliary variables.

The largest of affine pieces is a variable above all of them where it is pushed down (no integers), and
otherwise equals the piece that a binary variable selects:

    t >= e_k,   t <= e_k + M_k (1 - z_k),   sum_k z_k = 1

The number of nonzero entries and rates of events count binary variables that switch a bound on or off. Each
M is the least one that the bounds of the decisions allow (Williams, Model Building in Mathematical
Programming, 5th ed., 2013, chapter 9), so these need bounds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from constrain._lazy import language_printing
from constrain.backends.pyomo.engines import INTEGRALITY
from constrain.backends.pyomo.package import pyo
from constrain.backends.pyomo.term import (
    Space,
    Term,
    bounds_of,
    combine,
    expression_of,
    lifted,
    mapped,
    mapped_all,
    named,
    summed,
)
from constrain.errors import RouteError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from constrain.backends.pyomo.atoms import Arguments
    from constrain.language import nodes as n

__all__ = ["STRICT", "Event", "Pieces", "Room", "absolute", "count", "elementwise", "largest", "smallest"]

STRICT = 1e-6
"""Room with which events hold, or do not: solvers meet constraints within a tolerance only."""


Room = Literal["open", "all", "none"]
"""Which sides of events get room: `open` those that exclude a margin of 0 and no others, which is exact but
for the room; `all`, so that rounding changes no event; `none`, a relaxation."""


class Event(NamedTuple):
    """An event and its switch: `margin >= 0` (`> 0` when strict), and where the switch is pushed."""

    margin: Term
    switch: Term
    side: int
    strict: bool

    def agrees(self, margin: float, *, on: bool) -> bool:
        """Whether the switch claims no more than what the margin says."""
        holds = margin > 0 if self.strict else margin >= 0
        return (self.side > 0 or not on or holds) and (self.side < 0 or on or not holds)


class Pieces:
    """Auxiliary variables and constraints of one model.

    Attributes:
        room: which sides of events get room.
        events: those that were made.
        roomy: whether an event got room.
        switches: number of binary variables that were made.
        zero: by the number of a variable whose nonzero entries are counted, its switch.
        terms: the auxiliary constraints: a term and its Pyomo constraint, `<= 0` or `== 0`.
        straight: replaces products with a discrete factor in a term that is to be at most 0.
    """

    def __init__(self, model: Any, space: Space, room: Room = "open") -> None:
        self._space = space
        self.room: Room = room
        self.events: list[Event] = []
        self.roomy = False
        self.switches = 0
        self.straight: Callable[[Any], Any] = _as_it_is
        self.terms: list[tuple[Any, Any]] = []
        self.zero: dict[int, Term] = {}
        self._auxiliary = named(model, "auxiliary", pyo.VarList())
        self._switches = named(model, "switches", pyo.VarList(domain=pyo.Binary))
        self._rules = named(model, "rules", pyo.ConstraintList())

    def variable(self, low: float = -math.inf, high: float = math.inf) -> Term:
        """A new continuous variable."""
        made = self._auxiliary.add()
        made.setlb(None if math.isinf(low) else low)
        made.setub(None if math.isinf(high) else high)
        return self._space.add(made)

    def switch(self) -> Term:
        """A new binary variable."""
        self.switches += 1
        return self._space.add(self._switches.add())

    def below(self, item: Any) -> None:
        """Requires `item <= 0`."""
        item = self.straight(item)
        if not isinstance(item, Term):
            if item <= STRICT:
                return
            item = item + self.variable(0.0, 0.0)
        self.terms.append((item, self._rules.add(expression_of(item) <= 0)))

    def equal(self, item: Any) -> None:
        """Requires `item == 0`."""
        self.terms.append((item, self._rules.add(expression_of(item) == 0)))

    def nonzero(self, item: Any, node: n.Node) -> Any:
        """A switch that is on wherever a variable is not zero."""
        if not isinstance(item, Term):
            return float(item != 0)
        number = item.single
        if number is None:
            raise RouteError(
                "E125",
                f"pyomo counts nonzero entries of variables only, not of {_text(node)}",
                at=node.loc,
                fix="a Variable v with the constraint v == e, and cn.count_nonzero(v)",
            )
        if number not in self.zero:
            low, high = finite(item, node)
            z = self.switch()
            self.below(item - high * z)
            self.below(low * z - item)
            self.zero[number] = z
        return self.zero[number]

    def largest(self, items: Sequence[Any], side: int, node: n.Node) -> Any:
        """A term that equals the largest of several, where `side` tells which way it is pushed."""
        unique = list(dict.fromkeys(items))
        ends = [bounds_of(x) for x in unique]
        floor = max(low for low, _ in ends)
        unique = [x for x, (_, high) in zip(unique, ends, strict=True) if high >= floor]
        if len(unique) == 1:
            return unique[0]
        top = self.variable(floor, max(high for _, high in ends))
        for item in unique:
            self.below(item - top)
        if side > 0:
            return top
        switches: list[Term] = []
        high = bounds_of(top)[1]
        for item in unique:
            low = finite(item, node)[0]
            z = self.switch()
            self.below(top - item - (high - low) * (1.0 - z))
            switches.append(z)
        self.equal(combine([1.0] * len(switches), switches) - 1.0)
        return top

    def event(self, margin: Any, side: int, node: n.Node, *, strict: bool) -> Any:
        """A switch for the event `margin >= 0` (`> 0` when strict).

        Args:
            margin: a term.
            side: where the switch is pushed: with -1 up, and on only where the event holds; with +1 down, and
                off only where it does not; with 0 both.
            node: for messages.
            strict: whether the event excludes a margin of 0.
        """
        if not isinstance(margin, Term):
            return float(margin > 0 if strict else margin >= 0)
        low, high = finite(margin, node)
        z = self.switch()
        self.events.append(Event(margin, z, side, strict))
        if side <= 0:  # on: the margin is at least the room
            room = self._room(high - low, strict)
            self.below(room - margin - (room - low) * (1.0 - z))
        if side >= 0:  # off: the margin is at most minus the room
            room = self._room(high - low, not strict)
            self.below(margin + room - (high + room) * z)
        return z

    def _room(self, width: float, excluded: bool) -> float:
        """Of a side that excludes a margin of 0, or does not; more for wide margins: switches are inexact."""
        if self.room == "none" or (self.room == "open" and not excluded):
            return 0.0
        self.roomy = True
        return max(STRICT, 10 * INTEGRALITY * width)


def _as_it_is(item: Any) -> Any:
    return item


def finite(item: Any, node: n.Node) -> tuple[float, float]:
    """The bounds of a term (E125 where there are none: there is no M)."""
    low, high = bounds_of(item)
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    names = ", ".join(dict.fromkeys(_unbounded(item)))
    raise RouteError(
        "E125",
        f"{_text(node)} needs integers, and these need bounds of {names or 'its arguments'}",
        at=node.loc,
        fix='cn.Variable(3, "w", bounds=(-10, 10))',
    )


def _unbounded(item: Any) -> list[str]:
    if not isinstance(item, Term):
        return []
    space = item.space
    used = {*item.linear, *(i for pair in item.quadratic for i in pair)}
    return [
        space.variables[i].parent_component().local_name
        for i in sorted(used)
        if math.isinf(space.lower[i]) or math.isinf(space.upper[i])
    ]


def _text(node: n.Node) -> str:
    return str(language_printing().text(node, limit=80))


# ---------------------------------------------------------------------------------------------- atoms
def elementwise(a: Arguments, sign: float, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The largest (`sign` 1) or smallest (-1) of arrays, entry by entry."""

    def chosen(*items: Any) -> Any:
        if sign > 0:
            return a.pieces.largest(items, a.side, a.node)
        return -a.pieces.largest([-x for x in items], -a.side, a.node)

    return mapped_all(chosen, *arrays)


def absolute(a: Arguments, array: NDArray[Any]) -> NDArray[Any]:
    """|e| = max(e, -e)."""
    return mapped(lambda x: a.pieces.largest((x, -x), a.side, a.node), array)


def largest(
    a: Arguments, array: NDArray[Any], axes: tuple[int, ...] | None = None, sign: float = 1.0
) -> NDArray[Any]:
    """The largest entry along axes (of one row by default); the smallest with `sign` -1."""
    over = a.axes() if axes is None else axes
    over = over or (array.ndim,)
    array = array if over[0] < array.ndim else array[..., None]
    kept = tuple(k for k in range(array.ndim) if k not in over)
    shape = tuple(array.shape[k] for k in kept)
    rows = lifted(array.transpose(*kept, *over).reshape(math.prod(shape), -1))
    result = np.empty(len(rows), dtype=object)
    for k, row in enumerate(rows):
        if sign > 0:
            result[k] = a.pieces.largest(list(row), a.side, a.node)
        else:
            result[k] = -a.pieces.largest([-x for x in row], -a.side, a.node)
    if axes is None and a.option("keepdims"):
        shape = tuple(1 if k in over else array.shape[k] for k in range(array.ndim))
    return result.reshape(shape)


def smallest(a: Arguments, array: NDArray[Any], axes: tuple[int, ...] | None = None) -> NDArray[Any]:
    """The smallest entry along axes."""
    return largest(a, array, axes, sign=-1.0)


def count(a: Arguments) -> NDArray[Any]:
    """The number of nonzero entries along axes of one row, counted from above.

    Raises:
        RouteError: E125 where a larger count would be wanted: "not zero" is no closed condition.
    """
    if a.side <= 0:
        raise RouteError(
            "E125",
            f"pyomo takes {_text(a.node)} where it is bounded above or minimized only",
            at=a.node.loc,
            fix="a boolean Variable z with v >= least * z, and cn.sum(z)",
        )
    switches = mapped(lambda x: a.pieces.nonzero(x, a.node), a.values[0])
    axes = a.axes()

    return summed(switches, axes, keepdims=bool(a.option("keepdims"))) if axes else switches
