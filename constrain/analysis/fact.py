"""Facts about expressions, reasons, and how facts of arguments compose to the fact of a function.

The rules are those of disciplined convex programming (Grant, Boyd & Ye 2006): a convex function that is
nondecreasing in an argument may be given a convex argument, one that is nonincreasing a concave one, and any
argument may be affine. Curvature is meant in all decisions at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from constrain._lazy import language_printing
from constrain.analysis.bounds import ANYTHING, Bounds
from constrain.language.types import type_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constrain.language import nodes as n
    from constrain.language.atoms import Monotone, Sign

__all__ = [
    "Curve",
    "Fact",
    "Form",
    "Reason",
    "blocked",
    "compose",
    "is_square",
    "largest_form",
    "scaled",
    "shown",
    "unknown",
]

Curve: TypeAlias = Literal["constant", "affine", "convex", "concave", "unknown"]
Form: TypeAlias = Literal["affine", "piecewise", "quadratic", "general"]
_FORMS: tuple[Form, ...] = ("affine", "piecewise", "quadratic", "general")
_FLIPPED: dict[Curve, Curve] = {"convex": "concave", "concave": "convex"}
_MOST_REASONS = 4


@dataclass(frozen=True)
class Reason:
    """Why an expression is not certified.

    Attributes:
        text: one sentence in the user's notation.
        node: the expression it is about; `node.loc` is where it was written.
        because: finer reasons, if any.
    """

    text: str
    node: n.Node
    because: tuple[Reason, ...] = ()

    def lines(self, indent: str = "") -> list[str]:
        """The sentence with its place, and the finer reasons indented below it."""
        place = "" if self.node.loc is None else f" ({self.node.loc.describe()})"
        own = f"{indent}{self.text}{place}"
        return [own, *(line for reason in self.because for line in reason.lines(indent + "  "))]


@dataclass(frozen=True)
class Fact:
    """What is known about one expression.

    Attributes:
        curvature: in all decisions jointly; "constant" when it depends on none.
        form: the smallest family it fits: affine, piecewise linear, quadratic (plus piecewise), general.
        bounds: an interval that holds every entry.
        reasons: why the curvature is unknown; empty otherwise.
        source: the sub-expression that made it convex or concave, if one did.
    """

    curvature: Curve
    form: Form = "affine"
    bounds: Bounds = ANYTHING
    reasons: tuple[Reason, ...] = ()
    source: n.Node | None = None

    @property
    def sign(self) -> Sign:
        """The sign of every entry."""
        return self.bounds.sign

    @property
    def constant(self) -> bool:
        """Whether it depends on no decision."""
        return self.curvature == "constant"

    @property
    def affine(self) -> bool:
        """Whether it is affine in the decisions (constants are)."""
        return self.curvature in ("constant", "affine")

    def within(self, bounds: Bounds) -> Fact:
        """The same fact with other bounds."""
        return replace(self, bounds=bounds)

    def flipped(self) -> Fact:
        """The fact of the negated expression, bounds aside."""
        return replace(self, curvature=_FLIPPED.get(self.curvature, self.curvature))


def shown(node: n.Node, limit: int = 60) -> str:
    """Short text of a node."""
    return str(language_printing().text(node, limit=limit))


def unknown(text: str, node: n.Node, because: tuple[Reason, ...] = ()) -> Fact:
    """The fact of an expression about which one sentence says why nothing is known."""
    return Fact("unknown", "general", reasons=(Reason(text, node, because),))


def blocked(parts: Sequence[Fact]) -> Fact | None:
    """The unknown fact that parts pass on to the whole, or None when all parts are known."""
    reasons = dict.fromkeys(
        reason for part in parts if part.curvature == "unknown" for reason in part.reasons
    )
    return Fact("unknown", "general", reasons=tuple(reasons)[:_MOST_REASONS]) if reasons else None


def largest_form(parts: Sequence[Fact]) -> Form:
    """The family that holds a sum of the parts."""
    forms: list[Form] = [part.form for part in parts]
    return _FORMS[max(map(_FORMS.index, forms), default=0)]


# ------------------------------------------------------------------------------------- composition
def _fits(part: Fact, monotone: Monotone, wanted: Curve) -> bool:
    """Whether an argument may stand in a function of `wanted` curvature that is monotone like this in it."""
    if part.affine:
        return True
    if monotone == "by-sign":
        monotone = {"nonneg": "up", "zero": "up", "nonpos": "down"}.get(part.sign, "none")  # type: ignore[assignment]
    if monotone == "up":
        return part.curvature == wanted
    return monotone == "down" and part.curvature == _FLIPPED[wanted]


def compose(
    node: n.Apply,
    parts: Sequence[Fact],
    curvature: str,
    monotone: Sequence[Monotone],
    args: Sequence[n.Node] | None = None,
) -> Fact:
    """The composition rule of disciplined convex programming.

    Args:
        node: the application, for reasons.
        parts: facts of the arguments.
        curvature: of the function itself: `affine`, `convex` or `concave`.
        monotone: of the function, per argument; the last entry goes on for further arguments.
        args: the arguments that `parts` are about; the first ones of `node` when left out.

    Returns:
        A fact without bounds and with the form of a sum of the parts.
    """
    passed = blocked(parts)
    if passed is not None:
        return passed
    if all(part.constant for part in parts):
        return Fact("constant")
    kinds: list[Monotone] = [monotone[min(i, len(monotone) - 1)] for i in range(len(parts))]

    def all_fit(wanted: Curve) -> bool:
        return curvature in ("affine", wanted) and all(
            _fits(part, kind, wanted) for part, kind in zip(parts, kinds, strict=True)
        )

    convex, concave = all_fit("convex"), all_fit("concave")
    if not convex and not concave:
        return unknown(_clash(node, args or node.args[: len(parts)], parts, curvature, kinds), node)
    found: Curve = "affine" if convex and concave else "convex" if convex else "concave"
    inner = next((part.source for part in parts if part.source is not None), None)
    own = None if found == "affine" else (inner if curvature == "affine" else node)
    return Fact(found, largest_form(parts), source=own)


def _clash(
    node: n.Apply, args: Sequence[n.Node], parts: Sequence[Fact], curvature: str, kinds: Sequence[Monotone]
) -> str:
    """Why the composition rule does not apply, in a sentence."""
    curved = [(arg, part) for arg, part in zip(args, parts, strict=True) if not part.affine]
    if curvature == "affine" and len(curved) > 1:
        (a, fact_a), (b, fact_b) = curved[0], curved[1]
        word = "difference" if node.atom == "sub" else "sum"
        return (
            f"{shown(a)} is {fact_a.curvature} and {shown(b)} is {fact_b.curvature}: their {word} is neither"
        )
    position = next(i for i, part in enumerate(parts) if not part.affine)
    arg, part, kind = args[position], parts[position], kinds[position]
    words = {"up": " and increasing", "down": " and decreasing"}.get(kind, "")
    return f"{node.atom} is {curvature}{words}, but its argument {shown(arg)} is {part.curvature}, not affine"


# --------------------------------------------------------------------------------------- products
def scaled(node: n.Node, fact: Fact, factor: Bounds, other: n.Node) -> Fact:
    """An expression times a constant: curvature stays, flips, or is lost when the constant changes sign."""
    if fact.affine or factor.sign in ("nonneg", "zero"):
        return fact
    if factor.sign == "nonpos":
        return fact.flipped()
    text = f"{shown(node)} is {fact.curvature} and is multiplied by {shown(other)}, which takes both signs"
    return unknown(text, node)


def is_square(node: n.Apply) -> bool:
    """Whether a product is of an expression with itself: `e * e`, or `e @ e` for a vector."""
    if node.atom not in ("mul", "matmul") or node.args[0] != node.args[1]:
        return False
    return node.atom == "mul" or len(type_of(node.args[0]).shape or (1, 1)) == 1
