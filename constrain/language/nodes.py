"""The closed set of nodes a problem is made of.

A node is frozen, compares by structure and hashes; where it was written (`loc`) is no part of its identity.
Only `Expr` (see `expr.py`) has operators. Interpreters `match` on the union `AnyNode` and end in
`assert_never`, so that the type checker lists what a new node still needs.

Standard library only: arrays, tensors and modules are held by symbols that compare by identity.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypeVar, cast

from constrain._lazy import language_printing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from constrain.language.data import Data
    from constrain.language.location import Location
    from constrain.language.surrogates import Surrogate
    from constrain.language.symbols import Model

__all__ = [
    "Among",
    "AnyNode",
    "Apply",
    "Array",
    "ArraySymbol",
    "Between",
    "Call",
    "Codes",
    "Column",
    "CompareOp",
    "Comparison",
    "Constant",
    "Decision",
    "ForAll",
    "Gradient",
    "Indicator",
    "Knob",
    "Logic",
    "Mean",
    "Moment",
    "Node",
    "Opaque",
    "ParameterSymbol",
    "Pinned",
    "Rate",
    "Relaxed",
    "Scalar",
    "Scaled",
    "VariableSymbol",
    "Weights",
    "children",
    "fold",
    "intern",
    "mentions",
    "postorder",
    "rebuild",
]

T = TypeVar("T")
Scalar: TypeAlias = bool | int | float
CompareOp: TypeAlias = Literal["<=", ">=", "==", "<", ">", "!="]
StatisticKind: TypeAlias = Literal["Var", "Cov", "Corr", "CVaR", "Quantile"]


# --------------------------------------------------------------------------------------------- symbols
@dataclass(eq=False)
class VariableSymbol:
    """A decision tensor: what `Variable` declares.

    `value` is the start before a solve and the result after it.
    """

    name: str
    shape: tuple[int, ...]
    nonneg: bool = False
    boolean: bool = False
    integer: bool = False
    bounds: tuple[Any, Any] | None = None
    value: Any = None
    levels: Any = None
    """Of a hidden decision with one value per group level (its first axis): the `types.Level`."""
    symmetric: bool = False
    psd: bool = False


@dataclass(eq=False)
class ParameterSymbol:
    """A constant that may change between solves: what `Parameter` declares."""

    name: str
    shape: tuple[int, ...]
    value: Any = None


@dataclass(eq=False)
class ArraySymbol:
    """An array or tensor of the user's program, used as a constant. A text is kept as one, too."""

    name: str | None
    shape: tuple[int, ...]
    value: Any

    _by_object: ClassVar[weakref.WeakValueDictionary[int, ArraySymbol]] = weakref.WeakValueDictionary()
    _by_text: ClassVar[weakref.WeakValueDictionary[str, ArraySymbol]] = weakref.WeakValueDictionary()

    @classmethod
    def of(cls, value: Any, shape: tuple[int, ...], name: str | None) -> ArraySymbol:
        """The symbol of this very object: the same array captured twice is the same constant."""
        known = cls._by_object.get(id(value))
        if known is not None and known.value is value:
            return known
        symbol = cls(name, shape, value)
        cls._by_object[id(value)] = symbol
        return symbol

    @classmethod
    def of_text(cls, text: str) -> ArraySymbol:
        """The symbol of a text: equal texts are the same constant."""
        known = cls._by_text.get(text)
        if known is None:
            known = cls._by_text[text] = cls(repr(text), (), text)
        return known


# ----------------------------------------------------------------------------------------------- nodes
@cache
def _compared(kind: type[Node]) -> tuple[str, ...]:
    """The fields that nodes of a class are compared by."""
    return tuple(f.name for f in fields(kind) if f.name != "loc")


