"""Which constraints are alike: equal but for numbers, and but for the level that a condition names.

`E(s, given=D.group == k) <= b_k` for many k reads the same with holes in the place of k and b_k. The first of
them is lowered with holes, once for all (`families.Family`). Only what cannot change how a constraint is
lowered becomes a hole: bounds, addends, factors of one sign, and one level per average. Everything else that
differs makes another family, or a constraint of its own.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from constrain.language import nodes as n
from constrain.language.regions import Region
from constrain.language.surrogates import Hinge
from constrain.language.types import type_of
from constrain.lowering.dependence import depends_on_decisions
from constrain.lowering.families import Hole
from constrain.lowering.rules import is_level, level_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["LEAST", "Alike", "alike"]

LEAST = 16
"""Fewest constraints that are lowered together."""
MOST_NODES = 64
"""Largest constraint, in nodes outside of averages, that is compared with others."""
FACTORS = frozenset(("mul", "div"))
ENTRYWISE = FACTORS | frozenset(
    ("add", "sub", "neg", "abs", "square", "sqrt", "exp", "log", "relu", "maximum", "minimum")
)
"""Functions of single numbers that act on vectors of them entry by entry."""


@dataclass
class Alike:
    """Constraints that are alike.

    Attributes:
        names: of them, in the user's order.
        relations: as the user wrote them.
        places: (members,) positions among all constraints.
        template: the first, with holes.
        numbers: per hole the nodes in its place: numbers, or events `column == level`.
    """

    names: tuple[str, ...]
    relations: tuple[n.Node, ...]
    places: NDArray[np.int64]
    template: n.Node
    numbers: dict[Hole, tuple[n.Node, ...]]


@dataclass
class _Group:
    """Constraints with the same key.

    Attributes:
        means: per average the positions of its events among the holes.
        places: of the members among all constraints.
        holes: per hole the nodes in its place, one per member.
    """

    means: list[range]
    places: list[int]
    holes: list[list[n.Node]]

    def add(self, place: int, holes: Sequence[n.Node]) -> None:
        """One more member."""
        self.places.append(place)
        for column, node in zip(self.holes, holes, strict=True):
            column.append(node)

    def among(self, chosen: Sequence[int]) -> _Group:
        """Some of the members."""
        places = [self.places[i] for i in chosen]
        return _Group(self.means, places, [[column[i] for i in chosen] for column in self.holes])


@dataclass(slots=True)
class _Read:
    """What one constraint consists of.

    Attributes:
        key: what has to be equal.
        holes: what may differ: constants, and events of the averages.
        means: per average the positions of its events among the holes.
    """

    key: list[Hashable] = field(default_factory=list[Hashable])
    holes: list[n.Node] = field(default_factory=list[n.Node])
    means: list[range] = field(default_factory=list[range])


class _Unlike(Exception):
    """The constraint is lowered on its own."""


class _Reader:
    """Reads constraints; what was found out about what they share is kept."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[n.Node, Hashable]] = {}
        self._same: dict[n.Node, n.Node] = {}

    def read(self, relation: n.Node) -> _Read | None:
        """The parts of a constraint; None for one that is lowered on its own."""
        found = _Read()
        try:
            self._relation(relation, found)
        except _Unlike:
            return None
        return found if found.holes else None

    def _relation(self, node: n.Node, found: _Read) -> None:
        match node:
            case n.Scaled(relation=inner, scale=scale):
                found.key += ["scale", scale]
                self._relation(inner, found)
            case n.Comparison(op="<=" | ">=" | "==", lhs=lhs, rhs=rhs):
                found.key += ["compare", node.op]
                self._side(lhs, found)
                self._side(rhs, found)
            case n.Between(lower=lower, arg=arg, upper=upper):
                found.key.append("between")
                for side in (lower, arg, upper):
                    self._side(side, found)
            case _:
                raise _Unlike

    def _side(self, node: n.Node, found: _Read) -> None:
        if len(found.key) > MOST_NODES:
            raise _Unlike
        match node:
            case n.Constant(value=value):
                if not math.isfinite(value):
                    raise _Unlike
                found.key.append("number")
                found.holes.append(node)
            case n.Mean(by=()) | n.Rate(by=()):
                self._average(node, found)
            case n.Apply(atom="pow", args=(base, n.Constant(value=exponent))) if _single(node):
                found.key += ["pow", exponent]
                self._side(base, found)
            case n.Apply(atom=atom, args=args) if _opened(node):
                found.key.append(atom)
                for x in args:
                    if atom in FACTORS and isinstance(x, n.Constant):
                        found.key.append((x.value > 0) - (x.value < 0))
                    self._side(x, found)
            case _:
                found.key.append(self._leaf(node))

    def _average(self, node: n.Mean | n.Rate, found: _Read) -> None:
        """An average of a number; the levels that its condition names are holes."""
        arg = node.arg if isinstance(node, n.Mean) else node.event
        surrogate = node.surrogate if isinstance(node, n.Rate) else None
        found.key += [type(node).__name__, self._shared(arg), surrogate]
        start = len(found.holes)
        for term in _terms(node.given) if node.given is not None else ():
            if isinstance(term, n.Comparison) and is_level(term) and not _continuous(term):
                found.key += ["level", self._shared(term.lhs)]
                found.holes.append(term)
            else:
                found.key.append(self._data(term))
        found.means.append(range(start, len(found.holes)))

    # ---- what many constraints share is looked at once
    def _shared(self, node: n.Node) -> Hashable:
        """The integrand of an average, or a column, as a key; numbers per row only."""
        return self._once(node, self._number_per_row)

    def _data(self, node: n.Node) -> Hashable:
        return self._once(node, self._event_of_data)

    def _leaf(self, node: n.Node) -> Hashable:
        return self._once(node, self._single_number)

    def _once(self, node: n.Node, check: object) -> Hashable:
        known = self._kept.get(id(node))
        if known is None:
            same = self._same.setdefault(node, node)
            if same is not node and id(same) in self._kept:
                known = (node, self._kept[id(same)][1])
            else:
                known = (node, ("same", id(same)) if check(node) else None)  # type: ignore[operator]
            self._kept[id(node)] = known
        if known[1] is None:
            raise _Unlike
        return known[1]

    @staticmethod
    def _number_per_row(node: n.Node) -> bool:
        kind = type_of(node)
        inner = n.mentions(node, n.Statistic, n.Mean, n.Rate)
        return kind.rows is not None and kind.shape == () and not inner

    @staticmethod
    def _event_of_data(node: n.Node) -> bool:
        return type_of(node).shape == () and not depends_on_decisions(node)

    @staticmethod
    def _single_number(node: n.Node) -> bool:
        kind = type_of(node)
        whole = kind.rows is None and kind.levels is None and kind.shape == () and not kind.event
        return whole and not n.mentions(node, n.Statistic, n.Mean, n.Rate, n.ForAll)


