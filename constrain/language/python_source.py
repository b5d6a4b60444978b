"""Python source that evaluates back to an equal expression.

`cn` functions where there is one, torch functions under their own names for the rest. Numbers and arrays that
meet no expression on their level are wrapped in `cn.constant(...)`, because Python would compute with them at
once.
"""

from __future__ import annotations

from collections.abc import Callable
from keyword import iskeyword
from typing import TYPE_CHECKING, Any, TypeAlias

from constrain._lazy import attribute, loaded
from constrain.language import nodes as n
from constrain.language.atoms import ATOMS
from constrain.language.expr import Expr
from constrain.language.layout import (
    Layout,
    Names,
    Piece,
    divergence,
    joined,
    key_text,
    laplacian,
    literal,
    partial,
)
from constrain.language.picked import plain
from constrain.language.regions import Region
from constrain.language.surrogates import DEFAULT
from constrain.language.types import type_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from constrain.language.surrogates import Surrogate

__all__ = ["ATOM", "RESERVED", "SourceNotation", "source_names"]

OPEN, COMPARE, OR, AND, ADD, MUL, UNARY, POW, ATOM = range(9)
WORDS = {
    "cn": "constrain",
    "E": "constrain.language.statistics:E",
    "P": "constrain.language.statistics:P",
    "forall": "constrain.language.statistics:forall",
    "apply": "constrain.language.expr:apply",
    "torch": "torch",
    "F": "torch.nn.functional",
}
RESERVED = frozenset({*WORDS, "abs", "float"})

_INFIX = {
    "add": (" + ", ADD),
    "sub": (" - ", ADD),
    "mul": (" * ", MUL),
    "div": (" / ", MUL),
    "matmul": (" @ ", MUL),
}
_CN = frozenset(
    (
        *("square", "sqrt", "exp", "log", "sigmoid", "softplus", "relu", "entr", "rel_entr"),
        *("kl_div", "maximum", "minimum", "quad_form", "trace", "stack", "where"),
        *("lambda_max", "lambda_min", "spectral_norm", "nuclear_norm"),
    )
)
_REDUCTIONS = frozenset(["sum", "mean", "max", "min", "logsumexp", "norm", "sum_squares", "count_nonzero"])
_OVER_LEVELS = frozenset(["sum", "mean", "max", "min", "logsumexp", "norm", "sum_squares"])
_LOSSES = frozenset(
    ["binary_cross_entropy_with_logits", "binary_cross_entropy", "cross_entropy", "mse_loss", "l1_loss"]
)
_Rule: TypeAlias = Callable[["SourceNotation", n.Apply], "Layout | None"]


def source_names(roots: Sequence[n.Node]) -> Names:
    """The name table of some expressions' source: their symbols, and functions torch does not export."""
    names = Names(roots, RESERVED)
    for node in n.postorder(*roots):
        if isinstance(node, n.Opaque):
            if _resolve(node.path) is not node.function:
                names.add(node.function, "function_")
            for value in (*node.arguments, *(value for _, value in node.keywords)):
                if not isinstance(value, n.Node) and not _is_literal(value) and _torch_text(value) is None:
                    names.add(value, "value_")
    return names


def _object(symbol: Any) -> Any:
    """What the name of a symbol stands for in source."""
    match symbol:
        case n.VariableSymbol():
            return Expr(n.Decision(symbol))
        case n.ParameterSymbol():
            return Expr(n.Knob(symbol))
        case n.ArraySymbol():
            return symbol.value
        case Region():
            return symbol.coordinate
        case _:
            return symbol


def _plain(node: n.Node) -> bool:
    """Whether the source of a node evaluates to a number or an array rather than an expression."""
    return isinstance(node, (n.Constant, n.Array))


def _native(node: n.Node) -> bool:
    """Whether Python operators of an array hand over to the expression beside it (torch and NumPy do)."""
    return isinstance(node, n.Array) and type(node.symbol.value).__module__.partition(".")[0] in (
        "torch",
        "numpy",
    )


