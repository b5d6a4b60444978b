"""`Expr`: what users hold. It records operators and torch functions as nodes and computes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from constrain._lazy import language_printing
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.data import Data, static_shape
from constrain.language.location import here, name_in_caller
from constrain.language.types import Type, type_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Constraint", "Expr", "apply", "as_event", "as_expr", "as_node", "truth_error"]


def as_node(value: Any) -> n.Node:
    """The node of an expression, number, array or tensor.

    Raises:
        ModelingError: E122 for a trainable tensor that belongs to no `Model`, E111 for a constraint used as a
            value, E117 for anything else.
    """
    if isinstance(value, Expr):
        return value.node
    if isinstance(value, (bool, int, float)):
        return n.Constant(value, loc=here())
    if isinstance(value, Constraint):
        raise ModelingError(
            "E111", f"{value} is a constraint and has no value", at=here(), fix="pass its sides instead"
        )
    shape = static_shape(value)
    if shape is None:
        item = getattr(value, "item", None)
        if item is None:
            raise ModelingError(
                "E117",
                f"a {type(value).__name__} cannot be part of an expression",
                at=here(),
                fix="a column (D.x), f(D.x), a Variable, a Parameter, a number, an array or a tensor",
            )
        return n.Constant(item(), loc=here())
    if getattr(value, "requires_grad", False):
        raise ModelingError(
            "E122",
            f"a tensor of shape {shape} that requires gradients entered an expression outside of any model",
            at=here(),
            fix='wrap its module: f = cn.Model(module, "f") and f(...), or cn.Model(module, "f", frozen=True); '
            "a free tensor is a cn.Variable; a fixed one is tensor.detach()",
        )
    if shape == () and hasattr(value, "item"):
        return n.Constant(value.item(), loc=here())
    return n.Array(n.ArraySymbol.of(value, shape, name_in_caller(value)), loc=here())


def as_expr(value: Any) -> Expr:
    """`as_node`, with operators."""
    return value if isinstance(value, Expr) else Expr(as_node(value))


def apply(atom: str, *args: Any, **options: Any) -> Expr:
    """Records a function of the atom table."""
    nodes = tuple(as_node(a) for a in args)
    for node in nodes:
        if type_of(node).event:
            shown = language_printing().text(node, limit=80)
            raise ModelingError(
                "E105",
                f"the event {shown} is used as a number",
                at=here(),
                fix=f"P({shown}), or cn.indicator({shown})",
            )
    return Expr(n.Apply(atom, nodes, tuple(sorted(options.items())), loc=here()))


def as_event(value: Any, where: str) -> Expr:
    """Checks that `value` is an event of random variables (E105)."""
    if isinstance(value, Constraint):
        raise ModelingError(
            "E108",
            f"{where} needs an event of random variables; {value} depends on no data column",
            at=here(),
        )
    if not isinstance(value, Expr) or not value.type.event:
        raise ModelingError(
            "E105",
            f"{where} needs an event such as (f(D.x) > 0), got {value}",
            at=here(),
            fix="a comparison of columns or models; for an average write E(...)",
        )
    return value


def truth_error(what: Expr | Constraint) -> ModelingError:
    """E102 or E103, by looking at the user's source line."""
    from constrain.language.source import truth_context

    shown = str(what)
    if truth_context() == "chain":
        return ModelingError(
            "E102",
            f"{shown} has no truth value; a chained comparison is `and` in Python and would keep one side only",
            at=here(),
            fix="cn.between(lower, e, upper), or two constraints",
        )
    return ModelingError(
        "E103",
        f"{shown} is symbolic and has no truth value",
        at=here(),
        fix="cn.maximum/cn.minimum for builtin max/min, & | ~ for and/or/not, cn.where for if",
    )