def _opened(node: n.Apply) -> bool:
    """Whether a function acts on single numbers, so that it does so on vectors of them."""
    return node.atom in ENTRYWISE and not node.options and _single(node)


def _single(node: n.Node) -> bool:
    kind = type_of(node)
    return kind.shape == () and kind.levels is None


def _continuous(term: n.Comparison) -> bool:
    return isinstance(term.lhs, n.Column) and isinstance(term.lhs.data, Region)


def _terms(given: n.Node) -> list[n.Node]:
    """The terms of a condition, in the order in which `_Filler` meets them."""
    if isinstance(given, n.Logic) and given.op == "and":
        return [x for arg in given.args for x in _terms(arg)]
    return [given]


# ------------------------------------------------------------------------------------------- families
def alike(constraints: Mapping[str, n.Node]) -> list[Alike]:
    """The families of a problem.

    Args:
        constraints: by name, as the user wrote them.
    """
    if len(constraints) < LEAST:
        return []
    reader, groups = _Reader(), dict[Hashable, _Group]()
    for place, relation in enumerate(constraints.values()):
        read = reader.read(relation)
        if read is not None:
            key = tuple(read.key)
            if key not in groups:
                groups[key] = _Group(read.means, [], [[] for _ in read.holes])
            groups[key].add(place, read.holes)
    names, relations = list(constraints), list(constraints.values())
    found: list[Alike] = []
    for members in groups.values():
        for own in _of_one_level(members):
            family = _family(own, names, relations)
            if family is not None:
                found.append(family)
    return sorted(found, key=lambda family: int(family.places[0]))


