"""Findings about the structure of a problem: constants, conflicts, repetitions, what nothing depends on."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from constrain._lazy import language_printing
from constrain.diagnostics.names import part_label
from constrain.driver.findings import Finding, finding_of, listed
from constrain.errors import ModelingWarning
from constrain.language.vanishing import warn_vanishing
from constrain.lowering.dependence import depends_on_decisions
from constrain.lowering.lower import EPIGRAPH
from constrain.lowering.reach import always_held

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from constrain.diagnostics.point import Point
    from constrain.driver.linear import System
    from constrain.language import nodes as n
    from constrain.language.problem import Problem
    from constrain.lowering.program import Form
    from constrain.runtime.evaluator import Evaluator

__all__ = ["conflicts", "constants", "dependences", "repetitions", "squares", "unused_blocks"]

ROWS = 4096
"""Rows of each sample on which gradients are formed."""
ENTRIES = 100
"""Entries of constraints whose gradients are formed."""


def shown(node: n.Node) -> str:
    """Short text of a node."""
    return str(language_printing().text(node, limit=80))


# ------------------------------------------------------------------------------------ single constraints
def squares(problem: Problem) -> list[Finding]:
    """W206: constraints whose gradient is zero wherever they hold."""
    found: list[Finding] = []
    for name, relation in problem.constraints.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_vanishing(name, relation)
        messages = [w.message for w in caught if isinstance(w.message, ModelingWarning)]
        found += [finding_of(message, "warning", name) for message in messages]
    return found


def constants(evaluator: Evaluator, point: Point) -> list[Finding]:
    """W201: constraints without decisions, and those that hold whatever the decisions are."""
    program = evaluator.program
    found: list[Finding] = []
    for form in program.forms:
        if form.name == EPIGRAPH or depends_on_decisions(form.relation) or form.relaxation is not None:
            continue
        worst = _worst(evaluator, point, form)
        holds = worst <= 1e-9
        verdict = (
            f"always holds, with a slack of {-worst:.3g}" if holds else f"is always missed by {worst:.3g}"
        )
        severity = "warning" if holds else "error"
        message = f"{form.name}: {shown(form.relation)} contains no decision; it {verdict}"
        fix = "leave it out" if holds else "a relation that a Variable or a trained model can change"
        found.append(Finding("W201", severity, form.name, message, fix))
    bound = {data.name: population.data for data, population in evaluator.populations.items()}
    for name in always_held(program, bound, evaluator.params):
        form = next(f for f in program.forms if f.name == name)
        message = f"{name}: {shown(form.relation)} holds whatever the decisions are"
        found.append(Finding("W201", "warning", name, message, "a tighter bound, or leave it out"))
    return found


def _worst(evaluator: Evaluator, point: Point, form: Form) -> float:
    """Largest violation of a constraint at the point."""
    largest = -np.inf
    for i, part in enumerate(evaluator.program.parts):
        if part.constraint == form.name:
            residual = point.selected(i)
            size = np.abs(residual) if part.kind == "==" else residual
            largest = max(largest, float(np.max(size, initial=-np.inf)))
    return largest


# --------------------------------------------------------------------------------------- between them
def conflicts(system: System, known: Sequence[str] = ()) -> list[Finding]:
    """W202: constraints that exclude each other whatever the decisions are.

    Args:
        system: the linear rows of the problem.
        known: constraints that were found to be impossible already.
    """
    names = list(dict.fromkeys(row.constraint for row in system.rows if row.constraint not in known))
    found: list[Finding] = []
    while len(found) < 5:
        clash, by = system.conflict(names)
        if not clash:
            break
        who = f"{listed(clash)} exclude each other" if len(clash) > 1 else f"{clash[0]} cannot hold"
        message = f"{who}: whatever the decisions are, they are missed by {by:.3g} in all"
        fix = f"a weaker bound of one of them, or .relax(cost=...) on {clash[-1]!r}"
        found.append(Finding("W202", "error", ", ".join(clash), message, fix))
        names = [name for name in names if name not in clash]
    return found


def repetitions(evaluator: Evaluator, system: System) -> list[Finding]:
    """W203: constraints that say what another one says, or less."""
    found: list[Finding] = []
    own = _rows_by_constraint(system)
    seen: set[frozenset[str]] = set()
    said: set[str] = set()  # one reason why a constraint can be left out is enough
    for first, second in _pairs(list(own)):
        if said & {first, second}:
            continue
        if own[first] == own[second]:
            found.append(_same(first, second))
            said.add(second)
        elif _weaker(own[second], own[first]):
            found.append(_implied(second, first))
            said.add(second)
        elif _weaker(own[first], own[second]):
            found.append(_implied(first, second))
            said.add(first)
        seen.add(frozenset((first, second)))
    parts = [p for p in evaluator.program.parts if p.rows is not None]
    for k, a in enumerate(parts):
        for b in parts[:k]:
            same = (a.residual, a.kind, a.where, a.rows) == (b.residual, b.kind, b.where, b.rows)
            pair = frozenset((a.constraint, b.constraint))
            if same and len(pair) == 2 and pair not in seen and a.constraint not in said:
                said.add(a.constraint)
                found.append(_same(b.constraint, a.constraint))
    return found


def _rows_by_constraint(system: System) -> dict[str, dict[tuple[object, ...], float]]:
    """Per constraint its directions, each with its tightest constant; without those of constants."""
    own: dict[str, dict[tuple[object, ...], float]] = {}
    for row in system.rows:
        if row.places:
            mine = own.setdefault(row.constraint, {})
            tightest = max(mine.get(row.direction, -np.inf), round(row.constant, 12))
            mine[row.direction] = tightest
    return own


def _pairs(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for k, second in enumerate(names):
        for first in names[:k]:
            yield first, second


def _weaker(weak: dict[tuple[object, ...], float], strong: dict[tuple[object, ...], float]) -> bool:
    """Whether every inequality of `weak` follows from one of `strong`."""
    return all(key[0] == "<=" and value <= strong.get(key, -np.inf) for key, value in weak.items())


def _same(first: str, second: str) -> Finding:
    message = f"{first} and {second} say the same, so that only the sum of their multipliers is determined"
    return Finding("W203", "warning", f"{first}, {second}", message, f"leave {second!r} out")


def _implied(weak: str, strong: str) -> Finding:
    message = f"{weak} follows from {strong}, so that its multiplier is zero"
    return Finding("W203", "info", f"{weak}, {strong}", message, f"leave {weak!r} out")


# ------------------------------------------------------------------------------------------ gradients
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


def dependences(evaluator: Evaluator, generator: torch.Generator, known: Sequence[str] = ()) -> list[Finding]:
    """W203: constraints whose gradients are linearly dependent, here and at a point nearby.

    Of inequalities, which need not be active together, it is worth knowing; of equalities it means that
    multipliers are not unique, or that the equalities cannot hold together. Constraints in `known` are left
    out.
    """
    entries = [entry for entry in _entries(evaluator) if entry.constraint not in known]
    here = _jacobian(evaluator, entries)
    before = evaluator.decisions.snapshot()
    try:
        _nudge(evaluator, generator)
        there = _jacobian(evaluator, entries)
    finally:
        evaluator.decisions.restore(before)
    if not np.isfinite(there).all():
        there = here
    matrix = np.concatenate([here, there], axis=1)
    size = np.linalg.norm(matrix, axis=1)
    used = np.flatnonzero(np.isfinite(size) & (size > 1e-7 * np.max(size, initial=1e-300)))
    few = evaluator.decisions.size
    equal = [int(k) for k in used if entries[k].equality]
    found = _dependent([entries[k] for k in equal], matrix[equal] / size[equal, None], "warning")
    named = {name for finding in found for name in (finding.constraint or "").split(", ")}
    rest = [int(k) for k in used if entries[k].constraint not in named]
    if len(rest) <= few:
        found += _dependent([entries[k] for k in rest], matrix[rest] / size[rest, None], "info")
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


def _entries(evaluator: Evaluator) -> list[_Entry]:
    with torch.no_grad():
        residuals = _estimates(evaluator)[1]
    found: list[_Entry] = []
    for i, (part, residual) in enumerate(zip(evaluator.program.parts, residuals, strict=True)):
        if part.rows is None and part.constraint != EPIGRAPH and residual is not None:
            shape = tuple(residual.shape)
            found += [_Entry(evaluator, i, k, shape) for k in range(residual.numel())]
    return found[:ENTRIES]


def _jacobian(evaluator: Evaluator, entries: Sequence[_Entry]) -> NDArray[np.float64]:
    """Gradients of the entries on some rows: (entries, decisions)."""
    residuals = _estimates(evaluator)[1]
    tensors = evaluator.decisions.tensors
    rows = np.zeros((len(entries), evaluator.decisions.size))
    for k, entry in enumerate(entries):
        residual = residuals[entry.part]
        assert residual is not None  # chosen so
        if residual.requires_grad:
            scalar = residual.reshape(-1)[entry.index]
            found = torch.autograd.grad(
                scalar, tensors, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            rows[k] = np.concatenate([g.detach().cpu().double().numpy().reshape(-1) for g in found])
    return rows


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