def _is_tensor(node: n.Node) -> bool:
    torch = loaded("torch")
    return isinstance(node, n.Array) and torch is not None and isinstance(node.symbol.value, torch.Tensor)


class SourceNotation:
    """Layouts for Python.

    Attributes:
        names: the name table; `names.objects` holds the symbols of the problem.
        words: the words of the language and of torch that were written.
    """

    brackets: tuple[str, str] = ("(", ")")

    def __init__(self, names: Names) -> None:
        self.names = names
        self.words: set[str] = set()

    def symbols(self) -> dict[str, Any]:
        """Every name in the source, with what it stands for."""
        words = {word: attribute(WORDS[word]) for word in sorted(self.words)}
        return words | {name: _object(symbol) for name, symbol in self.names.objects.items()}

    # ---- nodes
    def layout(self, node: n.Node) -> Layout:
        """Binding strength and pieces of a node."""
        match node:
            case n.Apply():
                return self._apply(node)
            case n.Comparison(op=op, lhs=lhs, rhs=rhs):
                # Python turns `1 <= e` and `[1, 2] <= e` around, so a plain left side is spelled out.
                left = self.operand(lhs, AND) if _native(lhs) and not _plain(rhs) else self.lifted(lhs, AND)
                return COMPARE, [*left, f" {op} ", *self.operand(rhs, AND)]
            case n.Between(lower=lower, arg=arg, upper=upper):
                return self.call("cn", "between", [self.operand(x) for x in (lower, arg, upper)])
            case n.Logic(op="not", args=args):
                return UNARY, ["~", (args[0], UNARY)]
            case n.Logic(op=op, args=args):
                strength = AND if op == "and" else OR
                rest = [(a, strength + 1) for a in args[1:]]
                return strength, joined([(args[0], strength), *rest], " & " if op == "and" else " | ")
            case _:
                return self._closing(node)

    def _closing(self, node: n.Node) -> Layout:
        """What closes the axis of rows."""
        match node:
            case n.Mean(arg=arg, given=given, by=by) | n.Moment(integrand=arg, given=given, columns=by):
                return self._statistic("E", arg, given, by, None)
            case n.Rate(event=arg, given=given, by=by, surrogate=surrogate):
                return self._statistic("P", arg, given, by, surrogate)
            case n.Statistic():
                return self._summary(node)
            case n.Indicator(event=event, surrogate=surrogate):
                items: list[list[Piece]] = [[(event, OPEN)]]
                if surrogate not in (None, DEFAULT):
                    items.append(["surrogate=", self.surrogate(surrogate)])
                return self.call("cn", "indicator", items)
            case n.ForAll(data=data, where=where, relation=relation):
                rows: list[Piece] = [self.names.of(data)]
                if where is not None:
                    rows += [".where(", (where, OPEN), ")"]
                return self.call("forall", "", [rows, [(relation, OPEN)]])
            case n.Relaxed(relation=relation, cost=kinds, weight=weights):
                cost: list[Piece] = []
                for kind, weight in zip(kinds, weights, strict=True):
                    cost += [*([" + "] if cost else []), self.word("cn", kind), "(", (weight, OPEN), ")"]
                return ATOM, [(relation, ATOM), ".relax(cost=", *cost, ")"]
            case n.Scaled(relation=relation, scale=scale):
                return ATOM, [(relation, ATOM), f".scale({literal(scale)})"]
            case _:
                return self._leaf(node)

    def _leaf(self, node: n.Node) -> Layout:
        match node:
            case n.Constant(value=value):
                return (UNARY if literal(value).startswith("-") else ATOM), [literal(value)]
            case n.Array(symbol=symbol):
                return ATOM, [repr(symbol.value) if isinstance(symbol.value, str) else self.names.of(symbol)]
            case n.Column(data=Region() as region):
                return ATOM, [self.names.of(region)]
            case n.Column(data=data, name=name):
                taken = name in vars(data) or hasattr(type(data), name) or name.startswith("_")
                own = name.isidentifier() and not iskeyword(name) and not taken
                return ATOM, [self.names.of(data), f".{name}" if own else f"[{name!r}]"]
            case n.Codes(data=data, columns=columns):
                return ATOM, [f"{self.names.of(data)}[{', '.join(map(repr, columns))}]"]
            case n.Decision(symbol=symbol) | n.Knob(symbol=symbol) | n.Pinned(symbol=symbol):
                return ATOM, [self.names.of(symbol)]
            case n.Weights(model=model):
                return ATOM, [self.names.of(model)]
            case n.Call(model=model, args=args):
                return ATOM, [self.names.of(model), "(", *joined([self.operand(a) for a in args]), ")"]
            case n.Gradient(arg=arg, wrt=wrt):
                return self.partial(node) or self.call("cn", "grad", [self.operand(arg), [(wrt, ATOM)]])
            case n.Opaque():
                return self._opaque(node)
            case _:
                raise AssertionError(type(node))

    def _statistic(
        self,
        word: str,
        arg: n.Node,
        given: n.Node | None,
        by: tuple[n.Column, ...],
        surrogate: Surrogate | None,
    ) -> Layout:
        items = [self.operand(arg), *_conditions(given, by)]
        if surrogate is not None:
            items.append(["surrogate=", self.surrogate(surrogate)])
        return self.call(word, "", items)

    def _summary(self, node: n.Statistic) -> Layout:
        """`cn.CVaR(g, 0.95, given=A, by=c)`; one argument of several may be a number or an array."""
        items = [self.operand(arg) for arg in node.args]
        if node.level is not None:
            items.append(
                self.operand(node.level) if isinstance(node.level, n.Knob) else [literal(node.level)]
            )
        return self.call("cn", node.kind, [*items, *_conditions(node.given, node.by)])

    # ---- pieces
    def surrogate(self, surrogate: Surrogate) -> str:
        """A surrogate by its name, or with the options that differ from its defaults."""
        if surrogate == type(surrogate)():
            return repr(surrogate.name)
        return self.word("cn", f"surrogate.{surrogate!r}")

    def word(self, word: str, attribute_name: str = "") -> str:
        """A word of the language, remembered; `word("cn", "sum")` is `cn.sum`."""
        self.words.add(word)
        return f"{word}.{attribute_name}" if attribute_name else word

    def call(self, word: str, attribute_name: str, items: Iterable[Sequence[Piece]]) -> Layout:
        """A call of a function of the language."""
        return ATOM, [self.word(word, attribute_name), "(", *joined([list(i) for i in items]), ")"]

    def lifted(self, node: n.Node, required: int = OPEN) -> list[Piece]:
        """A node that must evaluate to an expression."""
        return [self.word("cn", "constant"), "(", (node, OPEN), ")"] if _plain(node) else [(node, required)]

    def operand(self, node: n.Node, required: int = OPEN) -> list[Piece]:
        """A node beside an expression: lists and series are spelled out, their operators are not ours."""
        foreign = isinstance(node, n.Array) and not _native(node) and not isinstance(node.symbol.value, str)
        return self.lifted(node) if foreign else [(node, required)]

    def torch_items(self, args: Sequence[n.Node]) -> list[list[Piece]]:
        """Arguments of a torch function: expressions and tensors, at least one expression."""
        some = any(not _plain(a) for a in args)
        return [[(a, OPEN)] if some and _is_tensor(a) else self.lifted(a) for a in args]

    def partial(self, node: n.Node) -> Layout | None:
        """`cn.diff(u(x), x, 2)`."""
        found = partial(node)
        if found is None:
            return None
        component = "" if found.component is None else f"[..., {found.component}]"
        items: list[list[Piece]] = [self.operand(found.arg), [(found.wrt, ATOM), component]]
        return self.call("cn", "diff", [*items, *([[str(found.order)]] if found.order > 1 else [])])

    # ---- functions
    def _apply(self, node: n.Apply) -> Layout:
        atom, args = node.atom, node.args
        rule = _RULES.get(atom)
        if rule is not None:
            laid_out = rule(self, node)
        elif atom in _INFIX:
            laid_out = self._infix(node)
        elif atom in _CN and not node.options:
            laid_out = self.call("cn", atom, [self.operand(a) for a in args])
        elif atom in _REDUCTIONS:
            laid_out = self._reduction(node)
        elif atom in _LOSSES:
            laid_out = self.call("F", atom, [*self.torch_items(args), ['reduction="none"']])
        else:
            laid_out = self._torch(node)
        return laid_out if laid_out is not None else self._recorded(node)

    def _recorded(self, node: n.Apply) -> Layout:
        """A function without a spelling of its own, by its name in the table."""
        items = [[repr(node.atom)], *(self.operand(a) for a in node.args)]
        return self.call("apply", "", [*items, *([f"{k}={literal(v)}"] for k, v in node.options)])

    def _torch(self, node: n.Apply) -> Layout | None:
        path = ATOMS[node.atom].torch
        if node.options or not path.startswith("torch."):
            return None
        return ATOM, [self._path(path), "(", *joined(self.torch_items(node.args)), ")"]

    def _path(self, path: str) -> str:
        inner = path.removeprefix("torch.nn.functional.")
        return self.word("F", inner) if inner != path else self.word("torch", path.removeprefix("torch."))

    def _infix(self, node: n.Apply) -> Layout:
        sign, strength = _INFIX[node.atom]
        a, b = node.args
        left = self.lifted(a) if _plain(a) and _plain(b) else self.operand(a, strength)
        return strength, [*left, sign, *self.operand(b, strength + 1)]

    def _reduction(self, node: n.Apply) -> Layout | None:
        axis, keep = node.option("axis"), node.option("keepdims", False)
        if axis is None and node.atom in _OVER_LEVELS and type_of(node.args[0]).levels is not None:
            return None
        items = [self.operand(node.args[0])]
        order = node.option("ord", 2.0)
        if order != 2.0:
            items.append([f"ord={literal(order)}"])
        if axis is not None:
            items.append([f"axis={axis[0] if len(axis) == 1 else axis}"])
        if keep:
            items.append(["keepdims=True"])
        return self.call("cn", node.atom, items)

    def _opaque(self, node: n.Opaque) -> Layout:
        resolved = _resolve(node.path)
        head = (
            self._path(node.path) if resolved is node.function else self.names.add(node.function, "function_")
        )
        lifted = iter(self.torch_items(n.children(node)))
        items = [next(lifted) if isinstance(v, n.Node) else self._value(v) for v in node.arguments]
        items += [
            [f"{k}=", *(next(lifted) if isinstance(v, n.Node) else self._value(v))] for k, v in node.keywords
        ]
        return ATOM, [head, "(", *joined(items), ")"]

    def _value(self, value: Any) -> list[Piece]:
        if _is_literal(value):
            return [literal(value)]
        text = _torch_text(value)
        return [self.names.add(value, "value_")] if text is None else [self.word("torch", text)]


