"""Unicode mathematics, in the user's order and with few parentheses."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

from constrain.language import nodes as n
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
from constrain.language.relations import COSTS

__all__ = ["TextNotation", "opaque_keywords"]

OPEN, OR, AND, COMPARE, ADD, NEG, MUL, POW, ATOM = range(9)
SIGNS = {"<=": "≤", ">=": "≥", "==": "=", "!=": "≠", "<": "<", ">": ">"}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_NORMS = {1.0: "₁", 2.0: "₂", float("inf"): "∞"}
_SHORT = {
    "max_levels": "max",
    "min_levels": "min",
    "sum_levels": "sum",
    "mean_levels": "mean",
    "logsumexp_levels": "logsumexp",
    "entropy_logits": "entropy",
    "kl_logits": "kl",
    "maximum": "max",
    "minimum": "min",
}
_PRODUCTS = ("mul", "div", "matmul")
_Rule: TypeAlias = Callable[["TextNotation", n.Apply], "Layout | None"]


def opaque_keywords(node: n.Opaque) -> list[tuple[str, Any]]:
    """The keyword arguments that differ from the function's defaults (torch hands over all of them)."""
    try:
        known = inspect.signature(node.function).parameters
    except (TypeError, ValueError):
        return list(node.keywords)
    return [(k, v) for k, v in node.keywords if k not in known or known[k].default != v]