class Expr:
    """A mathematical expression. Immutable; operators and torch functions build larger ones.

    Attributes:
        node: the recorded structure.
        type: rows it depends on, level axis, shape of one row.
    """

    __slots__ = ("__weakref__", "node", "type")

    def __init__(self, node: n.Node) -> None:
        self.type: Type = type_of(node)
        self.node = node

    # ---- printing
    def __str__(self) -> str:
        return str(language_printing().text(self.node))

    def __repr__(self) -> str:
        return str(language_printing().source(self.node))

    def _repr_latex_(self) -> str:
        return f"${language_printing().latex(self.node)}$"

    # ---- arithmetic
    def __add__(self, other: Any) -> Expr:
        return apply("add", self, other)

    def __radd__(self, other: Any) -> Expr:
        return apply("add", other, self)

    def __sub__(self, other: Any) -> Expr:
        return apply("sub", self, other)

    def __rsub__(self, other: Any) -> Expr:
        return apply("sub", other, self)

    def __mul__(self, other: Any) -> Expr:
        return apply("mul", self, other)

    def __rmul__(self, other: Any) -> Expr:
        return apply("mul", other, self)

    def __truediv__(self, other: Any) -> Expr:
        return apply("div", self, other)

    def __rtruediv__(self, other: Any) -> Expr:
        return apply("div", other, self)

    def __pow__(self, other: Any) -> Expr:
        return apply("pow", self, other)

    def __rpow__(self, other: Any) -> Expr:
        return apply("pow", other, self)

    def __matmul__(self, other: Any) -> Expr:
        return apply("matmul", self, other)

    def __rmatmul__(self, other: Any) -> Expr:
        return apply("matmul", other, self)

    def __neg__(self) -> Expr:
        return apply("neg", self)

    def __pos__(self) -> Expr:
        return self

    def __abs__(self) -> Expr:
        return apply("abs", self)

    # ---- comparisons
    def __le__(self, other: Any) -> Expr | Constraint:
        return compare("<=", self, other)

    def __ge__(self, other: Any) -> Expr | Constraint:
        return compare(">=", self, other)

    def __lt__(self, other: Any) -> Expr | Constraint:
        return compare("<", self, other)

    def __gt__(self, other: Any) -> Expr | Constraint:
        return compare(">", self, other)

    def __eq__(self, other: object) -> Expr | Constraint:  # type: ignore[override]  # symbolic equality
        return compare("==", self, other)

    def __ne__(self, other: object) -> Expr | Constraint:  # type: ignore[override]  # symbolic
        return compare("!=", self, other)

    def __hash__(self) -> int:
        return id(self)

    # ---- events
    def __and__(self, other: Any) -> Expr:
        return _logic("and", self, other)

    def __rand__(self, other: Any) -> Expr:
        return _logic("and", other, self)

    def __or__(self, other: Any) -> Expr:
        return _logic("or", self, other)

    def __ror__(self, other: Any) -> Expr:
        return _logic("or", other, self)

    def __invert__(self) -> Expr:
        return Expr(n.Logic("not", (as_event(self, "~").node,), loc=here()))

    # ---- structure
    def __getitem__(self, key: Any) -> Expr:
        return apply("index", self, key=_index_key(key))

    def reshape(self, *shape: Any) -> Expr:
        """The same entries in another shape (of one row)."""
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        return apply("reshape", self, shape=tuple(int(s) for s in sizes))

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of one row (of one level); None when only running the model can tell."""
        return self.type.shape

    @property
    def T(self) -> Expr:  # noqa: N802  # the field's name
        """The transpose of one row."""
        return apply("transpose", self)

    def squeeze(self, dim: int = -1) -> Expr:
        """Drops an axis of size one; `dim` counts from the right (negative)."""
        if dim >= 0 or self.shape is None or self.shape[dim:][:1] != (1,):
            raise ModelingError(
                "E112", f"axis {dim} of {self} with shape {self.shape} is no axis of size one", at=here()
            )
        kept = list(self.shape)
        del kept[dim]
        return self.reshape(tuple(kept))

    def __getattr__(self, name: str) -> Any:
        from constrain.language.record import method

        return method(self, name)

    # ---- what an expression is not
    def __bool__(self) -> bool:
        raise truth_error(self)

    def __iter__(self) -> Iterator[Expr]:
        raise ModelingError(
            "E113", f"{self} cannot be iterated", at=here(), fix="index it, or use cn.sum and friends"
        )

    def __len__(self) -> int:
        raise ModelingError("E113", f"{self} has no length before a solve", at=here(), fix=".shape")

    def __float__(self) -> float:
        raise ModelingError(
            "E121",
            f"{self} has no numeric value before a solve",
            at=here(),
            fix="solution['name'].value, w.value",
        )

    __int__ = __index__ = __complex__ = __float__  # type: ignore[assignment]

    def __setitem__(self, key: Any, value: Any) -> None:
        raise ModelingError(
            "E113", f"expressions are immutable; {self} cannot be assigned to", at=here(), fix="cn.where"
        )

    # ---- other libraries
    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """torch hands its functions over here; they are recorded, in the order their arguments were written."""
        from constrain.language.record import record

        return record(func, args, kwargs or {})

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Expr:
        from constrain.language.record import record_ufunc

        return record_ufunc(ufunc, method, inputs, kwargs)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise ModelingError(
            "E121",
            f"{self} cannot become a NumPy array: it has no value yet",
            at=here(),
            fix="torch functions record it",
        )


class Constraint:
    """A relation between deterministic expressions, or one per row (`forall`). It has no truth value."""

    __slots__ = ("node",)

    def __init__(self, node: n.Node) -> None:
        type_of(node)
        self.node = node

    def __str__(self) -> str:
        return str(language_printing().text(self.node))

    def __repr__(self) -> str:
        return str(language_printing().source(self.node))

    def _repr_latex_(self) -> str:
        return f"${language_printing().latex(self.node)}$"

    def __bool__(self) -> bool:
        raise truth_error(self)

    def _chained(self, other: object) -> Any:
        raise ModelingError(
            "E102",
            f"{self} is compared once more",
            at=here(),
            fix="cn.between(lower, e, upper), or two constraints",
        )

    __le__ = __ge__ = __lt__ = __gt__ = _chained


def compare(op: n.CompareOp, lhs: Any, rhs: Any) -> Expr | Constraint:
    """An event when a side is random, a constraint otherwise (semantics S2)."""
    for side in (lhs, rhs):
        if isinstance(side, str):
            side_node, text = (as_node(lhs), rhs) if side is rhs else (as_node(rhs), lhs)
            return _compare_text(op, side_node, text)
    node = n.Comparison(op, as_node(lhs), as_node(rhs), loc=here())
    if type_of(node).random:
        return Expr(node)
    if op in ("<", ">", "!="):
        shown = str(language_printing().text(node, limit=80))
        allowed = "<= or >=" if op != "!=" else "=="
        raise ModelingError(
            "E109",
            f"{shown}: a constraint cannot be strict, its feasible set would not be closed",
            at=here(),
            fix=f"{allowed} (or a margin: e <= b - 1e-6)",
        )
    return Constraint(node)


def _compare_text(op: n.CompareOp, column: n.Node, text: str) -> Expr:
    if not isinstance(column, n.Column) or op not in ("==", "!="):
        raise ModelingError(
            "E117", f"only a column can be compared with the text {text!r}, by == or !=", at=here()
        )
    symbol = n.ArraySymbol(repr(text), (), text)
    return Expr(n.Comparison(op, column, n.Array(symbol, loc=here()), loc=here()))


def _logic(op: Any, lhs: Any, rhs: Any) -> Expr:
    for side, other in ((lhs, rhs), (rhs, lhs)):
        if isinstance(side, Expr) and not side.type.event:
            raise ModelingError(
                "E104",
                f"{side} is not an event; Python reads `g | D.a == 1` as `(g | D.a) == 1`",
                at=here(),
                fix="E(g, given=D.a == 1); events are joined with parentheses: (a > 0) | (b > 0)",
            )
        if not isinstance(side, Expr):
            as_event(side if isinstance(side, Constraint) else other, op)
            as_event(side, op)
    return Expr(n.Logic(op, (lhs.node, rhs.node), loc=here()))


def _index_key(key: Any) -> tuple[Any, ...]:
    keys = key if isinstance(key, tuple) else (key,)
    encoded: list[Any] = []
    for k in keys:
        if k is Ellipsis:
            encoded.append("...")
        elif k is None:
            encoded.append(None)
        elif isinstance(k, slice):
            encoded.append(("slice", k.start, k.stop, k.step))
        elif isinstance(k, (list, range)) or getattr(k, "shape", None):
            encoded.append(("list", tuple(int(i) for i in k)))
        elif isinstance(k, Expr):
            raise ModelingError(
                "E117", f"{k} cannot be used as an index", at=here(), fix="cn.where, or a mask: e * mask"
            )
        else:
            encoded.append(int(k))
    return tuple(encoded)


def is_symbol(value: Any) -> bool:
    """Whether a value is a symbol of the language rather than data."""
    return isinstance(value, (Expr, Constraint, Data))