class _Found:
    """What is found out about a node when it is first asked for: kept where that saves more than it takes."""

    __slots__ = ("_hash", "_type")

    _hash: int


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Node(_Found):
    """Base of all nodes: structural equality with a hash, and a source location beside it."""

    loc: Location | None = field(default=None, kw_only=True)

    def _key(self) -> tuple[Any, ...]:
        """What the node is compared by."""
        return tuple([getattr(self, name) for name in _compared(type(self))])

    def __hash__(self) -> int:
        stack: list[Node] = [] if hasattr(self, "_hash") else [self]
        while stack:
            missing = [child for child in children(stack[-1]) if not hasattr(child, "_hash")]
            if missing:
                stack += missing
            else:
                node = stack.pop()
                object.__setattr__(node, "_hash", hash((type(node).__name__, node._key())))
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Node):
            return NotImplemented
        pairs: list[tuple[Any, Any]] = [(self, other)]
        seen: set[tuple[int, int]] = set()
        while pairs:
            a, b = pairs.pop()
            if a is b or (id(a), id(b)) in seen:
                continue
            if type(a) is not type(b):
                return False
            if isinstance(a, Node):
                if hash(a) != hash(b):
                    return False
                seen.add((id(a), id(b)))
                a, b = a._key(), cast("Node", b)._key()
            if not isinstance(a, tuple):
                if a != b:
                    return False
            elif len(a) != len(b):  # type: ignore[reportUnknownArgumentType]
                return False
            else:
                pairs.extend(zip(a, b, strict=True))  # type: ignore[reportUnknownArgumentType]
        return True

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {language_printing().text(self, limit=200)}>"


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Constant(Node):
    """A number."""

    value: Scalar

    def _key(self) -> tuple[Any, ...]:
        # 1, 1.0 and True (0.0 and -0.0) are equal but print differently; NaN is not equal to itself.
        return (repr(self.value),)


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Array(Node):
    """A constant array of the user's program."""

    symbol: ArraySymbol


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Column(Node):
    """A column of a finite sample: a random variable."""

    data: Data
    name: str


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Codes(Node):
    """The position of each row's level among the levels of these columns (of their combinations).

    Made by lowering only: a threshold per level is looked up with it.
    """

    data: Data
    columns: tuple[str, ...]


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Pinned(Node):
    """A number of the sample, such as a quantile, that is set exactly (`Program.tails`) and then held.

    Made by lowering only. `primal` is what the surrogate sees in the place of `symbol`, where they differ.
    """

    symbol: ArraySymbol
    primal: ArraySymbol | None = None


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Decision(Node):
    """A `Variable`."""

    symbol: VariableSymbol


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Knob(Node):
    """A `Parameter`."""

    symbol: ParameterSymbol


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Weights(Node):
    """All trainable parameters of a model as one flat vector."""

    model: Model


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Call(Node):
    """A model applied to expressions: per row when they are per row.

    With `features` the arguments are numbers per row (or per point) that the model takes as one feature axis,
    and an output axis of length one is dropped: `u(x)` of a scalar `x` is scalar.
    """

    model: Model
    args: tuple[Node, ...]
    features: bool = False


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Apply(Node):
    """A function from the atom table (`atoms.py`) applied to nodes, with static options."""

    atom: str
    args: tuple[Node, ...]
    options: tuple[tuple[str, Any], ...] = ()

    def option(self, name: str, default: Any = None) -> Any:
        """The static option `name`."""
        return dict(self.options).get(name, default)


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Opaque(Node):
    """A torch function outside the atom table: usable, curvature unknown.

    `arguments` holds nodes and plain values in the order they were written; `keywords` likewise.
    """

    path: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...] = ()

    def _key(self) -> tuple[Any, ...]:
        values = (*self.arguments, *(v for _, v in self.keywords))
        kinds = tuple(type(v).__name__ for v in values)
        return (self.path, self.function, self.arguments, self.keywords, kinds)


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Gradient(Node):
    """The derivative of a per-row expression with respect to a column, row by row.

    Shape of one row: that of `arg`, then that of one row of the column.
    """

    arg: Node
    wrt: Column


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Comparison(Node):
    """`lhs op rhs`: an event when it is random, a constraint when it is deterministic."""

    op: CompareOp
    lhs: Node
    rhs: Node


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Logic(Node):
    """A compound event."""

    op: Literal["and", "or", "not"]
    args: tuple[Node, ...]


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Indicator(Node):
    """1 where an event holds, else 0.

    Its exact value is used in reports and multiplier updates. `surrogate` is the differentiable stand-in of
    the primal gradient (None where the event involves no decision).
    """

    event: Node
    surrogate: Surrogate | None = None


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Mean(Node):
    """`E(arg, given=, by=)`."""

    arg: Node
    given: Node | None = None
    by: tuple[Column, ...] = ()


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Rate(Node):
    """`P(event, given=, by=, surrogate=)`."""

    event: Node
    given: Node | None = None
    by: tuple[Column, ...] = ()
    surrogate: Surrogate | None = None


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Statistic(Node):
    """`Var`, `Cov`, `Corr`, `CVaR` or `Quantile` of per-row expressions (`summaries.py`).

    `level` is that of `CVaR` and `Quantile`, a number or a parameter; None for the others.
    """

    kind: StatisticKind
    args: tuple[Node, ...]
    given: Node | None = None
    by: tuple[Column, ...] = ()
    level: float | Knob | None = None


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Between(Node):
    """`lower <= arg <= upper` as one constraint."""

    lower: Node
    arg: Node
    upper: Node


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class ForAll(Node):
    """One constraint per row of `data` (where the event `where` holds)."""

    data: Data
    where: Node | None
    relation: Node


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Relaxed(Node):
    """`relation.relax(cost=)`: it may be exceeded by a slack z >= 0 per entry, which costs h(z).

    `cost` names the terms of h (`relations.COSTS`) and `weight` holds the weight of each: a number or a
    parameter.
    """

    relation: Node
    cost: tuple[str, ...]
    weight: tuple[Node, ...]


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Scaled(Node):
    """`relation.scale(s)`: its residual is measured in units of s."""

    relation: Node
    scale: float


