"""Reads a program over `Variable`s as numbers, where each of its terms is a sum over single entries.

    objective      constant + sum_i  linear_i x_i + square_i x_i^2 + log_i log x_i + entropy_i x_i log x_i
    residuals      constant + sum_i  linear_i x_i + square_i x_i^2 + ...

However it is written: `cn.entr(p)`, `p * torch.log(p / q)`, `cn.sum_squares(x - a)`, `(x - a) @ (x - a)`,
averages over rows of data. What is read is exact; anything else is refused with a reason, and nothing is
approximated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from constrain._lazy import language_printing
from constrain.errors import DataError
from constrain.language import nodes as n
from constrain.language.types import type_of
from constrain.runtime import rowwise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from constrain.lowering.program import Part, Program
    from constrain.runtime.constants import Constants

__all__ = ["ENTROPY", "LINEAR", "LOG", "SQUARE", "NotSeparable", "Reader", "Sums", "refuse_early"]

Floats: TypeAlias = "NDArray[np.float64]"
Places: TypeAlias = "NDArray[np.int64]"

LINEAR, SQUARE, LOG, ENTROPY = range(4)
"""Kinds of summands in one entry x of the decisions: x, x^2, log x, x log x."""
LIMIT = 2_000_000
"""Summands beyond which a program is not read."""
_MOVED = ("index", "reshape", "transpose")
_SUMMED = ("sum", "mean", "trace")
_KNOWN = {
    *("add", "sub", "neg", "mul", "div", "pow", "square", "log", "entr", "rel_entr", "kl_div", "mse_loss"),
    *("matmul", "linear", "einsum", "sum_squares", "quad_form", "stack", *_MOVED, *_SUMMED),
}
"""Functions of decisions that can be read."""


class NotSeparable(Exception):
    """Why a program is not of this form, in a sentence."""


@dataclass(frozen=True)
class Sums:
    """An expression whose entries are sums of functions of single decisions.

    Attributes:
        constant: the rest, of the shape of the expression (rows or levels first).
        lead: number of axes in front that are rows or levels.
        at: (k,) entry of the expression that a summand belongs to, in row-major order.
        column: (k,) entry of the flat vector of decisions.
        kind: (k,) which function of it.
        weight: (k,) its factor.
    """

    constant: Floats
    lead: int
    at: Places
    column: Places
    kind: Places
    weight: Floats

    def coefficients(self, kind: int, size: int) -> Floats:
        """(size,) weights of one kind by decision, of an expression with one entry."""
        chosen = self.kind == kind
        return _binned(self.column[chosen], self.weight[chosen], size)

    def only(self, *kinds: int) -> bool:
        """Whether there are summands of these kinds only."""
        return bool(np.isin(self.kind[self.weight != 0], kinds).all())


# ------------------------------------------------------------------------------------ linear operations
def _binned(at: Places, weight: Floats, size: int) -> Floats:
    """(size,) sums of the weights by place."""
    return np.bincount(at, weight, minlength=size).astype(np.float64, copy=False)


def _gathered(e: Sums, source: Places, lead: int) -> Sums:
    """Entries at these positions of `e`, of their shape; positions may repeat."""
    flat = source.reshape(-1)
    if flat.size == e.constant.size and np.array_equal(flat, np.arange(flat.size)):
        return replace(e, constant=e.constant.reshape(source.shape), lead=lead)
    order = np.argsort(e.at, kind="stable")
    begins = np.searchsorted(e.at[order], np.arange(e.constant.size + 1))
    counts = np.diff(begins)[flat]
    _affordable(int(counts.sum()))
    at = np.repeat(np.arange(flat.size), counts)
    within = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
    picked = order[begins[flat][at] + within]
    constant = e.constant.reshape(-1)[flat].reshape(source.shape)
    return Sums(constant, lead, at, e.column[picked], e.kind[picked], e.weight[picked])


def _added_up(e: Sums, target: Places, shape: tuple[int, ...], lead: int) -> Sums:
    """Entries of `e` summed into those of an expression of this shape, at the positions `target`."""
    flat = target.reshape(-1)
    constant = _binned(flat, e.constant.reshape(-1), math.prod(shape)).reshape(shape)
    return Sums(constant, lead, flat[e.at], e.column, e.kind, e.weight)


def _scaled(e: Sums, factor: Floats | float) -> Sums:
    """Times a number, or constants of the same shape."""
    if isinstance(factor, np.ndarray):
        return replace(e, constant=e.constant * factor, weight=e.weight * factor.reshape(-1)[e.at])
    return replace(e, constant=e.constant * factor, weight=e.weight * factor)


def _total(a: Sums, b: Sums, sign: float = 1.0) -> Sums:
    """a + b or a - b, of one shape."""
    return Sums(
        a.constant + sign * b.constant,
        a.lead,
        np.concatenate([a.at, b.at]),
        np.concatenate([a.column, b.column]),
        np.concatenate([a.kind, b.kind]),
        np.concatenate([a.weight, sign * b.weight]),
    )


def _affordable(summands: int) -> None:
    if summands > LIMIT:
        raise NotSeparable(f"{summands:,} summands are more than {LIMIT:,}")


# ----------------------------------------------------------------------------------- products and logs
@dataclass(frozen=True)
class _Single:
    """Entries that depend on one decision each: constant + sum of weights[kind] * h_kind(x_column).

    Attributes:
        column: (size,) the decision, -1 where there is none.
        constant: (size,).
        weights: (4, size).
    """

    column: Places
    constant: Floats
    weights: Floats


def _single(e: Sums, node: n.Node) -> _Single:
    size = e.constant.size
    column = np.full(size, -1, dtype=np.int64)
    column[e.at] = e.column
    if not np.array_equal(column[e.at], e.column):
        raise NotSeparable(f"{_shown(node)} is a function of sums of decisions")
    weights = np.stack([_binned(e.at[e.kind == k], e.weight[e.kind == k], size) for k in range(4)])
    return _Single(column, e.constant.reshape(-1), weights)


def _sums(e: _Single, like: Sums) -> Sums:
    """A table of one decision per entry as sums, of the shape of another expression."""
    kind, at = np.nonzero(e.weights)
    return Sums(
        e.constant.reshape(like.constant.shape), like.lead, at, e.column[at], kind, e.weights[kind, at]
    )


def _product(a: Sums, b: Sums, node: n.Node) -> Sums:
    """a * b entry by entry, where both are functions of the same decision."""
    p, q = _single(a, node), _single(b, node)
    if ((p.column != q.column) & (p.column >= 0) & (q.column >= 0)).any():
        raise NotSeparable(f"{_shown(node)} multiplies different decisions")
    (px, ps, pl, pe), (qx, qs, ql, qe) = p.weights, q.weights
    high = (ps + pe) * (qx + qs + ql + qe), (px + pl) * (qs + qe), pl * ql
    if any(np.any(term) for term in high):
        raise NotSeparable(f"{_shown(node)} is of a higher order")
    weights = p.constant * q.weights + q.constant * p.weights
    weights[SQUARE] += px * qx
    weights[ENTROPY] += px * ql + pl * qx
    return _sums(_Single(np.maximum(p.column, q.column), p.constant * q.constant, weights), a)


def _log(e: Sums, node: n.Node) -> Sums:
    """Of entries a x_i with a > 0, or of positive constants."""
    p = _single(e, node)
    scale = p.weights[LINEAR]
    scaled, fixed = (p.column >= 0) & (scale > 0), (p.column < 0) & (p.constant > 0)
    bent = np.delete(p.weights, LINEAR, axis=0).any(axis=0) | ((p.column >= 0) & (p.constant != 0))
    if not (scaled | fixed).all() or bent.any():
        raise NotSeparable(f"{_shown(node)} is no logarithm of a positive multiple of one decision")
    weights = np.zeros_like(p.weights)
    weights[LOG, scaled] = 1.0
    return _sums(_Single(p.column, np.log(np.where(scaled, scale, p.constant)), weights), e)


def _entropy(e: Sums, node: n.Node) -> Sums:
    """e log e, which is 0 at 0."""
    zero = (e.constant == 0).reshape(-1)
    zero[e.at] = False
    if not zero.any():
        return _product(e, _log(e, node), node)
    ones = replace(e, constant=np.where(zero.reshape(e.constant.shape), 1.0, e.constant))
    return _product(e, _log(ones, node), node)


def _shown(node: n.Node) -> str:
    return str(language_printing().text(node, limit=60))


# ------------------------------------------------------------------------------------------- before that
_SINGLES = ("log", "entr", "rel_entr", "kl_div", "square", "pow", "mse_loss")
_PRODUCTS = ("mul", "matmul", "linear", "einsum")


def refuse_early(root: n.Node) -> None:
    """Refuses, without looking at a number, what is no sum of curved functions of single decisions.

    Raises:
        NotSeparable: with the reason.
    """
    curved: list[n.Node] = []

    def step(node: n.Node, parts: tuple[int, ...]) -> int:
        """0 where no decision occurs, 1 for at most one decision per entry, 2 for sums of them."""
        if isinstance(node, n.Decision):
            return 1
        if isinstance(node, (n.Call, n.Weights)) and not node.model.frozen:
            raise NotSeparable(f"the model {node.model.name} is trained")
        if not any(parts):
            return 0
        if isinstance(node, n.Moment):
            _refuse_rows(node)
            return 2
        if not isinstance(node, n.Apply) or node.atom not in _KNOWN:
            raise NotSeparable(f"{_shown(node)} is another function of decisions")
        moving = sum(part > 0 for part in parts)
        bends = node.atom in (*_SINGLES, "sum_squares", "quad_form") or (
            node.atom in _PRODUCTS and moving > 1
        )
        if bends and max(parts) > 1:
            raise NotSeparable(f"{_shown(node)} is a function of sums of decisions")
        if bends:
            curved.append(node)
        summed = node.atom in ("matmul", "linear", "einsum", "sum_squares", "quad_form", *_SUMMED)
        return 2 if summed else max(parts)

    n.fold(root, step)
    if not curved:
        raise NotSeparable("the objective is affine")


def _refuse_rows(node: n.Moment) -> None:
    """Refuses averages of decisions over more rows than are read."""
    if node.data.streamed:
        raise NotSeparable(f"the sample {node.data.name} streams")
    shapes = (type_of(x).shape for x in n.postorder(node.integrand))
    _affordable(len(node.data) * max(math.prod(shape or ()) for shape in shapes))


# ---------------------------------------------------------------------------------------------- reading
class Reader:
    """Reads expressions of one program.

    Args:
        program: the moment form.
        constants: evaluates what depends on no decision.
    """

    def __init__(self, program: Program, constants: Constants) -> None:
        self.constants = constants
        self.starts: dict[n.VariableSymbol, int] = {}
        self.size = 0
        for symbol in program.variables:
            self.starts[symbol] = self.size
            self.size += math.prod(symbol.shape)
        self._memo: dict[int, Sums | None] = {}

    def part(self, part: Part) -> Sums:
        """The residual of a part of a constraint.

        Raises:
            NotSeparable: with the reason.
        """
        if part.where is not None:
            raise NotSeparable(f"{part.constraint} holds on some rows only")
        return self.sums(part.residual)

    def sums(self, root: n.Node) -> Sums:
        """An expression as sums of functions of single decisions.

        Raises:
            NotSeparable: with the reason.
        """
        found = n.fold(root, self._step, self._memo)
        return self._fixed(root) if found is None else found

    # ---- one node; None where no decision occurs
    def _step(self, node: n.Node, parts: tuple[Sums | None, ...]) -> Sums | None:
        match node:
            case n.Decision(symbol=symbol):
                return self._decision(symbol)
            case n.Call(model=model) | n.Weights(model=model) if not model.frozen:
                raise NotSeparable(f"the model {model.name} is trained")
            case _ if all(part is None for part in parts):
                return None
            case n.Apply(atom=atom) if atom in _KNOWN:
                return self._apply(node, parts)
            case n.Moment() if parts[0] is not None and all(part is None for part in parts[1:]):
                return self._average(node, parts[0])
            case _:
                raise NotSeparable(f"{_shown(node)} is another function of decisions")

    def _decision(self, symbol: n.VariableSymbol) -> Sums:
        size = math.prod(symbol.shape)
        if symbol.integer or symbol.boolean:
            raise NotSeparable(f"{symbol.name} is integer")
        if symbol.levels is not None:
            raise NotSeparable(f"{symbol.name} is a hidden decision")
        everywhere = np.arange(size)
        kinds = np.full(size, LINEAR)
        return Sums(
            np.zeros(symbol.shape), 0, everywhere, self.starts[symbol] + everywhere, kinds, np.ones(size)
        )

    def _fixed(self, node: n.Node) -> Sums:
        """What depends on no decision."""
        try:
            value = np.asarray(self.constants.array(node), dtype=np.float64)
        except DataError as problem:  # said in full by the route that binds all columns
            raise NotSeparable(f"{_shown(node)} cannot be read") from problem
        if not np.isfinite(value).all():
            raise NotSeparable(f"{_shown(node)} is not finite")
        none = np.zeros(0, dtype=np.int64)
        return Sums(value, type_of(node).lead, none, none, none, np.zeros(0))

    def _operands(self, node: n.Apply, parts: Sequence[Sums | None]) -> list[Sums]:
        return [self._fixed(a) if p is None else p for a, p in zip(node.args, parts, strict=True)]

    def _alike(self, operands: Sequence[Sums]) -> list[Sums]:
        """Operands in one shape: axes of one row broadcast, those of rows or levels stay in front."""
        first = operands[0]
        if all(e.lead == first.lead and e.constant.shape == first.constant.shape for e in operands):
            return list(operands)
        lead = max(e.lead for e in operands)
        rank = max(e.constant.ndim - e.lead for e in operands)
        grown = [(*e.constant.shape[: e.lead], *([1] * (rank - e.constant.ndim + e.lead)),
                  *e.constant.shape[e.lead :]) for e in operands]  # fmt: skip
        shape = np.broadcast_shapes(*grown)
        _affordable(math.prod(shape))
        found: list[Sums] = []
        for e, own in zip(operands, grown, strict=True):
            places = np.broadcast_to(np.arange(e.constant.size).reshape(own), shape)
            found.append(_gathered(e, places, lead))
        return found

    def _apply(self, node: n.Apply, parts: tuple[Sums | None, ...]) -> Sums:  # one case per function
        atom = node.atom
        if atom in _MOVED:
            return self._moved(node, self._operands(node, parts)[0])
        if atom in _SUMMED:
            return self._summed(node, self._operands(node, parts)[0])
        if atom in ("matmul", "linear", "einsum"):
            return self._contracted(node, parts)
        if atom in ("sum_squares", "quad_form"):
            return self._quadratic(node, parts)
        if atom == "stack":
            return self._stacked(node, parts)
        return self._elementwise(node, self._alike(self._operands(node, parts)))

    def _elementwise(self, node: n.Apply, e: list[Sums]) -> Sums:  # one case per function
        match node.atom:
            case "add" | "sub":
                return _total(e[0], e[1], 1.0 if node.atom == "add" else -1.0)
            case "neg":
                return _scaled(e[0], -1.0)
            case "mul":
                return _multiplied(e[0], e[1], node)
            case "div" if not e[1].at.size and e[1].constant.all():
                return _scaled(e[0], 1.0 / e[1].constant)
            case "square":
                return _product(e[0], e[0], node)
            case "pow" if not e[1].at.size and (e[1].constant == 2).all():
                return _product(e[0], e[0], node)
            case "mse_loss":
                difference = _total(e[0], e[1], -1.0)
                return _product(difference, difference, node)
            case "log":
                return _log(e[0], node)
            case "entr":
                return _scaled(_entropy(e[0], node), -1.0)
            case "rel_entr" | "kl_div":
                found = _total(_entropy(e[0], node), self._cross(e[0], e[1], node), -1.0)
                return found if node.atom == "rel_entr" else _total(_total(found, e[0], -1.0), e[1])
            case _:
                raise NotSeparable(f"{_shown(node)} is another function of decisions")

    def _cross(self, p: Sums, q: Sums, node: n.Node) -> Sums:
        """p log q; its weight is -inf where a positive multiple of one decision meets q = 0."""
        zero = (q.constant == 0).reshape(-1)
        if q.at.size or not zero.any():
            return _multiplied(p, _log(q, node), node)
        if (zero & (p.constant.reshape(-1) > 0)).any():
            raise NotSeparable(f"{_shown(node)} is infinite")
        found = _multiplied(
            p, _log(replace(q, constant=np.where(q.constant == 0, 1.0, q.constant)), node), node
        )
        return replace(found, weight=np.where(zero[found.at], -np.inf, found.weight))

    def _moved(self, node: n.Apply, e: Sums) -> Sums:
        """The same entries elsewhere; torch's own function tells where."""
        places = torch.arange(e.constant.size).reshape(e.constant.shape)
        function = getattr(rowwise, node.atom)
        moved: torch.Tensor = function(places, **dict(node.options), lead=(e.lead,))
        return _gathered(e, moved.numpy(), e.lead)

    def _summed(self, node: n.Apply, e: Sums) -> Sums:
        if node.atom == "trace":
            places = np.arange(e.constant.size).reshape(e.constant.shape)
            diagonal = _gathered(e, np.diagonal(places, axis1=-2, axis2=-1), e.lead)
            return _reduced(diagonal, (-1,), keepdims=False)
        found = _over_axes(node, e)
        return found if node.atom == "sum" else _scaled(found, found.constant.size / max(e.constant.size, 1))

    def _quadratic(self, node: n.Apply, parts: tuple[Sums | None, ...]) -> Sums:
        if node.atom == "sum_squares":
            (e,) = self._operands(node, parts)
            return _over_axes(node, _product(e, e, node))
        e, form = self._operands(node, parts)
        diagonal = np.diagonal(form.constant, axis1=-2, axis2=-1)
        if form.at.size or form.lead or np.any(form.constant - np.diag(diagonal)):
            raise NotSeparable(f"{_shown(node)} has products of different decisions")
        squares = _product(e, e, node)
        return _reduced(_scaled(squares, np.broadcast_to(diagonal, e.constant.shape)), (-1,), keepdims=False)

    def _contracted(self, node: n.Apply, parts: tuple[Sums | None, ...]) -> Sums:
        """`@`, `einsum` and linear layers with one factor that moves, as products that are summed."""
        e = self._operands(node, parts)
        if node.atom == "einsum":
            terms, _, output = node.option("equation").replace(" ", "").partition("->")
            return _einsum(terms.split(","), output, e, node)
        if node.atom == "linear":
            rank = e[0].constant.ndim - e[0].lead
            front = "abcdefgh"[: rank - 1]
            bent = e[1].constant.ndim == 2
            product = _einsum([f"{front}z", "yz" if bent else "z"], front + "y" * bent, e[:2], node)
            if len(e) == 2:
                return product
            product, bias = self._alike([product, e[2]])
            return _total(product, bias)
        (a, b) = (x.constant.ndim - x.lead for x in e)
        if a > 2 or b > 2:
            raise NotSeparable(f"{_shown(node)} multiplies stacks of matrices")
        left, right = "xy"[2 - a :] if a > 1 else "y", "yz"[:b]
        return _einsum([left, right], left.replace("y", "") + right.replace("y", ""), e, node)

    def _stacked(self, node: n.Apply, parts: tuple[Sums | None, ...]) -> Sums:
        e = self._alike(self._operands(node, parts))
        lead, size = e[0].lead, e[0].constant.size
        constant = np.stack([x.constant for x in e], axis=lead)
        places = np.moveaxis(np.arange(size * len(e)).reshape(len(e), *e[0].constant.shape), 0, lead)
        where = np.empty(places.size, dtype=np.int64)
        where[places.reshape(-1)] = np.arange(places.size)
        at = np.concatenate([where[k * size + x.at] for k, x in enumerate(e)])
        joined = [np.concatenate([getattr(x, name) for x in e]) for name in ("column", "kind", "weight")]
        return Sums(constant, lead, at, *joined)

    def _average(self, node: n.Moment, e: Sums) -> Sums:
        """Weighted sums over rows, one per level."""
        averaging = self.constants.averaging(node)
        rows = averaging.matrix.tocoo()
        width = math.prod(e.constant.shape[1:])
        places = rows.col[:, None] * width + np.arange(width)
        picked = _gathered(e, places, 1)
        weighted = _scaled(picked, np.broadcast_to(rows.data[:, None], places.shape))
        levels = averaging.matrix.shape[0]
        target = rows.row[:, None] * width + np.arange(width)
        shape = (levels, *e.constant.shape[1:])
        found = _added_up(weighted, target, shape, 1)
        if averaging.leveled:
            return found
        return replace(found, constant=found.constant.reshape(e.constant.shape[1:]), lead=0)


