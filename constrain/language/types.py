"""What every expression knows about itself: the rows it still depends on, its group levels, its shape.

Semantics S1 (axes) and S2 (events) are decided here, while the user's line is still the running one, so that
the error can point at it. Nothing here looks at data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeGuard, assert_never, cast
from weakref import WeakValueDictionary

from constrain._lazy import language, language_printing, loaded, probe
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.atoms import ATOMS, ShapeProblem, alike, broadcast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.language.atoms import Shape
    from constrain.language.data import Data

__all__ = ["Level", "Type", "describe_shape", "type_of"]


@dataclass(frozen=True)
class Level:
    """The axis made by `by=`: one entry per level of these columns (per combination when several)."""

    data: Data
    columns: tuple[str, ...]

    def describe(self) -> str:
        """`adult.sex` or `adult.(sex, race)`."""
        names = self.columns[0] if len(self.columns) == 1 else f"({', '.join(self.columns)})"
        return f"{self.data.name}.{names}"


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Type:
    """Type of an expression.

    Attributes:
        rows: the population whose rows it still depends on, or None when it is deterministic.
        levels: the level axis it carries, or None.
        shape: shape of one row (of one level); None when only running the model can tell.
        event: True for events (per row) and for what is a constraint when deterministic.
    """

    rows: Data | None = None
    levels: Level | None = None
    shape: tuple[int, ...] | None = ()
    event: bool = False

    @property
    def random(self) -> bool:
        """Whether the value differs from row to row."""
        return self.rows is not None

    @property
    def lead(self) -> int:
        """How many axes stand before `shape` in the tensor that holds the value (rows or levels)."""
        return int(self.rows is not None or self.levels is not None)


_COMMON = (Type(), Type(event=True))
"""Types of deterministic numbers and constraints, of which there are many."""
_USED: WeakValueDictionary[Type, Type] = WeakValueDictionary((kind, kind) for kind in _COMMON)
"""Equal types are one object: those of 10 000 constraints are few."""


def describe_shape(shape: tuple[int, ...] | None) -> str:
    """Row shape in words of the user: `()`, `(3,)`, `(?)`."""
    return "(?)" if shape is None else str(shape)


def type_of(node: n.Node) -> Type:
    """The type of a node, computed once and kept on it.

    Raises:
        ModelingError: E107 (two populations), E112 (shapes), E116 (levels that do not match).
    """
    known = _known(node)
    if known is not None:
        return known
    stack = [node]  # only nodes without a type are visited: building a sum of k terms takes k steps
    while stack:
        top = stack[-1]
        parts = [(child, _known(child)) for child in n.children(top)]
        missing = [child for child, kind in parts if kind is None]
        if missing:
            stack.extend(missing)
            continue
        if _known(top) is None:
            found = _infer(top, [kind for _, kind in parts if kind is not None])
            object.__setattr__(top, "_type", _USED.setdefault(found, found))
        stack.pop()
    return type_of(node)


def _known(node: n.Node) -> Type | None:
    return getattr(node, "_type", None)


def _show(node: n.Node) -> str:
    return str(language_printing().text(node, limit=100))


def _joined(node: n.Node, parts: Sequence[Type]) -> tuple[Data | None, Level | None]:
    """The population and level axis of a combination."""
    populations = list(dict.fromkeys(p.rows for p in parts if p.rows is not None))
    if len(populations) > 1:
        names = [d.name for d in populations]
        region = language("regions").Region
        together = "put the columns into one cn.Data"
        if all(isinstance(d, region) for d in populations):
            together = 'use one cn.Box("z", lower, upper) with the coordinates z[..., 0], z[..., 1]'
        raise ModelingError(
            "E107",
            f"{_show(node)} mixes the populations {names}; row i of one is not row i of the other",
            at=node.loc,
            fix=f"close one first, e.g. E(...) over it, or {together}",
        )
    axes = list(dict.fromkeys(p.levels for p in parts if p.levels is not None))
    if len(axes) > 1:
        raise ModelingError(
            "E116",
            f"{_show(node)} combines the levels of {axes[0].describe()} with those of {axes[1].describe()}",
            at=node.loc,
            fix="reduce one of them first, e.g. cn.max(E(..., by=...)), or use by=(a, b) for combinations",
        )
    if populations and axes:
        raise ModelingError(
            "E116",
            f"{_show(node)} puts the group levels of {axes[0].describe()} into a per-row expression",
            at=node.loc,
            fix="close the rows first: compare E(..., by=...) with other deterministic expressions",
        )
    return (populations[0] if populations else None), (axes[0] if axes else None)


def _check_alignment(node: n.Node, args: Sequence[n.Node], parts: Sequence[Type]) -> None:
    """Refuses what torch would silently broadcast to rows x rows (E112)."""
    if any(p.shape is None for p in parts):
        return
    leading = [(a, p) for a, p in zip(args, parts, strict=True) if p.lead]
    if not leading:
        return
    ranks = {len(p.shape or ()) for _, p in leading}
    what = "row" if any(p.random for _, p in leading) else "level"
    if len(ranks) > 1:
        (low, low_type), *_ = sorted(leading, key=lambda item: len(item[1].shape or ()))
        high, high_type = max(leading, key=lambda item: len(item[1].shape or ()))
        trailing = "[..., 0]" if (high_type.shape or ())[-1:] == (1,) else ".sum(-1) or [..., i]"
        side = language_printing().source(high, limit=80, operand=True)
        raise ModelingError(
            "E112",
            f"{_show(high)} has shape {high_type.shape} per {what} but {_show(low)} has shape "
            f"{low_type.shape}: torch would broadcast them to every {what} against every {what}",
            at=node.loc,
            fix=f"{side}{trailing}, so that both have shape {low_type.shape} per {what}",
        )
    rank = ranks.pop()
    for arg, part in zip(args, parts, strict=True):
        if not part.lead and len(part.shape or ()) > rank:
            fix = "reduce the array to that shape, or add the axis with [..., None]"
            if what == "level" and not leading[0][1].shape:
                fix = _bound_per_level(leading[0][1].levels)
            if what == "row":
                fix = _array_per_row(arg, part, leading[0][0]) or fix
            raise ModelingError(
                "E112",
                f"{_show(arg)} has shape {part.shape} but the other side has only shape "
                f"{leading[0][1].shape} per {what}",
                at=node.loc,
                fix=fix,
            )


def _array_per_row(arg: n.Node, kind: Type, side: n.Node) -> str | None:
    """What to write for an array that has one entry per row of a sample: a column of the sample."""
    column = next((x for x in n.postorder(side) if isinstance(x, n.Column)), None)
    if not isinstance(arg, n.Array) or column is None or column.data.streamed:
        return None
    name = column.data.name
    if (kind.shape or ())[:1] != (len(column.data),):
        return None
    return f'a column, whose rows go with the others: cn.Data("{name}", ..., target=array), and {name}.target'


def _bound_per_level(levels: Level | None) -> str:
    """What to write for an array of bounds on a statistic per level, with the user's own columns."""
    fix = "one bound for all levels"
    if levels is None or levels.data.streamed:
        return fix
    known = levels.data.levels(*levels.columns)
    rows = known if len(levels.columns) > 1 else [(level,) for level in known]
    events = [
        " & ".join(
            f"({levels.data.name}.{name} == {value!r})"
            for name, value in zip(levels.columns, row, strict=True)
        )
        for row in rows
    ]
    each = [f"given={event[1:-1] if len(levels.columns) == 1 else event}" for event in events]
    listed = ", ".join(each[:2]) + (", ..." if len(each) > 2 else "")
    return f"{fix}, or a constraint for each of the {len(each)}: E(e, given=...) <= ..., with {listed}"