def _torch_text(value: Any) -> str | None:
    """`float32` of `torch.float32`, None for what is no constant of torch."""
    text = repr(value)
    own = text.startswith("torch.") and _resolve(text) is value
    return text.removeprefix("torch.") if own else None


def _conditions(given: n.Node | None, by: tuple[n.Column, ...]) -> list[list[Piece]]:
    """The keyword arguments `given=` and `by=` of a statistic."""
    items: list[list[Piece]] = [] if given is None else [["given=", (given, OPEN)]]
    if len(by) == 1:
        items.append(["by=", (by[0], ATOM)])
    elif by:
        items.append(["by=(", *joined([(column, ATOM) for column in by]), ")"])
    return items


def _is_literal(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_literal(v) for v in value)  # type: ignore[reportUnknownVariableType]
    return value is None or type(value) in (bool, int, float, str)


def _resolve(path: str) -> Any:
    """The object at a dotted path below torch, or None."""
    found: Any = loaded("torch")
    for part in path.split(".")[1:]:
        found = getattr(found, part, None)
    return found if path.startswith("torch.") else None


# ---- functions with a syntax of their own
def _over_levels(notation: SourceNotation, node: n.Apply) -> Layout | None:
    if type_of(node.args[0]).levels is None:
        return None
    items = [notation.operand(node.args[0])]
    if node.option("ord", 2.0) != 2.0:
        items.append([f"ord={literal(node.option('ord'))}"])
    return notation.call("cn", node.atom.removesuffix("_levels"), items)