@dataclass(frozen=True, eq=False)
class Among:
    """Some levels of one column, in the `by` of a `Moment`: those that `events` compare it with, in order.

    Made by lowering only. Rows of other levels count nowhere. No node: the moment has the column as a child.
    """

    events: tuple[Comparison, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Among) and (self.column, self.name) == (other.column, other.name)

    def __hash__(self) -> int:
        return hash((self.column, self.name))

    @property
    def column(self) -> Column:
        """The column, which is the left side of every event."""
        assert isinstance(self.events[0].lhs, Column)  # made so
        return self.events[0].lhs

    @cached_property
    def name(self) -> str:
        """What strata and level axes know it by; no column is called so."""
        return f"{self.column.name} in ({', '.join(map(repr, self.values))})"

    @property
    def values(self) -> tuple[Any, ...]:
        """The levels, numbers or texts."""
        sides = (event.rhs for event in self.events)
        return tuple(x.symbol.value if isinstance(x, Array) else getattr(x, "value", None) for x in sides)


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Moment(Node):
    """The average of a per-row integrand with weights that are known before solving.

    Made by lowering only. Over the rows where `given` holds (an event of the data alone), one value per level
    of `by`. Linear in the integrand: the weight of row i is 1{i in A, level} / (n * share(A, level)).
    """

    data: Data
    integrand: Node
    given: Node | None = None
    by: tuple[Column | Among, ...] = ()

    @property
    def columns(self) -> tuple[Column, ...]:
        """The group columns."""
        return tuple(group.column if isinstance(group, Among) else group for group in self.by)


AnyNode: TypeAlias = (
    Constant
    | Array
    | Column
    | Codes
    | Pinned
    | Decision
    | Knob
    | Weights
    | Call
    | Apply
    | Opaque
    | Gradient
    | Comparison
    | Logic
    | Indicator
    | Mean
    | Rate
    | Statistic
    | Between
    | ForAll
    | Relaxed
    | Scaled
    | Moment
)


# ------------------------------------------------------------------------------------------- traversal
def children(node: Node) -> tuple[Node, ...]:
    """Direct sub-nodes in the user's order."""
    return _CHILDREN.get(type(node), _none)(node)


def _none(_node: Node) -> tuple[Node, ...]:
    return ()


def _given(node: Mean | Rate | Moment | Statistic) -> tuple[Node, ...]:
    return () if node.given is None else (node.given,)


def _of_opaque(node: Opaque) -> tuple[Node, ...]:
    found = [a for a in node.arguments if isinstance(a, Node)]
    return (*found, *(v for _, v in node.keywords if isinstance(v, Node)))


def _of_statistic(node: Statistic) -> tuple[Node, ...]:
    named = (node.level,) if isinstance(node.level, Knob) else ()
    return (*node.args, *_given(node), *named, *node.by)


_CHILDREN: dict[type[Node], Callable[[Any], tuple[Node, ...]]] = {
    **dict.fromkeys((Call, Apply, Logic), attrgetter("args")),
    Opaque: _of_opaque,
    Gradient: attrgetter("arg", "wrt"),
    Comparison: attrgetter("lhs", "rhs"),
    Between: attrgetter("lower", "arg", "upper"),
    Indicator: lambda x: (x.event,),
    ForAll: lambda x: (x.relation,) if x.where is None else (x.where, x.relation),
    Relaxed: lambda x: (x.relation, *x.weight),
    Scaled: lambda x: (x.relation,),
    Mean: lambda x: (x.arg, *_given(x), *x.by),
    Rate: lambda x: (x.event, *_given(x), *x.by),
    Statistic: _of_statistic,
    Moment: lambda x: (x.integrand, *_given(x), *x.columns),
}
"""How the children of a node are found; the other kinds are leaves."""


def _refill(items: Iterable[Any], new: Iterator[Node]) -> tuple[Any, ...]:
    return tuple(next(new) if isinstance(item, Node) else item for item in items)