def _infer(node: n.Node, parts: list[Type]) -> Type:
    kind = cast("n.AnyNode", node)
    match kind:
        case n.Apply():
            found = _apply(kind, parts)
        case n.Call():
            found = _call(kind, parts)
        case n.Opaque():
            found = _opaque(kind, parts)
        case n.Gradient():
            found = _gradient(kind, parts)
        case n.Comparison() | n.Logic() | n.Between():
            _check_alignment(kind, n.children(kind), parts)
            _check_columns(kind, n.children(kind), parts)
            found = _elementwise(kind, parts, event=True)
        case n.Indicator():
            found = Type(rows=parts[0].rows, levels=parts[0].levels, shape=parts[0].shape)
        case n.Statistic():
            found = _statistic(kind, parts)
        case n.Mean(by=by) | n.Rate(by=by) | n.Moment(by=by):
            rows, _ = _joined(kind, parts)
            levels = Level(rows, tuple(c.name for c in by)) if by and rows is not None else None
            found = Type(levels=levels, shape=parts[0].shape)
        case n.ForAll():
            found = Type(shape=parts[-1].shape, event=True)
        case n.Relaxed() | n.Scaled():
            found = parts[0]
        case _:
            found = _leaf(kind)
    return found


_Leaf: TypeAlias = n.Constant | n.Array | n.Column | n.Codes | n.Pinned | n.Decision | n.Knob | n.Weights


def _leaf(node: _Leaf) -> Type:
    match node:
        case n.Constant():
            return Type()
        case n.Decision(symbol=symbol) if symbol.levels is not None:
            return Type(levels=symbol.levels, shape=symbol.shape[1:])
        case n.Array(symbol=symbol) | n.Decision(symbol=symbol) | n.Knob(symbol=symbol):
            return Type(shape=symbol.shape)
        case n.Pinned(symbol=symbol):
            return Type(shape=symbol.shape)
        case n.Column(data=data, name=name):
            return Type(rows=data, shape=data.row_shape(name))
        case n.Codes(data=data):
            return Type(rows=data)
        case n.Weights():
            return Type(shape=None)
        case _:
            assert_never(node)