def _along(notation: SourceNotation, node: n.Apply) -> Layout:
    (axis,) = node.option("axis")
    return notation.call("torch", node.atom, [notation.lifted(node.args[0]), [f"dim={axis}"]])


def _pow(notation: SourceNotation, node: n.Apply) -> Layout:
    base, exponent = node.args
    left = notation.lifted(base) if _plain(base) and _plain(exponent) else notation.operand(base, ATOM)
    return POW, [*left, " ** ", *notation.operand(exponent, UNARY)]


def _trace(notation: SourceNotation, node: n.Apply) -> Layout:
    twice, once = laplacian(node), divergence(node)
    found, word = (twice, "laplacian") if twice is not None else (once, "div")
    if found is None:
        return notation.call("cn", "trace", [notation.operand(node.args[0])])
    return notation.call("cn", word, [notation.operand(found.arg), [(found.wrt, ATOM)]])


def _index(notation: SourceNotation, node: n.Apply) -> Layout:
    return notation.partial(node) or _entry(notation, node)


def _entry(notation: SourceNotation, node: n.Apply) -> Layout:
    return ATOM, [*notation.lifted(node.args[0], ATOM), f"[{key_text(node.option('key'))}]"]


def _reshape(notation: SourceNotation, node: n.Apply) -> Layout:
    return ATOM, [*notation.lifted(node.args[0], ATOM), f".reshape({literal(node.option('shape'))})"]


