# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""The functions of the language in SymPy: entry by entry, and over the entries of arrays.

A structural function receives the translator, the node, the index of the wanted entry and the place (row and
level) where it is wanted; it asks the translator for the entries of its arguments.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import sympy as sp

from constrain.errors import RouteError
from constrain.symbolic.numbers import exact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from constrain.language import nodes as n
    from constrain.symbolic.entries import Entries, Place

__all__ = ["ELEMENTWISE", "STRUCTURAL", "no_form"]

_MOST_WRITTEN_OUT = 64
"""Entries of a maximum or determinant, which have to be written out."""


def no_form(what: str, node: n.Node, fix: str | None = None) -> RouteError:
    """E196: no SymPy expression."""
    return RouteError("E196", f"derive() has no form of {what}", at=node.loc, fix=fix)


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + sp.exp(-x))


def _softplus(x: Any) -> Any:
    return sp.log(1 + sp.exp(x))


def _huber(x: Any, options: Mapping[str, Any]) -> Any:
    delta = exact(options["delta"])
    return sp.Piecewise((x**2 / 2, sp.Abs(x) <= delta), (delta * (sp.Abs(x) - delta / 2), True))


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: function(*args[:-1])


ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "add": _plain(lambda a, b: a + b),
    "sub": _plain(lambda a, b: a - b),
    "neg": _plain(lambda a: -a),
    "mul": _plain(lambda a, b: a * b),
    "div": _plain(lambda a, b: a / b),
    "pow": _plain(lambda a, b: a**b),
    "abs": _plain(sp.Abs),
    "square": _plain(lambda a: a**2),
    "exp": _plain(sp.exp),
    "expm1": _plain(lambda a: sp.exp(a) - 1),
    "log": _plain(sp.log),
    "log1p": _plain(lambda a: sp.log(1 + a)),
    "sqrt": _plain(sp.sqrt),
    "reciprocal": _plain(lambda a: 1 / a),
    "entr": _plain(lambda a: -a * sp.log(a)),
    "relu": _plain(lambda a: sp.Max(0, a)),
    "softplus": _plain(_softplus),
    "logsigmoid": _plain(lambda a: -_softplus(-a)),
    "sigmoid": _plain(_sigmoid),
    "tanh": _plain(sp.tanh),
    "sin": _plain(sp.sin),
    "cos": _plain(sp.cos),
    "erf": _plain(sp.erf),
    "gelu": _plain(lambda a: a * (1 + sp.erf(a / sp.sqrt(2))) / 2),
    "silu": _plain(lambda a: a * _sigmoid(a)),
    "elu": _plain(lambda a: sp.Piecewise((a, a > 0), (sp.exp(a) - 1, True))),
    "sign": _plain(sp.sign),
    "floor": _plain(sp.floor),
    "maximum": _plain(sp.Max),
    "minimum": _plain(sp.Min),
    "kl_div": _plain(lambda p, q: p * sp.log(p / q) - p + q),
    "rel_entr": _plain(lambda p, q: p * sp.log(p / q)),
    "huber": _huber,
    "binary_cross_entropy_with_logits": _plain(lambda s, y: _softplus(s) - y * s),
    "binary_cross_entropy": _plain(lambda p, y: -y * sp.log(p) - (1 - y) * sp.log(1 - p)),
    "mse_loss": _plain(lambda a, b: (a - b) ** 2),
    "l1_loss": _plain(lambda a, b: sp.Abs(a - b)),
    "variance": _plain(lambda second, first: second - first**2),
    "deviation": _plain(lambda second, first: sp.sqrt(second - first**2)),
}
"""By atom: of the entries of the arguments, then the options."""


# ------------------------------------------------------------------------------------------ reductions
def _axes(e: Entries, node: n.Apply) -> tuple[list[int], bool]:
    """Positions of the axes that are reduced, and whether they are kept."""
    rank, axis = len(e.shape(node.args[0])), node.option("axis")
    axes = range(rank) if axis is None else [a + rank if a < 0 else a for a in axis]
    return sorted(axes), bool(node.option("keepdims"))


