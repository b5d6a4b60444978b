"""Functions with kinks of averages and decisions, exactly, by slack variables: what Newton's method needs.

Where a term increases in |e|, max(e, 0), max_i e_i, or a 1-norm or largest norm, a new decision u takes its
place, with u >= e and u >= -e (or u >= 0, or u >= e_i): minimizing makes u the value, and everything is as
smooth as e. Where a term decreases in a minimum, u <= e_i. The problem has the same optima and multipliers
(Boyd & Vandenberghe 2004, section 4.1.3).

Kinks of every row, as in E(abs(e)) or CVaR, would need a decision per row: they stay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from constrain.language import nodes as n
from constrain.language.atoms import ATOMS
from constrain.language.types import type_of
from constrain.lowering.dependence import depends_on_decisions
from constrain.lowering.orientation import direction
from constrain.lowering.program import Form, Part
from constrain.runtime.decisions import Decisions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from constrain.analysis.fact import Fact
    from constrain.language.symbols import Model
    from constrain.lowering.program import Program
    from constrain.runtime.evaluator import Evaluator

__all__ = ["kinked_layers", "kinks_left", "smoothed", "without_kinks"]

PREFIX = "(kink "
"""What the names of slack variables and their constraints begin with; no user can choose it."""
_CONVEX = frozenset(("abs", "relu", "maximum", "max", "max_levels"))
_CONCAVE = frozenset(("minimum", "min", "min_levels"))
_LAYERS = frozenset((
    "ReLU", "ReLU6", "LeakyReLU", "PReLU", "RReLU", "Hardtanh", "Hardswish", "Hardsigmoid", "Hardshrink",
    "Softshrink", "Threshold", "L1Loss", "MaxPool1d", "MaxPool2d", "MaxPool3d",
))  # fmt: skip
_JUMPS = frozenset(("sign", "floor", "count_nonzero", "l1_loss"))


@dataclass(frozen=True)
class Kink:
    """A function that a slack variable stands for.

    Attributes:
        node: the function.
        slack: the variable.
        side: +1 for u >= the terms, -1 for u <= the terms.
        terms: what u bounds, with inner kinks replaced.
    """

    node: n.Node
    slack: n.VariableSymbol
    side: int
    terms: tuple[n.Node, ...]


def kinks_left(program: Program) -> n.Node | None:
    """A function with a kink or a jump that no slack variable replaces; None when the problem is smooth."""
    program = without_kinks(program)[0]
    seen: set[int] = set()
    for root in (program.objective, *(part.residual for part in program.parts)):
        for node in n.postorder(root):
            if id(node) not in seen and _has_kink(node) and depends_on_decisions(node):
                return node
            seen.add(id(node))
    return None


def kinked_layers(model: Model) -> list[str]:
    """Names of a trained model's layers with kinks in their outputs, such as `ReLU`."""
    found = () if model.frozen else model.module.modules()
    return [type(layer).__name__ for layer in found if type(layer).__name__ in _LAYERS]


def _has_kink(node: n.Node) -> bool:
    if not isinstance(node, n.Apply):
        return False
    if node.atom in ("norm", "norm_levels"):
        return node.option("ord", 2) in (1, float("inf"))
    declared = ATOMS[node.atom].declared
    return node.atom in _CONVEX | _CONCAVE | _JUMPS or (declared is not None and not declared.smooth)


# ------------------------------------------------------------------------------------------ rewriting
def without_kinks(program: Program) -> tuple[Program, tuple[Kink, ...]]:
    """The program with slack variables in the place of kinks, and what they stand for, inner ones first."""
    state = _Rewriting(len(program.forms))
    objective = state.rewritten(program.objective, 1)
    forms = [
        replace(form, parts=tuple(state.part(part) for part in form.parts)) if form.rows is None else form
        for form in program.forms
    ]
    if not state.kinks:
        return program, ()
    forms += [_bounds(kink) for kink in state.kinks]
    slacks = tuple(kink.slack for kink in state.kinks)
    auxiliary = (*program.auxiliary, *slacks)
    return replace(program, objective=objective, forms=tuple(forms), auxiliary=auxiliary), tuple(state.kinks)