def _einsum(notation: SourceNotation, node: n.Apply) -> Layout:
    return notation.call(
        "torch", "einsum", [[repr(node.option("equation"))], *notation.torch_items(node.args)]
    )


def _huber(notation: SourceNotation, node: n.Apply) -> Layout | None:
    difference = node.args[0]
    if not isinstance(difference, n.Apply) or difference.atom != "sub":
        return None
    items: list[list[Piece]] = [*notation.torch_items(difference.args), ['reduction="none"']]
    return notation.call("F", "huber_loss", [*items, [f"delta={literal(node.option('delta'))}"]])


_RULES: dict[str, _Rule] = {
    "pick_levels": lambda _, node: (ATOM, [(plain(node), ATOM)]),
    "neg": lambda notation, node: (UNARY, ["-", *notation.lifted(node.args[0], UNARY)]),
    "abs": lambda notation, node: (ATOM, ["abs(", *notation.lifted(node.args[0]), ")"]),
    "transpose": lambda notation, node: (ATOM, [*notation.lifted(node.args[0], ATOM), ".T"]),
    "linear": lambda notation, node: notation.call("F", "linear", notation.torch_items(node.args)),
    "pow": _pow,
    "index": _index,
    "trace": _trace,
    "reshape": _reshape,
    "softmax": _along,
    "log_softmax": _along,
    "einsum": _einsum,
    "huber": _huber,
    **{f"{word}_levels": _over_levels for word in sorted(_OVER_LEVELS)},
    "entropy_logits": lambda notation, node: notation.call(
        "cn", "entropy", [["logits=", *notation.lifted(node.args[0])]]
    ),
    "kl_logits": lambda notation, node: notation.call(
        "cn", "kl", [notation.lifted(node.args[0]), notation.operand(node.args[1])]
    ),
}
