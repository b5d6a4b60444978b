"""Constraints that are alike but for numbers: one form for all of them, and views of each on demand.

Ten thousand constraints `E(s, given=D.group == k) <= b_k`, written one by one, are one family: a form with
holes in the place of the numbers, and arrays of the numbers. What is evaluated are its vectors, one entry per
constraint; a form and its parts exist for one constraint only when somebody asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar, overload

import numpy as np

from constrain.language import nodes as n
from constrain.language.types import type_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from constrain.lowering.program import Form, Part, Step

__all__ = ["Family", "Forms", "Hole", "Numbers", "OnDemand", "Picks", "Stack", "Steps"]

T = TypeVar("T")


class Hole(n.ArraySymbol):
    """The place of a number in the form of a family; its value is that of the first constraint."""


class Numbers(n.ArraySymbol):
    """The numbers in the place of a hole, (members,) float64: as exact as numbers in formulas are."""


class OnDemand(Sequence[T], Generic[T]):
    """A sequence whose items are made together, when one of them is asked for; its length is known before."""

    def __init__(self, length: int, make: Callable[[], Sequence[T]]) -> None:
        self._length = length
        self._make = make

    @cached_property
    def _items(self) -> tuple[T, ...]:
        return tuple(self._make())

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self._items[index]

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)


@dataclass(frozen=True)
class Picks:
    """The average over the levels of a family, and which level each member takes.

    Attributes:
        whole: the average over all levels.
        places: (members,) position of each member's level.
    """

    whole: n.Moment
    places: NDArray[np.int64]

    @cached_property
    def vector(self) -> n.Node:
        """The averages of all members: of shape (members,)."""
        symbol = n.ArraySymbol("levels", self.places.shape, self.places)
        return n.Apply("pick_levels", (self.whole,), (("place", symbol),), loc=self.whole.loc)

    def of(self, member: int) -> n.Node:
        """The average of one member."""
        options = (("place", int(self.places[member])),)
        return n.Apply("pick_levels", (self.whole,), options, loc=self.whole.loc)


@dataclass(frozen=True)
class Family:
    """Constraints that are alike.

    Attributes:
        names: of the constraints, by the user.
        relations: as the user wrote them.
        places: (members,) positions among all constraints.
        form: the form of the first, with holes.
        numbers: per hole its nodes, one per member.
        picks: what stands in the place of averages whose condition has a hole.
        steps: the rules that were applied to the first.
    """

    names: tuple[str, ...]
    relations: tuple[n.Node, ...]
    places: NDArray[np.int64]
    form: Form
    numbers: Mapping[Hole, Sequence[n.Node]]
    picks: Mapping[n.Node, Picks]
    steps: tuple[Step, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _vectors(self) -> dict[n.ArraySymbol, n.Node]:
        found: dict[n.ArraySymbol, n.Node] = {}
        for hole, nodes in self.numbers.items():
            values = np.array([getattr(x, "value", 0.0) for x in nodes], dtype=np.float64)
            found[hole] = n.Array(Numbers(hole.name, values.shape, values))
        return found

    def vector(self, root: n.Node) -> n.Node:
        """An expression of the form for all members: of shape (members,), or one number for all."""

        def step(node: n.Node, new: tuple[n.Node, ...]) -> n.Node:
            if node in self.picks:
                return self.picks[node].vector
            if isinstance(node, n.Array) and node.symbol in self._vectors:
                return self._vectors[node.symbol]
            return n.rebuild(node, new)

        return n.fold(root, step)

    @cached_property
    def written(self) -> n.Node:
        """The relation as the user wrote it, with the numbers of all members in one."""
        return self.vector(self.form.relation)

    def member(self, k: int) -> Form:
        """The form of one constraint."""
        memo: dict[int, n.Node] = {}

        def step(node: n.Node, new: tuple[n.Node, ...]) -> n.Node:
            if node in self.picks:
                return self.picks[node].of(k)
            if isinstance(node, n.Array) and isinstance(node.symbol, Hole) and node.symbol in self.numbers:
                return self.numbers[node.symbol][k]
            return n.rebuild(node, new)

        def own(node: n.Node) -> n.Node:
            return n.fold(node, step, memo)

        name, form = self.names[k], self.form
        parts = tuple(replace(p, constraint=name, residual=own(p.residual)) for p in form.parts)
        sides = tuple(own(side) for side in form.rhs)
        return replace(form, name=name, relation=self.relations[k], lhs=own(form.lhs), rhs=sides, parts=parts)

    @cached_property
    def lhs(self) -> n.Node:
        """The left sides of all members."""
        return self.vector(self.form.lhs)

    @cached_property
    def rhs(self) -> tuple[n.Node, ...]:
        """The right sides of all members."""
        return tuple(self.vector(side) for side in self.form.rhs)

    @cached_property
    def residuals(self) -> tuple[n.Node, ...]:
        """The residuals of all members, one vector for each part of the form."""
        found: list[n.Node] = []
        for part in self.form.parts:
            root = self.vector(part.residual)
            if type_of(root).shape == ():  # the same for all members
                zeros = n.Array(Numbers("zeros", (len(self),), np.zeros(len(self))))
                root = n.Apply("add", (root, zeros), loc=root.loc)
            found.append(root)
        return tuple(found)


@dataclass(frozen=True)
class Stack:
    """Parts that are evaluated as one expression: a part of a constraint, or one of each member of a family.

    Attributes:
        part: the part; of a family, that of the form with holes.
        residual: of all parts; of a family of shape (members,).
        places: (parts,) positions among all parts.
        names: of the members of a family; None for a part of its own.
    """

    part: Part
    residual: n.Node
    places: NDArray[np.int64]
    names: tuple[str, ...] | None = None

    @property
    def keys(self) -> Sequence[str]:
        """The keys of the parts."""
        if self.names is None:
            return (self.part.key,)
        return [f"{name}:{self.part.side}" for name in self.names] if self.part.side else self.names


class Forms(OnDemand["Form"]):
    """The constraints of a program, in the user's order.

    Args:
        items: forms, and families of forms, in any order among each other; the forms in the user's order.
    """

    def __init__(self, items: Sequence[Form | Family]) -> None:
        self.singles: tuple[Form, ...] = tuple(x for x in items if not isinstance(x, Family))
        self.families: tuple[Family, ...] = tuple(x for x in items if isinstance(x, Family))
        super().__init__(len(self.singles) + sum(map(len, self.families)), self._made)

    def _made(self) -> list[Form]:
        return self._ordered(list(self.singles), [family.member for family in self.families])

    def _ordered(self, singles: list[T], members: list[Callable[[int], T]]) -> list[T]:
        """Something of each form, in the user's order."""
        found: list[T | None] = [None] * len(self)
        for family, made in zip(self.families, members, strict=True):
            for k, place in enumerate(family.places.tolist()):
                found[place] = made(k)
        rest = iter(singles)
        return [next(rest) if x is None else x for x in found]

    def each(self, singles: Sequence[T], members: Sequence[Sequence[T]]) -> list[T]:
        """Something of each form in the user's order, out of that of the forms and that of the families."""
        return self._ordered(list(singles), [own.__getitem__ for own in members])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all constraints."""
        return tuple(self.each([form.name for form in self.singles], [own.names for own in self.families]))

    @cached_property
    def sides(self) -> tuple[n.Node, ...]:
        """Both sides of the forms as written, then those of the families."""
        return tuple(side for own in (*self.singles, *self.families) for side in (own.lhs, *own.rhs))

    def with_singles(self, change: Callable[[Form], Form]) -> Forms:
        """The same families with other forms."""
        return Forms((*map(change, self.singles), *self.families))

    @cached_property
    def stacks(self) -> tuple[Stack, ...]:
        """What is evaluated, in the order of the first part of each."""
        counts = np.ones(len(self), dtype=np.int64)
        taken = np.zeros(len(self), dtype=bool)
        for family in self.families:
            counts[family.places] = len(family.form.parts)
            taken[family.places] = True
        alone = np.flatnonzero(~taken)
        counts[alone] = [len(form.parts) for form in self.singles]
        starts = np.cumsum(counts) - counts
        found: list[Stack] = []
        for form, start in zip(self.singles, starts[alone].tolist(), strict=True):
            found += [Stack(p, p.residual, np.array([start + i])) for i, p in enumerate(form.parts)]
        for own in self.families:
            pieces = zip(own.form.parts, own.residuals, strict=True)
            found += [
                Stack(part, root, starts[own.places] + i, own.names) for i, (part, root) in enumerate(pieces)
            ]
        return tuple(sorted(found, key=lambda stack: int(stack.places[0])))


class Steps(Sequence["Step"]):
    """The steps of a lowering; those of a family are made for each member when they are read."""

    def __init__(self, steps: Sequence[Step], families: Sequence[tuple[int, Family]] = ()) -> None:
        self._steps = tuple(steps)
        self._families = tuple(families)

    def __len__(self) -> int:
        return len(self._steps) + sum(len(own.steps) * len(own) for _, own in self._families)

    def __iter__(self) -> Iterator[Step]:
        inserted = dict[int, list["Family"]]()
        for place, family in self._families:
            inserted.setdefault(place, []).append(family)
        for place in range(len(self._steps) + 1):
            for family in inserted.get(place, ()):
                for name in family.names:
                    yield from (replace(step, target=name) for step in family.steps)
            yield from self._steps[place : place + 1]

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Step]: ...
    def __getitem__(self, index: int | slice) -> Step | Sequence[Step]:
        return tuple(self)[index]