def rebuild(node: Node, new: tuple[Node, ...]) -> Node:
    """The same node with other children, given in the order of `children`."""
    if all(a is b for a, b in zip(children(node), new, strict=True)):
        return node
    match node:
        case Call(model=model, features=features):
            return Call(model, new, features, loc=node.loc)
        case Gradient(wrt=wrt):
            return Gradient(new[0], new[1] if isinstance(new[1], Column) else wrt, loc=node.loc)
        case Apply(atom=atom, options=options):
            return Apply(atom, new, options, loc=node.loc)
        case Logic(op=op):
            return Logic(op, new, loc=node.loc)
        case Opaque(path=path, function=function, arguments=arguments, keywords=keywords):
            it = iter(new)
            filled = _refill(arguments, it)
            values = _refill((v for _, v in keywords), it)
            named = tuple((k, v) for (k, _), v in zip(keywords, values, strict=True))
            return Opaque(path, function, filled, named, loc=node.loc)
        case Comparison(op=op):
            return Comparison(op, new[0], new[1], loc=node.loc)
        case Between():
            return Between(new[0], new[1], new[2], loc=node.loc)
        case _:
            return _rebuild_closing(node, new)


def _rebuild_closing(node: Node, new: tuple[Node, ...]) -> Node:
    """`rebuild` for what closes the axis of rows."""
    it = iter(new)
    match node:
        case Indicator(surrogate=surrogate):
            return Indicator(next(it), surrogate, loc=node.loc)
        case Mean(given=given):
            arg, event = next(it), None if given is None else next(it)
            return Mean(arg, event, _columns(it), loc=node.loc)
        case Rate(given=given, surrogate=surrogate):
            arg, event = next(it), None if given is None else next(it)
            return Rate(arg, event, _columns(it), surrogate, loc=node.loc)
        case Moment(data=data, given=given, by=by):
            arg, event = next(it), None if given is None else next(it)
            groups = (g if isinstance(g, Among) else c for g, c in zip(by, _columns(it), strict=True))
            return Moment(data, arg, event, tuple(groups), loc=node.loc)
        case Statistic(kind=kind, args=args, given=given, level=level):
            rebuilt = tuple(next(it) for _ in args)
            event = None if given is None else next(it)
            own = cast("Knob", next(it)) if isinstance(level, Knob) else level
            return Statistic(kind, rebuilt, event, _columns(it), own, loc=node.loc)
        case ForAll(data=data, where=where):
            event = None if where is None else next(it)
            return ForAll(data, event, next(it), loc=node.loc)
        case Relaxed(cost=cost):
            return Relaxed(next(it), cost, tuple(it), loc=node.loc)
        case Scaled(scale=scale):
            return Scaled(next(it), scale, loc=node.loc)
        case _:
            return node


def _columns(rest: Iterator[Node]) -> tuple[Column, ...]:
    return tuple(x for x in rest if isinstance(x, Column))


def postorder(*roots: Node) -> list[Node]:
    """Every distinct node under `roots`, children first. Iterative: sums of 10 000 terms are fine."""
    seen: set[int] = set()
    order: list[Node] = []
    stack: list[Any] = [*reversed(roots)]  # nodes, and None
    while stack:
        if (node := stack.pop()) is None:  # everything under the node below has been visited
            order.append(stack.pop())
        elif id(node) not in seen:
            seen.add(id(node))
            stack += (node, None, *reversed(children(node)))
    return order


def fold(root: Node, step: Callable[[Node, tuple[T, ...]], T], memo: dict[int, T] | None = None) -> T:
    """Evaluates `step(node, results of its children)` bottom-up, once per distinct node object.

    With a `memo` (results by `id`) only what is new is visited.
    """
    done: dict[int, T] = {} if memo is None else memo
    stack = [root]
    while stack:
        node = stack[-1]
        if id(node) in done:
            stack.pop()
            continue
        parts = children(node)
        waiting = [child for child in parts if id(child) not in done]
        if waiting:
            stack.extend(reversed(waiting))
        else:
            done[id(node)] = step(node, tuple([done[id(child)] for child in parts]))
            stack.pop()
    return done[id(root)]


def intern(root: Node, table: dict[Node, Node]) -> Node:
    """The same expression in which equal sub-expressions are one object (common subexpressions)."""

    def step(node: Node, new: tuple[Node, ...]) -> Node:
        return table.setdefault(rebuilt := rebuild(node, new), rebuilt)

    return fold(root, step)


def mentions(root: Node, *kinds: type[Node]) -> bool:
    """Whether a node of one of these kinds occurs under `root`."""
    return any(isinstance(node, kinds) for node in postorder(root))
