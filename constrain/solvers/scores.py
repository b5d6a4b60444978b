"""Second derivatives of terms that see the decisions through a few affine scores per row, in closed form.

With s = A theta + b the scores of a row, such as the linear predictor of a generalized linear model, the
Hessian of an average of g(s) is A' diag(g'') A: one matrix product with constant A, where differentiating the
gradient takes a backward pass over all rows for every decision. The scores are found in the expressions: the
largest ones per row that are affine in the decisions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from constrain.analysis.curvature import analyze
from constrain.language import nodes as n
from constrain.language.regions import Region
from constrain.language.types import type_of
from constrain.lowering.degree import degree
from constrain.lowering.dependence import depends_on_decisions
from constrain.runtime.codegen import generate
from constrain.runtime.decisions import Decisions
from constrain.runtime.derivatives import Linearization, jacobian, linearize, whole
from constrain.solvers.kinks import ROW, above_rows, number_rows, of_new_moments

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
        matrices: A, (rows, decisions) each.
    """

    data: Data
    nodes: list[n.Node]
    slots: list[Tensor]
    matrices: list[Tensor]


class Scores:
    """The terms as functions of scores.

    Args:
        evaluator: of the problem.
        view: of the program in which scores are variables.
        samples: the scores.
        check: called now and then; it may raise to stop.
    """

    def __init__(
        self, evaluator: Evaluator, view: Evaluator, samples: list[_Sample], check: Callable[[], None]
    ) -> None:
        self.evaluator, self.view, self.samples = evaluator, view, samples
        self._functions = [
            generate("scores", evaluator.tables, [(node, "primal") for node in sample.nodes])
            for sample in samples
        ]
        for i, sample in enumerate(samples):
            for score in self._values(i):
                sample.matrices.append(_slopes(score, evaluator.decisions.tensors, check))

    def _values(self, i: int) -> list[Tensor]:
        """The scores of a sample at the current decisions, with their graph."""
        sample = self.samples[i]
        rows = self.evaluator.populations[sample.data].everything()
        return self.evaluator.compute(self._functions[i], rows, sample.data)

    def _fill(self) -> None:
        """Gives the variables that stand for scores their values."""
        with torch.no_grad():
            for i, sample in enumerate(self.samples):
                for slot, score in zip(sample.slots, self._values(i), strict=True):
                    slot.copy_(score)

    def linearize(self) -> Linearization:
        """As `derivatives.linearize`."""
        self._fill()
        found = linearize(self.view)
        both = torch.cat([found.gradient[None], found.jacobian])
        pieces: dict[int, Tensor] = {}
        at = 0
        for t in self.view.decisions.tensors:
            pieces[id(t)] = both[:, at : at + t.numel()]
            at += t.numel()
        tensors = self.evaluator.decisions.tensors
        direct = [pieces.get(id(t), both.new_zeros((len(both), t.numel()))) for t in tensors]
        total = torch.cat(direct, 1)
        for sample in self.samples:
            for slot, matrix in zip(sample.slots, sample.matrices, strict=True):
                total = total + pieces[id(slot)] @ matrix
        return Linearization(found.objective, total[0], found.residuals, total[1:])

    def hessian(
        self, function: Callable[[Outer], Tensor], row_term: RowTerm | None, check: Callable[[], None]
    ) -> Tensor:
        """As `derivatives.hessian`, of a function that is affine in averages.

        Args:
            function: of the outer values, scalar.
            row_term: added to it, a sum over the rows of constraints per row.
            check: called now and then; it may raise to stop.
        """
        self._fill()
        values = whole(self.view, row_term)
        scalar = function(values.outer) + values.added
        tensors = self.evaluator.decisions.tensors
        slots = [slot for sample in self.samples for slot in sample.slots]
        found = torch.autograd.grad(scalar, [*tensors, *slots], create_graph=True, materialize_grads=True)
        flat = torch.cat([g.reshape(-1) for g in found[: len(tensors)]])
        total = jacobian(flat, tensors, check=check)
        mixed = self._mixed(flat, slots, check)
        at = len(tensors)
        for sample in self.samples:
            check()
            own = found[at : at + len(sample.slots)]
            at += len(sample.slots)
            for slope, left in zip(own, sample.matrices, strict=True):
                for second, right in zip(
                    _derivatives(slope.sum(), sample.slots), sample.matrices, strict=True
                ):
                    if second is not None:
                        total = total + left.T @ (second.detach()[:, None] * right)
        return total if mixed is None else total + mixed + mixed.T

    def _mixed(self, flat: Tensor, slots: Sequence[Tensor], check: Callable[[], None]) -> Tensor | None:
        """The part in which averages have decisions as factors; None where they have none."""
        if not flat.requires_grad or all(g is None for g in _derivatives(flat.sum(), slots)):
            return None
        crossed = jacobian(flat, slots, max(slot.numel() for slot in slots), check)
        matrices = [matrix for sample in self.samples for matrix in sample.matrices]
        return crossed @ torch.cat(matrices)


def _derivatives(scalar: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not scalar.requires_grad:
        return [None] * len(leaves)
    return torch.autograd.grad(scalar, leaves, retain_graph=True, allow_unused=True)


def _slopes(score: Tensor, tensors: Sequence[Tensor], check: Callable[[], None]) -> Tensor:
    """(rows, decisions) derivatives of a score: pulled back with unknown weights, differentiated in these."""
    weights = torch.ones_like(score).requires_grad_(True)
    pulled = torch.autograd.grad(score, tensors, weights, create_graph=True, materialize_grads=True)
    flat = torch.cat([g.reshape(-1) for g in pulled])
    return jacobian(flat, [weights], len(score), check).T.contiguous()


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
    state = _Rewriting({d: evaluator.populations[d].rows for d in program.populations})
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
        _Sample(data, [node for node, _ in own], [decisions.variables[s] for _, s in own], [])
        for data, own in state.known.items()
        if own
    ]
    return Scores(evaluator, view, samples, check)


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
    """

    def __init__(self, rows: dict[Data, int]) -> None:
        self.rows = rows
        self.known: dict[Data, list[tuple[n.Node, n.VariableSymbol]]] = {}
        self.facts: dict[int, Fact] = {}

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
