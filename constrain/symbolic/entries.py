# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Nodes as SymPy expressions, one entry at a time.

An entry is asked for by its index within one row, and by its place: the row of the sample and the group level
that it stands in. Index and row are numbers or index symbols, so that `sum(p)` is `Sum(p[i], (i, 0, 160))`
and its entries need not be written out.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import sympy as sp

from constrain._lazy import language_printing, probe
from constrain.language import nodes as n
from constrain.language.atoms import ATOMS, broadcast
from constrain.language.regions import Region
from constrain.language.types import Type, type_of
from constrain.lowering.dependence import depends_on_decisions
from constrain.symbolic.functions import ELEMENTWISE, STRUCTURAL, no_form
from constrain.symbolic.names import Names, indices
from constrain.symbolic.numbers import exact
from constrain.symbolic.outputs import ModelOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from constrain.language.symbols import Model
    from constrain.lowering.program import Program

__all__ = ["Entries", "Place", "parameters_of", "summed"]

Place: TypeAlias = tuple[Any, Any]
"""Row and level, None where there is none."""

_COMPARE = {"<=": sp.Le, ">=": sp.Ge, "<": sp.Lt, ">": sp.Gt}


def parameters_of(model: Model) -> int:
    """Number of trainable parameters of a model, 0 when it is frozen."""
    if model.frozen:
        return 0
    return sum(p.numel() for p in model.module.parameters() if p.requires_grad)


def summed(whole: Any, limits: Sequence[Any]) -> Any:
    """The sum, with a number that is a factor in front of it."""
    factor, rest = whole.as_coeff_Mul()
    return factor * sp.Sum(rest, *limits) if limits and whole != 0 else whole


