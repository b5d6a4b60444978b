"""Functions with kinks, exactly, by slack variables: what Newton's method needs.

Where a term increases in |e|, max(e, 0), max_i e_i, or a 1-norm or largest norm, a new decision u takes its
place, with u >= e and u >= -e (or u >= 0, or u >= e_i): minimizing makes u the value, and everything is as
smooth as e. Where a term decreases in a minimum, u <= e_i. The problem has the same optima and multipliers
(Boyd & Vandenberghe 2004, section 4.1.3).

Kinks of every row, as in E(abs(e)) or CVaR, get a decision per row, which every row looks up by its number.
These decisions touch each other only through averages. Where a term is affine in these averages, the second
derivatives in them are a diagonal of small blocks, one per row (`row_system.py`); where it is not, the
average is replaced by a slack variable first. Rows of weights that are trained stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from constrain.language import nodes as n
from constrain.language.atoms import ATOMS
from constrain.language.regions import Region
from constrain.language.types import type_of
from constrain.lowering.degree import degree
from constrain.lowering.dependence import depends_on_decisions
from constrain.lowering.orientation import direction
from constrain.lowering.program import Form, Part
from constrain.runtime.binding import codes_column
from constrain.runtime.decisions import Decisions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

    from constrain.analysis.fact import Fact
    from constrain.language.data import Data
    from constrain.language.symbols import Model
    from constrain.lowering.program import Program
    from constrain.runtime.evaluator import Evaluator

__all__ = [
    "ROW",
    "Kink",
    "above_rows",
    "kinked_layers",
    "kinks_left",
    "number_rows",
    "of_new_moments",
    "smoothed",
    "without_kinks",
]

PREFIX = "(kink "
"""What the names of slack variables and their constraints begin with; no user can choose it."""
ROW = ("row number",)
"""The derived column by which every row looks up its own slack variable."""
_CONVEX = frozenset(("abs", "relu", "maximum", "max", "max_levels"))
_CONCAVE = frozenset(("minimum", "min", "min_levels"))
_LAYERS = frozenset((
    "ReLU", "ReLU6", "LeakyReLU", "PReLU", "RReLU", "Hardtanh", "Hardswish", "Hardsigmoid", "Hardshrink",
    "Softshrink", "Threshold", "L1Loss", "MaxPool1d", "MaxPool2d", "MaxPool3d",
))  # fmt: skip
_EIGEN = ("lambda_max", "lambda_min", "spectral_norm", "nuclear_norm")
_JUMPS = frozenset(("sign", "floor", "count_nonzero", "l1_loss", *_EIGEN))


@dataclass
class Kink:
    """A function that a slack variable stands for.

    Attributes:
        node: the function.
        slack: the variable; with one entry per row (its first axis) for a kink of every row.
        side: +1 for u >= the terms, -1 for u <= the terms.
        terms: what u bounds, with inner kinks replaced.
        rows: the sample of a kink of every row, else None.
        events: which rows the averages that it stands in count; None for all of them.
    """

    node: n.Node
    slack: n.VariableSymbol
    side: int
    terms: tuple[n.Node, ...]
    rows: Data | None = None
    events: tuple[n.Node, ...] | None = None


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
def without_kinks(
    program: Program, rows: Mapping[Data, int] | None = None
) -> tuple[Program, tuple[Kink, ...]]:
    """The program with slack variables in the place of kinks, and what they stand for, inner ones first.

    Args:
        program: the moment form.
        rows: of the samples that are bound in the place of the program's; None: their own.
    """
    trained = any(not model.frozen for model in program.models)
    own = [d for d in program.populations if not (trained or d.streamed or isinstance(d, Region))]
    state = _Rewriting({d: len(d) if rows is None else rows[d] for d in own})
    objective = state.rewritten(program.objective, 1)
    forms = [replace(form, parts=tuple(state.part(part) for part in form.parts)) for form in program.forms]
    if not state.kinks:
        return program, ()
    forms += [_bounds(kink) for kink in state.kinks]
    slacks = tuple(kink.slack for kink in state.kinks)
    auxiliary = (*program.auxiliary, *slacks)
    new = replace(program, objective=objective, forms=tuple(forms), auxiliary=auxiliary)
    return of_new_moments(new) if state.moved else new, tuple(state.kinks)


def of_new_moments(program: Program) -> Program:
    """The program with the moments that its residuals have, which are those of its sides as well."""
    forms = tuple(
        replace(form, lhs=form.parts[0].residual, rhs=(n.Constant(0.0),)) if form.parts else form
        for form in program.forms
    )
    new = replace(program, forms=forms)
    moments = dict.fromkeys(x for x in n.postorder(*new.roots) if isinstance(x, n.Moment))
    return replace(new, moments=tuple(moments))


class _Rewriting:
    """One rewriting: equal functions on one side share a slack variable.

    Args:
        rows: number of rows of the samples whose kinks per row are replaced.

    Attributes:
        kinks: what was replaced, inner ones first.
        moved: whether an average was.
    """

    def __init__(self, rows: Mapping[Data, int]) -> None:
        self.rows = rows
        self.kinks: list[Kink] = []
        self.moved = False
        self.known: dict[tuple[n.Node, int], tuple[n.Node, Kink]] = {}

    def part(self, part: Part) -> Part:
        """A one-sided piece without kinks where its kind allows."""
        if part.kind != "<=":
            return part
        if part.rows is None:
            return replace(part, residual=self.rewritten(part.residual, 1))
        return replace(part, residual=self._in_rows(part.residual, 1, part.rows, part.where))

    def rewritten(self, root: n.Node, side: int) -> n.Node:
        """The expression without the kinks in which it moves in a known direction."""
        sides = _sides(above_rows(root), side)
        straight = degree(root) in (0, 1)
        done: dict[int, n.Node] = {}
        for node in above_rows(root):
            inner = tuple(done.get(id(child), child) for child in n.children(node))
            if isinstance(node, n.Moment):
                done[id(node)] = self._moment(node, sides[id(node)], straight=straight)
            elif self._replaceable(node, sides[id(node)], None):
                done[id(node)] = self._slack(node, _terms(node, inner), inner, sides[id(node)])
            else:
                done[id(node)] = n.rebuild(node, inner)
        return done[id(root)]

    def _moment(self, node: n.Moment, side: int, *, straight: bool) -> n.Node:
        """An average without kinks in its rows; a slack variable where the term bends in it."""
        kind = type_of(node)
        if not side or node.data not in self.rows or (not straight and kind.levels is not None):
            return node
        integrand = self._in_rows(node.integrand, side, node.data, _counted(node))
        if integrand is node.integrand:
            return node
        self.moved = True
        new = replace(node, integrand=integrand)
        return new if straight else self._slack(node, (new,), (new,), side)

    def _in_rows(self, root: n.Node, side: int, data: Data, event: n.Node | None) -> n.Node:
        """An expression per row without its kinks, of rows of which those with the event count."""
        if data not in self.rows:
            return root
        order = n.postorder(root)
        sides = _sides(order, side)
        done: dict[int, n.Node] = {}
        for node in order:
            inner = tuple(done[id(child)] for child in n.children(node))
            own = type_of(node).rows
            if self._replaceable(node, sides[id(node)], own):
                done[id(node)] = self._slack(node, _terms(node, inner), inner, sides[id(node)], own, event)
            else:
                done[id(node)] = n.rebuild(node, inner)
        return done[id(root)]

    @staticmethod
    def _replaceable(node: n.Node, side: int, rows: Data | None) -> bool:
        if not isinstance(node, n.Apply) or not _has_kink(node) or node.atom in _JUMPS:
            return False
        if ATOMS[node.atom].declared is not None:  # of which only the value is known
            return False
        if side != (-1 if node.atom in _CONCAVE else 1) or not depends_on_decisions(node):
            return False
        kind = type_of(node)
        if kind.rows is not rows or kind.levels is not None or kind.shape is None:
            return False
        reduction = node.atom in ("max", "min", "norm")
        if reduction and rows is not None and not _is_sum(node):
            return False  # of the entries of a row
        return not reduction or (node.option("axis") is None and not node.option("keepdims"))

    def _slack(  # what a kink is
        self,
        node: n.Node,
        terms: tuple[n.Node, ...],
        args: tuple[n.Node, ...],
        side: int,
        rows: Data | None = None,
        event: n.Node | None = None,
    ) -> n.Node:
        """What takes the place of a function, and is known by it."""
        if (node, side) in self.known:
            found, kink = self.known[node, side]
            kink.events = None if event is None or kink.events is None else (*kink.events, event)
            return found
        summed = isinstance(node, n.Apply) and _is_sum(node)
        kind = type_of(terms[0])
        shape = kind.shape if summed else type_of(node).shape
        if shape is None or (summed and (kind.levels is not None or kind.rows is not rows)):
            return n.rebuild(node, args)
        lead = () if rows is None else (self.rows[rows],)
        slack = n.VariableSymbol(f"{PREFIX}{len(self.kinks) + 1})", (*lead, *shape))
        kink = Kink(node, slack, side, terms, rows, None if event is None else (event,))
        self.kinks.append(kink)
        found = _value(kink)
        if summed:
            found = n.Apply("sum", (found,), (("axis", None), ("keepdims", False)), loc=node.loc)
        self.known[node, side] = found, kink
        return found


def _is_sum(node: n.Apply) -> bool:
    return node.atom in ("norm", "norm_levels") and node.option("ord") == 1


def _value(kink: Kink) -> n.Node:
    """The slack variable in an expression; that of each row in an expression per row."""
    whole = n.Decision(kink.slack, loc=kink.node.loc)
    return whole if kink.rows is None else n.Apply("take", (whole, n.Codes(kink.rows, ROW)))


def _counted(moment: n.Moment) -> n.Node | None:
    """Which rows an average counts: an event; None for all of them."""
    events = [event for group in moment.by if isinstance(group, n.Among) for event in group.events]
    listed = [n.Logic("or", tuple(events))] if len(events) > 1 else events
    both = listed if moment.given is None else [moment.given, *listed]
    return n.Logic("and", tuple(both)) if len(both) > 1 else next(iter(both), None)


def _terms(node: n.Node, args: tuple[n.Node, ...]) -> tuple[n.Node, ...]:
    """What the function is the largest (or least) of."""
    assert isinstance(node, n.Apply)  # what has a kink is one
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
    """u >= each term, or u <= each term, on the rows that count."""
    u, at = _value(kink), kink.node.loc
    where = None
    if kink.events:
        events = tuple(dict.fromkeys(kink.events))
        where = events[0] if len(events) == 1 else n.Logic("or", events)
    name = kink.slack.name
    parts: list[Part] = []
    for i, term in enumerate(kink.terms):
        pair = (term, u) if kink.side > 0 else (u, term)
        residual = n.Apply("sub", pair, loc=at)
        parts.append(Part(name, str(i), "<=", residual, -1.0, kink.rows, where))
    op = "<=" if kink.side > 0 else ">="
    relation = n.Comparison(op, kink.terms[0], u, loc=at)
    return Form(name, relation, op, kink.terms[0], (u,), tuple(parts), kink.rows, where)


def above_rows(root: n.Node) -> Sequence[n.Node]:
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


def _sides(order: Sequence[n.Node], side: int) -> dict[int, int]:
    """By `id` of every node: +1 where the last one increases in it, -1 where it decreases, 0 elsewhere."""
    facts: dict[int, Fact] = {}
    found: dict[int, int] = {id(order[-1]): side}
    within = {id(node) for node in order}
    for node in reversed(order):
        own = found[id(node)]
        for place, child in enumerate(n.children(node)):
            if id(child) in within:
                moved = own and own * direction(node, place, facts)
                found[id(child)] = moved if found.get(id(child), moved) == moved else 0
    return found


# ------------------------------------------------------------------------------------------ evaluating
def smoothed(evaluator: Evaluator) -> tuple[Evaluator, tuple[Kink, ...]]:
    """An evaluator of the program without kinks on the same data, and its kinks of every row.

    The same one when it has no kinks. Its decisions share the tensors of the others; slack variables start at
    the values of what they stand for.
    """
    bound = {data: population.rows for data, population in evaluator.populations.items()}
    program, kinks = without_kinks(evaluator.program, bound)
    if not kinks:
        return evaluator, ()
    decisions = Decisions(program, evaluator.device, evaluator.dtype)
    for symbol, tensor in evaluator.decisions.variables.items():
        decisions.replace(symbol, tensor)
    in_rows = tuple(kink for kink in kinks if kink.rows is not None)
    other = evaluator.viewed(program)
    other.decisions = decisions
    number_rows(other, (kink.rows for kink in in_rows if kink.rows is not None))
    for _ in kinks:  # inner ones first; there are few
        if not max([_settle(kink, other) for kink in kinks]):
            break
    return other, in_rows


def _residuals(kink: Kink, evaluator: Evaluator) -> list[Tensor]:
    """Residuals of the bounds of a slack variable, in its shape or one that fits it."""
    places = [i for i, part in enumerate(evaluator.program.parts) if part.constraint == kink.slack.name]
    if kink.rows is not None:
        return [evaluator.row_residuals(i, "primal")[0] for i in places]
    full = evaluator.full("primal").residuals
    return [r for r in (full[i] for i in places) if r is not None]


def number_rows(evaluator: Evaluator, samples: Iterable[Data]) -> None:
    """Gives these samples the derived column `ROW`."""
    evaluator.populations = dict(evaluator.populations)
    for data in set(samples):
        population = evaluator.populations[data]
        numbers = torch.arange(population.rows, device=evaluator.device)
        columns = {**population.columns, codes_column(ROW): numbers}
        evaluator.populations[data] = replace(population, columns=columns)


def _settle(kink: Kink, evaluator: Evaluator) -> float:
    """Moves a slack variable to the largest (or least) of its terms; returns how far."""
    u = evaluator.decisions.variables[kink.slack]
    residuals = _residuals(kink, evaluator)
    found = torch.stack([
        (r.amax() if u.dim() == 0 else r.expand(u.shape)).reshape(u.shape) for r in residuals
    ]).amax(0)  # fmt: skip
    with torch.no_grad():
        u.add_(kink.side * found.to(u))
    return float(found.abs().amax())