def _statistic(node: n.Statistic, parts: list[Type]) -> Type:
    """Rows close; with `by` there are levels; several arguments broadcast within a row."""
    count = len(node.args)
    rows, _ = _joined(node, parts)
    _check_alignment(node, node.args, parts[:count])
    shape = _elementwise(node, parts[:count], event=False).shape
    levels = Level(rows, tuple(c.name for c in node.by)) if node.by and rows is not None else None
    return Type(levels=levels, shape=shape)


def _check_columns(node: n.Node, args: Sequence[n.Node], parts: Sequence[Type]) -> None:
    """Refuses a vector next to an array of one column (E112): they broadcast to a square.

    `A @ x == b` with b of shape (m, 1) would be m * m equations. Products are left alone: `a[:, None] * x`
    is the usual way to write an outer product.
    """
    if any(p.lead for p in parts):
        return
    columns = [(a, p.shape) for a, p in zip(args, parts, strict=True) if _is_column(p.shape)]
    vectors = [(a, p.shape) for a, p in zip(args, parts, strict=True) if len(p.shape or ()) == 1]
    for column, tall in columns:
        for vector, flat in vectors:
            if tall[:1] == flat and (isinstance(column, n.Array) or isinstance(vector, n.Array)):
                source = language_printing().source
                raise ModelingError(
                    "E112",
                    f"{_show(column)} has shape {tall} and {_show(vector)} {flat}: they would broadcast to "
                    f"{(tall[0], tall[0])}, every entry against every entry",
                    at=node.loc,
                    fix=f"{source(column, limit=80, operand=True)}[:, 0]; where all pairs are meant, "
                    f"{source(vector, limit=80, operand=True)}[None, :]",
                )


def _is_column(shape: Shape | None) -> TypeGuard[tuple[int, int]]:
    return shape is not None and len(shape) == 2 and shape[1] == 1 < shape[0]


def _elementwise(node: n.Node, parts: list[Type], *, event: bool) -> Type:
    rows, levels = _joined(node, parts)
    if any(p.shape is None for p in parts):
        return Type(rows=rows, levels=levels, shape=None, event=event)
    try:
        shape = broadcast(tuple(p.shape or () for p in parts))
    except ShapeProblem as problem:
        raise ModelingError("E112", f"{problem} in {_show(node)}", at=node.loc, fix=problem.fix) from None
    return Type(rows=rows, levels=levels, shape=shape, event=event)


_NUMBERS = frozenset(
    {
        *("quad_form", "trace", "logdet", "cross_entropy"),
        *("lambda_max", "lambda_min", "spectral_norm", "nuclear_norm"),
    }
)


def _apply(node: n.Apply, parts: list[Type]) -> Type:
    rows, levels = _joined(node, parts)
    atom = ATOMS[node.atom]
    if atom.shape in (broadcast, alike):
        _check_alignment(node, node.args, parts)
    if node.atom in ("add", "sub"):
        _check_columns(node, node.args, parts)
    if node.atom.endswith("_levels"):
        levels = None
    if any(p.shape is None for p in parts):
        options = dict(node.options)
        whole = "axis" in options and options["axis"] is None and not options.get("keepdims")
        return Type(rows=rows, levels=levels, shape=() if whole or node.atom in _NUMBERS else None)
    try:
        shape = atom.shape(tuple(p.shape or () for p in parts), dict(node.options))
    except ShapeProblem as problem:
        raise ModelingError("E112", f"{problem} in {_show(node)}", at=node.loc, fix=problem.fix) from None
    return Type(rows=rows, levels=levels, shape=shape)


def _call(node: n.Call, parts: list[Type]) -> Type:
    rows, levels = _joined(node, parts)
    shape = None
    if loaded("torch") is not None and all(p.shape is not None for p in parts):
        leads = [p.lead for p in parts]
        shape = probe().call_shape(node, [p.shape for p in parts], leads, _show(node))
    return Type(rows=rows, levels=levels, shape=shape)


def _gradient(node: n.Gradient, parts: list[Type]) -> Type:
    rows, levels = _joined(node, parts)
    arg, wrt = parts
    shape = None if arg.shape is None or wrt.shape is None else (*arg.shape, *wrt.shape)
    return Type(rows=rows, levels=levels, shape=shape)


def _opaque(node: n.Opaque, parts: list[Type]) -> Type:
    rows, levels = _joined(node, parts)
    shape = None
    if all(p.shape is not None for p in parts):
        shape = probe().opaque_shape(node, [p.shape for p in parts], [p.lead for p in parts], _show(node))
    else:
        shape = getattr(node.function, "row_shape", None)  # of a fixed point, which has weights as arguments
    return Type(rows=rows, levels=levels, shape=shape)
