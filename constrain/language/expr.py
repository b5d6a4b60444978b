"""`Expr`: what users hold. It records operators and torch functions as nodes and computes nothing."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from constrain._lazy import language, language_printing
from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.data import Data, as_list, static_shape
from constrain.language.keywords import keywords
from constrain.language.location import here, name_in_caller
from constrain.language.types import Type, type_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from constrain.language.location import Location

__all__ = [
    "Constraint",
    "Expr",
    "apply",
    "as_event",
    "as_expr",
    "as_node",
    "as_number",
    "choose",
    "code",
    "compare",
    "is_flag",
    "logic",
    "shown",
]


# -------------------------------------------------------------------------------------------- printing
def shown(value: Any, limit: int = 100) -> str:
    """A value in messages: mathematics for expressions, the shape for arrays, never a dump of numbers."""
    if isinstance(value, (Expr, Constraint)):
        return str(language_printing().text(value.node, limit=limit))
    shape = None if isinstance(value, str) else static_shape(value)
    if shape:
        return f"a {type(value).__name__} of shape {shape}"
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def code(value: Expr | Constraint, limit: int = 80) -> str:
    """An expression as Python source, for the `write:` line of messages."""
    return str(language_printing().source(value.node, limit=limit))


# ------------------------------------------------------------------------------------ values to nodes
def as_node(value: Any) -> n.Node:
    """The node of an expression, number, array or tensor.

    Raises:
        ModelingError: E122 for a trainable tensor that belongs to no `Model`, E111 for a constraint used as a
            value, E117 for anything else.
    """
    if isinstance(value, Expr):
        return value.node
    if isinstance(value, Constraint):
        raise ModelingError(
            "E111",
            f"{shown(value)} is a constraint and has no value",
            at=here(),
            fix="its sides, without the comparison",
        )
    number = _number(value)
    if number is not None:
        return _constant(repr(number), number, here())
    listed = _refusals().holds_expressions(value) if type(value) in (list, tuple) else None
    if listed is not None:
        raise listed
    shape = static_shape(value)
    if getattr(value, "requires_grad", False):
        raise ModelingError(
            "E122",
            f"a tensor of shape {shape} that requires gradients entered an expression outside of any model",
            at=here(),
            fix='wrap its module: f = cn.Model(module, "f") and f(...), frozen=True when it is fixed; '
            "a free tensor is a cn.Variable; a fixed one is tensor.detach()",
        )
    if shape == ():
        number = _number(value.item()) if hasattr(value, "item") else None
        if number is not None:
            return _constant(repr(number), number, here())
    elif shape is not None and "complex" not in str(getattr(value, "dtype", "")):
        return n.Array(n.ArraySymbol.of(value, shape, name_in_caller(value)), loc=here())
    raise _refusals().no_expression(value)


@lru_cache(maxsize=64)
def _constant(_text: str, number: n.Scalar, loc: Location | None) -> n.Constant:
    """The same object for the same number of a line; the text tells 1 from 1.0 and True, 0.0 from -0.0."""
    return n.Constant(number, loc=loc)


def _refusals() -> ModuleType:
    """The errors, whose module imports this one."""
    return language("refusals")


def _number(value: Any) -> n.Scalar | None:
    """A plain Python number (subclasses such as `numpy.float64` become plain), None for anything else."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    return float(value) if isinstance(value, float) else None


def as_number(value: Any) -> n.Node:
    """`as_node` of what must not be an event (E105)."""
    node = as_node(value)
    if type_of(node).event:
        e = Expr(node)
        raise ModelingError(
            "E105",
            f"the event {shown(e)} is used as a number",
            at=here(),
            fix=f"P({code(e)}), or cn.indicator({code(e)})",
        )
    return node


def as_expr(value: Any) -> Expr:
    """`as_node`, with operators."""
    return value if isinstance(value, Expr) else Expr(as_node(value))


def apply(atom: str, *args: Any, **options: Any) -> Expr:
    """Records a function of the atom table."""
    return Expr(n.Apply(atom, tuple(as_number(a) for a in args), tuple(sorted(options.items())), loc=here()))


def choose(event: Any, a: Any, b: Any) -> Expr:
    """Records `where`: its condition is an event, a relation of decisions, or an array of truth values."""
    if isinstance(event, Constraint) and _of_pieces(event.node):
        condition = event.node
    elif isinstance(event, (Expr, Constraint)):
        condition = as_event(event, "where()").node
    else:
        condition = as_node(event)
    return Expr(n.Apply("where", (condition, as_number(a), as_number(b)), loc=here()))