def _inner(e: Entries, node: n.Apply, index: tuple[Any, ...]) -> tuple[list[int], Callable[..., Any]]:
    """Sizes of the reduced axes, and the index of the argument for indices along them."""
    shape = e.shape(node.args[0])
    axes, keep = _axes(e, node)

    def at(*along: Any) -> tuple[Any, ...]:
        left, moving = list(index), list(along)
        return tuple(
            (moving.pop(0), left.pop(0) if keep else None)[0] if a in axes else left.pop(0)
            for a in range(len(shape))
        )

    return [shape[a] for a in axes], at


def _summed(transform: Callable[[Any], Any]) -> Callable[..., Any]:
    def total(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
        sizes, at = _inner(e, node, index)
        return e.total(sizes, lambda *a: transform(e.at(node.args[0], at(*a), place)), (*index, *place))

    return total


def _sum(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    return _summed(lambda x: x)(e, node, index, place)


def _mean(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    sizes, _ = _inner(e, node, index)
    return _sum(e, node, index, place) / math.prod(sizes)


def _extreme(function: Callable[..., Any]) -> Callable[..., Any]:
    def found(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
        sizes, at = _inner(e, node, index)
        if math.prod(sizes) > _MOST_WRITTEN_OUT:
            raise no_form(
                f"{node.atom} over {math.prod(sizes)} entries", node, "forall or a constraint on every entry"
            )
        return function(*(e.at(node.args[0], at(*a), place) for a in e.every(sizes)))

    return found


def _logsumexp(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    return sp.log(_summed(sp.exp)(e, node, index, place))


def _power_norm(order: float, total: Callable[[Callable[[Any], Any]], Any], node: n.Node) -> Any:
    if order == 1.0:
        return total(sp.Abs)
    if order == 2.0:
        return sp.sqrt(total(lambda x: x**2))
    raise no_form(f"the {order:g}-norm", node, "cn.norm with ord 1, 2 or inf")


def _norm(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    order = node.option("ord")
    if order == math.inf:
        return _extreme(lambda *x: sp.Max(*map(sp.Abs, x)))(e, node, index, place)
    return _power_norm(order, lambda f: _summed(f)(e, node, index, place), node)


def _softmax(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    return sp.exp(_log_softmax(e, node, index, place))


def _log_softmax(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    (x,), shape = node.args, e.shape(node.args[0])
    axis = node.option("axis")[0] % len(shape)

    def along(a: Any) -> Any:
        return sp.exp(e.at(x, (*index[:axis], a, *index[axis + 1 :]), place))

    return e.at(x, index, place) - sp.log(e.total([shape[axis]], along, (*index, *place)))


def _logits(e: Entries, node: n.Node, index: tuple[Any, ...], place: Place) -> Callable[[Any], Any]:
    size = e.shape(node)[-1]
    whole = sp.log(e.total([size], lambda a: sp.exp(e.at(node, (*index, a), place)), (*index, *place)))
    return lambda a: e.at(node, (*index, a), place) - whole


def _entropy_logits(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    log_p = _logits(e, node.args[0], index, place)
    size = e.shape(node.args[0])[-1]
    return -e.total([size], lambda a: sp.exp(log_p(a)) * log_p(a), (*index, *place))


def _kl_logits(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    p, q = (_logits(e, x, index, place) for x in node.args)
    size = e.shape(node.args[0])[-1]
    return e.total([size], lambda a: sp.exp(p(a)) * (p(a) - q(a)), (*index, *place))


def _cross_entropy(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    scores, target = node.args
    log_p, size = _logits(e, scores, index, place), e.shape(scores)[-1]
    if e.shape(target):
        return -e.total([size], lambda a: e.at(target, (a,), place) * log_p(a), (*index, *place))
    chosen = e.at(target, (), place)
    if chosen.is_Integer:
        return -log_p(chosen)
    return -e.total([size], lambda a: sp.KroneckerDelta(a, chosen) * log_p(a), (*index, *place))


# ------------------------------------------------------------------------------------------- structure
def _index(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    shape, key = e.shape(node.args[0]), node.option("key")
    used = sum(1 for k in key if k not in ("...", None))
    left, found = list(index), []
    position = 0
    for k in key:
        if k == "...":
            found += [left.pop(0) for _ in range(len(shape) - used)]
            position = len(found)
        elif k is None:
            left.pop(0)
        else:
            found.append(_picked(k, shape[position], left))
            position += 1
    return e.at(node.args[0], (*found, *left), place)


def _picked(k: Any, size: int, left: list[Any]) -> Any:
    """The position along an axis of `size` that one part of an index means."""
    if isinstance(k, int):
        return sp.Integer(k % size)
    wanted = left.pop(0)
    if k[0] == "list":
        places = [p % size for p in k[1]]
        if wanted.is_Integer:
            return sp.Integer(places[int(wanted)])
        return sp.Piecewise(*((p, sp.Eq(wanted, i)) for i, p in enumerate(places)))
    positions = range(size)[slice(*k[1:])]
    return positions.start + positions.step * wanted


def _reshape(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    old, new = e.shape(node.args[0]), e.shape(node)
    if [s for s in old if s != 1] == [s for s in new if s != 1]:
        moving = iter([i for i, s in zip(index, new, strict=True) if s != 1])
        return e.at(node.args[0], tuple(sp.S.Zero if s == 1 else next(moving) for s in old), place)
    flat: Any = sp.S.Zero
    for i, size in zip(index, new, strict=True):
        flat = flat * size + i
    found: list[Any] = []
    for size in reversed(old):
        found.append(sp.Mod(flat, size))
        flat = sp.floor(flat / sp.Integer(size))
    return e.at(node.args[0], tuple(reversed(found)), place)


def _transpose(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    return e.at(node.args[0], index[::-1], place)


def _stack(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    first, rest = index[0], index[1:]
    if first.is_Integer:
        return e.at(node.args[int(first)], rest, place)
    return sp.Piecewise(*((e.at(x, rest, place), sp.Eq(first, i)) for i, x in enumerate(node.args)))


def _where(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    event, a, b = node.args
    values = [e.at(x, e.aligned(x, index), place) for x in (a, b)]
    return sp.Piecewise((values[0], e.condition(event, e.aligned(event, index), place)), (values[1], True))


def _take(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    table, codes = node.args
    code = e.at(codes, (), place)
    if e.levels(table):
        return e.at(table, index, (None, code))
    return e.at(table, (code, *index), (None, None))


# -------------------------------------------------------------------------------------------- products
def _matmul(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    a, b = node.args
    left, right = len(e.shape(a)), len(e.shape(b))
    outer = list(index)
    column = [outer.pop()] if right > 1 else []
    row = [outer.pop()] if left > 1 else []

    def term(k: Any) -> Any:
        at_a = (*outer[len(outer) - max(left - 2, 0) :], *row, k) if left > 2 else (*row, k)
        at_b = (*outer[len(outer) - max(right - 2, 0) :], k, *column) if right > 2 else (k, *column)
        return e.at(a, at_a, place) * e.at(b, at_b, place)

    return e.total([e.shape(a)[-1]], term, (*index, *place))


def _linear(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    x, weight, *bias = node.args
    vector = len(e.shape(weight)) == 1
    head, out = (index, ()) if vector else (index[:-1], index[-1:])

    def term(k: Any) -> Any:
        return e.at(x, (*head, k), place) * e.at(weight, (*out, k), place)

    product = e.total([e.shape(x)[-1]], term, (*index, *place))
    return product + (e.at(bias[0], out, place) if bias else 0)


def _einsum(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    inputs, _, output = node.option("equation").replace(" ", "").partition("->")
    terms = inputs.split(",")
    sizes = {c: s for t, x in zip(terms, node.args, strict=True) for c, s in zip(t, e.shape(x), strict=True)}
    fixed = dict(zip(output, index, strict=True))
    summed = [c for c in sizes if c not in fixed]

    def product(*along: Any) -> Any:
        at = {**fixed, **dict(zip(summed, along, strict=True))}
        parts = zip(node.args, terms, strict=True)
        return sp.Mul(*(e.at(x, tuple(at[c] for c in t), place) for x, t in parts))

    return e.total([sizes[c] for c in summed], product, (*index, *place))


def _quad_form(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    x, p = node.args
    size = e.shape(x)[-1]

    def term(a: Any, b: Any) -> Any:
        return e.at(x, (a,), place) * e.at(p, (a, b), place) * e.at(x, (b,), place)

    return e.total([size, size], term, (*index, *place))


def _trace(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    (x,) = node.args
    return e.total([e.shape(x)[0]], lambda a: e.at(x, (a, a), place), (*index, *place))


def _symmetric_part(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
    (x,) = node.args
    return (e.at(x, index, place) + e.at(x, (index[1], index[0]), place)) / 2


def _logdet(e: Entries, node: n.Apply, _index: tuple[Any, ...], place: Place) -> Any:
    (x,) = node.args
    size = e.shape(x)[0]
    if size > 4:
        raise no_form(f"the determinant of a {size} x {size} matrix", node, "a matrix of at most 4 x 4")
    matrix = sp.Matrix(size, size, lambda a, b: e.at(x, (sp.Integer(a), sp.Integer(b)), place))
    return sp.log(matrix.det())


# ---------------------------------------------------------------------------------------------- levels
def _over_levels(function: Callable[[list[Any], n.Apply], Any]) -> Callable[..., Any]:
    def found(e: Entries, node: n.Apply, index: tuple[Any, ...], place: Place) -> Any:
        (x,) = node.args
        each = [e.at(x, index, (place[0], level)) for level in range(len(e.levels(x)))]
        return function(each, node)

    return found


STRUCTURAL: dict[str, Callable[..., Any]] = {
    "sum": _sum,
    "mean": _mean,
    "max": _extreme(sp.Max),
    "min": _extreme(sp.Min),
    "logsumexp": _logsumexp,
    "norm": _norm,
    "sum_squares": _summed(lambda x: x**2),
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "entropy_logits": _entropy_logits,
    "kl_logits": _kl_logits,
    "cross_entropy": _cross_entropy,
    "index": _index,
    "reshape": _reshape,
    "transpose": _transpose,
    "stack": _stack,
    "where": _where,
    "take": _take,
    "matmul": _matmul,
    "linear": _linear,
    "einsum": _einsum,
    "quad_form": _quad_form,
    "trace": _trace,
    "logdet": _logdet,
    "symmetric_part": _symmetric_part,
    "max_levels": _over_levels(lambda x, _: sp.Max(*x)),
    "min_levels": _over_levels(lambda x, _: sp.Min(*x)),
    "sum_levels": _over_levels(lambda x, _: sp.Add(*x)),
    "mean_levels": _over_levels(lambda x, _: sp.Add(*x) / len(x)),
    "pick_levels": _over_levels(lambda x, node: x[node.option("place")]),
    "logsumexp_levels": _over_levels(lambda x, _: sp.log(sp.Add(*map(sp.exp, x)))),
    "sum_squares_levels": _over_levels(lambda x, _: sp.Add(*(v**2 for v in x))),
    "norm_levels": _over_levels(
        lambda x, node: (
            sp.Max(*map(sp.Abs, x))
            if node.option("ord") == math.inf
            else _power_norm(node.option("ord"), lambda f: sp.Add(*map(f, x)), node)
        )
    ),
}
"""By atom: of the translator, the node, the index, and the place."""