class _Rewriting:
    """One rewriting: equal functions on one side share a slack variable."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.kinks: list[Kink] = []
        self.known: dict[tuple[n.Node, int], n.Node] = {}

    def part(self, part: Part) -> Part:
        """A one-sided piece without kinks where its kind allows."""
        return replace(part, residual=self.rewritten(part.residual, 1)) if part.kind == "<=" else part

    def rewritten(self, root: n.Node, side: int) -> n.Node:
        """The expression without the kinks in which it moves in a known direction."""
        sides = _sides(root, side)
        done: dict[int, n.Node] = {}
        for node in _above_rows(root):
            inner = tuple(done.get(id(child), child) for child in n.children(node))
            new = node if isinstance(node, n.Moment) else n.rebuild(node, inner)
            if self._replaceable(node, sides[id(node)]):
                assert isinstance(node, n.Apply)  # checked by _replaceable
                new = self._slack(node, inner, sides[id(node)])
            done[id(node)] = new
        return done[id(root)]

    @staticmethod
    def _replaceable(node: n.Node, side: int) -> bool:
        if not isinstance(node, n.Apply) or not _has_kink(node) or node.atom in _JUMPS:
            return False
        if side != (-1 if node.atom in _CONCAVE else 1) or not depends_on_decisions(node):
            return False
        kind = type_of(node)
        if kind.rows is not None or kind.levels is not None or kind.shape is None:
            return False
        reduction = node.atom in ("max", "min", "norm")
        return not reduction or (node.option("axis") is None and not node.option("keepdims"))

    def _slack(self, node: n.Apply, args: tuple[n.Node, ...], side: int) -> n.Node:
        known = self.known.get((node, side))
        if known is not None:
            return known
        terms = _terms(node, args)
        summed = node.atom in ("norm", "norm_levels") and node.option("ord") == 1
        shape = type_of(terms[0]).shape if summed else type_of(node).shape
        kind = type_of(terms[0])
        if shape is None or (summed and kind.levels is not None):
            return n.rebuild(node, args)
        slack = n.VariableSymbol(f"{PREFIX}{len(self.kinks) + 1})", shape)
        self.kinks.append(Kink(node, slack, side, terms))
        found: n.Node = n.Decision(slack, loc=node.loc)
        if summed:
            found = n.Apply("sum", (found,), (("axis", None), ("keepdims", False)), loc=node.loc)
        self.known[node, side] = found
        return found


def _terms(node: n.Apply, args: tuple[n.Node, ...]) -> tuple[n.Node, ...]:
    """What the function is the largest (or least) of."""
    e = args[0]
    match node.atom:
        case "abs" | "norm" | "norm_levels":
            return e, n.Apply("neg", (e,), loc=node.loc)
        case "relu":
            return e, n.Constant(0.0)
        case "maximum" | "minimum":
            return args
        case _:
            return (e,)


def _bounds(kink: Kink) -> Form:
    """u >= each term, or u <= each term."""
    u = n.Decision(kink.slack, loc=kink.node.loc)
    name = kink.slack.name
    parts: list[Part] = []
    for i, term in enumerate(kink.terms):
        pair = (term, u) if kink.side > 0 else (u, term)
        residual = n.Apply("sub", pair, loc=kink.node.loc)
        parts.append(Part(name, str(i), "<=", residual, -1.0))
    relation = n.Comparison("<=" if kink.side > 0 else ">=", kink.terms[0], u, loc=kink.node.loc)
    return Form(name, relation, "<=" if kink.side > 0 else ">=", kink.terms[0], (u,), tuple(parts))


def _above_rows(root: n.Node) -> Sequence[n.Node]:
    """Nodes in postorder, down to moments."""
    order: list[n.Node] = []
    seen: set[int] = set()

    def visit(node: n.Node) -> Iterator[n.Node]:
        return iter(() if isinstance(node, n.Moment) else n.children(node))

    stack = [(root, visit(root))]
    seen.add(id(root))
    while stack:
        node, children = stack[-1]
        child = next(children, None)
        if child is None:
            order.append(node)
            stack.pop()
        elif id(child) not in seen:
            seen.add(id(child))
            stack.append((child, visit(child)))
    return order


def _sides(root: n.Node, side: int) -> dict[int, int]:
    """By `id` of every node: +1 where the root increases in it, -1 where it decreases, 0 elsewhere."""
    facts: dict[int, Fact] = {}
    found: dict[int, int] = {id(root): side}
    for node in reversed(_above_rows(root)):
        if isinstance(node, n.Moment):
            continue
        own = found[id(node)]
        for place, child in enumerate(n.children(node)):
            moved = own and own * direction(node, place, facts)
            found[id(child)] = moved if found.get(id(child), moved) == moved else 0
    return found


# ------------------------------------------------------------------------------------------ evaluating
def smoothed(evaluator: Evaluator) -> Evaluator:
    """An evaluator of the program without kinks on the same data; the same one when it has none.

    Its decisions share the tensors of the others; slack variables start at the values of what they stand
    for.
    """
    program, kinks = without_kinks(evaluator.program)
    if not kinks:
        return evaluator
    decisions = Decisions(program, evaluator.device, evaluator.dtype)
    for symbol, tensor in evaluator.decisions.variables.items():
        decisions.replace(symbol, tensor)
    other = evaluator.viewed(program)
    other.decisions = decisions
    places: dict[str, list[int]] = {}
    for i, part in enumerate(program.parts):
        places.setdefault(part.constraint, []).append(i)
    for _ in kinks:  # inner ones first; there are few
        residuals = other.full("primal").residuals
        moved = 0.0
        for kink in kinks:
            moved = max(moved, _settle(kink, decisions.variables[kink.slack],
                                       [residuals[i] for i in places[kink.slack.name]]))  # fmt: skip
        if moved == 0.0:
            break
    return other


def _settle(kink: Kink, u: Tensor, residuals: Sequence[Tensor | None]) -> float:
    """Moves a slack variable to the largest (or least) of its terms; returns how far."""
    found = torch.stack([
        (r.amax() if u.dim() == 0 else r.expand(u.shape)).reshape(u.shape)
        for r in residuals if r is not None
    ]).amax(0)  # fmt: skip
    with torch.no_grad():
        u.add_(kink.side * found.to(u))
    return float(found.abs().amax())