def _of_pieces(node: n.Node) -> bool:
    """Whether a relation can tell the pieces of a function: a comparison of decisions, without averages."""
    return isinstance(node, n.Comparison) and not any(
        isinstance(x, (n.Mean, n.Rate, n.Statistic, n.Moment)) for x in n.postorder(node)
    )


def is_flag(value: Any) -> bool:
    """Whether `value` is a column of truth values, which stands for the event that they are true."""
    node = value.node if isinstance(value, Expr) else None
    return isinstance(node, n.Column) and node.data.boolean(node.name)


def as_event(value: Any, where: str) -> Expr:
    """Checks that `value` is an event of random variables (E105, E108).

    A column of truth values becomes the event `column == 1`.
    """
    if is_flag(value):
        return Expr(n.Comparison("==", value.node, n.Constant(1, loc=here()), loc=here()))
    if not isinstance(value, Expr) or not value.type.event or isinstance(value.node, n.Between):
        raise _refusals().no_event(value, where)
    return value


class Expr:
    """A mathematical expression. Immutable; operators and torch functions build larger ones.

    Attributes:
        node: the recorded structure.
        type: rows it depends on, level axis, shape of one row.
    """

    __slots__ = ("__weakref__", "node", "type")

    node: n.Node
    type: Type

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Expr:
        """Recorded expressions are of a sibling class of `Variable` and `Parameter`.

        Python asks the right operand of a comparison first when its class derives from the left one's: were
        they plain `Expr`s, `sum(w) <= budget` would be recorded as `budget >= sum(w)`.
        """
        return object.__new__(_Recorded if cls is Expr else cls)

    def __init__(self, node: n.Node) -> None:
        object.__setattr__(self, "type", type_of(node))
        object.__setattr__(self, "node", node)

    def __setattr__(self, name: str, value: Any) -> None:
        known = getattr(type(self), name, None)
        if isinstance(known, property) and known.fset is not None:
            object.__setattr__(self, name, value)
            return
        raise ModelingError(
            "E113",
            f"expressions are immutable; .{name} of {shown(self)} cannot be set",
            at=here(),
            fix="a new expression",
        )

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

    def __floordiv__(self, other: Any) -> Expr:
        raise _refusals().no_operator(self, "//")

    def __mod__(self, other: Any) -> Expr:
        raise _refusals().no_operator(self, "%")

    def __xor__(self, other: Any) -> Expr:
        raise _refusals().no_operator(self, "^")

    # ---- matrix inequalities: A >> B says that A - B is positive semidefinite
    def __rshift__(self, other: Any) -> Expr | Constraint:
        return compare(">=", apply("lambda_min", _difference(self, other)), 0.0)

    def __lshift__(self, other: Any) -> Expr | Constraint:
        return compare(">=", apply("lambda_min", _difference(other, self)), 0.0)

    __rrshift__ = __lshift__
    __rlshift__ = __rshift__

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
        return logic("and", self, other)

    def __rand__(self, other: Any) -> Expr:
        return logic("and", other, self)

    def __or__(self, other: Any) -> Expr:
        return logic("or", self, other)

    def __ror__(self, other: Any) -> Expr:
        return logic("or", other, self)

    def __invert__(self) -> Expr:
        return Expr(n.Logic("not", (as_event(self, "~").node,), loc=here()))

    # ---- structure
    def __getitem__(self, key: Any) -> Expr:
        return apply("index", self, key=_index_key(key))

    def reshape(self, *shape: Any) -> Expr:
        """The same entries in another shape (of one row)."""
        sizes = as_list(shape[0]) if len(shape) == 1 else shape
        return apply("reshape", self, shape=tuple(int(s) for s in sizes))

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of one row (of one level); None when only running the model can tell."""
        return self.type.shape

    @property
    def T(self) -> Expr:
        """The transpose of one row."""
        return apply("transpose", self)

    def squeeze(self, dim: int = -1) -> Expr:
        """Drops an axis of size one; `dim` counts from the right (negative)."""
        if self.shape is None and dim < 0:
            return self[(..., 0, *(slice(None),) * (-dim - 1))]
        if dim >= 0 or self.shape is None or self.shape[dim:][:1] != (1,):
            raise ModelingError(
                "E112",
                f"axis {dim} of {shown(self)} with shape {self.shape} is no axis of size one",
                at=here(),
            )
        kept = list(self.shape)
        del kept[dim]
        return self.reshape(tuple(kept))

    def __getattr__(self, name: str) -> Any:
        return language("record").method(self, name)

    # ---- what an expression is not
    def relax(self, *_: Any, **__: Any) -> Any:
        """Only a constraint can be relaxed: raises E155."""
        raise language("relations").misplaced(self, "relax")

    def scale(self, *_: Any, **__: Any) -> Any:
        """Only a constraint has units of its own: raises E155."""
        raise language("relations").misplaced(self, "scale")

    def __bool__(self) -> bool:
        raise _refusals().truth_error(self)

    def __iter__(self) -> Iterator[Expr]:
        fix = "index it; over all entries cn.sum(e), cn.max(e), ...; a relation of e is one for every entry"
        raise ModelingError("E113", f"{self} cannot be iterated", at=here(), fix=fix)

    def __len__(self) -> int:
        raise ModelingError(
            "E113",
            f"{shown(self)} has no length before a solve",
            at=here(),
            fix="e.shape; cn.stack(a, b) in place of a tensor or array of expressions",
        )

    def __float__(self) -> float:
        raise ModelingError(
            "E121",
            f"{shown(self)} has no numeric value before a solve",
            at=here(),
            fix="after it: solution['name'].value or w.value; in a formula: torch functions instead of math",
        )

    __int__ = __index__ = __complex__ = __float__  # type: ignore[assignment]

    def __round__(self, digits: int | None = None) -> float:
        return self.__float__()

    def __setitem__(self, key: Any, value: Any) -> None:
        raise ModelingError(
            "E113",
            f"expressions are immutable; {shown(self)} cannot be assigned to",
            at=here(),
            fix="cn.where",
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
        """Records a torch function, with its arguments in the order they were written."""
        return language("record").record(func, args, kwargs or {})

    __pandas_priority__ = 10_000
    """Series and frames leave operations with expressions to the expression."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Expr:
        return language("record").record_ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise language("record").refuse_numpy(func)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise ModelingError(
            "E121",
            f"{shown(self)} cannot become a NumPy array: it has no value yet",
            at=here(),
            fix="torch functions, which are recorded; for a sparse matrix or a frame of pandas on the left "
            "cn.constant(S) @ x, table.to_numpy() @ x",
        )


