"""What is judged together: a constraint of its own, or a family of constraints that are alike.

The statistics of a family are vectors, one entry per constraint, so that ten thousand constraints cost a few
operations on arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from constrain.diagnostics.entrywise import spread_entrywise
from constrain.diagnostics.influence import SCALARS, Grams, Spread, spread
from constrain.diagnostics.point import array_of
from constrain.solution.constraint import slack_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.diagnostics.point import Point
    from constrain.language import nodes as n
    from constrain.language.data import Data
    from constrain.lowering.families import Family, Stack
    from constrain.lowering.program import Form, Program
    from constrain.runtime.evaluator import Evaluator

__all__ = [
    "Missing",
    "Spreads",
    "Unit",
    "Values",
    "absent",
    "residual_spreads",
    "spreads_of",
    "units_of",
    "values_at",
]


@dataclass(frozen=True)
class Unit:
    """A constraint on averages, or a family of them.

    Attributes:
        form: the constraint; of a family that of the first, with holes in the place of numbers.
        names: of the constraints.
        places: positions of the constraints among all forms.
        stacks: positions of its parts among the stacks of the program.
        family: of constraints that are alike; None for a constraint of its own.
    """

    form: Form
    names: tuple[str, ...]
    places: NDArray[np.int64]
    stacks: tuple[int, ...]
    family: Family | None = None


def units_of(program: Program) -> list[Unit]:
    """All constraints on averages, and the objective's bound where it is a largest value."""
    known = program.shared
    taken = np.zeros(len(known), dtype=bool)
    for family in known.families:
        taken[family.places] = True
    stacks: dict[str | int, list[int]] = {}
    for s, stack in enumerate(program.stacks):
        key = stack.part.constraint if stack.names is None else id(stack.names)
        stacks.setdefault(key, []).append(s)
    alone = np.flatnonzero(~taken)
    found = [
        Unit(form, (form.name,), alone[k : k + 1], tuple(stacks.get(form.name, ())))
        for k, form in enumerate(known.singles)
        if form.rows is None
    ]
    families = known.families
    found += [Unit(own.form, own.names, own.places, tuple(stacks[id(own.names)]), own) for own in families]
    return found


@dataclass(frozen=True)
class Values:
    """The outer functions at some averages.

    Attributes:
        objective: of the program.
        sides: per unit both sides as written.
        residuals: per stack; None for constraints per row.
    """

    objective: Tensor
    sides: list[tuple[Tensor, ...]]
    residuals: list[Tensor | None]

    @property
    def functions(self) -> list[Tensor]:
        """The objective, the left sides, and the residuals that are not per row."""
        return [
            self.objective,
            *(own[0] for own in self.sides),
            *(r for r in self.residuals if r is not None),
        ]


def values_at(evaluator: Evaluator, moments: Sequence[Tensor]) -> Values:
    """The outer functions at given averages, differentiable."""
    objective, *residuals = evaluator.roots(moments, "exact")
    assert objective is not None  # every problem has one
    alone, families = evaluator.side_vectors(moments)
    return Values(objective, [*(own for own in alone if own is not None), *families], residuals)


# -------------------------------------------------------------------------------------------- absent
_PROBES = (0.5, 1e6, -1e6)
"""Values put in the place of averages that do not exist: what changes with them does not exist either."""


@dataclass(frozen=True)
class Missing:
    """Where an average that does not exist enters.

    Attributes:
        functions: for the objective, the left sides, and the residuals of parts that are not per row.
        sides: per unit for each of its sides.
    """

    functions: list[NDArray[np.bool_]]
    sides: list[tuple[NDArray[np.bool_], ...]]


def absent(evaluator: Evaluator, moments: Sequence[Tensor], values: Values) -> Missing:
    """Which values depend on an average over a group without rows, or are NaN already.

    Slopes do not tell: that of a square is 0 where the average that does not exist is stored as 0.
    """
    empty: dict[int, Tensor] = {}
    for job in evaluator.jobs:
        population = evaluator.populations[job.data]
        for i in job.moments:
            moment = evaluator.program.moments[i]
            counts = population.stratum(moment.given, moment.by).counts
            if bool((counts == 0).any()):
                lead = (-1, *(1 for _ in range(moments[i].dim() - 1))) if moment.by else ()
                empty[i] = (counts == 0).reshape(lead)

    def read(found: Values) -> tuple[list[NDArray[np.float64]], list[tuple[NDArray[np.float64], ...]]]:
        sides = [tuple(array_of(side) for side in own) for own in found.sides]
        return [array_of(f) for f in found.functions], sides

    functions, arrays = read(values)
    gone = [np.isnan(f) for f in functions]
    gone_sides = [tuple(np.isnan(s) for s in own) for own in arrays]
    for fill in _PROBES if empty else ():
        filled = [m.detach() for m in moments]
        for i, where in empty.items():
            filled[i] = filled[i].masked_fill(where, fill)
        others, other_sides = read(values_at(evaluator, filled))
        gone = [g | (f != o) for g, f, o in zip(gone, functions, others, strict=True)]
        gone_sides = [
            tuple(g | (s != o) for g, s, o in zip(*own, strict=True))
            for own in zip(gone_sides, arrays, other_sides, strict=True)
        ]
    return Missing(gone, gone_sides)


