"""Curvature of the atoms that the table calls `special`: it depends on their values or signs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from constrain.analysis.fact import Fact, blocked, compose, largest_form, scaled, shown, unknown
from constrain.language import nodes as n
from constrain.language.types import type_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PSD_TOLERANCE", "SPECIAL", "constant_value", "quadratic_sign", "variance_of"]

PSD_TOLERANCE = 1e-9
"""A symmetric matrix counts as positive semidefinite when its least eigenvalue is >= -tolerance * largest."""

Rule: TypeAlias = Callable[[n.Apply, tuple[Fact, ...]], Fact]


# --------------------------------------------------------------------------------------- constants
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "matmul": np.matmul,
    "pow": np.power,
    "transpose": np.transpose,
}


def constant_value(root: n.Node) -> NDArray[Any] | None:
    """The value of a constant made of numbers, arrays and parameters by arithmetic; None for others."""

    def step(node: n.Node, parts: tuple[NDArray[Any] | None, ...]) -> NDArray[Any] | None:
        match node:
            case n.Constant(value=value):
                return np.asarray(value)
            case n.Array(symbol=symbol) | n.Knob(symbol=symbol) if symbol.value is not None:
                value = symbol.value
                return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
            case n.Apply(atom=atom) if atom in _ARITHMETIC:
                known = [part for part in parts if part is not None]
                return _ARITHMETIC[atom](*known) if len(known) == len(parts) else None
            case _:
                return None

    return n.fold(root, step)


def _number(node: n.Node) -> float | None:
    """The value of a constant with a single (or always the same) entry."""
    value = constant_value(node)
    if value is None or value.dtype.kind not in "biuf" or value.size == 0 or (value != value.flat[0]).any():
        return None
    return float(value.flat[0])


# ---------------------------------------------------------------------------------- powers, quotients
def _pow(node: n.Apply, parts: tuple[Fact, ...]) -> Fact:
    base, exponent = parts
    if base.constant:
        return _exponential(node, base, exponent)
    if not exponent.constant:
        return unknown(f"{shown(node)}: base and exponent depend on decisions", node)
    p = _number(node.args[1])
    if p is None:
        return unknown(f"{shown(node)}: the exponent is no known single number", node)
    return _power(node, node.args[0], base, p)


def _exponential(node: n.Apply, base: Fact, exponent: Fact) -> Fact:
    """c**e for a positive constant c is exp(e log c)."""
    if base.bounds.low <= 0:
        return unknown(f"{shown(node)} is convex only for a positive base", node)
    kind = "up" if base.bounds.low >= 1 else "down" if base.bounds.high <= 1 else "none"
    return replace(compose(node, (base, exponent), "convex", ("none", kind)), form="general")


def _power(node: n.Apply, arg: n.Node, base: Fact, p: float) -> Fact:
    """arg**p for a number p."""
    if p == 0:
        return Fact("constant")
    if p == 1:
        return base
    whole = p == int(p)
    if whole and p > 0 and p % 2 == 0:
        form = "quadratic" if p == 2 and base.affine else "general"
        fact = compose(node, (base,), "convex", ("by-sign",), (arg,))
    elif 0 < p < 1:
        form, fact = "general", compose(node, (base,), "concave", ("up",), (arg,))
    elif whole and base.sign not in ("nonneg", "zero") and base.curvature != "unknown":
        text = f"{shown(node)} is convex only where {shown(arg)} >= 0, which is not known"
        return unknown(text, node)
    else:
        form, fact = "general", compose(node, (base,), "convex", ("up" if p > 1 else "down",), (arg,))
    return fact if fact.curvature == "unknown" else replace(fact, form=form)


def _reciprocal(node: n.Apply, parts: tuple[Fact, ...]) -> Fact:
    return _power(node, node.args[0], parts[0], -1.0)


def _div(node: n.Apply, parts: tuple[Fact, ...]) -> Fact:
    top, bottom = parts
    passed = blocked(parts)
    if passed is not None:
        return passed
    if bottom.constant:
        return scaled(node.args[0], top, bottom.bounds, node.args[1])
    if not top.constant:
        return unknown(f"{shown(node)} is a quotient of two expressions that depend on decisions", node)
    return scaled(node, _power(node, node.args[1], bottom, -1.0), top.bounds, node.args[0])


# -------------------------------------------------------------------------------------------- losses
def _targets(node: n.Apply, parts: tuple[Fact, ...], low: float, high: float) -> Fact | None:
    """The refusal when the targets of a loss move, or leave the interval where it is convex."""
    passed = blocked(parts)
    if passed is not None:
        return passed
    target = parts[1]
    if not target.constant:
        return unknown(f"the targets {shown(node.args[1])} of {node.atom} depend on decisions", node)
    if target.bounds.low < low or target.bounds.high > high:
        return unknown(f"{node.atom} is convex only for targets in [{low:g}, {high:g}]", node)
    return None


def _logits(node: n.Apply, parts: tuple[Fact, ...]) -> Fact:
    """log(1 + exp(s)) - y s: convex in affine logits for any constant target."""
    refused = _targets(node, parts, -np.inf, np.inf)
    return refused or replace(compose(node, parts, "convex", ("none", "none")), form="general")


def _probabilities(node: n.Apply, parts: tuple[Fact, ...]) -> Fact:
    """-y log p - (1 - y) log(1 - p): convex in affine probabilities for targets in [0, 1]."""
    refused = _targets(node, parts, 0.0, 1.0)
    return refused or replace(compose(node, parts, "convex", ("none", "none")), form="general")


def _cross_entropy(node: n.Apply, parts: tuple[Fact, ...]) -> Fact:
    """logsumexp(s) - s[y], or -sum(q log_softmax(s)) with a distribution q: convex in affine scores."""
    from_distribution = bool(_shape_of(node.args[1]))
    refused = _targets(node, parts, 0.0 if from_distribution else -np.inf, np.inf)
    return refused or replace(compose(node, parts, "convex", ("none", "none")), form="general")


def _shape_of(node: n.Node) -> tuple[int, ...]:
    return type_of(node).shape or ()


# -------------------------------------------------------------------------------------------- choice
def _where(node: n.Apply, parts: tuple[Fact, ...]) -> Fact:
    event, *branches = parts
    if not event.constant:
        return unknown(f"{shown(node)} switches on an event that depends on decisions", node)
    fact = compose(node, branches, "affine", ("up",), node.args[1:])
    return fact if fact.curvature == "unknown" else replace(fact, form=largest_form(branches))


# ------------------------------------------------------------------------------------------- matrices
def quadratic_sign(matrix: NDArray[Any]) -> tuple[float, float]:
    """Least and largest eigenvalue of the symmetric part."""
    values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    return float(values[0]), float(values[-1])


def _quad_form(node: n.Apply, parts: tuple[Fact, ...]) -> Fact:
    vector, matrix = parts
    passed = blocked(parts)
    if passed is not None:
        return passed
    if vector.constant:
        return (
            compose(node, parts, "affine", ("none",))
            if matrix.affine
            else _indefinite(node, "its matrix is curved")
        )
    if not matrix.constant:
        return _indefinite(node, "the vector and the matrix depend on decisions")
    value = constant_value(node.args[1])
    if value is None:
        return _indefinite(node, f"the entries of {shown(node.args[1])} are not known")
    if not vector.affine:
        return _indefinite(node, f"{shown(node.args[0])} is {vector.curvature}, not affine")
    least, largest = quadratic_sign(value)
    slack = PSD_TOLERANCE * max(abs(least), abs(largest))
    if least >= -slack:
        return Fact("convex", "quadratic", source=node)
    if largest <= slack:
        return Fact("concave", "quadratic", source=node)
    return _indefinite(node, f"the eigenvalues of its matrix run from {least:.4g} to {largest:.4g}")


# ------------------------------------------------------------------------------------------ variance
def variance_of(node: n.Apply) -> n.Moment | None:
    """The average of d when a variance (or deviation) is made of the averages of d^2 and d.

    None when it is not: averages over a condition that depends on decisions are quotients.
    """
    second, first = node.args
    if not isinstance(second, n.Moment) or not isinstance(first, n.Moment):
        return None
    square = second.integrand
    alike = isinstance(square, n.Apply) and square.atom == "square" and square.args[0] == first.integrand
    same = (second.data, second.given, second.by) == (first.data, first.given, first.by)
    return first if alike and same else None


def _variance(node: n.Apply, parts: tuple[Fact, ...]) -> Fact:
    """The variance of an affine expression is a convex quadratic, its square root a seminorm."""
    passed = blocked(parts)
    if passed is not None:
        return passed
    if variance_of(node) is None:
        return unknown(f"{shown(node)} is a variance over rows that depend on decisions", node)
    if not parts[1].affine:
        text = f"the variance is convex only in affine expressions, and its argument is {parts[1].curvature}"
        return unknown(f"{shown(node)}: {text}", node)
    return Fact("convex", "quadratic" if node.atom == "variance" else "general", source=node)


def _kl_logits(node: n.Apply, parts: tuple[Fact, ...]) -> Fact:
    """logsumexp(q) - <softmax(p), q> + constant: convex in affine logits q for fixed logits p."""
    passed = blocked(parts)
    if passed is not None:
        return passed
    if not parts[0].constant:
        text = f"{shown(node)} is convex in its second logits only, and the first depend on decisions"
        return unknown(f"{text}: {shown(node.args[0])}", node)
    return replace(compose(node, parts, "convex", ("none", "none")), form="general")


def _indefinite(node: n.Apply, why: str) -> Fact:
    return unknown(f"{shown(node)} is neither convex nor concave: {why}", node)


def _symmetric(node: n.Node) -> bool:
    """Whether matrices (the last two axes) are symmetric as they are written."""
    match node:
        case n.Constant():
            return True
        case n.Array():
            value = constant_value(node)
            if value is None or value.ndim < 2:
                return False
            return bool(np.array_equal(value, value.swapaxes(-1, -2)))
        case n.Decision(symbol=symbol):
            return symbol.symmetric
        case n.Apply(atom="symmetric_part"):
            return True
        case n.Apply(atom="matmul", args=(a, b)):
            return _symmetric_product(a, b)
        case n.Apply(args=args):
            return _symmetric_combination(node, args)
        case _:
            return False


def _symmetric_combination(node: n.Apply, args: Sequence[n.Node]) -> bool:
    """Of e + e', and of sums and multiples of symmetric matrices."""
    match node.atom, args:
        case "add", (a, b) if _transposed(a) == b or _transposed(b) == a:
            return True
        case "add" | "sub", (a, b):
            return _symmetric(a) and _symmetric(b)
        case "neg", (a,):
            return _symmetric(a)
        case "div", (a, b):
            return _symmetric(a) and _shape_of(b) == ()
        case "mul", (a, b) if _diagonal(a) or _diagonal(b):
            return True
        case "mul", (a, b):
            return all(_symmetric(x) or _shape_of(x)[-2:] in ((), (1, 1)) for x in (a, b))
        case "sum", (a,):
            axes = node.option("axis")
            return axes is not None and max(axes) < -2 and not node.option("keepdims") and _symmetric(a)
        case _:
            return False