class TextNotation:
    """Layouts for plain text: `|E[sigmoid(f(x)) | by sex] - E[sigmoid(f(x))]| ≤ 0.02`."""

    brackets: tuple[str, str] = ("(", ")")

    def __init__(self, names: Names) -> None:
        self.names = names
        self._minus: dict[int, bool] = {}

    def layout(self, node: n.Node) -> Layout:
        """Binding strength and pieces of a node."""
        match node:
            case n.Apply():
                return self._apply(node)
            case n.Comparison(op=op, lhs=lhs, rhs=rhs):
                return COMPARE, [(lhs, ADD), f" {SIGNS[op]} ", (rhs, ADD)]
            case n.Between(lower=lower, arg=arg, upper=upper):
                return COMPARE, [(lower, ADD), " ≤ ", (arg, ADD), " ≤ ", (upper, ADD)]
            case n.Logic(op="not", args=args):
                return POW, ["¬", (args[0], ATOM)]
            case n.Logic(op=op, args=args):
                strength = AND if op == "and" else OR
                return strength, joined(
                    [(a, strength) for a in args], " ∧ " if op == "and" else " \N{LOGICAL OR} "
                )
            case _:
                return self._closing(node)

    def _closing(self, node: n.Node) -> Layout:
        """What closes the axis of rows."""
        match node:
            case n.Mean(arg=arg, given=given, by=by):
                return ATOM, self._average("E", [(arg, OPEN)], given, by)
            case n.Rate(event=arg, given=given, by=by):
                return ATOM, self._average("P", [(arg, OPEN)], given, by)
            case n.Moment(integrand=arg, given=given, by=by):
                return ATOM, self._average("mean", [(arg, OPEN)], given, by)
            case n.Statistic(kind=kind, args=args, given=given, by=by, level=level):
                last: Piece = (level, OPEN) if isinstance(level, n.Knob) else literal(level)
                items = joined([*((a, OPEN) for a in args), *([] if level is None else [last])])
                return ATOM, self._average(kind, items, given, by)
            case n.Indicator(event=event):
                return ATOM, ["1[", (event, OPEN), "]"]
            case n.ForAll(data=data, where=where, relation=relation):
                condition: list[Piece] = [] if where is None else [" where ", (where, OPEN)]
                rows = "" if isinstance(data, Region) else "rows of "
                return OPEN, [f"for all {rows}{self.names.of(data)}", *condition, ": ", (relation, OPEN)]
            case n.Relaxed() | n.Scaled():
                return self._loosened(node)
            case _:
                return self._leaf(node)

    def _loosened(self, node: n.Relaxed | n.Scaled) -> Layout:
        """`c ≤ 0, relaxed by z at 5.0 · z²`; `c ≤ 0, in units of 100.0`."""
        if isinstance(node, n.Scaled):
            return OPEN, [(node.relation, OPEN), f", in units of {literal(node.scale)}"]
        cost: list[Piece] = []
        for kind, weight in zip(node.cost, node.weight, strict=True):
            cost += [" + ", (weight, MUL), COSTS[kind].text] if cost else [(weight, MUL), COSTS[kind].text]
        return OPEN, [(node.relation, OPEN), ", relaxed by z at ", *cost]

    def _leaf(self, node: n.Node) -> Layout:
        match node:
            case n.Constant(value=value):
                return (NEG if repr(value).startswith("-") else ATOM), [repr(value).replace("inf", "∞")]
            case n.Array(symbol=symbol):
                return ATOM, [repr(symbol.value) if isinstance(symbol.value, str) else self.names.of(symbol)]
            case n.Column(data=Region() as region):
                return ATOM, [self.names.of(region)]
            case n.Column(data=data, name=name):
                return ATOM, [name if self.names.bare_columns else f"{self.names.of(data)}.{name}"]
            case n.Codes(columns=columns):
                return ATOM, [f"level of {', '.join(columns)}"]
            case n.Decision(symbol=symbol) | n.Knob(symbol=symbol) | n.Pinned(symbol=symbol):
                return ATOM, [self.names.of(symbol)]
            case n.Weights(model=model):
                return ATOM, [f"{self.names.of(model)}.parameters"]
            case n.Call(model=model, args=args):
                return ATOM, [self.names.of(model), "(", *joined([(a, OPEN) for a in args]), ")"]
            case n.Gradient(arg=arg):
                return self.partial(node) or (POW, ["∇", (arg, ATOM)])
            case n.Opaque(path=path):
                plain = [*node.arguments, *(v for _, v in opaque_keywords(node))]
                heads = [""] * len(node.arguments) + [f"{k}=" for k, _ in opaque_keywords(node)]
                items: list[list[Piece]] = [
                    [h, (v, OPEN) if isinstance(v, n.Node) else literal(v)]
                    for h, v in zip(heads, plain, strict=True)
                ]
                return ATOM, [path.rpartition(".")[2], "(", *joined(items), ")"]
            case _:
                raise AssertionError(type(node))

    def _average(
        self, word: str, args: list[Piece], given: n.Node | None, by: tuple[n.Column | n.Among, ...]
    ) -> list[Piece]:
        pieces: list[Piece] = [f"{word}[", *args]
        if given is not None or by:
            pieces.append(" | ")
        if given is not None:
            pieces.append((given, OPEN))
        if by:
            pieces.append(", by " if given is not None else "by ")
            pieces += joined([group.name if isinstance(group, n.Among) else (group, ATOM) for group in by])
        return [*pieces, "]"]

    def partial(self, node: n.Node) -> Layout | None:
        """`∂²u(x)/∂x²`."""
        found = partial(node)
        if found is None:
            return None
        power = "" if found.order == 1 else str(found.order).translate(_SUPERSCRIPT)
        component = "" if found.component is None else f"[{found.component}]"
        return POW, [f"∂{power}", (found.arg, ATOM), "/∂", (found.wrt, ATOM), component, power]

    # ---- functions
    def _apply(self, node: n.Apply) -> Layout:
        rule = _RULES.get(node.atom)
        laid_out = None if rule is None else rule(self, node)
        if laid_out is not None:
            return laid_out
        items: list[Piece] = [(a, OPEN) for a in node.args]
        items += [f"{key}={value}" for key, value in _shown_options(node)]
        return ATOM, [_SHORT.get(node.atom, node.atom), "(", *joined(items), ")"]

    def starts_with_minus(self, node: n.Node) -> bool:
        """Whether the text of a factor starts with a minus sign."""
        spine: list[n.Node] = []
        while id(node) not in self._minus and isinstance(node, n.Apply) and node.atom in _PRODUCTS:
            spine.append(node)
            node = node.args[0]
        answer = self._minus.get(id(node), _is_negative(node))
        self._minus.update((id(x), answer) for x in spine)
        return answer


def _is_negative(node: n.Node) -> bool:
    if isinstance(node, n.Constant):
        return repr(node.value).startswith("-")
    return isinstance(node, n.Apply) and node.atom == "neg"


def _shown_options(node: n.Apply) -> list[tuple[str, str]]:
    """Options that are not what everybody expects, as `name=value`."""
    shown: list[tuple[str, str]] = []
    for key, value in node.options:
        if key == "axis":
            if value is None or (value == (-1,) and node.atom in ("softmax", "log_softmax")):
                continue
            shown.append((key, str(value[0]) if len(value) == 1 else str(value)))
        elif key != "slope" and (key, value) not in (("keepdims", False), ("ord", 2.0)):
            shown.append((key, literal(value)))
    return shown