class _Recorded(Expr):
    """An expression made by an operator or a function."""

    __slots__ = ()


class Constraint:
    """A relation between deterministic expressions, or one per row (`forall`). It has no truth value."""

    __slots__ = ("node",)

    node: n.Node

    def __init__(self, node: n.Node) -> None:
        type_of(node)
        object.__setattr__(self, "node", node)

    def __setattr__(self, name: str, value: Any) -> None:
        raise ModelingError(
            "E113",
            f"constraints are immutable; .{name} of {shown(self)} cannot be set",
            at=here(),
            fix="a new one",
        )

    def __str__(self) -> str:
        return str(language_printing().text(self.node))

    def __repr__(self) -> str:
        return str(language_printing().source(self.node))

    def _repr_latex_(self) -> str:
        return f"${language_printing().latex(self.node)}$"

    def __bool__(self) -> bool:
        raise _refusals().truth_error(self)

    # ---- the constraint as a whole
    @keywords
    def relax(self, cost: Any = None) -> Constraint:
        """The constraint, which may be exceeded at a cost: `c <= z` with a slack z >= 0 that costs h(z).

        There is one slack per entry of the constraint as written: per level of a block, per row of `forall`.
        Their costs are added to what is minimized, and the multiplier is the marginal cost h'(z). An equality
        may be missed by z on either side. The slack that was chosen is `solution["name"].relaxation`.

        Args:
            cost: `cn.squared(weight)`, `cn.linear(weight)`, or a sum of them, in the units in which the
                constraint is written.

        Raises:
            ModelingError: E155 (no cost), E156 (relaxed already).
        """
        return language("relations").relax(self, cost)  # type: ignore[no-any-return]

    @keywords
    def scale(self, size: Any) -> Constraint:
        """The constraint, measured in units of `size`: a residual of that size counts as 1.

        Tolerances and multiplier steps use these units. Values, multipliers and shadow prices are reported in
        those in which the constraint is written, and what the problem means does not change.

        Args:
            size: a positive number.

        Raises:
            ModelingError: E156 (scaled already), E157 (no positive number).
        """
        return language("relations").scale(self, size)  # type: ignore[no-any-return]

    def _chained(self, _other: object) -> Any:
        raise ModelingError(
            "E102",
            f"{shown(self)} is compared once more",
            at=here(),
            fix="cn.between(lower, e, upper), or two constraints",
        )

    __le__ = __ge__ = __lt__ = __gt__ = _chained

    def _joined(self, _other: object = None) -> Any:
        raise ModelingError(
            "E103",
            f"{shown(self)} is a constraint; constraints are listed, not joined",
            at=here(),
            fix="subject_to(first=..., second=...)",
        )

    def _either(self, _other: object = None) -> Any:
        text = f"{shown(self)} is a constraint; constraints are not joined"
        raise ModelingError("E103", text, at=here(), fix=_refusals().EITHER_OR)

    __and__ = __rand__ = __invert__ = _joined
    __or__ = __ror__ = _either


