"""Second derivatives of terms that see the decisions through a few affine scores per row, in closed form.

With s = A theta + b the scores of a row, such as the linear predictor of a generalized linear model, the
Hessian of an average of g(s) is A' diag(g'') A: one matrix product with constant A, where differentiating the
gradient takes a backward pass over all rows for every decision. The gradient is A' g'. The scores are found
in the expressions: the largest ones per row that are affine in the decisions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from constrain.analysis.curvature import analyze, facts_of
from constrain.language import nodes as n
from constrain.language.regions import Region
from constrain.language.types import type_of
from constrain.lowering.degree import degree
from constrain.lowering.dependence import depends_on_decisions
from constrain.runtime.codegen import generate
from constrain.runtime.decisions import Decisions
from constrain.runtime.derivatives import Linearization, jacobian, largest, linearize, whole
from constrain.solvers.kinks import ROW, above_rows, number_rows, of_new_moments
from constrain.solvers.row_slopes import RowSlopes, columns, linear_inputs, slopes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from constrain.analysis.fact import Fact
    from constrain.language.data import Data
    from constrain.lowering.program import Form, Program
    from constrain.runtime.derivatives import RowTerm
    from constrain.runtime.evaluator import Evaluator, Outer

__all__ = ["Scores", "scores_of"]

_LEAST = 200_000
"""Rows times decisions below which differentiating is as fast."""
_MOST = 20_000_000
"""Numbers of all matrices A."""
_MANY = 6
"""Most scores of a row."""


@dataclass
class _Sample:
    """The scores of one sample.

    Attributes:
        data: the sample.
        nodes: the scores.
        slots: what stands for them, (rows,) each.
    """

    data: Data
    nodes: list[n.Node]
    slots: list[Tensor]


@dataclass
class _Score:
    """A score, slopes @ decisions + offset: (rows,). `slot` stands for it; no offset is 0."""

    slot: Tensor
    slopes: RowSlopes
    offset: Tensor | None


class Scores:
    """The terms as functions of scores; what is found at a point is kept while the decisions stay there.

    Args:
        evaluator: of the problem.
        view: of the program in which scores are variables.
        samples: the scores.
        facts: of the analysis, by the `id` of the node.
        check: called now and then; it may raise to stop.
    """

    convex: bool
    """Whether the analysis certifies that objective and constraints are convex."""

    def __init__(
        self,
        evaluator: Evaluator,
        view: Evaluator,
        samples: Sequence[_Sample],
        facts: dict[int, Fact],
        check: Callable[[], None],
    ) -> None:
        self.evaluator, self.view = evaluator, view
        program = evaluator.program
        parts = [analyze(part.residual, facts) for part in program.parts]
        self._affine = [fact.affine for fact in parts]
        self.convex = not _curves_down(analyze(program.objective, facts)) and not any(
            not fact.affine if part.kind == "==" else _curves_down(fact)
            for part, fact in zip(program.parts, parts, strict=True)
        )
        self.samples = [self._found(sample, check) for sample in samples]
        self._constant: Tensor | None = None
        self._point: tuple[Tensor, Outer] | None = None

    def _found(self, sample: _Sample, check: Callable[[], None]) -> list[_Score]:
        """The scores of a sample as affine functions."""
        evaluator, at = self.evaluator, self._decisions()
        function = generate("scores", evaluator.tables, [(node, "primal") for node in sample.nodes])
        rows = evaluator.populations[sample.data].everything()
        with linear_inputs([model.module for model in evaluator.program.models]) as inputs:
            values = evaluator.compute(function, rows, sample.data)
        found: list[_Score] = []
        for slot, value in zip(sample.slots, values, strict=True):
            slopes = slopes_of(value, evaluator.decisions.tensors, inputs, check)
            rest = value.detach() - slopes.times(at)
            rounding = 8 * torch.finfo(rest.dtype).eps * (1 + value.detach().abs().amax())
            found.append(_Score(slot, slopes, None if rest.abs().amax() <= rounding else rest))
        return found

    def _decisions(self) -> Tensor:
        """All decisions as one vector."""
        return torch.cat([t.detach().reshape(-1) for t in self.evaluator.decisions.tensors])

    def _outer(self) -> Outer:
        """Outer values at the current decisions, with their graph, which ends at the scores."""
        at = self._decisions()
        if self._point is None or not torch.equal(self._point[0], at):
            with torch.no_grad():
                for score in (score for own in self.samples for score in own):
                    value = score.slopes.times(at)
                    score.slot.copy_(value if score.offset is None else value + score.offset)
            self._point = at, whole(self.view, None).outer
        return self._point[1]

    def values(self) -> Outer:
        """Objective and residuals on all rows, without gradient; None for constraints per row."""
        return self._outer().detach()

    def linearize(self) -> Linearization:
        """As `derivatives.linearize`."""
        outer = self._outer()
        if any(r is None for r in outer.residuals):  # constraints per row
            found = linearize(self.view)
            both = self._pulled(torch.cat([found.gradient[None], found.jacobian]))
            return replace(found, gradient=both[0], jacobian=both[1:])
        entries = [outer.objective.reshape(1), *(r.reshape(-1) for r in outer.residuals if r is not None)]
        kinds = list(zip(entries, [False, *self._affine], strict=True))
        if self._constant is None:
            self._constant = self._slopes([e for e, affine in kinds if affine])
        fixed = torch.cat([torch.full(e.shape, affine, device=e.device) for e, affine in kinds])
        rows = entries[0].new_empty((len(fixed), self.evaluator.decisions.size))
        rows[fixed], rows[~fixed] = self._constant, self._slopes([e for e, affine in kinds if not affine])
        values = torch.cat(entries).detach()
        return Linearization(values[0], rows[0], values[1:], rows[1:])

    def _slopes(self, values: Sequence[Tensor]) -> Tensor:
        """(values, decisions) derivatives of vectors of outer values, one after the other."""
        tensors = self.view.decisions.tensors
        if not values:
            return self._pulled(tensors[0].new_zeros((0, self.view.decisions.size)))
        return self._pulled(jacobian(torch.cat(list(values)), tensors, largest(self.view)))

    def _pulled(self, both: Tensor) -> Tensor:
        """Derivatives in decisions and scores, as those in decisions."""
        own = self.view.decisions.tensors
        pieces = dict(zip(map(id, own), columns(both, own), strict=True))
        tensors = self.evaluator.decisions.tensors
        total = torch.cat([pieces.get(id(t), both.new_zeros((len(both), t.numel()))) for t in tensors], 1)
        for score in (score for own in self.samples for score in own):
            total += score.slopes.pulled(pieces[id(score.slot)])
        return total

    def hessian(
        self, function: Callable[[Outer], Tensor], row_term: RowTerm | None, check: Callable[[], None]
    ) -> Tensor:
        """As `derivatives.hessian`, of a function that is affine in averages and in the residuals.

        Args:
            function: of the outer values, scalar.
            row_term: added to it, a sum over the rows of constraints per row.
            check: called now and then; it may raise to stop.
        """
        outer, added = self._outer(), None
        if row_term is not None:
            every = whole(self.view, row_term)
            outer, added = every.outer, every.added
        bent = [r if r is None or not affine else r.detach()
                for r, affine in zip(outer.residuals, self._affine, strict=True)]  # fmt: skip
        scalar = function(replace(outer, residuals=bent))
        scalar = scalar if added is None else scalar + added
        tensors = self.evaluator.decisions.tensors
        slots = [score.slot for own in self.samples for score in own]
        found = torch.autograd.grad(scalar, [*tensors, *slots], create_graph=True, materialize_grads=True)
        flat = torch.cat([g.reshape(-1) for g in found[: len(tensors)]])
        total = jacobian(flat, tensors, check=check)
        slopes = iter(found[len(tensors) :])
        for own in self.samples:
            check()
            total += _squared(own, [next(slopes) for _ in own])
        mixed = self._mixed(flat, slots, check)
        return total if mixed is None else total + mixed + mixed.T

    def _mixed(self, flat: Tensor, slots: Sequence[Tensor], check: Callable[[], None]) -> Tensor | None:
        """The part in which averages have decisions as factors; None where they have none."""
        if not flat.requires_grad or all(g is None for g in _derivatives(flat.sum(), slots)):
            return None
        crossed = jacobian(flat, slots, max(slot.numel() for slot in slots), check)
        scores = [score for own in self.samples for score in own]
        pieces = columns(crossed, slots)
        pulled = (score.slopes.pulled(piece) for score, piece in zip(scores, pieces, strict=True))
        return sum(pulled, start=crossed.new_zeros(()))


def _curves_down(fact: Fact) -> bool:
    """Whether the analysis does not certify that it is convex."""
    return not fact.affine and fact.curvature != "convex"


def _squared(scores: Sequence[_Score], slopes: Sequence[Tensor]) -> Tensor:
    """A' diag(second derivatives) A, summed over the pairs of scores of a sample.

    Args:
        scores: of the sample.
        slopes: first derivatives in the scores, with their graph.
    """
    total = slopes[0].new_zeros((scores[0].slopes.size,) * 2)
    for k, slope in enumerate(slopes):
        for i, second in enumerate(_derivatives(slope.sum(), [score.slot for score in scores])):
            if second is None or i > k:  # the matrix is symmetric
                continue
            if i == k:
                total += scores[k].slopes.squared(second.detach())
            else:
                crossed = scores[k].slopes.pulled_through(second.detach(), scores[i].slopes)
                total += crossed + crossed.T
    return total


def _derivatives(scalar: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not scalar.requires_grad:
        return [None] * len(leaves)
    return torch.autograd.grad(scalar, leaves, retain_graph=True, allow_unused=True)


# ------------------------------------------------------------------------------------------- recognition
def scores_of(evaluator: Evaluator, check: Callable[[], None]) -> Scores | None:
    """The scores of a problem; None where terms see the decisions otherwise, or where it is small."""
    program, size = evaluator.program, evaluator.decisions.size
    rows = max([population.rows for population in evaluator.populations.values()], default=0)
    unusual = any(d.streamed or isinstance(d, Region) for d in program.populations)
    if unusual or rows * size < _LEAST or size < 2:
        return None
    roots = [program.objective, *(part.residual for part in program.parts if part.rows is None)]
    if any(degree(root) not in (0, 1) for root in roots):
        return None
    rows_of = {d: evaluator.populations[d].rows for d in program.populations}
    state = _Rewriting(rows_of, facts_of(program))
    rewritten = state.program(program)
    symbols = [s for own in state.known.values() for _, s in own]
    most = max((len(own) for own in state.known.values()), default=0)
    if not symbols or most > _MANY or sum(s.shape[0] for s in symbols) * size > _MOST:
        return None
    if any(_sees_more(root, set(symbols)) for root in rewritten.roots):
        return None
    decisions = Decisions(rewritten, evaluator.device, evaluator.dtype)
    for symbol, tensor in evaluator.decisions.variables.items():
        if symbol in decisions.variables:
            decisions.replace(symbol, tensor)
    view = evaluator.viewed(rewritten)
    view.decisions = decisions
    number_rows(view, state.known)
    samples = [
        _Sample(data, [node for node, _ in own], [decisions.variables[s] for _, s in own])
        for data, own in state.known.items()
        if own
    ]
    return Scores(evaluator, view, samples, state.facts, check)


def _sees_more(root: n.Node, symbols: set[n.VariableSymbol]) -> bool:
    """Whether a row sees a decision that is no score."""
    for node in n.postorder(root):
        rowwise = isinstance(node, n.Moment) or type_of(node).rows is not None
        inside = n.postorder(*n.children(node)) if isinstance(node, n.Moment) else [node] if rowwise else []
        for x in inside:
            if isinstance(x, n.Call) and not x.model.frozen:
                return True
            for child in (x, *n.children(x)):
                if isinstance(child, n.Decision) and child.symbol not in symbols:
                    return True
                if isinstance(child, n.Weights) and not child.model.frozen:
                    return True
    return False


class _Rewriting:
    """Puts variables in the place of scores.

    Args:
        rows: of every sample.
        facts: of the analysis, by the `id` of the node.
    """

    def __init__(self, rows: dict[Data, int], facts: dict[int, Fact]) -> None:
        self.rows = rows
        self.known: dict[Data, list[tuple[n.Node, n.VariableSymbol]]] = {}
        self.facts = facts

    def program(self, program: Program) -> Program:
        """The program in scores; its sides are its residuals."""
        forms = tuple(self._form(form) for form in program.forms)
        return of_new_moments(replace(program, objective=self._outer(program.objective), forms=forms))

    def _form(self, form: Form) -> Form:
        parts = [
            replace(
                part,
                residual=self._outer(part.residual)
                if part.rows is None
                else self._in_rows(part.residual, part.rows),
            )
            for part in form.parts
        ]
        return replace(form, parts=tuple(parts))

    def _outer(self, root: n.Node) -> n.Node:
        done: dict[int, n.Node] = {}
        for node in above_rows(root):
            if isinstance(node, n.Moment):
                done[id(node)] = replace(node, integrand=self._in_rows(node.integrand, node.data))
            else:
                done[id(node)] = n.rebuild(node, tuple(done[id(child)] for child in n.children(node)))
        return done[id(root)]

    def _in_rows(self, root: n.Node, data: Data) -> n.Node:
        order = n.postorder(root)
        chosen = {id(root)} if self._is_score(root, data) else set[int]()
        for node in order:
            if not self._is_score(node, data):
                chosen.update(id(child) for child in n.children(node) if self._is_score(child, data))
        done: dict[int, n.Node] = {}
        for node in order:
            inner = tuple(done[id(child)] for child in n.children(node))
            done[id(node)] = self._slot(node, data) if id(node) in chosen else n.rebuild(node, inner)
        return done[id(root)]

    def _is_score(self, node: n.Node, data: Data) -> bool:
        kind = type_of(node)
        if kind.rows is not data or kind.levels is not None or kind.shape != () or kind.event:
            return False
        return depends_on_decisions(node) and analyze(node, self.facts).curvature == "affine"

    def _slot(self, node: n.Node, data: Data) -> n.Node:
        own = self.known.setdefault(data, [])
        symbol = next((s for known, s in own if known == node), None)
        if symbol is None:
            symbol = n.VariableSymbol(f"(score {len(own) + 1} of {data.name})", (self.rows[data],))
            own.append((node, symbol))
        found: Any = n.Decision(symbol, loc=node.loc)
        return n.Apply("take", (found, n.Codes(data, ROW)))
