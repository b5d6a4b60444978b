"""What gradients at the start say: parameters that nothing uses, dependent constraints, flat ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from constrain.diagnostics.names import part_label
from constrain.driver.findings import Finding, listed
from constrain.lowering.dependence import depends_on_decisions
from constrain.lowering.lower import EPIGRAPH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.runtime.evaluator import Evaluator

__all__ = ["Slopes", "unused_blocks"]

ROWS = 4096
"""Rows of each sample on which gradients are formed."""
ENTRIES = 100
"""Entries of constraints whose gradients are formed."""


def unused_blocks(evaluator: Evaluator) -> list[Finding]:
    """W201: parameters of models that neither the objective nor a constraint depends on."""
    total, residuals = _estimates(evaluator)
    for residual in residuals:
        total = total if residual is None else total + residual.double().sum()
    blocks = evaluator.decisions.blocks
    if not total.requires_grad:
        return []
    tensors = [b.tensor for b in blocks]
    gradients = cast("Sequence[Tensor | None]", torch.autograd.grad(total, tensors, allow_unused=True))
    unused = [b.name for b, g in zip(blocks, gradients, strict=True) if g is None]
    names = _gathered(unused, [b.name for b in blocks])
    if not names:
        return []
    message = f"{listed(names)}: no term of the problem depends on {'it' if len(names) == 1 else 'them'}"
    fix = "requires_grad_(False) for these parameters, or a term that uses them"
    return [Finding("W201", "warning", None, message, fix)]


def _gathered(unused: Sequence[str], every: Sequence[str]) -> list[str]:
    """`f.2` for `f.2.weight` and `f.2.bias` when all parameters below it are unused."""
    found: dict[str, None] = {}
    for name in unused:
        pieces = name.split(".")
        for k in range(1, len(pieces) + 1):
            head = ".".join(pieces[:k])
            below = [other for other in every if other == head or other.startswith(head + ".")]
            if set(below) <= set(unused):
                found[head] = None
                break
    return list(found)


def _estimates(evaluator: Evaluator) -> tuple[Tensor, list[Tensor | None]]:
    """Objective and residuals (per row of constraints per row) on some rows, with gradient."""
    program = evaluator.program
    moments: dict[int, Tensor] = {}
    per_row: dict[int, Tensor] = {}
    for job in evaluator.jobs:
        rows = evaluator.populations[job.data].spread(ROWS)
        values = evaluator.rows(job, rows, "primal")
        reduced = evaluator.reduce_all(job, values[: len(job.moments)], rows, rows.count)
        moments.update(zip(job.moments, reduced, strict=True))
        per_row.update(zip(job.parts, values[len(job.moments) :], strict=False))
    outer = evaluator.outer([moments[i] for i in range(len(program.moments))], "primal")
    residuals = [per_row.get(i, residual) for i, residual in enumerate(outer.residuals)]
    return outer.objective.double(), residuals


class Slopes:
    """Gradients of the objective and of constraint entries, at the start and at a point nearby.

    Args:
        evaluator: the program with data.
        generator: of the point nearby.

    Attributes:
        entries: the entries, of constraints that are not per row.
        values: their residuals at the start, on some rows.
        matrix: (1 + entries, 2 * decisions) gradients at both points, first that of the objective.
    """

    def __init__(self, evaluator: Evaluator, generator: torch.Generator) -> None:
        self.evaluator = evaluator
        self.entries = _entries(evaluator)
        here, self.values = _jacobian(evaluator, self.entries)
        before = evaluator.decisions.snapshot()
        try:
            _nudge(evaluator, generator)
            there, _ = _jacobian(evaluator, self.entries)
        finally:
            evaluator.decisions.restore(before)
        self.matrix = np.concatenate([here, there if np.isfinite(there).all() else here], axis=1)

    def dependences(self, known: Sequence[str] = ()) -> list[Finding]:
        """W203: constraints whose gradients are linearly dependent at both points.

        Of inequalities, which need not be active together, it is worth knowing; of equalities it means that
        multipliers are not unique, or that the equalities cannot hold together. Constraints in `known` are
        left out.
        """
        rows = self.matrix[1:]
        size = np.linalg.norm(rows, axis=1)
        moving = np.isfinite(size) & (size > 1e-7 * np.max(size, initial=1e-300))
        used = [int(k) for k in np.flatnonzero(moving) if self.entries[int(k)].constraint not in known]
        equal = [k for k in used if self.entries[k].equality]
        found = _dependent([self.entries[k] for k in equal], rows[equal] / size[equal, None], "warning")
        named = {name for finding in found for name in (finding.constraint or "").split(", ")}
        rest = [k for k in used if self.entries[k].constraint not in named]
        if len(rest) <= self.evaluator.decisions.size:
            found += _dependent([self.entries[k] for k in rest], rows[rest] / size[rest, None], "info")
        return found

    def flat(self) -> list[Finding]:
        """W213: what is missed and does not change with the decisions, at neither point."""
        size = np.linalg.norm(self.matrix, axis=1)
        fix = "a differentiable function; P(...) or cn.indicator(...) for a step; another start"
        found: list[Finding] = []
        objective = self.evaluator.program.objective
        if size[0] == 0 and depends_on_decisions(objective):
            message = "the gradient of the objective is zero at the start and nearby: no step improves it"
            found.append(Finding("W213", "warning", "objective", message, fix))
        for name in dict.fromkeys(e.constraint for e in self.entries):
            own = [k for k, e in enumerate(self.entries) if e.constraint == name]
            missed = [k for k in own if self.entries[k].missed(self.values[k])]
            root = self.evaluator.program.parts[self.entries[own[0]].part].residual
            if missed and not size[[k + 1 for k in own]].any() and depends_on_decisions(root):
                message = f"{name} is missed at the start, and its gradient is zero there and nearby: "
                message += "no step improves it"
                found.append(Finding("W213", "warning", name, message, fix))
        return found


class _Entry:
    """Entry `index` of the flattened residual of part `part`."""

    def __init__(self, evaluator: Evaluator, part: int, index: int, shape: tuple[int, ...]) -> None:
        own = evaluator.program.parts[part]
        self.part = part
        self.index = index
        self.constraint = own.constraint
        self.equality = own.kind == "=="
        self.label = part_label(evaluator, part, index, shape)

    def missed(self, residual: float) -> bool:
        """Whether a residual violates it."""
        return (abs(residual) if self.equality else residual) > 1e-9


def _entries(evaluator: Evaluator) -> list[_Entry]:
    with torch.no_grad():
        residuals = _estimates(evaluator)[1]
    found: list[_Entry] = []
    for i, (part, residual) in enumerate(zip(evaluator.program.parts, residuals, strict=True)):
        if part.rows is None and part.constraint != EPIGRAPH and residual is not None:
            shape = tuple(residual.shape)
            found += [_Entry(evaluator, i, k, shape) for k in range(residual.numel())]
    return found[:ENTRIES]


def _jacobian(
    evaluator: Evaluator, entries: Sequence[_Entry]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gradients of the objective and the entries on some rows, (1 + entries, decisions), and their values."""
    objective, residuals = _estimates(evaluator)
    picked = [objective]
    for entry in entries:
        residual = residuals[entry.part]
        assert residual is not None  # chosen so
        picked.append(residual.reshape(-1)[entry.index])
    rows = np.zeros((len(picked), evaluator.decisions.size))
    for k, scalar in enumerate(picked):
        if scalar.requires_grad:
            found = torch.autograd.grad(
                scalar,
                evaluator.decisions.tensors,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            rows[k] = np.concatenate([g.detach().cpu().double().numpy().reshape(-1) for g in found])
    return rows, np.array([float(scalar.detach()) for scalar in picked[1:]])


def _nudge(evaluator: Evaluator, generator: torch.Generator) -> None:
    """Moves the decisions a little, within their bounds."""
    with torch.no_grad():
        for tensor in evaluator.decisions.tensors:
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            size = 0.1 * (tensor.double().square().mean().sqrt() + 0.1)
            tensor.add_((noise.to(tensor.device) * size).to(tensor.dtype))
    evaluator.decisions.project()


def _dependent(entries: Sequence[_Entry], rows: NDArray[np.float64], severity: str) -> list[Finding]:
    """Each row that is a combination of earlier ones, with these."""
    found: list[Finding] = []
    basis: list[int] = []
    reported: set[frozenset[str]] = set()
    for k, entry in enumerate(entries):
        weights: NDArray[np.float64] = np.zeros(0)
        rest: NDArray[np.float64] = rows[k]
        if basis:
            weights = np.linalg.pinv(rows[basis].T) @ rows[k]
            rest = rows[k] - weights @ rows[basis]
        if np.linalg.norm(rest) > 1e-5:
            basis.append(k)
            continue
        others = [(basis[j], float(w)) for j, w in enumerate(weights) if abs(w) > 1e-3]
        names = dict.fromkeys([*(entries[j].constraint for j, _ in others), entry.constraint])
        if frozenset(names) in reported or (severity == "info" and _apart(entry, others, entries)):
            continue
        reported.add(frozenset(names))
        labels = [*(entries[j].label for j, _ in others), entry.label]
        word = "parallel" if len(labels) == 2 else "linearly dependent"
        if severity == "info":
            message = f"the gradients of {listed(labels)} are {word}; where all of these are active, "
            message += "their multipliers are not unique"
        else:
            message = f"the gradients of {listed(labels)} are {word}: their multipliers are not unique, and "
            message += "together they may have no solution"
        fix = "leave one of them out, or read sums of multipliers only"
        found.append(Finding("W203", severity, ", ".join(names), message, fix))  # type: ignore[arg-type]
    return found


def _apart(entry: _Entry, others: Sequence[tuple[int, float]], entries: Sequence[_Entry]) -> bool:
    """Whether two inequalities face each other: a band, whose sides are not active together."""
    if len(others) != 1:
        return False
    place, weight = others[0]
    same = entries[place].constraint == entry.constraint
    return not entry.equality and not entries[place].equality and (same or weight < 0)