def _multiplied(a: Sums, b: Sums, node: n.Node) -> Sums:
    """a * b, of one shape."""
    if a.at.size and b.at.size:
        return _product(a, b, node)
    return _scaled(a, b.constant) if not b.at.size else _scaled(b, a.constant)


def _reduced(e: Sums, axes: tuple[int, ...], *, keepdims: bool) -> Sums:
    """Sums over axes."""
    shape = list(e.constant.shape)
    for axis in axes:
        shape[axis] = 1
    kept = np.arange(math.prod(shape)).reshape(shape)
    target = np.broadcast_to(kept, e.constant.shape)
    found = _added_up(e, target, tuple(shape), e.lead)
    if keepdims:
        return found
    dropped = {axis % e.constant.ndim for axis in axes}
    rest = tuple(length for i, length in enumerate(shape) if i not in dropped)
    return replace(found, constant=found.constant.reshape(rest))


def _over_axes(node: n.Apply, e: Sums) -> Sums:
    """Sums over the axes that a reduction names; over all axes of one row where it names none."""
    axes = node.option("axis")
    axes = tuple(range(e.lead - e.constant.ndim, 0)) if axes is None else axes
    return _reduced(e, axes, keepdims=bool(node.option("keepdims", False)))


def _einsum(terms: Sequence[str], output: str, operands: Sequence[Sums], node: n.Node) -> Sums:
    """Products over all letters, summed over those that the output lacks."""
    lead = max(e.lead for e in operands)
    rows = "*" * lead
    letters = rows + output + "".join(sorted(set("".join(terms)) - set(output)))
    sizes: dict[str, int] = {}
    named = [("*" * e.lead) + term for e, term in zip(operands, terms, strict=True)]
    for e, term in zip(operands, named, strict=True):
        if len(set(term)) < len(term):
            raise NotSeparable(f"{_shown(node)} repeats a letter")
        sizes |= dict(zip(term, e.constant.shape, strict=True))
    shape = tuple(sizes[letter] for letter in letters)
    _affordable(math.prod(shape))
    spread: list[Sums] = []
    for e, term in zip(operands, named, strict=True):
        places: Any = np.arange(e.constant.size).reshape(e.constant.shape)
        order = [term.index(letter) for letter in letters if letter in term]
        own = tuple(sizes[letter] if letter in term else 1 for letter in letters)
        spread.append(_gathered(e, np.broadcast_to(places.transpose(order).reshape(own), shape), lead))
    found = spread[0]
    for other in spread[1:]:
        found = _multiplied(found, other, node)
    summed = tuple(range(lead + len(output) - len(letters), 0))
    return _reduced(found, summed, keepdims=False) if summed else found