def _of_one_level(members: _Group) -> Iterator[_Group]:
    """Parts of a group in each of which the condition of every average differs in one level at most."""
    if len(members.places) < LEAST:
        return
    for events in members.means:
        levels = {j: len(set(map(level_of, members.holes[j]))) for j in events}
        moving = sorted((j for j in events if levels[j] > 1), key=lambda j: levels[j])
        if len(moving) > 1:
            split: dict[Hashable, list[int]] = {}
            for i, event in enumerate(members.holes[moving[0]]):
                split.setdefault(level_of(event), []).append(i)
            for chosen in split.values():
                yield from _of_one_level(members.among(chosen))
            return
    yield members


def _family(members: _Group, names: list[str], relations: list[n.Node]) -> Alike | None:
    """The family of a group; None where it has too few members, or where holes may change its rules."""
    if len(members.places) < LEAST:
        return None
    holes: dict[int, Hole] = {}
    numbers: dict[Hole, tuple[n.Node, ...]] = {}
    for j, nodes in enumerate(members.holes):
        first = nodes[0]
        event = isinstance(first, n.Comparison)
        if all(node == first for node in nodes) or (event and len(set(map(level_of, nodes))) == 1):
            continue
        value = float(first.value) if isinstance(first, n.Constant) else 0.0
        holes[j] = Hole(f"hole {j}", (), value)
        numbers[holes[j]] = tuple(nodes)
    places = np.array(members.places)
    template = _Filler(holes).relation(relations[members.places[0]])
    if _may_turn(template, numbers):
        return None
    own = tuple(names[i] for i in members.places), tuple(relations[i] for i in members.places)
    return Alike(*own, places, template, numbers)


def _may_turn(template: n.Node, numbers: Mapping[Hole, Sequence[n.Node]]) -> bool:
    """Whether the side of a hinge may depend on the numbers."""
    nodes = n.postorder(template)
    if not any(isinstance(getattr(x, "surrogate", None), Hinge) for x in nodes):
        return False
    moving = {x for x in nodes if isinstance(x, n.Array) and x.symbol in numbers}
    events = [x for x in nodes if isinstance(x, n.Comparison) and isinstance(x.lhs, n.Column)]
    levels = {x.rhs for x in events if x.op == "=="}
    inner = template.relation if isinstance(template, n.Scaled) else template
    return not moving <= {*levels, *n.children(inner)}


class _Filler:
    """Puts holes into a constraint, in the order in which `_Reader` meets them."""

    def __init__(self, holes: Mapping[int, Hole]) -> None:
        self.holes = holes
        self.count = 0

    def _next(self, node: n.Node) -> n.Node:
        hole = self.holes.get(self.count)
        self.count += 1
        if hole is None:
            return node
        number = n.Array(hole, loc=node.loc)
        return (
            n.Comparison("==", node.lhs, number, loc=node.loc) if isinstance(node, n.Comparison) else number
        )

    def relation(self, node: n.Node) -> n.Node:
        """A relation with holes."""
        match node:
            case n.Scaled():
                return n.rebuild(node, (self.relation(node.relation),))
            case _:
                return n.rebuild(node, tuple(self._side(x) for x in n.children(node)))

    def _side(self, node: n.Node) -> n.Node:
        match node:
            case n.Constant():
                return self._next(node)
            case n.Mean(by=(), given=given) | n.Rate(by=(), given=given):
                if given is None:
                    return node
                return n.rebuild(node, (n.children(node)[0], self._condition(given)))
            case n.Apply(atom="pow", args=(base, n.Constant() as exponent)) if _single(node):
                return n.rebuild(node, (self._side(base), exponent))
            case n.Apply(args=args) if _opened(node):
                return n.rebuild(node, tuple(self._side(x) for x in args))
            case _:
                return node

    def _condition(self, given: n.Node) -> n.Node:
        if isinstance(given, n.Logic) and given.op == "and":
            return n.rebuild(given, tuple(self._condition(x) for x in given.args))
        if isinstance(given, n.Comparison) and is_level(given) and not _continuous(given):
            return self._next(given)
        return given
