"""LaTeX mathematics, in the user's order."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

from constrain.language import nodes as n
from constrain.language.atoms import ATOMS
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
from constrain.language.text import opaque_keywords

__all__ = ["LatexNotation", "latex_name"]

OPEN, OR, AND, COMPARE, ADD, NEG, MUL, POW, ATOM = range(9)
SIGNS = {"<=": r"\le", ">=": r"\ge", "==": "=", "!=": r"\ne", "<": "<", ">": ">"}
_GREEK = frozenset(
    (
        *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"),
        *("lambda", "mu", "nu", "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi"),
        *("psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon"),
        *("Phi", "Psi", "Omega"),
    )
)
_WORDS = {
    "exp": r"\exp",
    "log": r"\log",
    "sin": r"\sin",
    "cos": r"\cos",
    "tanh": r"\tanh",
    "sigmoid": r"\sigma",
    "max": r"\max",
    "min": r"\min",
    "maximum": r"\max",
    "minimum": r"\min",
    "trace": r"\operatorname{tr}",
    "max_levels": r"\max",
    "min_levels": r"\min",
    "sum_levels": r"\sum",
    "sum": r"\sum",
    "mean_levels": r"\operatorname{mean}",
    "logdet": r"\log\det",
    "lambda_max": r"\lambda_{\max}",
    "lambda_min": r"\lambda_{\min}",
    "logsumexp_levels": r"\operatorname{logsumexp}",
    "entropy_logits": r"\operatorname{H}",
    "kl_logits": r"\operatorname{KL}",
}
_NORMS = {1.0: "_1", 2.0: "_2", float("inf"): r"_\infty"}
_Rule: TypeAlias = Callable[["LatexNotation", n.Apply], "Layout | None"]


def _escape(text: str) -> str:
    return re.sub(r"([_%$#&{}])", r"\\\1", text)


def latex_name(name: str) -> str:
    r"""A name in mathematics: `alpha` is `\alpha`, `x_1` is `x_{1}`, longer words are upright."""
    stem, count = name, ""
    found = re.fullmatch(r"([A-Za-z]+?)_?(\d+)", name)
    if found is not None:
        stem, count = found.groups()
    if stem in _GREEK:
        stem = f"\\{stem}"
    elif len(stem) > 1:
        return rf"\mathrm{{{_escape(name)}}}"
    return f"{stem}_{{{count}}}" if count else stem


def _word(name: str) -> str:
    return _WORDS.get(name) or rf"\operatorname{{{_escape(name)}}}"


def _call(head: str, items: list[Any]) -> Layout:
    return ATOM, [head, r"\left(", *joined(items), r"\right)"]


class LatexNotation:
    """Layouts for LaTeX."""

    brackets: tuple[str, str] = (r"\left(", r"\right)")

    def __init__(self, names: Names) -> None:
        self.names = names

    def name(self, symbol: Any) -> str:
        """The name of a symbol in mathematics."""
        return latex_name(self.names.of(symbol))

    def layout(self, node: n.Node) -> Layout:
        """Binding strength and pieces of a node."""
        match node:
            case n.Apply():
                return self._apply(node)
            case n.Comparison(op=op, lhs=lhs, rhs=rhs):
                return COMPARE, [(lhs, ADD), f" {SIGNS[op]} ", (rhs, ADD)]
            case n.Between(lower=lower, arg=arg, upper=upper):
                return COMPARE, [(lower, ADD), r" \le ", (arg, ADD), r" \le ", (upper, ADD)]
            case n.Logic(op="not", args=args):
                return POW, [r"\neg ", (args[0], ATOM)]
            case n.Logic(op=op, args=args):
                strength = AND if op == "and" else OR
                return strength, joined(
                    [(a, strength) for a in args], r" \land " if op == "and" else r" \lor "
                )
            case _:
                return self._closing(node)

    def _closing(self, node: n.Node) -> Layout:
        """What closes the axis of rows."""
        match node:
            case n.Mean(arg=arg, given=given, by=by):
                return ATOM, self._average(r"\mathbb{E}", [(arg, OPEN)], given, by)
            case n.Rate(event=arg, given=given, by=by):
                return ATOM, self._average(r"\mathbb{P}", [(arg, OPEN)], given, by)
            case n.Moment(integrand=arg, given=given, columns=by):
                return ATOM, self._average(r"\operatorname{mean}", [(arg, OPEN)], given, by)
            case n.Statistic(kind=kind, args=args, given=given, by=by, level=level):
                own = self.name(level.symbol) if isinstance(level, n.Knob) else level and _number(level)
                word = rf"\operatorname{{{kind}}}" + (f"_{{{own}}}" if own else "")
                return ATOM, self._average(word, joined([(a, OPEN) for a in args]), given, by)
            case n.Indicator(event=event):
                return ATOM, [r"\mathbf{1}\left[", (event, OPEN), r"\right]"]
            case n.ForAll(data=data, where=where, relation=relation):
                which = "" if isinstance(data, Region) else "rows of "
                rows = rf"\quad \text{{for all {which}}} {self.name(data)}"
                condition: list[Piece] = [] if where is None else [r" \text{ where } ", (where, OPEN)]
                return OPEN, [(relation, OPEN), rows, *condition]
            case n.Relaxed() | n.Scaled():
                return self._loosened(node)
            case _:
                return self._leaf(node)

    def _loosened(self, node: n.Relaxed | n.Scaled) -> Layout:
        if isinstance(node, n.Scaled):
            return OPEN, [(node.relation, OPEN), rf"\quad \text{{in units of }} {_number(node.scale)}"]
        cost: list[Piece] = []
        for kind, weight in zip(node.cost, node.weight, strict=True):
            term: list[Piece] = [(weight, MUL), COSTS[kind].latex]
            cost += [" + ", *term] if cost else term
        return OPEN, [(node.relation, OPEN), r"\quad \text{relaxed by } z \text{ at } ", *cost]

    def _leaf(self, node: n.Node) -> Layout:  # noqa: PLR0911  # one case per node class
        match node:
            case n.Constant(value=value):
                return (NEG if repr(value).startswith("-") else ATOM), [_number(value)]
            case n.Array(symbol=symbol) if isinstance(symbol.value, str):
                return ATOM, [rf"\text{{{_escape(symbol.value)}}}"]
            case n.Array(symbol=symbol) | n.Decision(symbol=symbol) | n.Knob(symbol=symbol):
                return ATOM, [self.name(symbol)]
            case n.Pinned(symbol=symbol):
                return ATOM, [self.name(symbol)]
            case n.Codes(columns=columns):
                return ATOM, [rf"\text{{level of {_escape(', '.join(columns))}}}"]
            case n.Column(data=Region() as region):
                return ATOM, [self.name(region)]
            case n.Column(data=data, name=name):
                own = latex_name(name)
                return ATOM, [own if self.names.bare_columns else f"{self.name(data)}.{own}"]
            case n.Weights(model=model):
                return ATOM, [rf"\theta_{{{self.name(model)}}}"]
            case n.Call(model=model, args=args):
                return _call(self.name(model), [(a, OPEN) for a in args])
            case n.Gradient(arg=arg, wrt=wrt):
                return self.partial(node) or (POW, [r"\nabla_{", (wrt, OPEN), "} ", (arg, ATOM)])
            case n.Opaque(path=path, arguments=arguments):
                items = [self._value(v) for v in arguments]
                items += [[rf"\mathrm{{{_escape(k)}}}=", *self._value(v)] for k, v in opaque_keywords(node)]
                return _call(_word(path.rpartition(".")[2]), items)
            case _:
                raise AssertionError(type(node))

    def partial(self, node: n.Node) -> Layout | None:
        """A quotient of differentials."""
        found = partial(node)
        if found is None:
            return None
        power = "" if found.order == 1 else f"^{{{found.order}}}"
        component = "" if found.component is None else f"_{{{found.component}}}"
        below: list[Piece] = [r"}{\partial ", (found.wrt, ATOM), f"{component}{power}}}"]
        return POW, [rf"\frac{{\partial{power} ", (found.arg, ATOM), *below]

    def _value(self, value: Any) -> list[Piece]:
        return [(value, OPEN)] if isinstance(value, n.Node) else [rf"\text{{{_escape(literal(value))}}}"]

    def _average(
        self, word: str, args: list[Piece], given: n.Node | None, by: tuple[n.Column, ...]
    ) -> list[Piece]:
        pieces: list[Piece] = [rf"{word}\left[", *args]
        conditions: list[Piece] = [] if given is None else [(given, OPEN)]
        conditions += [(column, ATOM) for column in by]
        return [*pieces, *([r" \mid ", *joined(conditions)] if conditions else []), r"\right]"]

    def _apply(self, node: n.Apply) -> Layout:
        rule = _RULES.get(node.atom)
        laid_out = None if rule is None else rule(self, node)
        if laid_out is not None:
            return laid_out
        declared = ATOMS[node.atom].declared
        head = declared.latex if declared is not None and declared.latex else _word(node.atom)
        axis = node.option("axis")
        if axis is not None and axis != (-1,):
            head += rf"_{{\mathrm{{axis}}={','.join(map(str, axis))}}}"
        return _call(head, [(a, OPEN) for a in node.args])


def _number(value: n.Scalar) -> str:
    text = repr(value).replace("inf", r"\infty")
    mantissa, mark, exponent = text.partition("e")
    if not mark or not isinstance(value, float):
        return text
    power = f"10^{{{int(exponent)}}}"
    return power if mantissa == "1" else rf"{mantissa} \cdot {power}"


def _sum(sign: str) -> _Rule:
    return lambda _, node: (ADD, [(node.args[0], ADD), f" {sign} ", (node.args[1], MUL)])


def _product(sign: str) -> _Rule:
    return lambda _, node: (MUL, [(node.args[0], MUL), sign, (node.args[1], POW)])


def _wrap(left: str, right: str) -> _Rule:
    return lambda _, node: (ATOM, [left, (node.args[0], OPEN), right])


def _after(sign: str) -> _Rule:
    return lambda _, node: (POW, [(node.args[0], ATOM), sign])


def _div(_: LatexNotation, node: n.Apply) -> Layout:
    return POW, [r"\frac{", (node.args[0], OPEN), "}{", (node.args[1], OPEN), "}"]


def _pow(_: LatexNotation, node: n.Apply) -> Layout:
    return POW, [(node.args[0], ATOM), "^{", (node.args[1], OPEN), "}"]


def _norm(_: LatexNotation, node: n.Apply) -> Layout | None:
    if node.option("axis") is not None or node.option("keepdims"):
        return None
    signs = {"sum_squares": "_2^2", "sum_squares_levels": "_2^2", "count_nonzero": "_0"}
    sign = signs.get(node.atom) or _NORMS.get(node.option("ord"))
    return None if sign is None else (POW, [r"\left\|", (node.args[0], OPEN), rf"\right\|{sign}"])


def _linear(_: LatexNotation, node: n.Apply) -> Layout:
    x, weight, *bias = node.args
    product: list[Piece] = [(x, MUL), r" \, ", (weight, ATOM), r"^{\top}"]
    return (ADD, [*product, " + ", (bias[0], MUL)]) if bias else (MUL, product)


def _quad_form(_: LatexNotation, node: n.Apply) -> Layout:
    x, p = node.args
    return MUL, [(x, ATOM), r"^{\top} ", (p, POW), r" \, ", (x, POW)]


def _reshape(_: LatexNotation, node: n.Apply) -> Layout:
    shape = r" \times ".join(map(str, node.option("shape"))) or "1"
    return ATOM, [r"\operatorname{reshape}_{", shape, r"}\left(", (node.args[0], OPEN), r"\right)"]


def _trace(_: LatexNotation, node: n.Apply) -> Layout | None:
    twice, once = laplacian(node), divergence(node)
    if twice is not None:
        return POW, [r"\Delta_{", (twice.wrt, OPEN), "} ", (twice.arg, ATOM)]
    return None if once is None else (POW, [r"\nabla_{", (once.wrt, OPEN), r"} \cdot ", (once.arg, ATOM)])


def _index(notation: LatexNotation, node: n.Apply) -> Layout:
    return notation.partial(node) or _entry(node)


def _entry(node: n.Apply) -> Layout:
    return POW, [
        (node.args[0], ATOM),
        rf"_{{{key_text(node.option('key')).replace('...', chr(92) + 'ldots')}}}",
    ]


def _einsum(_: LatexNotation, node: n.Apply) -> Layout:
    inputs, _arrow, output = str(node.option("equation")).partition("->")
    head = rf"\operatorname{{einsum}}_{{{inputs} \to {output}}}"
    return _call(head, [(a, OPEN) for a in node.args])


_RULES: dict[str, _Rule] = {
    "pick_levels": lambda _, node: (ATOM, [(plain(node), ATOM)]),
    "add": _sum("+"),
    "sub": _sum("-"),
    "mul": _product(r" \cdot "),
    "matmul": _product(r" \, "),
    "div": _div,
    "neg": lambda _, node: (NEG, ["-", (node.args[0], MUL)]),
    "pow": _pow,
    "square": _after("^2"),
    "sqrt": _wrap(r"\sqrt{", "}"),
    "abs": _wrap(r"\left|", r"\right|"),
    "floor": _wrap(r"\left\lfloor ", r" \right\rfloor"),
    "norm": _norm,
    "sum_squares": _norm,
    "count_nonzero": _norm,
    "norm_levels": _norm,
    "sum_squares_levels": _norm,
    "take": lambda _, node: (POW, [(node.args[0], ATOM), "_{", (node.args[1], OPEN), "}"]),
    "index": _index,
    "trace": _trace,
    "symmetric_part": lambda _, node: (ATOM, [(node.args[0], ATOM)]),
    "transpose": _after(r"^{\top}"),
    "reshape": _reshape,
    "stack": lambda _, node: (ATOM, [r"\left[", *joined([(a, OPEN) for a in node.args]), r"\right]"]),
    "einsum": _einsum,
    "linear": _linear,
    "quad_form": _quad_form,
}