def _diagonal(node: n.Node) -> bool:
    value = constant_value(node) if isinstance(node, n.Array) else None
    if value is None or value.ndim != 2 or value.shape[0] != value.shape[1] or len(value) == 1:
        return False
    return bool(np.array_equal(value, np.diag(np.diag(value))))


def _symmetric_product(a: n.Node, b: n.Node) -> bool:
    """Of L S L' with a symmetric S, and of L diag(v) L', written as (L * v) @ L' or L @ (v[:, None] * L')."""
    match a, b:
        case n.Apply(atom="matmul", args=(left, middle)), _:
            return _mirrored(left, b) and _symmetric(middle)
        case n.Apply(atom="mul", args=(x, y)), _:
            return any(_mirrored(left, b) and len(_shape_of(v)) == 1 for left, v in ((x, y), (y, x)))
        case _, n.Apply(atom="mul", args=(x, y)):
            return any(_mirrored(a, right) and _shape_of(v)[1:] == (1,) for right, v in ((x, y), (y, x)))
        case _:
            return False


def _transposed(node: n.Node) -> n.Node | None:
    return node.args[0] if isinstance(node, n.Apply) and node.atom == "transpose" else None


def _mirrored(a: n.Node, b: n.Node) -> bool:
    """Whether one matrix is the transpose of the other."""
    if _transposed(a) == b or _transposed(b) == a:
        return True
    left, right = (constant_value(node) if isinstance(node, n.Array) else None for node in (a, b))
    return left is not None and right is not None and left.ndim == 2 and bool(np.array_equal(left.T, right))


def _logdet(node: n.Apply, parts: tuple[Fact, ...]) -> Fact:
    if parts[0].curvature == "unknown":
        return parts[0]
    if not _symmetric(node.args[0]):
        matrix = shown(node.args[0])
        text = f"log det is concave on symmetric matrices; {matrix} is not symmetric as it is written"
        return unknown(text, node)
    return replace(compose(node, parts, "concave", ("none",)), form="general")


SPECIAL: dict[str, Rule] = {
    "pow": _pow,
    "div": _div,
    "reciprocal": _reciprocal,
    "binary_cross_entropy_with_logits": _logits,
    "binary_cross_entropy": _probabilities,
    "cross_entropy": _cross_entropy,
    "where": _where,
    "quad_form": _quad_form,
    "logdet": _logdet,
    "variance": _variance,
    "deviation": _variance,
    "kl_logits": _kl_logits,
}
"""One rule per special atom: the application and the facts of its arguments to the fact of its value."""
