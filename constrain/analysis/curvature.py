"""Sign and curvature of expressions, with a reason for every "no".

Functions of the atom table compose by the rules of `fact.py`; those that the table calls `special` have a
rule of their own in `special.py`. Averages (`Moment`) have nonnegative weights and keep the curvature of what
they average.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from constrain.analysis.bounds import (
    ANYTHING,
    Bounds,
    apply_bounds,
    bounds_of_column,
    bounds_of_value,
    variable_bounds,
)
from constrain.analysis.events import event_bounds
from constrain.analysis.fact import (
    Fact,
    Form,
    blocked,
    compose,
    is_square,
    largest_form,
    scaled,
    shown,
    unknown,
)
from constrain.analysis.models import output_bounds, refusal_of
from constrain.analysis.once import once
from constrain.analysis.special import SPECIAL
from constrain.language import nodes as n
from constrain.language.atoms import ATOMS

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["analyze", "facts_of"]

_PIECEWISE = {"abs", "relu", "maximum", "minimum", "max", "min", "l1_loss", "max_levels", "min_levels"}
_QUADRATIC = {"square", "sum_squares", "mse_loss", "sum_squares_levels"}
_NORMS = ("norm", "norm_levels")


def _form(node: n.Apply, fact: Fact, parts: Sequence[Fact]) -> Form:
    """The family of a function's value."""
    if fact.affine:
        return "affine"
    inner = largest_form(parts)
    if ATOMS[node.atom].curvature == "affine":
        return inner
    corners = node.atom in _NORMS and node.option("ord") in (1.0, float("inf"))
    piecewise = node.atom in _PIECEWISE or corners
    if piecewise and inner in ("affine", "piecewise"):
        return "piecewise"
    return "quadratic" if node.atom in _QUADRATIC and inner in ("affine", "piecewise") else "general"


def _multilinear(node: n.Apply, parts: Sequence[Fact]) -> Fact:
    """Affine in each argument when the others are constant."""
    passed = blocked(parts)
    if passed is not None:
        return passed
    moving = [i for i, part in enumerate(parts) if not part.constant]
    if not moving:
        return Fact("constant")
    if node.atom == "linear" and len(parts) == 3:
        product = _multilinear(n.Apply("linear", node.args[:2], loc=node.loc), parts[:2])
        return compose(
            n.Apply("add", (node.args[0], node.args[2]), loc=node.loc), (product, parts[2]), "affine", ("up",)
        )
    if len(moving) > 1:
        return _self_product(node, parts)
    (place,) = moving
    fact, arg = parts[place], node.args[place]
    for i, (other, part) in enumerate(zip(node.args, parts, strict=True)):
        if i != place and fact.curvature != "unknown":
            fact = scaled(arg, fact, part.bounds, other)
    return fact


def _self_product(node: n.Apply, parts: Sequence[Fact]) -> Fact:
    if is_square(node):
        squared = compose(node, parts[:1], "convex", ("by-sign",))
        return (
            replace(squared, form="quadratic" if parts[0].affine else "general")
            if squared.affine is False
            else squared
        )
    moving = [arg for arg, part in zip(node.args, parts, strict=True) if not part.constant]
    text = f"{shown(node)} is a product of two expressions that depend on decisions"
    return unknown(f"{text}: {shown(moving[0], 30)} and {shown(moving[1], 30)}", node)


# ---------------------------------------------------------------------------------------- per node
def _apply(node: n.Apply, parts: tuple[Fact, ...]) -> Fact:
    atom = ATOMS[node.atom]
    bounds = apply_bounds(node, [part.bounds for part in parts])
    if is_square(node):
        bounds = Bounds(max(bounds.low, 0.0), bounds.high)
    if all(part.constant for part in parts):
        return Fact("constant", bounds=bounds)
    if atom.curvature == "multilinear":
        return _multilinear(node, parts).within(bounds)
    if atom.curvature == "special":
        return SPECIAL[node.atom](node, parts).within(bounds)
    passed = blocked(parts)
    if passed is not None:
        return passed.within(bounds)
    if atom.curvature == "none":
        moving = next(arg for arg, part in zip(node.args, parts, strict=True) if not part.constant)
        text = f"{shown(node)} is neither convex nor concave in {shown(moving)}"
        return unknown(text, node).within(bounds)
    if node.atom in _NORMS and float(node.option("ord", 2.0)) < 1:
        return unknown(f"{shown(node)} is no norm: its order is below 1", node).within(bounds)
    if atom.declared is not None:
        leaves = _leaves_domain(node, parts, atom.declared.domain)
        if leaves is not None:
            return unknown(leaves, node).within(bounds)
    fact = compose(node, parts, atom.curvature, atom.monotone)
    return replace(
        fact, form=_form(node, fact, parts) if fact.curvature != "unknown" else "general", bounds=bounds
    )


def _leaves_domain(node: n.Apply, parts: Sequence[Fact], domain: Sequence[tuple[float, float]]) -> str | None:
    """Why an argument may be where the curvature of a declared function is not claimed, in a sentence."""
    for arg, part, (low, high) in zip(node.args, parts, domain, strict=True):
        if part.bounds.low < low or part.bounds.high > high:
            held = f"[{part.bounds.low:g}, {part.bounds.high:g}]"
            return (
                f"{node.atom} is {ATOMS[node.atom].curvature} on [{low:g}, {high:g}], "
                f"and {shown(arg)} is known to be in {held} only"
            )
    return None