def _add(_: TextNotation, node: n.Apply) -> Layout:
    a, b = node.args
    flat = isinstance(b, n.Apply) and b.atom in ("add", "sub")
    return ADD, [(a, ADD), " + ", (b, ADD if flat else MUL)]


def _sub(_: TextNotation, node: n.Apply) -> Layout:
    a, b = node.args
    return ADD, [(a, ADD), " - ", (b, MUL)]


def _product(sign: str, *, flat: bool) -> _Rule:
    def rule(notation: TextNotation, node: n.Apply) -> Layout:
        a, b = node.args
        same = flat and isinstance(b, n.Apply) and b.atom == node.atom
        strength = NEG if notation.starts_with_minus(a) else MUL
        return strength, [(a, NEG), sign, (b, MUL if same else POW)]

    return rule


def _neg(_: TextNotation, node: n.Apply) -> Layout:
    return NEG, ["-", (node.args[0], MUL)]


def _pow(_: TextNotation, node: n.Apply) -> Layout:
    base, exponent = node.args
    if isinstance(exponent, n.Constant) and isinstance(exponent.value, int):
        return POW, [(base, ATOM), str(int(exponent.value)).translate(_SUPERSCRIPT)]
    return POW, [(base, ATOM), "^", (exponent, ATOM)]


def _around(left: str, right: str) -> _Rule:
    return lambda _, node: (ATOM, [left, (node.args[0], OPEN), right])


def _norm(_: TextNotation, node: n.Apply) -> Layout | None:
    if node.option("axis") is not None or node.option("keepdims"):
        return None
    signs = {"sum_squares": "²", "sum_squares_levels": "²", "count_nonzero": "₀"}
    sign = signs.get(node.atom) or _NORMS.get(node.option("ord"))
    return None if sign is None else (ATOM, ["‖", (node.args[0], OPEN), f"‖{sign}"])


def _linear(_: TextNotation, node: n.Apply) -> Layout:
    x, weight, *bias = node.args
    product: list[Piece] = [(x, MUL), " @ ", (weight, ATOM), "ᵀ"]
    return (ADD, [*product, " + ", (bias[0], MUL)]) if bias else (MUL, product)


def _trace(_: TextNotation, node: n.Apply) -> Layout | None:
    twice, once = laplacian(node), divergence(node)
    if twice is not None:
        return POW, ["Δ", (twice.arg, ATOM)]
    return None if once is None else (POW, ["∇·", (once.arg, ATOM)])


def _quad_form(_: TextNotation, node: n.Apply) -> Layout:
    x, p = node.args
    return MUL, [(x, ATOM), "ᵀ @ ", (p, POW), " @ ", (x, POW)]


_RULES: dict[str, _Rule] = {
    "add": _add,
    "sub": _sub,
    "mul": _product(" · ", flat=True),
    "div": _product(" / ", flat=False),
    "matmul": _product(" @ ", flat=True),
    "neg": _neg,
    "pow": _pow,
    "square": lambda _, node: (POW, [(node.args[0], ATOM), "²"]),
    "sqrt": lambda _, node: (POW, ["√", (node.args[0], ATOM)]),
    "abs": _around("|", "|"),
    "norm": _norm,
    "sum_squares": _norm,
    "count_nonzero": _norm,
    "norm_levels": _norm,
    "sum_squares_levels": _norm,
    "take": lambda _, node: (ATOM, [(node.args[0], ATOM), "[", (node.args[1], OPEN), "]"]),
    "index": lambda notation, node: (
        notation.partial(node) or (ATOM, [(node.args[0], ATOM), f"[{key_text(node.option('key'))}]"])
    ),
    "pick_levels": lambda _, node: (ATOM, [(plain(node), ATOM)]),
    "trace": _trace,
    "symmetric_part": lambda _, node: (ATOM, [(node.args[0], ATOM)]),
    "transpose": lambda _, node: (ATOM, [(node.args[0], ATOM), "ᵀ"]),
    "reshape": lambda _, node: (
        ATOM,
        ["reshape(", (node.args[0], OPEN), f", {literal(node.option('shape'))})"],
    ),
    "stack": lambda _, node: (ATOM, ["[", *joined([(a, OPEN) for a in node.args]), "]"]),
    "einsum": lambda _, node: (
        ATOM,
        [f'einsum("{node.option("equation")}", ', *joined([(a, OPEN) for a in node.args]), ")"],
    ),
    "linear": _linear,
    "quad_form": _quad_form,
}