def _difference(large: Any, small: Any) -> Expr:
    """`large - small`; a zero is left out, and no other number stands for a matrix."""
    for number, other, sign in ((small, large, 1.0), (large, small, -1.0)):
        if isinstance(number, (int, float)):
            if number:
                raise ModelingError(
                    "E112",
                    f"a matrix is compared with the number {number}",
                    at=here(),
                    fix=f"A >> {number} * np.eye(n), or cn.lambda_min(A) >= {number}",
                )
            return as_expr(other) if sign > 0 else -as_expr(other)
    return as_expr(large) - small


def compare(op: n.CompareOp, lhs: Any, rhs: Any) -> Expr | Constraint:
    """An event when a side is random, a constraint otherwise (semantics S2)."""
    if isinstance(rhs, str):
        return _compare_text(op, as_node(lhs), rhs)
    if isinstance(lhs, str):
        return _compare_text(op, as_node(rhs), lhs)
    for side in (lhs, rhs):
        if isinstance(side, Expr) and isinstance(side.node, n.Logic):
            raise _precedence_error(side)
    both = _refusals().compared_events(op, lhs, rhs) if op in ("==", "!=") else None
    if both is not None:
        raise both
    node = n.Comparison(op, as_number(lhs), as_number(rhs), loc=here())
    if type_of(node).random:
        return Expr(node)
    if op in ("<", ">", "!="):
        raise _refusals().strict_error(node)
    return Constraint(node)


def _compare_text(op: n.CompareOp, column: n.Node, text: str) -> Expr:
    if not isinstance(column, n.Column) or op not in ("==", "!="):
        raise _refusals().compared_text(column, text)
    return Expr(n.Comparison(op, column, n.Array(n.ArraySymbol.of_text(text), loc=here()), loc=here()))


def logic(op: Literal["and", "or"], lhs: Any, rhs: Any) -> Expr:
    """Joins two events."""
    for side in (lhs, rhs):
        if isinstance(side, Expr) and not side.type.event and not is_flag(side):
            raise _precedence_error(side)
    a, b = as_event(lhs, _SIGN[op]), as_event(rhs, _SIGN[op])
    return Expr(n.Logic(op, (a.node, b.node), loc=here()))


_SIGN = {"and": "&", "or": "|"}


def _precedence_error(side: Expr) -> ModelingError:
    what = "is an event and is compared" if side.type.event else "is not an event"
    return ModelingError(
        "E104",
        f"{shown(side)} {what}; Python reads `g | D.a == 1` as `(g | D.a) == 1`",
        at=here(),
        fix="parentheses around comparisons: (a > 0) | (b > 0); a condition is E(g, given=D.a == 1)",
    )


def _index_key(key: Any) -> tuple[Any, ...]:
    """An index, hashable: integers, "...", None, ("slice", start, stop, step), ("list", positions)."""
    encoded = tuple(_index_part(k) for k in (as_list(key) if isinstance(key, tuple) else [key]))  # pyright: ignore[reportUnknownArgumentType]
    if sum(as_list(k)[:1] == ["list"] for k in encoded) > 1:
        raise ModelingError(
            "E117",
            "an index with two lists pairs them in torch and crosses them elsewhere",
            at=here(),
            fix="e[a][:, b]",
        )
    return encoded


def _ends(key: Any) -> tuple[Any, Any, Any]:
    return key.start, key.stop, key.step


def _index_part(k: Any) -> Any:
    if k is Ellipsis:
        return "..."
    if k is None:
        return None
    if isinstance(k, slice):
        start, stop, step = (None if v is None else int(v) for v in _ends(k))
        if step is None or step > 0:
            return ("slice", start, stop, step)
        problem, fix = "a slice with a negative step", "a list of positions: e[[2, 1, 0]]"
    elif isinstance(k, (Expr, Constraint, Data, str, float)):
        problem, fix = (
            shown(k),
            "integers, slices and lists of integers; for a condition cn.where, or e * mask",
        )
    elif isinstance(k, bool) or "bool" in str(getattr(k, "dtype", "")):
        problem, fix = "a mask", "the positions: e[[0, 2]], or e * mask"
    else:
        shape = static_shape(k)
        if not shape:
            return int(k)
        entries: list[Any] = list(k)
        if len(shape) == 1 and not any(isinstance(i, bool) for i in entries):
            return ("list", tuple(int(i) for i in entries))
        problem, fix = "a mask or a matrix", "a list of positions: e[[0, 2]], or e * mask"
    raise ModelingError("E117", f"{problem} cannot be used as an index", at=here(), fix=fix)
