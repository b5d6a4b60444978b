"""Findings about the structure of a problem: constants, conflicts, repetitions, what nothing depends on."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from constrain._lazy import language_printing
from constrain.driver.findings import Finding, finding_of, listed
from constrain.errors import ModelingWarning
from constrain.language.vanishing import warn_vanishing
from constrain.lowering.dependence import depends_on_decisions
from constrain.lowering.lower import EPIGRAPH
from constrain.lowering.reach import always_held

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from constrain.diagnostics.point import Point
    from constrain.driver.linear import System
    from constrain.language import nodes as n
    from constrain.language.problem import Problem
    from constrain.lowering.program import Form
    from constrain.runtime.evaluator import Evaluator

__all__ = ["conflicts", "constants", "repetitions", "squares"]


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
    for first, second in _pairs(own):
        if first in said or second in said:
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


def _pairs(own: Mapping[str, Mapping[tuple[object, ...], float]]) -> Iterator[tuple[str, str]]:
    """Constraints that share a direction, in order: the others say nothing about each other."""
    with_direction: dict[tuple[object, ...], list[str]] = {}
    for second, directions in own.items():
        found = dict.fromkeys(first for d in directions for first in with_direction.get(d, ()))
        for first in found:
            yield first, second
        for d in directions:
            with_direction.setdefault(d, []).append(second)


def _weaker(weak: dict[tuple[object, ...], float], strong: dict[tuple[object, ...], float]) -> bool:
    """Whether every inequality of `weak` follows from one of `strong`."""
    return all(key[0] == "<=" and value <= strong.get(key, -np.inf) for key, value in weak.items())


def _same(first: str, second: str) -> Finding:
    message = f"{first} and {second} say the same, so that only the sum of their multipliers is determined"
    return Finding("W203", "warning", f"{first}, {second}", message, f"leave {second!r} out")


def _implied(weak: str, strong: str) -> Finding:
    message = f"{weak} follows from {strong}, so that its multiplier is zero"
    return Finding("W203", "info", f"{weak}, {strong}", message, f"leave {weak!r} out")
