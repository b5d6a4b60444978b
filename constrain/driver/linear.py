"""Constraints as linear rows over the quantities they share: which exclude or imply each other.

A residual such as `rate[Female] - rate[Male] - 0.1` is affine in its averages. With every average, decision
or other expression as an unknown of its own, bounded by what it can reach, the constraints are linear
inequalities. When those have no solution, no decision satisfies the constraints either; the converse need not
hold, since unknowns are not free. An average over all rows is the mean of its groups' averages, weighted with
their shares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy import optimize as scipy_optimize
from scipy.sparse import coo_array

from constrain.analysis.bounds import bounds_of_value
from constrain.analysis.curvature import analyze
from constrain.analysis.fact import Fact
from constrain.diagnostics.names import level_axis
from constrain.language import nodes as n
from constrain.language.types import type_of
from constrain.lowering.lower import EPIGRAPH
from constrain.runtime.binding import as_array

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from constrain.runtime.evaluator import Evaluator

__all__ = ["LIMIT", "Row", "System", "linear_form"]

linprog: Any = scipy_optimize.linprog  # type: ignore[reportUnknownMemberType]  # scipy has no types

LIMIT = 4000
"""Entries of constraints that are looked at."""
MANY = 64
"""Terms from which on a sum is an unknown of its own."""

Array: TypeAlias = "NDArray[np.float64]"
Terms: TypeAlias = dict[n.Node, Array]


@dataclass(frozen=True)
class Row:
    """One scalar constraint `weights . unknowns + constant <= 0` (or `== 0`), its largest weight of size 1.

    Attributes:
        constraint: the user's name.
        part: position of the part.
        kind: `<=` or `==`.
        places: positions of the unknowns, ascending.
        weights: of these.
        constant: the rest.
    """

    constraint: str
    part: int
    kind: str
    places: tuple[int, ...]
    weights: tuple[float, ...]
    constant: float

    @property
    def direction(self) -> tuple[Any, ...]:
        """Equal for rows that bound the same combination from the same side."""
        return self.kind, self.places, tuple(round(w, 9) for w in self.weights)


def linear_form(root: n.Node, evaluator: Evaluator) -> tuple[Terms, Array]:
    """An outer expression as a sum of unknowns with constant weights, plus a constant; all broadcastable."""

    def step(node: n.Node, parts: tuple[tuple[Terms, Array], ...]) -> tuple[Terms, Array]:
        found = _combined(node, parts, evaluator)
        return ({node: np.ones(())}, np.zeros(())) if found is None else found

    return n.fold(root, step)


def _combined(
    node: n.Node, parts: tuple[tuple[Terms, Array], ...], evaluator: Evaluator
) -> tuple[Terms, Array] | None:
    """The form of sums, constant multiples and constants; None for anything else."""
    match node:
        case n.Constant(value=value):
            return {}, np.asarray(float(value))
        case n.Array(symbol=symbol) if not isinstance(symbol.value, str):
            return {}, np.asarray(as_array(symbol.value), dtype=np.float64)
        case n.Knob(symbol=symbol):
            return {}, np.asarray(as_array(evaluator.params.get(symbol.name, symbol.value)), np.float64)
        case n.Moment():
            return _average(node)
        case n.Apply(atom="pick_levels"):
            ((terms, constant),) = parts
            picked: Terms = {
                n.Apply(node.atom, (key,), node.options, loc=node.loc): w for key, w in terms.items()
            }
            return picked, constant
        case n.Apply(atom="add" | "sub"):
            return _sum(parts, -1.0 if node.atom == "sub" else 1.0)
        case n.Apply(atom="neg"):
            return _scaled(parts[0], np.asarray(-1.0))
        case n.Apply(atom="mul") if not parts[0][0] or not parts[1][0]:
            return _scaled(parts[1], parts[0][1]) if not parts[0][0] else _scaled(parts[0], parts[1][1])
        case n.Apply(atom="div") if not parts[1][0] and np.all(parts[1][1] != 0):
            return _scaled(parts[0], 1.0 / parts[1][1])
        case _:
            return None


def _average(node: n.Moment) -> tuple[Terms, Array]:
    """An average by its exact value: whatever the surrogate of an event, and P(~A) = 1 - P(A)."""
    integrand, sign = node.integrand, 1.0
    if isinstance(integrand, n.Indicator):
        event = integrand.event
        while isinstance(event, n.Logic) and event.op == "not":
            event, sign = event.args[0], -sign
        integrand = n.Indicator(event)
    key = n.Moment(node.data, integrand, node.given, node.by, loc=node.loc)
    return {key: np.asarray(sign)}, np.asarray(0.0 if sign > 0 else 1.0)


def _sum(parts: Sequence[tuple[Terms, Array]], sign: float) -> tuple[Terms, Array] | None:
    (left, a), (right, b) = parts
    if len(left) + len(right) > MANY:
        return None
    terms = dict(left)
    for key, weight in right.items():
        terms[key] = terms[key] + sign * weight if key in terms else sign * weight
    return terms, a + sign * b


def _scaled(part: tuple[Terms, Array], factor: Array) -> tuple[Terms, Array]:
    return {key: weight * factor for key, weight in part[0].items()}, part[1] * factor


class System:
    """The rows of a problem over their unknowns.

    Args:
        evaluator: the program with data.
        shapes: shape of the residual of every part.

    Attributes:
        rows: one per entry of a constraint that is not per row.
        unknowns: the expression and entry of each unknown.
    """

    def __init__(self, evaluator: Evaluator, shapes: Sequence[tuple[int, ...]]) -> None:
        self.evaluator = evaluator
        self.unknowns: list[tuple[n.Node, int]] = []
        self.rows: list[Row] = []
        self._first: dict[n.Node, int] = {}
        self._shapes: dict[n.Node, tuple[int, ...]] = {}
        for i, part in enumerate(evaluator.program.parts):
            size = math.prod(shapes[i])
            if part.rows is None and part.constraint != EPIGRAPH and len(self.rows) + size <= LIMIT:
                self._add(i, shapes[i])
        self.laws = self._total_averages()

    def _add(self, i: int, shape: tuple[int, ...]) -> None:
        part = self.evaluator.program.parts[i]
        terms, constant = linear_form(part.residual, self.evaluator)
        keys = [(key, np.broadcast_to(weight, shape).ravel()) for key, weight in terms.items()]
        places = [self._entries(key, shape) for key, _ in keys]
        if any(p is None for p in places):
            return
        rest = np.broadcast_to(constant, shape).ravel()
        for entry in range(math.prod(shape)):
            found: dict[int, float] = {}
            for (_, weight), where in zip(keys, places, strict=True):
                assert where is not None  # checked above
                place = int(where[entry])
                found[place] = found.get(place, 0.0) + float(weight[entry])
            self._row(part.constraint, i, part.kind, found, float(rest[entry]))

    def _row(self, name: str, i: int, kind: str, found: dict[int, float], constant: float) -> None:
        used = {place: w for place, w in sorted(found.items()) if w != 0.0}
        size = max(map(abs, used.values()), default=1.0)
        if kind == "==" and used and next(iter(used.values())) < 0:
            size = -size
        weights = tuple(w / size for w in used.values())
        self.rows.append(Row(name, i, kind, tuple(used), weights, constant / size))

    def _entries(self, key: n.Node, shape: tuple[int, ...]) -> NDArray[np.int64] | None:
        """Positions of the unknowns of an expression, one per entry of a residual of this shape."""
        own = self._shape(key)
        if own is None:
            return None
        if key not in self._first:
            self._first[key] = len(self.unknowns)
            self.unknowns += [(key, k) for k in range(math.prod(own))]
        places = self._first[key] + np.arange(math.prod(own)).reshape(own)
        try:
            return np.broadcast_to(places, shape).ravel()
        except ValueError:
            return None

    def _shape(self, key: n.Node) -> tuple[int, ...] | None:
        """Levels first, then the shape of one row; None when only running a model can tell."""
        if key not in self._shapes:
            kind = type_of(key)
            if kind.shape is None:
                return None
            levels = () if kind.levels is None else (len(level_axis(self.evaluator, key)[1]),)
            self._shapes[key] = (*levels, *kind.shape)
        return self._shapes[key]

    def _total_averages(self) -> list[tuple[dict[int, float], float]]:
        """mean over all rows = sum over levels of share * mean over the level, for averages that occur."""
        laws: list[tuple[dict[int, float], float]] = []
        for key in list(self._first):
            if not isinstance(key, n.Moment) or not key.by:
                continue
            whole = n.Moment(key.data, key.integrand, key.given)  # equal nodes are one unknown
            if whole not in self._first:
                continue
            counts = self.evaluator.populations[key.data].stratum(key.given, key.by).counts
            shares = counts.double().cpu().numpy() / float(counts.double().sum())
            size = math.prod(self._shapes[whole])
            for entry in range(size):
                law = {self._first[key] + k * size + entry: float(s) for k, s in enumerate(shares)}
                laws.append((law | {self._first[whole] + entry: -1.0}, 0.0))
        return laws

    # ---- what follows
    def least_violation(self, names: Sequence[str]) -> float:
        """Least total violation of these constraints, each row in units of its largest weight; 0 if none."""
        chosen = set(names)
        rows = [row for row in self.rows if row.constraint in chosen]
        width, size = len(self.unknowns), len(rows)
        if not rows:
            return 0.0
        entries: dict[str, list[tuple[int, int, float]]] = {"<=": [], "==": []}
        bounds: dict[str, list[float]] = {"<=": [], "==": []}
        for k, row in enumerate(rows):
            place = len(bounds[row.kind])
            entries[row.kind] += [(place, c, w) for c, w in zip(row.places, row.weights, strict=True)]
            entries[row.kind].append((place, width + k, -1.0))
            if row.kind == "==":
                entries[row.kind].append((place, width + size + k, 1.0))
            bounds[row.kind].append(-row.constant)
        for law, constant in self.laws:
            entries["=="] += [(len(bounds["=="]), c, w) for c, w in law.items()]
            bounds["=="].append(-constant)
        total = width + 2 * size
        found: Any = linprog(
            np.concatenate([np.zeros(width), np.ones(2 * size)]),
            A_ub=_sparse(entries["<="], len(bounds["<="]), total),
            b_ub=bounds["<="] or None,
            A_eq=_sparse(entries["=="], len(bounds["=="]), total),
            b_eq=bounds["=="] or None,
            bounds=[*self._reach(), *((0.0, None) for _ in range(2 * size))],
            method="highs",
        )
        least = float(found.fun) if found.status == 0 else 0.0
        room = 1e-7 * (1.0 + max(abs(row.constant) for row in rows))
        return least if least > room else 0.0

    def _reach(self) -> list[tuple[float | None, float | None]]:
        """What each unknown can be at most, by interval arithmetic."""
        memo = self._replaced()
        ranges = {key: analyze(key, memo).bounds for key in self._first}
        ends = [(ranges[key].low, ranges[key].high) for key, _ in self.unknowns]
        return [(a if math.isfinite(a) else None, b if math.isfinite(b) else None) for a, b in ends]

    def _replaced(self) -> dict[int, Any]:
        """Facts of the columns and parameters that other samples and values stand in for."""
        memo: dict[int, Any] = {}
        for x in n.postorder(*self._first):
            if isinstance(x, n.Column):
                other = self.evaluator.populations[x.data].data
                if other is not x.data:
                    memo[id(x)] = analyze(n.Column(other, x.name), {})
            elif isinstance(x, n.Knob) and x.symbol.name in self.evaluator.params:
                bounds = bounds_of_value(self.evaluator.params[x.symbol.name])
                memo[id(x)] = Fact("constant", bounds=bounds)
        return memo

    def conflict(self, names: Sequence[str]) -> tuple[list[str], float]:
        """A smallest set of these constraints that exclude each other, and by how much; empty if none do.

        One after the other is left out where the others still exclude each other (a deletion filter: Chinneck
        and Dravnieks, 1991, "Locating minimal infeasible constraint sets in linear programs"), and as many at
        a time as a search by halves finds: where few are to blame, few linear programs tell which.
        """
        if not self.least_violation(names):
            return [], 0.0
        kept, rest = list[str](), list(names)
        while rest:
            low, high = 0, len(rest)  # the most of the first ones without which the others still do
            while low < high:
                middle = (low + high + 1) // 2
                if self.least_violation([*kept, *rest[middle:]]):
                    low = middle
                else:
                    high = middle - 1
            kept += rest[low : low + 1]
            rest = rest[low + 1 :]
        return kept, self.least_violation(kept)


def _sparse(entries: list[tuple[int, int, float]], rows: int, columns: int) -> Any:
    if not rows:
        return None
    r, c, w = zip(*entries, strict=True)
    return coo_array((w, (r, c)), shape=(rows, columns)).tocsr()
