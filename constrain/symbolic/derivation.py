# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The Lagrangian of a problem and its optimality conditions, as SymPy objects.

Convention of `docs/concepts/signs.md`: minimize f subject to g <= 0, h == 0, with L = f + lambda g + nu h and
lambda >= 0; a maximized objective is negated first. Bounds of variables are constraints like all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy as sp

from constrain.errors import RouteError
from constrain.language.types import type_of
from constrain.lowering.lower import EPIGRAPH
from constrain.symbolic.calculus import derivative
from constrain.symbolic.entries import Entries, parameters_of, summed
from constrain.symbolic.names import Names, constants_of, indices
from constrain.symbolic.numbers import exact
from constrain.symbolic.printing import latex_of, text_of
from constrain.symbolic.solving import ClosedForm, solve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from constrain.language import nodes as n
    from constrain.lowering.program import Part, Program
    from constrain.symbolic.calculus import Range

__all__ = ["Condition", "Derivation", "derive"]

WRITTEN_OUT = 6
"""Axes of up to so many entries are written out, longer ones have an index symbol."""


@dataclass(frozen=True)
class Condition:
    """One optimality condition, or one for each value of its index symbols.

    Attributes:
        name: the decision, or the part of a constraint with its entry: `p[j]`, `parity:upper`.
        relation: the SymPy relation.
        ranges: index symbols and how many values each takes, from 0.
        where: the rows of a constraint per row, None for all.
    """

    name: str
    relation: Any
    ranges: tuple[Range, ...] = ()
    where: Any = None


@dataclass(frozen=True)
class Block:
    """One part of a constraint, for one index or for all values of index symbols: residual <= 0 or == 0."""

    name: str
    kind: str
    residual: Any
    multiplier: Any
    ranges: tuple[Range, ...]
    where: Any = None

    @property
    def term(self) -> Any:
        """What it adds to the Lagrangian."""
        weight = 1 if self.where is None else sp.Piecewise((1, self.where), (0, True))
        whole = weight * self.multiplier * self.residual
        limits = [(symbol, 0, size - 1) for symbol, size in self.ranges]
        return summed(whole, limits)


@dataclass(frozen=True, repr=False, eq=False)
class Derivation:
    """What `problem.derive()` returns.

    Attributes:
        sense: `minimize`, `maximize` or `find`, as the user wrote.
        objective: the minimized objective: of a maximization, minus the user's.
        lagrangian: objective + sum of multiplier * residual.
        stationarity: the gradient of the Lagrangian is 0, one condition per decision.
        primal: the constraints, as residual <= 0 or residual == 0.
        dual: multipliers of inequalities are >= 0.
        complementarity: multiplier * residual == 0 for inequalities.
        symbols: every SymPy symbol by its name: decisions and parameters have the user's names, multipliers
            are `lambda_NAME` of inequalities and `nu_NAME` of equalities.
        program: the moment form that was translated.
        names: what each symbol stands for.
    """

    sense: str
    objective: Any
    lagrangian: Any
    stationarity: tuple[Condition, ...]
    primal: tuple[Condition, ...]
    dual: tuple[Condition, ...]
    complementarity: tuple[Condition, ...]
    symbols: Mapping[str, Any]
    program: Program
    names: Names

    def constants(self) -> dict[Any, Any]:
        """Values of everything that is no decision and no multiplier, by symbol, for `sympy.lambdify`.

        Arrays, columns (rows first) and parameters as float64 arrays. Texts are numbered, in columns and
        where they stand alone. Parameters without a value are left out.
        """
        return constants_of(self.names)

    @property
    def groups(self) -> dict[str, tuple[Condition, ...]]:
        """The conditions by what they say, in the order of reports."""
        return {
            "stationarity": self.stationarity,
            "primal feasibility": self.primal,
            "dual feasibility": self.dual,
            "complementarity": self.complementarity,
        }

    def latex(self) -> str:
        """Lagrangian and conditions as an `aligned` environment, without dollar signs."""
        return latex_of(self)

    def _repr_latex_(self) -> str:
        return f"$$\n{self.latex()}\n$$"

    def __str__(self) -> str:
        return text_of(self)

    __repr__ = __str__

    def solve(self, time_limit: float = 60.0) -> ClosedForm:
        """All points that satisfy the conditions, in closed form: for small problems over variables.

        Data and arrays enter as exact numbers, decimals as they are written; parameters stay symbols.

        Args:
            time_limit: seconds.

        Raises:
            RouteError: E196 (models, integers: no closed form), E197 (too large, SymPy has no solution, or
                not within the time limit).
        """
        return solve(written_out(self.program), time_limit)