def _event(node: n.Node, parts: tuple[Fact, ...]) -> Fact:
    if all(part.constant for part in parts):
        return Fact("constant", bounds=Bounds(0.0, 1.0))
    text = f"the event {shown(node)} depends on decisions: its rate jumps and is not convex"
    match node:
        case n.Comparison(lhs=n.Apply(atom="div", args=(n.Apply(atom="sub", args=(g, _)), scale))) if (
            n.mentions(scale, n.Pinned)
        ):
            text = f"the quantile of {shown(g)} depends on decisions: like a rate it is not convex"
        case _:
            pass
    return unknown(text, node).within(event_bounds(node, parts))


def _call(node: n.Call, parts: tuple[Fact, ...]) -> Fact:
    if not all(part.constant for part in parts):
        return unknown(f"{shown(node)}: the model {node.model.name} is applied to decisions", node)
    if node.model.frozen:
        return Fact("constant")
    refusal = refusal_of(node.model.module)
    if refusal is None:
        return Fact("affine")
    return unknown(f"{node.model.name} is not affine in its weights: {refusal}", node)


def _gradient(node: n.Gradient, arg: Fact) -> Fact:
    """A derivative is linear in what is differentiated: affine stays affine, curvature is lost."""
    if arg.affine or arg.curvature == "unknown":
        return arg.within(ANYTHING)
    return unknown(f"{shown(node)} is a derivative of what is {arg.curvature} in the decisions", node)


def _opaque(node: n.Opaque, parts: tuple[Fact, ...]) -> Fact:
    """A torch function of which nothing is known, or the optimal value of an inner problem, which knows."""
    if all(part.constant for part in parts):
        return Fact("constant")
    known: Any = getattr(node.function, "curvature", None)
    if known is None:
        return unknown(f"{node.path} is not in the table of functions whose curvature is known", node)
    passed = blocked(parts)
    if passed is not None:
        return passed
    if known.curve == "unknown":
        return unknown(f"nothing is known about the curvature of {shown(node)}: {known.reason}", node)
    for arg, part in zip(n.children(node), parts, strict=True):
        if not part.affine:
            text = f"{shown(node)} is {known.curve} in its parameters, and {shown(arg)} is not affine in the "
            return unknown(text + "decisions", node)
    return Fact(known.curve, "general", source=node)


def _statistic(node: n.Statistic, parts: tuple[Fact, ...]) -> Fact:
    """Bounds of a statistic before it is lowered; its curvature is that of what it is lowered to."""
    if node.kind in ("CVaR", "Quantile"):
        bounds = parts[0].bounds
    else:
        bounds = {"Var": Bounds(0.0, float("inf")), "Corr": Bounds(-1.0, 1.0)}.get(node.kind, ANYTHING)
    if all(part.constant for part in parts):
        return Fact("constant", bounds=bounds)
    return unknown(f"{shown(node)} is not lowered yet", node).within(bounds)


def _step(node: n.Node, parts: tuple[Fact, ...]) -> Fact:  # noqa: PLR0911, PLR0912  # one per kind of node
    match node:
        case n.Constant(value=value):
            return Fact("constant", bounds=bounds_of_value(value))
        case n.Array(symbol=symbol) | n.Knob(symbol=symbol):
            value = symbol.value
            return Fact("constant", bounds=ANYTHING if value is None else bounds_of_value(value))
        case n.Column(data=data, name=name):
            return Fact("constant", bounds=bounds_of_column(data, name))
        case n.Codes() | n.Pinned():
            return Fact("constant")
        case n.Statistic():
            return _statistic(node, parts)
        case n.Decision(symbol=symbol):
            return Fact("affine", bounds=variable_bounds(symbol))
        case n.Weights(model=model):
            return Fact("constant" if model.frozen else "affine")
        case n.Call():
            return _call(node, parts).within(Bounds(*output_bounds(node.model.module)))
        case n.Gradient():
            return _gradient(node, parts[0])
        case n.Apply():
            return _apply(node, parts)
        case n.Opaque():
            return _opaque(node, parts)
        case n.Comparison() | n.Logic():
            return _event(node, parts)
        case n.Indicator() | n.Rate():
            return parts[0]
        case n.Mean() | n.Moment():
            return parts[0]
        case _:
            raise AssertionError(type(node))


@once
def facts_of(program: object) -> dict[int, Fact]:  # noqa: ARG001  # the object that it belongs to
    """The `memo` of the expressions of a program: one within a solve, which fills as these are analyzed."""
    return {}


def analyze(root: n.Node, memo: dict[int, Fact] | None = None) -> Fact:
    """Sign and curvature of an expression.

    Args:
        root: any node but a relation (`ForAll`, `Between`).
        memo: facts of nodes already seen, by `id`; pass one dict for all expressions of a program
            (`facts_of`), whose nodes stay.
    """
    return n.fold(root, _step, memo)
