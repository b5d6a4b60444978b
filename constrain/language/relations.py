"""What is done to a whole constraint: relaxing it at a cost, and saying in which units it is measured.

A relaxed constraint `c <= 0` reads `c <= z` with a slack z >= 0 that costs h(z), added to the objective of a
minimization (subtracted from that of a maximization). There is one slack per entry of the constraint as it
is written: one for `cn.max(e) <= b`, one per level of a block, one per row of `forall`, where the costs of
the rows are added up. At the optimum the multiplier is the marginal cost of relaxing, h'(z): the constraint
gives way exactly as far as its shadow price is worth it.

Source: Hounie, Porras-Valls, Chamon and Ribeiro (2023), Resilient Constrained Learning, NeurIPS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from constrain.errors import ModelingError
from constrain.language import nodes as n
from constrain.language.expr import Constraint, Expr, as_node, code, shown
from constrain.language.keywords import keywords
from constrain.language.location import here

if TYPE_CHECKING:
    from constrain.language.location import Location

__all__ = ["COSTS", "Cost", "check_weight", "linear", "misplaced", "relax", "scale", "squared", "unwrapped"]


@dataclass(frozen=True)
class CostTerm:
    """How a term of a cost is printed, after its weight.

    Attributes:
        text: in unicode mathematics.
        latex: in LaTeX.
    """

    text: str
    latex: str


COSTS = {
    "linear": CostTerm(" · z", r" \cdot z"),
    "squared": CostTerm(" · z²/2", r" \cdot \frac{z^2}{2}"),
}
"""The terms that a cost is made of; each is also the name of the function that makes it."""


@dataclass(frozen=True)
class Cost:
    """The cost h of relaxing a constraint by z >= 0: a sum of `cn.linear` and `cn.squared` terms.

    Attributes:
        terms: the kind and the weight of every term.
    """

    terms: tuple[tuple[str, n.Node], ...]

    def __add__(self, other: Cost) -> Cost:
        return Cost((*self.terms, *other.terms)) if isinstance(other, Cost) else NotImplemented  # pyright: ignore[reportUnnecessaryIsInstance]

    def __repr__(self) -> str:
        return " + ".join(f"cn.{kind}({code(Expr(weight))})" for kind, weight in self.terms)


def _weight(value: Any, word: str) -> n.Node:
    node = as_node(value)
    if isinstance(node, n.Knob):
        if node.symbol.shape == ():
            return node
        what = f"the parameter {node.symbol.name!r} of shape {node.symbol.shape}"
    elif isinstance(node, n.Constant):
        check_weight(float(node.value), f"cn.{word}({shown(value)})", here())
        return node
    else:
        what = shown(value)
    raise ModelingError(
        "E157",
        f"the weight of a cost is a number or a scalar cn.Parameter, got {what}",
        at=here(),
        fix=f"cn.{word}(10.0)",
    )


def check_weight(value: float, what: str, at: Location | None) -> None:
    """Refuses a weight that is not positive and finite (E157)."""
    if not 0 < value < math.inf:
        raise ModelingError(
            "E157",
            f"the weight of {what} is {value:g}: relaxing has to cost something, and a finite amount",
            at=at,
            fix="a weight above 0; for a constraint that must hold, no relax at all",
        )


@keywords
def squared(weight: Any = 1.0) -> Cost:
    """h(z) = weight / 2 · z², so that the multiplier is weight · z.

    Every constraint with a positive price gives way, by price / weight.

    Args:
        weight: positive number or scalar `Parameter`, in units of the objective per squared unit of the
            constraint.

    Raises:
        ModelingError: E157 for a weight that is not a positive number or a scalar parameter.
    """
    return Cost((("squared", _weight(weight, "squared")),))


@keywords
def linear(weight: Any = 1.0) -> Cost:
    """h(z) = weight · z, the exact penalty: the multiplier is at most the weight.

    A constraint whose price is below the weight holds as it is written; no other one does.

    Args:
        weight: positive number or scalar `Parameter`, in units of the objective per unit of the constraint.

    Raises:
        ModelingError: E157 for a weight that is not a positive number or a scalar parameter.
    """
    return Cost((("linear", _weight(weight, "linear")),))


# ---------------------------------------------------------------------------------------- constraints
def unwrapped(relation: n.Node) -> tuple[n.Node, n.Relaxed | None, n.Scaled | None]:
    """A constraint without `relax` and `scale`, and what they were; they may be written in any order."""
    relaxed: n.Relaxed | None = None
    scaled: n.Scaled | None = None
    node = relation
    while isinstance(node, (n.Relaxed, n.Scaled)):
        if isinstance(node, n.Relaxed):
            relaxed = node
        else:
            scaled = node
        node = node.relation
    return node, relaxed, scaled


def relax(constraint: Constraint, cost: Any) -> Constraint:
    """`constraint.relax(cost=cost)`.

    Raises:
        ModelingError: E155 (no cost), E156 (relaxed already).
    """
    if unwrapped(constraint.node)[1] is not None:
        raise ModelingError(
            "E156",
            f"{shown(constraint)} is relaxed already",
            at=here(),
            fix="one relax with the sum of the costs: cost=cn.linear(1.0) + cn.squared(10.0)",
        )
    if not isinstance(cost, Cost):
        given = "nothing" if cost is None else "a function" if callable(cost) else shown(cost)
        raise ModelingError(
            "E155",
            f"relax needs the cost of relaxing, got {given}",
            at=here(),
            fix=".relax(cost=cn.squared(10.0)), cn.linear(10.0), or a sum of them",
        )
    kinds, weights = zip(*cost.terms, strict=True)
    return Constraint(n.Relaxed(constraint.node, kinds, weights, loc=constraint.node.loc))


def scale(constraint: Constraint, size: Any) -> Constraint:
    """`constraint.scale(size)`.

    Raises:
        ModelingError: E156 (scaled already), E157 (no positive number).
    """
    if unwrapped(constraint.node)[2] is not None:
        raise ModelingError(
            "E156", f"{shown(constraint)} has its units already", at=here(), fix="one scale, in one number"
        )
    number = as_node(size) if not isinstance(size, Constraint) else None
    if not isinstance(number, n.Constant) or not 0 < float(number.value) < math.inf:
        raise ModelingError(
            "E157",
            f"the unit of a constraint is a positive number, got {shown(size)}",
            at=here(),
            fix=".scale(100.0), the size of a residual that matters",
        )
    return Constraint(n.Scaled(constraint.node, float(number.value), loc=constraint.node.loc))


def misplaced(value: Expr, word: str) -> ModelingError:
    """E155 for `relax` or `scale` of what is no constraint: an event per row, or a value."""
    call = f".{word}(cost=cn.squared(10.0))" if word == "relax" else f".{word}(100.0)"
    verb = "relaxed" if word == "relax" else "given units"
    rows = value.type.rows
    if value.type.event and rows is not None:
        what = f"the event {shown(value)}"
        fix = f"forall({rows.name}, {code(value)}){call}, one constraint per row"
    else:
        what, fix = f"{shown(value)}, which is no constraint,", f"({code(value)} <= b){call}"
    return ModelingError("E155", f"{what} cannot be {verb}: only a constraint can", at=here(), fix=fix)