# ------------------------------------------------------------------------------------------ derivation
class _Deriving:
    """One derivation under way."""

    def __init__(self, program: Program, *, longest: float, values: bool) -> None:
        self.program = program
        self.names = Names()
        for symbol in program.variables:  # decisions come first: they keep their names
            rank = len(symbol.shape)
            self.names.base(symbol, symbol.name.replace(EPIGRAPH, "t"), rank)
        for parameter in program.parameters:
            self.names.base(parameter, parameter.name, len(parameter.shape))
        self.entries = Entries(program, self.names, longest=longest, values=values)

    def each(
        self, sizes: Sequence[Any], used: Sequence[Any] = ()
    ) -> list[tuple[tuple[Any, ...], tuple[Range, ...]]]:
        """Every index of an array: numbers along short axes, one symbol along a long one."""
        fresh = indices(used)
        axes: list[list[tuple[Any, tuple[Range, ...]]]] = []
        for size in sizes:
            if self.entries.short(size):
                axes.append([(sp.Integer(i), ()) for i in range(size)])
            else:
                symbol = next(fresh)
                axes.append([(symbol, ((symbol, size),))])
        found = product(*axes)
        return [(tuple(i for i, _ in one), tuple(r for _, own in one for r in own)) for one in found]

    def blocks(self) -> list[Block]:
        """The parts of all constraints, then the bounds of variables."""
        found = [block for part in self.program.parts for block in self._part(part)]
        for symbol in self.program.variables:
            for side, bound in _bounds(symbol):
                found += self._bound(symbol, side, bound)
        return found

    def _part(self, part: Part) -> list[Block]:
        residual, entries = part.residual, self.entries
        shape, levels = entries.shape(residual), ()
        if part.rows is None and type_of(residual).levels is not None:
            levels = entries.levels(residual)
        rows = () if part.rows is None else (entries.rows(part.rows),)
        prefix = "nu" if part.kind == "==" else "lambda"
        found: list[Block] = []
        for level in range(len(levels)) if levels else (None,):
            lead = () if level is None else (sp.Integer(level),)
            for whole, ranges in self.each((*rows, *shape)):
                row, index = (whole[0], whole[1:]) if rows else (None, whole)
                place = (row, level)
                multiplier = self.names.entry(part.key, f"{prefix}_{part.key}", (*lead, *whole))
                where = None if part.where is None else entries.condition(part.where, (), place)
                value = entries.at(residual, index, place)
                found.append(
                    Block(_label(part.key, (*lead, *whole)), part.kind, value, multiplier, ranges, where)
                )
        return found

    def _bound(self, symbol: n.VariableSymbol, side: str, bound: Any) -> list[Block]:
        values = np.broadcast_to(np.asarray(bound, dtype=np.float64), symbol.shape)
        alike = values.size == 0 or bool((values == values.flat[0]).all())
        every = [(tuple(map(sp.Integer, at)), ()) for at in np.ndindex(symbol.shape)]
        found: list[Block] = []
        for index, ranges in self.each(symbol.shape) if alike else every:
            value = values.flat[0] if alike else values[tuple(map(int, index))]
            if not np.isfinite(value):
                continue
            entry = self.names.entry(symbol, symbol.name, index)
            multiplier = self.names.entry((symbol, side), f"lambda_{symbol.name}_{side}", index)
            residual = exact(value) - entry if side == "lower" else entry - exact(value)
            name = f"{entry} {'>=' if side == 'lower' else '<='} {exact(value)}"
            found.append(Block(name, "<=", residual, multiplier, ranges))
        return found

    def decisions(self) -> list[tuple[Any, tuple[Range, ...]]]:
        """Entries of all decisions: symbols, and the ranges of their index symbols."""
        found: list[tuple[Any, tuple[Range, ...]]] = []
        for symbol in self.program.variables:
            each = self.each(symbol.shape)
            found += [(self.names.entry(symbol, symbol.name, index), ranges) for index, ranges in each]
        for model in self.program.models:
            if count := parameters_of(model):
                theta = self.names.base(model, f"theta_{model.name}", 1)
                found += [(theta[index], ranges) for index, ranges in self.each((count,))]
        return found


def _label(key: str, index: Sequence[Any]) -> str:
    return f"{key}[{', '.join(map(str, index))}]" if index else key


def _bounds(symbol: n.VariableSymbol) -> list[tuple[str, Any]]:
    lower, upper = symbol.bounds or (None, None)
    if symbol.nonneg:
        lower = 0.0 if lower is None else np.maximum(0.0, np.asarray(lower, dtype=np.float64))
    return [(side, b) for side, b in (("lower", lower), ("upper", upper)) if b is not None]


def _refuse_integers(program: Program) -> None:
    for symbol in program.variables:
        if symbol.integer or symbol.boolean:
            raise RouteError(
                "E196",
                f"{symbol.name} is an integer: stationarity says nothing of integers",
                fix=f'cn.Variable({symbol.shape}, "{symbol.name}", bounds=...), the relaxation of it',
            )