# ------------------------------------------------------------------------------------------- spreads
@dataclass(frozen=True)
class Spreads:
    """Standard errors.

    Attributes:
        objective: of the objective.
        lefts: per unit of the left side.
        residuals: per stack; None for constraints per row.
    """

    objective: Spread
    lefts: list[Spread]
    residuals: list[Spread | None]


def spreads_of(
    evaluator: Evaluator,
    point: Point,
    moments: Sequence[Tensor],
    whole: Tensor,
    values: Values,
    units: Sequence[Unit],
) -> Spreads:
    """Standard errors of everything that is judged; `whole` is the objective with what else it counts."""
    vectors = _Vectors(evaluator, moments)
    objective = vectors.add([whole], [np.zeros(())])
    lefts = [
        vectors.add([own[0]], [_urgency(unit.form, point.sides[int(unit.places[0])])])
        if unit.family is None
        else vectors.family(own[0], unit.family.lhs)
        for unit, own in zip(units, values.sides, strict=True)
    ]
    residuals = vectors.residuals(point, values.residuals)
    at = vectors.found()
    return Spreads(
        at(objective), [at(own) for own in lefts], [None if r is None else at(r) for r in residuals]
    )


def residual_spreads(
    evaluator: Evaluator, point: Point, moments: Sequence[Tensor], data: Data
) -> list[Spread | None]:
    """Standard errors of the residual of every part that come from one sample; None for parts per row.

    Args:
        evaluator: the program with the samples.
        point: values there.
        moments: leaves that require gradients, exact, float64.
        data: the sample.
    """
    own = [m.data is data for m in evaluator.program.moments]
    _, *values = evaluator.roots(
        [m if mine else m.detach() for m, mine in zip(moments, own, strict=True)], "exact"
    )
    vectors = _Vectors(evaluator, moments)
    places = vectors.residuals(point, values)
    at = vectors.found()
    found: list[Spread | None] = [None] * len(evaluator.program.parts)
    for stack, place in zip(evaluator.program.stacks, places, strict=True):
        if place is None:
            continue
        spreads = at(place)
        each = [spreads]
        if stack.names is not None:
            each = [Spread(*pair) for pair in zip(spreads.error, spreads.smallest, strict=True)]
        for i, one in zip(stack.places.tolist(), each, strict=True):
            found[i] = one
    return found


class _Vectors:
    """Collects functions; the entries of families at once where that is possible."""

    def __init__(self, evaluator: Evaluator, moments: Sequence[Tensor]) -> None:
        self.evaluator = evaluator
        self.moments = moments
        self.functions: list[Tensor] = []
        self.urgency: list[NDArray[np.float64]] = []
        self.grams = Grams(evaluator, moments, SCALARS + 1)
        self.many = False

    def add(self, functions: Sequence[Tensor], urgency: Sequence[NDArray[np.float64]]) -> slice:
        """Where the standard errors of these will be."""
        start = len(self.functions)
        self.functions += functions
        self.urgency += urgency
        return slice(start, start + len(functions))

    def family(self, vector: Tensor, root: n.Node) -> slice | Spread:
        """The standard errors of the entries of a vector, or where they will be."""
        own = spread_entrywise(self.evaluator, self.moments, vector, root, self.grams)
        if own is not None:
            self.many = True
            return own
        entries = [vector[k] for k in range(len(vector))]
        return self.add(entries, [np.zeros(())] * len(entries))

    def residuals(self, point: Point, values: Sequence[Tensor | None]) -> list[slice | Spread | None]:
        """Those of the residuals, per stack; None for constraints per row."""
        return [
            None
            if own is None
            else self.add([own], [_pressing(stack, point)])
            if stack.names is None
            else self.family(own, stack.residual)
            for stack, own in zip(self.evaluator.program.stacks, values, strict=True)
        ]

    def found(self) -> Callable[[slice | Spread], Spread]:
        """The standard errors of all functions that were added, by their place."""
        grams = self.grams if self.many else None
        found = spread(self.evaluator, self.moments, self.functions, self.urgency, grams)

        def at(place: slice | Spread) -> Spread:
            if isinstance(place, Spread):
                return place
            own = found[place]
            if len(own) == 1:
                return own[0]
            return Spread(np.array([x.error for x in own]), np.array([x.smallest for x in own]))

        return at


def _pressing(stack: Stack, point: Point) -> NDArray[np.float64]:
    """How little room each entry of a residual has."""
    residual = point.residuals[int(stack.places[0])]
    return np.abs(residual) if stack.part.kind == "==" else residual


def _urgency(form: Form, sides: tuple[NDArray[np.float64], ...]) -> NDArray[np.float64]:
    """How little room each entry of the left side has, where the bounds have its shape."""
    bounds = [s if s.shape in ((), sides[0].shape) else np.zeros(()) for s in sides[1:]]
    if form.op == "==":
        return np.abs(sides[0] - bounds[0])
    return -slack_of(form.op, sides[0], bounds if form.op == "between" else bounds[0])