class Entries:
    """Translates the nodes of one program.

    Args:
        program: the moment form.
        names: the symbols.
        longest: sums of more terms are kept as `Sum` with an index symbol.
        values: data, arrays and their lengths as numbers instead of symbols.
    """

    def __init__(self, program: Program, names: Names, *, longest: float, values: bool) -> None:
        self.names = names
        self.longest = longest
        self.values = values
        self._memo: dict[Any, Any] = {}
        self._kept: list[n.Node] = []
        self._tails = {id(tail.threshold): tail for tail in program.tails}
        self._spreads = {id(tail.scale) for tail in program.tails if tail.scale is not None}

    # ---- sums
    def every(self, sizes: Sequence[int]) -> list[tuple[Any, ...]]:
        """All indices of an array, as numbers."""
        return list(product(*(map(sp.Integer, range(size)) for size in sizes)))

    def total(self, sizes: Sequence[Any], term: Callable[..., Any], used: Sequence[Any]) -> Any:
        """The sum of a term over axes; short axes are written out.

        Args:
            sizes: lengths of the axes.
            term: of one index per axis.
            used: index symbols (and None) that stand in the term already.
        """
        fresh = indices([u for u in used if u is not None])
        along = [next(fresh) if not self.short(size) else None for size in sizes]
        numbers = self.every([s for s, i in zip(sizes, along, strict=True) if i is None])
        terms: list[Any] = []
        for chosen in numbers:
            rest = iter(chosen)
            terms.append(term(*(next(rest) if i is None else i for i in along)))
        whole = sp.Add(*terms)
        limits = [(i, 0, s - 1) for s, i in zip(sizes, along, strict=True) if i is not None]
        return summed(whole, limits)

    def short(self, size: Any) -> bool:
        """Whether an axis is written out."""
        return isinstance(size, int) and size <= self.longest

    def rows(self, data: Any) -> Any:
        """Number of rows of a sample; a symbol where it is not known."""
        return sp.Symbol(f"n_{data.name}", integer=True, positive=True) if data.streamed else len(data)

    # ---- shapes and levels
    def shape(self, node: n.Node) -> tuple[int, ...]:
        """Shape of one row of a node."""
        known = type_of(node).shape
        if known is not None:
            return known
        match node:
            case n.Weights(model=model):
                return (parameters_of(model),)
            case n.Apply(atom=atom, args=args):
                return ATOMS[atom].shape(tuple(map(self.shape, args)), dict(node.options))
            case n.Call(args=args):
                leads = [type_of(x).lead for x in args]
                found = probe().call_shape(node, [self.shape(x) for x in args], leads, str(node))
            case n.Opaque():
                found = None
            case _:
                return broadcast(tuple(map(self.shape, n.children(node))))
        if found is None:
            raise no_form(f"{_shown(node)}, whose shape only running it can tell", node)
        return found  # type: ignore[no-any-return]

    def levels(self, node: n.Node) -> tuple[Any, ...]:
        """Values of the group levels that a node carries, each a tuple with one value per column."""
        for x in n.postorder(node):
            if isinstance(x, n.Moment) and x.by:
                return self._levels_of(x)
        kind: Type = type_of(node)
        if kind.levels is None:
            return ()
        return tuple(map(_as_tuple, kind.levels.data.levels(*kind.levels.columns)))

    def _levels_of(self, node: n.Moment) -> tuple[Any, ...]:
        if len(node.by) == 1 and isinstance(node.by[0], n.Among):
            return tuple((value,) for value in node.by[0].values)
        return tuple(map(_as_tuple, node.data.levels(*(c.name for c in node.columns))))

    def aligned(self, node: n.Node, index: tuple[Any, ...]) -> tuple[Any, ...]:
        """The index of an operand for an index of the broadcast result."""
        shape = self.shape(node)
        own = index[len(index) - len(shape) :]
        return tuple(sp.S.Zero if s == 1 else i for i, s in zip(own, shape, strict=True))

    # ---- entries
    def at(self, node: n.Node, index: tuple[Any, ...] = (), place: Place = (None, None)) -> Any:
        """One entry of a node.

        Raises:
            RouteError: E196 for what has no form.
        """
        key = (id(node), index, place)
        if key not in self._memo:
            self._kept.append(node)
            self._memo[key] = self._entry(node, index, place)
        return self._memo[key]

    def _entry(self, node: n.Node, index: tuple[Any, ...], place: Place) -> Any:
        match node:
            case n.Apply(atom=atom, args=args) if atom in ELEMENTWISE:
                values = [self.at(x, self.aligned(x, index), place) for x in args]
                return ELEMENTWISE[atom](*values, dict(node.options))
            case n.Apply(atom=atom) if atom in STRUCTURAL:
                return STRUCTURAL[atom](self, node, index, place)
            case n.Apply(atom=atom):
                fix = "a constraint without it" if atom == "matrix_exp" else None
                what = ATOMS[atom].refusals.get("sympy", atom)
                raise no_form(f"{what}, as in {_shown(node)}", node, fix)
            case n.Moment():
                return self._moment(node, index, place[1])
            case n.Indicator(event=event):
                if depends_on_decisions(event):
                    raise no_form(
                        f"the rate in {_shown(node)}: it is a step in the decisions and has no derivative",
                        node,
                        "E(torch.sigmoid(margin / scale)) in its place",
                    )
                return sp.Piecewise((1, self.condition(event, index, place)), (0, True))
            case n.Call():
                return self._call(node, index, place)
            case n.Gradient(arg=arg, wrt=wrt):
                rank = len(self.shape(arg))
                return self.at(arg, index[:rank], place).diff(self.at(wrt, index[rank:], place))
            case n.Opaque():
                return self._opaque(node, index, place)
            case _:
                return self._leaf(node, index, place)

    def _leaf(self, node: n.Node, index: tuple[Any, ...], place: Place) -> Any:
        match node:
            case n.Constant(value=value):
                return exact(value)
            case n.Decision(symbol=symbol):
                lead = () if symbol.levels is None else (sp.sympify(place[1]),)
                return self.names.entry(symbol, symbol.name, (*lead, *index))
            case n.Knob(symbol=symbol):
                return self.names.entry(symbol, symbol.name, index)
            case n.Weights(model=model):
                return self.names.entry(model, f"theta_{model.name}", index)
            case n.Array(symbol=symbol) if isinstance(symbol.value, str):
                return self.names.text(symbol.value)
            case n.Array(symbol=symbol):
                return self._array(symbol, symbol.name or "a", symbol.value, index)
            case n.Pinned(symbol=symbol):
                return self._pinned(symbol, index)
            case n.Column(data=data, name=name):
                return self._column(data, name, index, place[0])
            case n.Codes(data=data, columns=columns):
                key = ("codes", data, columns)
                return self.names.entry(key, f"level_of_{'_'.join(columns)}", (place[0],))
            case _:
                raise no_form(_shown(node), node)

    def _array(self, key: Any, name: str, value: Any, index: tuple[Any, ...]) -> Any:
        if all(i.is_Integer for i in index) and (self.values or not index):
            return exact(_numbers(value)[tuple(map(int, index))])
        return self.names.entry(key, name, index)

    def _column(self, data: Any, name: str, index: tuple[Any, ...], row: Any) -> Any:
        if isinstance(data, Region):
            raise no_form(
                f"averages over the continuous population {data.name}",
                n.Column(data, name),
                "cn.Data with a grid of points as its column",
            )
        if self.values and row.is_Integer:
            found = data.values(name)[int(row)]
            if isinstance(found, str):
                return self.names.text(found)
            return exact(_numbers(found)[tuple(map(int, index))])
        return self.names.entry((data, name), name, (row, *index))

    def _pinned(self, symbol: n.ArraySymbol, index: tuple[Any, ...]) -> Any:
        """Numbers that are set from the sample: centers vanish from formulas, thresholds are held symbols."""
        tail = self._tails.get(id(symbol))
        if id(symbol) in self._spreads:
            return sp.S.One
        if tail is not None and tail.kind == "mean":
            if depends_on_decisions(tail.integrand):
                return sp.S.Zero
            return self.at(n.Moment(tail.data, tail.integrand, tail.given, tail.by), index)
        return self.names.entry(symbol, symbol.name or "t", index)

    # ---- averages and events
    def _moment(self, node: n.Moment, index: tuple[Any, ...], level: Any) -> Any:
        """sum 1[A, level] g / sum 1[A, level]."""
        rows = self.rows(node.data)

        def counted(row: Any) -> Any:
            conditions = [] if node.given is None else [self.condition(node.given, (), (row, None))]
            if node.by:
                values = self._levels_of(node)[int(level)]
                for column, value in zip(node.columns, values, strict=True):
                    wanted = self.names.text(value) if isinstance(value, str) else exact(value)
                    conditions.append(self._equal(self.at(column, (), (row, None)), wanted))
            return sp.Piecewise((1, sp.And(*conditions)), (0, True)) if conditions else sp.S.One

        def term(row: Any) -> Any:
            return counted(row) * self.at(node.integrand, index, (row, None))

        whole = self.total([rows], term, index)
        share = self.total([rows], counted, index) if node.given is not None or node.by else rows
        return whole / share

    def condition(self, node: n.Node, index: tuple[Any, ...], place: Place) -> Any:
        """An event as a SymPy condition."""
        match node:
            case n.Comparison(op=op, lhs=lhs, rhs=rhs):
                a, b = (self.at(x, self.aligned(x, index), place) for x in (lhs, rhs))
                if op in ("==", "!="):
                    return self._equal(a, b) if op == "==" else sp.Not(self._equal(a, b))
                return _COMPARE[op](a, b)
            case n.Logic(op="not", args=args):
                return sp.Not(self.condition(args[0], index, place))
            case n.Logic(op=op, args=args):
                parts = [self.condition(x, index, place) for x in args]
                return sp.And(*parts) if op == "and" else sp.Or(*parts)
            case n.Indicator(event=event):
                return self.condition(event, index, place)
            case _:
                return sp.Ne(self.at(node, index, place), 0)

    def _equal(self, a: Any, b: Any) -> Any:
        """a == b; two different texts are different."""
        return sp.false if self.values and a.is_Symbol and b.is_Symbol and a != b else sp.Eq(a, b)

    # ---- models and other functions
    def _call(self, node: n.Call, index: tuple[Any, ...], place: Place) -> Any:
        model = node.model
        theta = sp.Tuple()
        if parameters_of(model):
            theta = sp.Tuple(self.names.base(model, f"theta_{model.name}", 1))
        given = [x for a in node.args for x in self._argument(a, place)]
        return ModelOutput(sp.Symbol(model.name), sp.Tuple(*given), theta, sp.Tuple(*index), sp.Tuple())

    def _argument(self, node: n.Node, place: Place) -> list[Any]:
        """What a model is applied to: its entries, or the whole row of a column."""
        shape = self.shape(node)
        if isinstance(node, n.Column) and shape and not isinstance(node.data, Region):
            return [self.names.base((node.data, node.name), node.name, 1 + len(shape))[place[0]]]
        if math.prod(shape) > max(self.longest, 8):
            raise no_form(f"a model of {math.prod(shape)} computed numbers, {_shown(node)}", node)
        return [self.at(node, index, place) for index in self.every(shape)]

    def _opaque(self, node: n.Opaque, index: tuple[Any, ...], place: Place) -> Any:
        """A function outside of the table of one number each: an applied undefined function."""
        inner = n.children(node)
        if index or any(self.shape(x) for x in inner):
            raise no_form(f"{node.path} of arrays", node, f"{node.path} of single entries")
        function: Any = sp.Function(node.path.rpartition(".")[2], real=True)
        return function(*(self.at(x, (), place) for x in inner))


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _numbers(value: Any) -> Any:
    return np.asarray(value.detach() if hasattr(value, "detach") else value)


def _shown(node: n.Node) -> str:
    return str(language_printing().text(node, limit=80))