def derive(program: Program, written_out: int = WRITTEN_OUT) -> Derivation:
    """Lagrangian and optimality conditions of a program.

    Args:
        program: the moment form.
        written_out: axes of up to so many entries, rows included, are written out.

    Raises:
        RouteError: E196 for what has no SymPy expression, and for integers.
    """
    _refuse_integers(program)
    state = _Deriving(program, longest=written_out, values=False)
    objective = state.entries.at(program.objective)
    blocks = state.blocks()
    lagrangian = sp.Add(objective, *(block.term for block in blocks))
    stationarity: list[Condition] = []
    bound = {str(v) for s in lagrangian.atoms(sp.Sum) for v in s.variables}
    for entry, ranges in state.decisions():
        fresh = indices((), bound)
        renamed = [(symbol, next(fresh), size) for symbol, size in ranges]
        target = entry.subs([(old, new) for old, new, _ in renamed])
        own = tuple((new, size) for _, new, size in renamed)
        gradient = derivative(lagrangian, target, own)
        stationarity.append(Condition(str(target), sp.Eq(gradient, 0, evaluate=False), own))
    return Derivation(
        program.problem.sense,
        objective,
        lagrangian,
        tuple(stationarity),
        *_feasibility(blocks),
        symbols=state.names.all,
        program=program,
        names=state.names,
    )


def _feasibility(blocks: Sequence[Block]) -> tuple[tuple[Condition, ...], ...]:
    """Primal and dual feasibility, and complementarity."""

    def conditions(chosen: Sequence[Block], relation: Callable[[Block], Any]) -> tuple[Condition, ...]:
        return tuple(Condition(b.name, relation(b), b.ranges, b.where) for b in chosen)

    def holds(b: Block) -> Any:
        return (sp.Le if b.kind == "<=" else sp.Eq)(b.residual, 0, evaluate=False)

    def signed(b: Block) -> Any:
        return sp.Ge(b.multiplier, 0, evaluate=False)

    def complementary(b: Block) -> Any:
        return sp.Eq(b.multiplier * b.residual, 0, evaluate=False)

    inequalities = [b for b in blocks if b.kind == "<="]
    return (
        conditions(blocks, holds),
        conditions(inequalities, signed),
        conditions(inequalities, complementary),
    )


# ---------------------------------------------------------------------------------------- written out
@dataclass(frozen=True)
class System:
    """The conditions of a small problem, entry by entry, with numbers in the place of data.

    Attributes:
        sign: +1 for a minimization, -1 for a maximization: user value = sign * objective.
        objective: minimized.
        decisions: symbols by name, `x[0]`.
        equalities: residuals by name, with their multipliers.
        inequalities: likewise.
        parameters: current values by symbol; None where one has none.
    """

    sign: int
    objective: Any
    decisions: dict[str, Any]
    equalities: dict[str, tuple[Any, Any]]
    inequalities: dict[str, tuple[Any, Any]]
    parameters: dict[Any, Any]

    @property
    def lagrangian(self) -> Any:
        """Of all constraints."""
        terms = (*self.equalities.values(), *self.inequalities.values())
        return sp.Add(self.objective, *(multiplier * residual for residual, multiplier in terms))

    @property
    def gradient(self) -> list[Any]:
        """Of the Lagrangian, one entry per decision."""
        whole = self.lagrangian
        return [whole.diff(symbol) for symbol in self.decisions.values()]


def written_out(program: Program) -> System:
    """The conditions entry by entry, with data and arrays as exact numbers.

    Raises:
        RouteError: E196 for models, integers, and what has no SymPy expression.
    """
    _refuse_integers(program)
    if program.models:
        raise RouteError(
            "E196",
            f"{program.models[0].name} is a model: its formula is not known",
            fix="cn.Variable with the formula written out, for a closed form",
        )
    state = _Deriving(program, longest=float("inf"), values=True)
    blocks = [b for b in state.blocks() if b.where is None or b.where == sp.true]
    decided = {str(entry): entry for entry, _ in state.decisions()}
    values: dict[Any, Any] = {}
    for parameter in program.parameters:
        for index in np.ndindex(parameter.shape):
            symbol = state.names.entry(parameter, parameter.name, tuple(map(sp.Integer, index)))
            given = parameter.value
            values[symbol] = None if given is None else exact(np.asarray(given, dtype=np.float64)[index])
    return System(
        int(program.sign),
        state.entries.at(program.objective),
        decided,
        {b.name: (b.residual, b.multiplier) for b in blocks if b.kind == "=="},
        {b.name: (b.residual, b.multiplier) for b in blocks if b.kind == "<="},
        values,
    )
